"""Did the action happen? Compares a source image with one that should show the outcome.

Works from the two images alone; see mini.oracle.reading for how an image is read. Thresholds, here
and in thresholds.yaml, are in relative units (share of width or height) and were set on rendered
frames, sharp and squeezed to 64 x 64 with blur and noise; tests/test_mini_oracle.py holds the rates
that they give.
"""

import math
from collections.abc import Mapping

from PIL import Image

from egogen.errors import EgoGenError
from mini.oracle.reading import THRESHOLDS, Box, Reading, Seen, read_image
from mini.world.kinds import HOLD

WORKS = THRESHOLDS["works"]
STILL = 0.1  # an idle hand that moved less stayed where it was


def judge(
    source: Reading | Image.Image, result: Reading | Image.Image, action: Mapping
) -> tuple[bool, str]:
    """Whether `action` (verb, object, hand, target, tool as in the truth file) happened; why not.

    Raises EgoGenError for a verb that the mini world does not know.
    """
    verb = action.get("verb")
    if verb not in CHECKS:
        raise EgoGenError(f"action {dict(action)}: unknown verb, expected one of {sorted(CHECKS)}")
    before = source if isinstance(source, Reading) else read_image(source)
    now = result if isinstance(result, Reading) else read_image(result)
    why = _hands(before, now, action["hand"]) or CHECKS[verb](before, now, action)
    return not why, why


def _apart(a: Seen, b: Seen) -> float:
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


def _near(hand: Seen, thing: Seen, across: float, above: float, below: float) -> bool:
    """Whether a hand is beside a thing: `across` each way, from `above` it to `below` it."""
    return abs(hand.x - thing.x) < across and -above < hand.y - thing.y < below


def _left(before: Reading, now: Reading, thing: Seen) -> bool:
    """Whether most of a thing is gone from the box in which it was."""
    share = before.share(thing.kind, thing.box)
    return now.share(thing.kind, thing.box) <= 0.5 * share


def _picked_up(before: Reading, now: Reading, action: Mapping) -> str:
    kind, side = action["object"], action["hand"]
    was, new = before.objects.get(kind), now.objects.get(kind)
    if was is None or new is None:
        return f"no {kind} to be seen"
    across = 0.19 if kind == "knife" else 0.1
    if abs(new.x - HOLD[side][0]) > across or not 0.44 < new.y < 0.8 or _apart(was, new) < 0.1:
        return f"the {kind} is not in front of the {side} hand"
    if not _left(before, now, was):
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
    was, target, new = before.objects.get(kind), before.objects.get(where), now.objects.get(kind)
    if was is None or target is None or new is None:
        return f"no {kind} to be seen"
    if _apart(was, new) < 0.08 or not _left(before, now, was):
        return f"the {kind} is still in the {side} hand"
    if abs(new.x - target.x) > 0.075 or not -0.22 < new.y - target.y < 0.06:
        return f"the {kind} is not at the {where}"
    return _reached(before, now, side, target)


def _worked(before: Reading, now: Reading, action: Mapping) -> str:
    """The held tool must have come to its target and left its trace; the hand is still at it."""
    side, work = action["hand"], WORKS[action["verb"]]
    tool, kind = work["tool"], action["target"] or action["object"]
    was, target, new = before.objects.get(tool), before.objects.get(kind), now.objects.get(tool)
    if was is None or target is None or new is None:
        return f"no {tool} or no {kind} to be seen"
    across, down = new.x - target.x, new.y - target.y
    outer = -across if side == "left" else across
    (inner_end, outer_end), (high, low) = work["across"], work["down"]
    there = inner_end < outer < outer_end and high < down < low
    if _apart(was, new) < work["moved"] or not there:
        return f"the {tool} is not {work['where']} the {kind}"
    if why := _trace(before, now, action["verb"], target):
        return why
    near = _near(now.hands[side], new, work["near"], 0.2, 0.25)
    return "" if near else f"no {side} hand at the {tool}"


def _trace(before: Reading, now: Reading, verb: str, target: Seen) -> str:
    """Milk, foam or flesh must have come to the target, and a cut have parted it."""
    kind = target.kind

    def more(name: str, box: Box) -> float:
        return now.share(name, box) - before.share(name, box)

    if verb == "pour":
        return "" if more("white", target.box) >= 0.02 else f"no milk in the {kind}"
    if verb == "wash":
        around = target.around(0.08, 0.12, 0.05)
        foam = now.share("white", around) if kind == "plate" else more("white", around)
        return "" if foam >= 0.05 else f"no foam on the {kind}"
    middle, around = target.around(0.02, 0.05, 0.09), target.around(0.14, 0.12, 0.12)
    if now.share(kind, middle) > 0.5 * before.share(kind, middle):
        return f"the {kind} is in one piece"
    return "" if more("flesh", around) >= 0.02 else f"the {kind} shows no flesh"


CHECKS = {"pick up": _picked_up, "open": _lid, "close": _lid, "put": _put}
CHECKS |= dict.fromkeys(WORKS, _worked)
