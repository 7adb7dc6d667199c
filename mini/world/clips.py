"""One clip: its scene, images, texts and truth, from (seed, dataset, split, index) alone."""

import hashlib
import io
import uuid
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from egogen import DESCRIPTION_KEY, stable_seed
from mini.world import texts
from mini.world.kinds import HOLD, KINDS
from mini.world.render import Renderer
from mini.world.scene import Action, Scene, Thing, after, sample_scene

FPS = {"ego4d": 30.0, "epickitchen": 50.0}
PARTICIPANTS = 37
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Clip:
    """A clip of which the first `count` of its `actions_per_clip` actions are asked for."""

    seed: int
    dataset: str
    split: str
    index: int
    actions_per_clip: int
    count: int

    def _rng(self, what: object) -> np.random.Generator:
        return np.random.default_rng(
            stable_seed(self.seed, self.dataset, self.split, self.index, what)
        )

    @cached_property
    def scene(self) -> Scene:
        return sample_scene(self._rng("scene"), self.dataset, self.actions_per_clip)

    @cached_property
    def name(self) -> str:
        """A uuid for Ego4D, "P01_11" for Epic-Kitchens; train and val never share one."""
        if self.dataset == "ego4d":
            text = f"{self.seed} {self.split} {self.index}".encode()
            return str(uuid.UUID(hashlib.sha256(text).hexdigest()[:32]))
        number = 2 * self.index + (self.split != "train")
        return f"P{number % PARTICIPANTS + 1:02d}_{number // PARTICIPANTS + 1:02d}"

    @cached_property
    def frame_numbers(self) -> list[int]:
        """Frame number of the source, then of each target."""
        rng = self._rng("frames")
        first = int(rng.integers(100, 90_000))
        return [first, *(first + int(step) for step in rng.integers(20, 90, self.actions_per_clip))]

    def frame_name(self, number: int) -> str:
        return f"frame_{number:010d}.jpg"

    @property
    def actions(self) -> tuple[Action, ...]:
        return self.scene.actions[: self.count]

    def entries(self) -> dict[str, dict[str, str]]:
        """action id -> the released JSON fields."""
        source, *targets = self.frame_numbers
        return {
            str(k): {
                "image_0": f"{self.name}/{k}/{self.frame_name(source)}",
                "image_1": f"{self.name}/{k}/{self.frame_name(targets[k])}",
                "action": texts.label(action, self.dataset, self._rng(("label", k))),
                DESCRIPTION_KEY: texts.describe(self.scene, action, self._rng(("text", k))),
            }
            for k, action in enumerate(self.actions)
        }

    def images(self) -> list[bytes]:
        """JPEG bytes of the source image, then of each target."""
        renderer, state = Renderer(self.scene), self.scene.state
        states = [state, *(after(state, action) for action in self.actions)]
        return [jpeg(renderer.image(each)) for each in states]

    def metadata(self) -> dict[str, Any]:
        """Size and rate of the original video; per action its object's box there, [x, y, w, h]."""
        width, height = self.scene.video_size
        boxes = {}
        for k, action in enumerate(self.actions):
            x, y, w, h = box_of(self.scene, self.scene.state.things[action.object])
            box = [round(x * width), round(y * height), round(w * width), round(h * height)]
            boxes[str(k)] = {"object": action.object, "bbox": box}
        video = {"width": width, "height": height, "fps": FPS[self.dataset]}
        return {**video, "split": self.split, "actions": boxes}

    def truth(self) -> dict[str, Any]:
        """What the scene holds and what each action does, for scoring."""
        scene = self.scene
        things = {
            kind: {
                "box": [round(value, 4) for value in box_of(scene, thing)],
                "place": thing.place,
                "condition": thing.condition,
                "held_by": thing.held or None,
            }
            for kind, thing in scene.state.things.items()
        }
        actions = {}
        for k, action in enumerate(self.actions):
            fields = {name: value or None for name, value in asdict(action).items()}
            spot = scene.state.things[action.target or action.object]
            actions[str(k)] = {**fields, "where": texts.place_words(spot)}
        seen = {"size": list(scene.size), "table": scene.table, "things": things}
        return {"split": self.split, "scene": seen, "actions": actions}


def box_of(scene: Scene, thing: Thing) -> tuple[float, float, float, float]:
    """Relative box (left, top, width, height) of a thing in the source image."""
    width, height = scene.size
    unit = scene.unit * thing.scale
    wide, high = (side * unit for side in KINDS[thing.kind].size)
    x, y = thing.x * width, thing.y * height
    if thing.held:
        dx, dy = scene.sway[thing.held]
        x, y = (HOLD[thing.held][0] + dx) * width, (HOLD[thing.held][1] + dy) * height
        if thing.kind == "knife":  # held up aslant, its tip towards the middle
            x += 0.4 * unit if thing.held == "left" else -0.4 * unit
            wide, high = 1.1 * unit, 1.1 * unit
            y += 0.15 * unit
        else:
            x -= KINDS[thing.kind].grasp[0] * unit
            y -= KINDS[thing.kind].grasp[1] * unit
    left, top = max(x - wide / 2, 0.0), max(y - high, 0.0)
    right, bottom = min(x + wide / 2, width), min(y, height)
    return left / width, top / height, (right - left) / width, (bottom - top) / height


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
