"""Did the action happen? Compares a source image with one that should show the outcome.

Works from the two images alone; see mini.oracle.reading for how an image is read. Thresholds are
in relative units (share of width or height) and were set on rendered frames, sharp and squeezed to
64 x 64 with blur and noise; tests/test_mini_oracle.py holds the rates that they give.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from egogen.errors import EgoGenError
from mini.oracle.reading import Reading, Seen, SeenHand, read_image
from mini.world.kinds import HOLD

__all__ = ["action_done", "judge", "read_image"]

Box = tuple[float, float, float, float]  # left, top, right, bottom
STILL = 0.1  # an idle hand that moved less stayed where it was


def action_done(
    source: Reading | Image.Image, result: Reading | Image.Image, action: Mapping
) -> bool:
    """Whether `action` (verb, object, hand, target, tool as in the truth file) happened."""
    return judge(source, result, action)[0]


def judge(
    source: Reading | Image.Image, result: Reading | Image.Image, action: Mapping
) -> tuple[bool, str]:
    """(done, why not). Raises EgoGenError for a verb that the mini world does not know."""
    verb = action.get("verb")
    if verb not in CHECKS:
        raise EgoGenError(f"action {dict(action)}: unknown verb, expected one of {sorted(CHECKS)}")
    before = source if isinstance(source, Reading) else read_image(source)
    now = result if isinstance(result, Reading) else read_image(result)
    why = _hands(before, now, action["hand"]) or CHECKS[verb](before, now, action)
    return not why, why


def _apart(a: Seen | SeenHand, b: Seen | SeenHand) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)


def _hands(before: Reading, now: Reading, side: str) -> str:
    """The other hand must have stayed where it was, and the acting one must be seen."""
    idle = "right" if side == "left" else "left"
    if idle in before.hands:
        hand = now.hands.get(idle)
        if hand is None or _apart(hand, before.hands[idle]) > STILL:
            return f"the {idle} hand did not stay where it was"
    if side not in now.hands:
        return f"no {side} hand"
    return ""


def _box(thing: Seen, grow: float = 1.0) -> Box:
    wide, high = thing.width / 2 * grow, thing.height / 2 * grow
    return thing.x - wide, thing.y - high, thing.x + wide, thing.y + high


def _near(hand: SeenHand, thing: Seen, across: float, above: float, below: float) -> bool:
    """Whether a hand is beside a thing: `across` each way, from `above` it to `below` it."""
    return abs(hand.x - thing.x) < across and -above < hand.y - thing.y < below


def _things(reading: Reading, *kinds: str) -> list[Seen] | None:
    found = [reading.objects[kind] for kind in kinds if kind in reading.objects]
    return found if len(found) == len(kinds) else None


def _picked_up(before: Reading, now: Reading, action: Mapping) -> str:
    kind, side = action["object"], action["hand"]
    was, new = before.objects.get(kind), now.objects.get(kind)
    if was is None or new is None:
        return f"no {kind} to be seen"
    across = 0.19 if kind == "knife" else 0.1
    low, high = 0.44, 0.8
    if abs(new.x - HOLD[side][0]) > across or not low < new.y < high or _apart(was, new) < 0.1:
        return f"the {kind} is not in front of the {side} hand"
    if now.share(kind, _box(was)) > 0.5 * before.share(kind, _box(was)):
        return f"the {kind} still stands in its place"
    if not _near(now.hands[side], new, 0.2, 0.14, 0.36 if kind == "bottle" else 0.26):
        return f"the {side} hand is not at the {kind}"
    return ""


def _lid(before: Reading, now: Reading, action: Mapping) -> str:
    kind, side = action["object"], action["hand"]
    was, new = before.objects.get(kind), now.objects.get(kind)
    if was is None or new is None:
        return f"no {kind} to be seen"
    wanted = "open" if action["verb"] == "open" else "closed"
    if abs(new.x - was.x) > 0.08 or abs(new.y - was.y) > 0.14:
        return f"the {kind} moved"
    if new.state != wanted or was.state == wanted:
        return f"the {kind} is {new.state}"
    return _reached(before, now, side, was)


def _reached(before: Reading, now: Reading, side: str, thing: Seen) -> str:
    """The acting hand must have come from its place to the thing."""
    hand = now.hands[side]
    if side in before.hands and _apart(hand, before.hands[side]) < 0.05:
        return f"the {side} hand did not move"
    if not _near(hand, thing, 0.26, 0.28, 0.4):
        return f"the {side} hand is not at the {thing.kind}"
    return ""


def _put(before: Reading, now: Reading, action: Mapping) -> str:
    kind, side, where = action["object"], action["hand"], action["target"]
    found, new = _things(before, kind, where), now.objects.get(kind)
    if found is None or new is None:
        return f"no {kind} to be seen"
    was, target = found
    if _apart(was, new) < 0.08 or now.share(kind, _box(was)) > 0.5 * before.share(kind, _box(was)):
        return f"the {kind} is still in the {side} hand"
    if abs(new.x - target.x) > 0.075 or not -0.22 < new.y - target.y < 0.06:
        return f"the {kind} is not at the {where}"
    return _reached(before, now, side, target)


@dataclass(frozen=True)
class Work:
    """A held thing, where it is now, and what it works on."""

    tool: Seen
    target: Seen
    moved: float  # how far the tool came
    across: float  # from the target to the tool, positive on the acting hand's side
    down: float


def _work(before: Reading, now: Reading, tool: str, kind: str, side: str) -> Work | None:
    found, new = _things(before, tool, kind), now.objects.get(tool)
    if found is None or new is None:
        return None
    was, target = found
    outer = -1 if side == "left" else 1
    return Work(new, target, _apart(was, new), (new.x - target.x) * outer, new.y - target.y)


def _around(thing: Seen, across: float, above: float, below: float) -> Box:
    return thing.x - across, thing.y - above, thing.x + across, thing.y + below


def _poured(before: Reading, now: Reading, action: Mapping) -> str:
    side, where = action["hand"], action["target"]
    work = _work(before, now, "bottle", where, side)
    if work is None:
        return "no bottle to be seen"
    if work.moved < 0.07 or not (0.0 < work.across < 0.24 and -0.42 < work.down < -0.08):
        return f"the bottle is not above the {where}"
    milk = now.share("white", _box(work.target)) - before.share("white", _box(work.target))
    if milk < 0.02:
        return f"no milk in the {where}"
    near = _near(now.hands[side], work.tool, 0.2, 0.2, 0.25)
    return "" if near else f"no {side} hand at the bottle"


def _cut(before: Reading, now: Reading, action: Mapping) -> str:
    kind, side = action["object"], action["hand"]
    work = _work(before, now, "knife", kind, side)
    if work is None:
        return f"no knife or no {kind} to be seen"
    if work.moved < 0.05 or not (-0.06 < work.across < 0.15 and -0.32 < work.down < 0.0):
        return f"the knife is not over the {kind}"
    middle, around = _around(work.target, 0.02, 0.05, 0.09), _around(work.target, 0.14, 0.12, 0.12)
    if now.share(kind, middle) > 0.5 * before.share(kind, middle):
        return f"the {kind} is in one piece"
    if now.share("flesh", around) - before.share("flesh", around) < 0.02:
        return f"the {kind} shows no flesh"
    near = _near(now.hands[side], work.tool, 0.24, 0.2, 0.25)
    return "" if near else f"no {side} hand at the knife"


def _washed(before: Reading, now: Reading, action: Mapping) -> str:
    kind, side = action["object"], action["hand"]
    work = _work(before, now, "sponge", kind, side)
    if work is None:
        return f"no sponge or no {kind} to be seen"
    if work.moved < 0.06 or not (-0.04 < work.across < 0.16 and abs(work.down) < 0.15):
        return f"the sponge is not on the {kind}"
    around = _around(work.target, 0.08, 0.12, 0.05)
    if now.share("white", around) - (kind != "plate") * before.share("white", around) < 0.05:
        return f"no foam on the {kind}"
    return "" if _near(now.hands[side], work.tool, 0.2, 0.2, 0.25) else f"no {side} hand there"


CHECKS = {
    "pick up": _picked_up,
    "open": _lid,
    "close": _lid,
    "put": _put,
    "pour": _poured,
    "cut": _cut,
    "wash": _washed,
}
