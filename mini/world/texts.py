"""Labels in the two datasets' styles, enriched descriptions, and reading facts back from them."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from mini.world.kinds import KINDS, PLACES
from mini.world.scene import Action, Scene, Thing, other

TEXTS = yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text(encoding="utf-8"))


def label(action: Action, dataset: str, rng: np.random.Generator) -> str:
    """Raw Ego4D narration ("#C C picks up the mug") or Epic-Kitchens label ("pick up mug")."""
    raw = dataset == "ego4d"
    forms = TEXTS["narrations" if raw else "epic_labels"][action.verb]
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


def named(kind: str) -> str:
    """ "red apple"; empty for no kind."""
    return f"{KINDS[kind].colour} {kind}" if kind else ""


def holding(held: Sequence[str]) -> str:
    """What a hand does that holds these kinds, one or none."""
    return f"keeps holding the {named(held[0])}" if held else "stays empty"


def describe(scene: Scene, action: Action, rng: np.random.Generator) -> str:
    """The enriched description: which hand, which object where, how, and what comes of it."""
    key = f"{action.verb} {action.object}" if action.verb in ("open", "close") else action.verb
    forms = TEXTS["descriptions"][key]
    idle = other(action.hand)
    spot = scene.state.things[action.target or action.object]
    return forms[rng.integers(len(forms))].format(
        h=action.hand,
        i=idle,
        o=named(action.object),
        t=named(action.target),
        w=named(action.tool),
        at=place_words(spot),
        on="inside" if action.target and KINDS[action.target].preposition == "into" else "on top",
        r=holding([thing.kind for thing in scene.state.things.values() if thing.held == idle]),
    )


def parse_description(text: str) -> dict[str, str | None]:
    """Facts that a description states: verb, object, hand, target (put, pour) and place.

    Works on any text: what is not said is None. Repetition and odd spacing do no harm, since the
    first acting hand, the first object and the first verb count.
    """
    text = " ".join(text.lower().split())
    kinds = re.findall("|".join(sorted(KINDS, key=len, reverse=True)), text)
    hand = re.search(r"\b(left|right) hand\b", text)
    marks = TEXTS["marks"].items()
    found = [(match.start(), verb) for verb, mark in marks if (match := re.search(mark, text))]
    verb = min(found)[1] if found else None
    distinct = list(dict.fromkeys(kinds))
    takes_target = verb in ("put", "pour") and len(distinct) > 1
    place = re.search("|".join(map(spot_phrase, PLACES)), text)
    return {
        "verb": verb,
        "object": distinct[0] if distinct else None,
        "hand": hand.group(1) if hand else None,
        "target": distinct[1] if takes_target else None,
        "place": place.group(0) if place else None,
    }
