"""What the mini dataset says about its scenes: labels of patches, captions and questions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from egogen import EgoGenError, action_file, frame_folder, read_actions, read_json
from mini.world.kinds import KINDS, PLACES, SIDES
from mini.world.texts import TEXTS, holding, named, spot_phrase

KIND_NAMES = tuple(KINDS)
SPOTS = (*PLACES, *(f"held {side}" for side in SIDES))
STATES = ("", "closed", "open")
BACKGROUND = "table"  # the word for patches without a thing, label 0 of each group
CAPTION_QUESTION = "What is where?"


@dataclass(frozen=True)
class Scene:
    """One source frame and the truth about it: kind -> {box, place, condition, held_by}.

    `mirrored`: the truth is about the frame flipped from left to right.
    """

    frame: Path
    things: dict[str, dict[str, Any]]
    mirrored: bool = False

    def spot(self, kind: str) -> str:
        thing = self.things[kind]
        return f"held {thing['held_by']}" if thing["held_by"] else thing["place"]


def read_scenes(root: Path, names: Sequence[str], split: str = "train") -> list[Scene]:
    """One scene per clip of the split, of all named datasets."""
    scenes = []
    for name in names:
        truth = read_json(root / f"{name}_truth.json")
        entries = read_actions(action_file(root, name, split))
        first = {entry.clip: entry for entry in reversed(entries)}
        for clip, entry in first.items():
            if clip not in truth:
                raise EgoGenError(f"{root / name}_truth.json: clip {clip!r} is missing")
            frame = frame_folder(root, name, split) / entry.image_0
            scenes.append(Scene(frame, truth[clip]["scene"]["things"]))
    return sorted(scenes, key=lambda scene: str(scene.frame))


def mirror(scene: Scene) -> Scene:
    """The scene flipped from left to right: as good as another, since no rule prefers a side."""
    things, swapped = {}, {"left": "right", "right": "left"}
    for kind, thing in scene.things.items():
        left, top, width, height = thing["box"]
        flipped: dict[str, Any] = {"box": [1 - left - width, top, width, height]}
        for name in ("place", "held_by"):
            words = (thing[name] or "").split()
            flipped[name] = " ".join(swapped.get(word, word) for word in words) or thing[name]
        things[kind] = {**thing, **flipped}
    return replace(scene, things=things, mirrored=not scene.mirrored)


def label_words() -> tuple[tuple[str, ...], ...]:
    """A word or a few for each label of `patch_labels`, in its three groups."""
    return (
        (BACKGROUND, *KIND_NAMES),
        (BACKGROUND, *map(spot_words, SPOTS)),
        (BACKGROUND, "whole", *STATES[1:]),
    )


def spot_words(spot: str) -> str:
    """A short name of a spot: "far corner left", "near side right", "hand left"."""
    for word, said in (("held", "hand"), ("outer", "corner"), ("inner", "side")):
        spot = spot.replace(word, said)
    return spot


def patch_labels(scene: Scene, grid: int) -> np.ndarray:
    """(3, grid, grid) int64: kind, spot and condition per patch, each 0 where no thing is.

    A patch belongs to the thing whose box its centre is in; nearer things (lower base) win.
    """
    labels = np.zeros((3, grid, grid), np.int64)
    centres = (np.arange(grid) + 0.5) / grid
    for kind in sorted(scene.things, key=lambda name: _base(scene.things[name])):
        left, top, width, height = scene.things[kind]["box"]
        rows = (centres >= top) & (centres <= top + height)
        columns = (centres >= left) & (centres <= left + width)
        condition = STATES.index(scene.things[kind]["condition"])
        found = np.array([KIND_NAMES.index(kind), SPOTS.index(scene.spot(kind)), condition])
        labels[:, rows[:, None] & columns[None, :]] = 1 + found[:, None]
    return labels


def _base(thing: dict[str, Any]) -> float:
    return thing["box"][1] + thing["box"][3] + (1.0 if thing["held_by"] else 0.0)


def caption(scene: Scene, rng: np.random.Generator) -> list[str]:
    """A question and an answer that lists all things in random order: "mug left near side, ..."."""
    parts = []
    for kind in rng.permutation(sorted(scene.things)):
        where, _, side = spot_words(scene.spot(kind)).rpartition(" ")
        condition = scene.things[kind]["condition"]
        parts.append(f"{kind} {side} {where} {condition}".strip())
    return [CAPTION_QUESTION, ", ".join(parts) + "."]


def questions(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """Turns (question, answer, question, ...) on `count` things and one hand, in random order.

    Where a thing is, which hand is for it, or both as a sentence that begins with the hand.
    """
    rounds = []
    for kind in rng.permutation(sorted(scene.things))[:count]:
        spot = scene.spot(kind)
        side, held = spot.split()[-1], spot.startswith("held")
        where = f"in the {side} hand" if held else spot_phrase(spot)
        forms = TEXTS["questions"]["held" if held else "standing"]
        words = {"k": kind, "n": named(kind), "h": side, "where": where}
        rounds.append([text.format(**words) for text in forms[rng.integers(len(forms))]])
    side = str(rng.choice(SIDES))
    answer = holding([kind for kind in scene.things if scene.spot(kind) == f"held {side}"])
    rounds.append([f"What does the {side} hand do?", f"The {side} hand {answer}."])
    return [turn for k in rng.permutation(len(rounds)) for turn in rounds[k]]
