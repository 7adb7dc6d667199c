"""Labels in the two datasets' styles, enriched descriptions, and reading facts back from them."""

from __future__ import annotations

import re

import numpy as np

from mini.world.kinds import KINDS
from mini.world.scene import Action, Scene, State, Thing, other

QUESTION = "How does the person properly {} that is displayed in the video frame?"
VERBS = ("pick", "take", "lift", "open", "close", "put", "place", "pour", "cut", "slice", "clean")
LEMMAS = {f"{verb}s": verb for verb in VERBS} | {"washes": "wash"}

# {o}, {t}, {w}: object, target and tool with articles; the first form is the commonest
NARRATIONS = {
    "pick up": ("picks up {o}", "picks up {o} from the table", "takes {o}"),
    "open": ("opens {o}",),
    "close": ("closes {o}",),
    "put": ("puts {o} {in} {t}", "places {o} {in} {t}"),
    "pour": ("pours milk from {o} into {t}", "pours milk into {t}"),
    "cut": ("cuts {o}", "cuts {o} with {w}", "slices {o}"),
    "wash": ("washes {o}", "washes {o} with {w}", "cleans {o}"),
}
EPIC_LABELS = {
    "pick up": ("pick up {o}", "take {o}"),
    "open": ("open {o}",),
    "close": ("close {o}",),
    "put": ("put {o} {into} {t}", "place {o} {into} {t}"),
    "pour": ("pour milk into {t}", "pour milk from {o} into {t}"),
    "cut": ("cut {o}", "cut {o} with {w}"),
    "wash": ("wash {o}", "clean {o}"),
}

# {h}: acting hand, {at}: place, {r}: what the other hand does. The acting hand and the object are
# named before any other hand and thing, the target comes second: parse_description relies on it.
DESCRIPTIONS = {
    "pick up": (
        "With the {h} hand, the person reaches for the {o} {at}, wraps the fingers around it and "
        "lifts it towards the body, leaving its place empty, while the {i} hand {r}.",
        "The person stretches out the {h} hand to the {o} {at}, grips it firmly and picks it up, "
        "so that it is held in front of the body, while the {i} hand {r}.",
    ),
    "open jar": (
        "With the {h} hand, the person opens the {o} {at} by turning its lid and laying it on the "
        "table beside, so that the dark inside shows, while the {i} hand {r}.",
    ),
    "close jar": (
        "With the {h} hand, the person closes the {o} {at} by taking its lid from the table and "
        "pressing it on top, so that the inside is hidden, while the {i} hand {r}.",
    ),
    "open lunch box": (
        "With the {h} hand, the person opens the {o} {at} by swinging its lid up to the back, so "
        "that the pale food inside shows, while the {i} hand {r}.",
    ),
    "close lunch box": (
        "With the {h} hand, the person closes the {o} {at} by swinging its lid down to the front, "
        "so that the food inside is hidden, while the {i} hand {r}.",
    ),
    "put": (
        "With the {h} hand, the person carries the {o} over to the {t} {at}, sets it down {on} and "
        "lets go, so that the hand is empty, while the {i} hand {r}.",
        "The person moves the {h} hand with the {o} to the {t} {at}, places it {on} and opens the "
        "fingers, which stay close by, while the {i} hand {r}.",
    ),
    "pour": (
        "With the {h} hand, the person raises the {o} over the {t} {at} and tilts it to the {i}, "
        "so that a white stream of milk pours into it, while the {i} hand {r}.",
    ),
    "cut": (
        "With the {h} hand, the person cuts the {o} {at}, pressing the {w} down through it, "
        "so that two pieces with pale flesh lie apart, while the {i} hand {r}.",
    ),
    "wash": (
        "With the {h} hand, the person washes the {o} {at}, rubbing the {w} over it in small "
        "circles until white foam covers it, while the {i} hand {r}.",
    ),
}
VERB_MARKS = (  # first match in the text decides
    ("pick up", r"\b(?:lifts it|picks it up|picks? up|takes?)\b"),
    ("open", r"\bopens? (?!the fingers)"),
    ("close", r"\bcloses?\b"),
    ("put", r"\b(?:sets it down|places it|puts?|places?)\b"),
    ("pour", r"\bpours?\b"),
    ("cut", r"\b(?:cuts?|slices?)\b"),
    ("wash", r"\b(?:wash(?:es)?|cleans?)\b"),
)


def label(action: Action, dataset: str, rng: np.random.Generator) -> str:
    """Raw Ego4D narration ("#C C picks up the mug") or Epic-Kitchens label ("pick up mug")."""
    raw = dataset == "ego4d"
    forms = (NARRATIONS if raw else EPIC_LABELS)[action.verb]
    article = "the " if raw else ""
    into = KINDS[action.target].preposition if action.target else ""
    text = forms[rng.integers(len(forms))].format(
        o=article + action.object,
        t=article + action.target,
        w=article + action.tool,
        into=into,
        **{"in": into.removesuffix("to")},
    )
    return "#C C " + text if raw else text


def cleaned(text: str) -> str:
    """A label as stage 1 asks for it: without "#C C", first verb as its lemma."""
    words = text.removeprefix("#C C").split()
    return " ".join([LEMMAS.get(words[0], words[0]), *words[1:]])


def place_words(thing: Thing) -> str:
    """Where a thing stands, from its position alone."""
    depth = "near" if thing.y > 0.6 else "far"
    ring = "outer" if abs(thing.x - 0.5) > 0.25 else "inner"
    return spot_phrase(f"{depth} {ring} {'left' if thing.x < 0.5 else 'right'}")


def spot_phrase(spot: str) -> str:
    """Words for one of PLACES: "far outer left" -> "at the far left corner of the table"."""
    depth, ring, side = spot.split()
    if (depth, ring) == ("far", "outer"):
        return f"at the far {side} corner of the table"
    return f"at the {depth} side {side} of the middle"


def _named(kind: str) -> str:
    return f"{KINDS[kind].colour} {kind}" if kind else ""


def _other_hand(state: State, side: str) -> str:
    held = [thing.kind for thing in state.things.values() if thing.held == side]
    return f"keeps holding the {_named(held[0])}" if held else "stays empty"


def describe(scene: Scene, action: Action, rng: np.random.Generator) -> str:
    """The enriched description: which hand, which object where, how, and what comes of it."""
    key = f"{action.verb} {action.object}" if action.verb in ("open", "close") else action.verb
    forms = DESCRIPTIONS[key]
    idle = other(action.hand)
    spot = scene.state.things[action.target or action.object]
    return forms[rng.integers(len(forms))].format(
        h=action.hand,
        i=idle,
        o=_named(action.object),
        t=_named(action.target),
        w=_named(action.tool),
        at=place_words(spot),
        on="inside" if action.target and KINDS[action.target].preposition == "into" else "on top",
        r=_other_hand(scene.state, idle),
    )


def parse_description(text: str) -> dict[str, str | None]:
    """Facts that a description states: verb, object, hand, target (put, pour) and place.

    Works on any text: what is not said is None. Repetition and odd spacing do no harm, since the
    first acting hand, the first object and the first verb count.
    """
    text = " ".join(text.lower().split())
    kinds = re.findall("|".join(sorted(KINDS, key=len, reverse=True)), text)
    hand = re.search(r"\b(left|right) hand\b", text)
    found = [(match.start(), verb) for verb, mark in VERB_MARKS if (match := re.search(mark, text))]
    verb = min(found)[1] if found else None
    distinct = list(dict.fromkeys(kinds))
    takes_target = verb in ("put", "pour") and len(distinct) > 1
    sides = "(?:left|right)"
    place = re.search(
        f"at the (?:near|far) side {sides} of the middle|at the far {sides} corner of the table",
        text,
    )
    return {
        "verb": verb,
        "object": distinct[0] if distinct else None,
        "hand": hand.group(1) if hand else None,
        "target": distinct[1] if takes_target else None,
        "place": place.group(0) if place else None,
    }
