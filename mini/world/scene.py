"""Scenes and actions: what stands where, which hand holds what, and what an action leaves behind.

A scene is a function of its random generator alone; the state after an action is a function of the
state before it and of the action, so that the target image follows from what the source shows.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from mini.world.kinds import JITTER, KINDS, PLACES, SIDES, WORLD

SIZES, HELD, CONDITIONS = WORLD["sizes"], WORLD["held"], WORLD["conditions"]


@dataclass(frozen=True)
class Thing:
    """An object. (x, y): relative base point on the table; `place` is "" for things not on it."""

    kind: str
    x: float
    y: float
    scale: float
    place: str = ""
    condition: str = ""  # closed, open, cut, washed, filled, or nothing special
    held: str = ""  # the hand that holds it
    inside: str = ""  # the container that it was put into or onto


@dataclass(frozen=True)
class Hand:
    """What a hand does: rest, hold, or touch, release, pour, cut, wash at `target`."""

    mode: str = "rest"
    target: str = ""


@dataclass(frozen=True)
class State:
    things: dict[str, Thing]
    hands: dict[str, Hand] = field(default_factory=lambda: {side: Hand() for side in SIDES})


@dataclass(frozen=True)
class Action:
    """`hand` does `verb` to `object`; `target` takes it (put, pour); `tool` is in the hand."""

    verb: str
    object: str
    hand: str
    target: str = ""
    tool: str = ""


@dataclass(frozen=True)
class Scene:
    """What the images of one clip share; `lit` in [-1, 1]: light from the left to the right."""

    size: tuple[int, int]
    video_size: tuple[int, int]
    table: str
    look_seed: int  # textures and tones
    lit: float
    gain: float
    skin: tuple[float, float, float]
    sleeve: tuple[float, float, float]
    sway: dict[str, tuple[float, float]]  # per hand: shift of its poses, relative
    tones: dict[str, tuple[float, ...]]  # per kind: hue shift, saturation, value factors
    state: State
    actions: tuple[Action, ...]

    @property
    def unit(self) -> float:
        """Pixels a unit: objects keep their share of the width, more or less."""
        return 25.0 + 0.103 * self.size[0]


def other(side: str) -> str:
    return "right" if side == "left" else "left"


def sample_scene(rng: np.random.Generator, dataset: str, wanted_actions: int = 3) -> Scene:
    """Draw a scene with at least `wanted_actions` (1 to 4) actions, most telling ones first."""
    sizes = SIZES[dataset]
    size, video_size, _ = sizes[rng.choice(len(sizes), p=[entry[2] for entry in sizes])]
    options: list[Action] = []
    while len(options) < wanted_actions:
        state = _holding_state(rng) if rng.random() < 0.6 else _idle_state(rng)
        options = possible_actions(state)
    return Scene(
        size=tuple(size),
        video_size=tuple(video_size),
        table=str(rng.choice([*WORLD["tables"]], p=(0.4, 0.2, 0.2, 0.2))),
        look_seed=int(rng.integers(2**31)),
        lit=float(rng.uniform(-1, 1)),
        gain=float(rng.uniform(0.97, 1.1)),
        skin=WORLD["skins"][rng.integers(len(WORLD["skins"]))],
        sleeve=WORLD["sleeves"][rng.integers(len(WORLD["sleeves"]))],
        sway={side: tuple(rng.uniform(-0.015, 0.015, 2).tolist()) for side in SIDES},
        tones={kind: tuple(float(rng.uniform(*ends)) for ends in WORLD["tones"]) for kind in KINDS},
        state=state,
        actions=_choose(rng, options, wanted_actions),
    )


def _stand(rng: np.random.Generator, kind: str, place: str) -> Thing:
    spot = PLACES[place]
    dx, dy = rng.uniform(-1, 1, 2) * JITTER
    condition = str(rng.choice(("closed", "open"))) if KINDS[kind].opens else ""
    scale = spot.scale * float(rng.uniform(0.96, 1.06))
    return Thing(kind, float(spot.x + dx), float(spot.y + dy), scale, place, condition)


def _opener_first(rng: np.random.Generator, kinds: list[str], probability: float) -> list[str]:
    """Perhaps a jar or lunch box before the rest: opening and closing would be rare otherwise."""
    if rng.random() >= probability:
        return kinds
    opener = "jar" if rng.random() < 0.5 else "lunch box"
    return [opener, *(kind for kind in kinds if kind != opener)]


def _idle_state(rng: np.random.Generator) -> State:
    """Both hands empty: four or five things, one of them near."""
    places = [name for name in PLACES if name.startswith("far")]
    places.append(str(rng.choice([name for name in PLACES if name.startswith("near")])))
    kinds = _opener_first(rng, rng.permutation([*KINDS]).tolist(), 0.7)
    places = rng.permutation(places).tolist()[: int(rng.integers(4, 6))]
    if dict(zip(kinds, places, strict=False)).get("bottle", "").startswith("near"):
        places = [*places[1:], places[0]]  # so tall there, it would hide what stands behind it
    things = [_stand(rng, kind, place) for kind, place in zip(kinds, places, strict=False)]
    return State({thing.kind: thing for thing in things})


def _holding_state(rng: np.random.Generator) -> State:
    """One hand holds something and has one or two targets on its side; the other side is free."""
    side = str(rng.choice(SIDES))
    held = str(rng.choice([*HELD], p=[*HELD.values()]))
    targets = rng.permutation(KINDS[held].targets).tolist()[:2]
    places = [f"far inner {side}", f"near inner {side}"]
    if held not in ("bottle", "knife"):
        places.append(f"far outer {side}")
    places = rng.permutation(places).tolist()
    things = [_stand(rng, kind, place) for kind, place in zip(targets, places, strict=False)]
    spare = [kind for kind in KINDS if kind not in (held, *targets)]
    free_kinds = _opener_first(rng, rng.permutation(spare).tolist(), 0.6)
    free = rng.permutation([f"far {ring} {other(side)}" for ring in ("inner", "outer")]).tolist()
    if rng.random() < 0.4 and f"far outer {side}" not in places[: len(targets)]:
        free.append(f"far outer {side}")  # stands there for nothing
    things += [_stand(rng, kind, place) for kind, place in zip(free_kinds, free, strict=False)]
    things.append(Thing(held, 0.0, 0.0, float(rng.uniform(0.96, 1.06)), held=side))
    return State({thing.kind: thing for thing in things}, {side: Hand("hold"), other(side): Hand()})


def possible_actions(state: State) -> list[Action]:
    """All actions of the world's rules: a holding hand works with what it holds, a free one takes,
    opens and closes what stands on its own side of the table."""
    actions = []
    on_table = [thing for thing in state.things.values() if thing.place]
    for thing in state.things.values():
        if thing.held:
            reach = [
                near.kind
                for near in on_table
                if PLACES[near.place].side == thing.held
                and (near.place.split()[1] == "inner" or thing.kind not in ("bottle", "knife"))
            ]
            targets = [kind for kind in KINDS[thing.kind].targets if kind in reach]
            actions += [_work(thing.kind, thing.held, target) for target in targets]
    for thing in on_table:
        side = PLACES[thing.place].side
        if state.hands[side].mode != "rest":
            continue
        if KINDS[thing.kind].opens:
            verb = "open" if thing.condition == "closed" else "close"
            actions.append(Action(verb, thing.kind, side))
        if thing.condition != "open":
            actions.append(Action("pick up", thing.kind, side))
    return actions


def _work(held: str, side: str, target: str) -> Action:
    verb = KINDS[held].verb
    if verb in ("put", "pour"):
        return Action(verb, held, side, target)
    return Action(verb, target, side, tool=held)


def _choose(rng: np.random.Generator, options: list[Action], count: int) -> tuple[Action, ...]:
    """`count` different actions; rarer verbs are drawn more often."""
    weights = np.array([WORLD["verb_weights"].get(action.verb, 1.0) for action in options])
    picked = rng.choice(len(options), size=count, replace=False, p=weights / weights.sum())
    return tuple(options[i] for i in picked)


def after(state: State, action: Action) -> State:
    """The state that `action` leaves behind."""
    things, hands = dict(state.things), dict(state.hands)
    thing = things[action.object]
    if action.verb == "pick up":
        things[action.object] = replace(thing, held=action.hand, place="")
        hands[action.hand] = Hand("hold")
    elif action.verb in CONDITIONS:
        things[action.object] = replace(thing, condition=CONDITIONS[action.verb])
        mode = "touch" if action.verb in ("open", "close") else action.verb
        hands[action.hand] = Hand(mode, action.object)
    elif action.verb == "put":
        things[action.object] = replace(thing, held="", inside=action.target)
        hands[action.hand] = Hand("release", action.target)
    elif action.verb == "pour":
        things[action.target] = replace(things[action.target], condition="filled")
        hands[action.hand] = Hand("pour", action.target)
    return State(things, hands)
