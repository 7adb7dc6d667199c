"""Both stages in memory: photographs and actions in, frames out."""

import gc
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from egogen import EgoGenError, stable_seed
from egogen.labels import clean_label, question
from ldm.checkpoints import checkpoint_place
from ldm.data import given_conditions
from ldm.file_layout import TABLE
from ldm.generate import generate_batch, load_model, prepare
from ldm.images import to_image, to_pixels
from ldm.model import LegoModel
from ldm.schema import GenerateConfig, InferenceConfig
from ldm.split import Features
from llava.describing.decoding import Decoding
from llava.describing.describer import Describer, Description, Name, load_describer

NAME = ("photo", "0")  # stands for clip and action in everything that is drawn at random
WIDEST = 6.0  # longer side over shorter; beyond it a frame squeezed to a square shows nothing


@dataclass(frozen=True)
class Frame:
    """`image` has the photograph's aspect."""

    image: Image.Image
    action: str
    description: str


def verb_phrase(action: str) -> str:
    """What the question asks about: "pick up the mug", also from "#C C picks up the mug"."""
    action = action.encode("utf-8", "replace").decode()  # bytes of a command line that are no text
    phrase = clean_label(action, "ego4d" if action.lstrip().startswith("#") else "epickitchen")
    if not phrase:
        raise EgoGenError(f"--action {action!r}: names no action, expected e.g. 'pick up the mug'")
    return phrase


def check_photo(photo: Image.Image, path: str | os.PathLike) -> None:
    if max(photo.size) > WIDEST * min(photo.size):
        raise EgoGenError(
            f"{path}: {photo.width}x{photo.height} pixels, expected at most {WIDEST:g} times as "
            "long as wide"
        )


def check_features(describer: Describer, features: Features) -> None:
    """Raises EgoGenError when stage 1 does not make the features that stage 2 is conditioned on."""
    for name, spec in features.items():
        made = describer.features.get(name)
        if made is None:
            raise EgoGenError(f"config: {TABLE}.{name}: {describer.name} makes no such feature")
        rows = made.rows if not spec.padded else spec.rows
        pairs = {"width": (made.width, spec.width), "rows": (rows, spec.rows)}
        for key, (found, wanted) in pairs.items():
            if found != wanted:
                raise EgoGenError(
                    f"{describer.name}: {name} features of {key} {found}, but the config of stage "
                    f"2 has {TABLE}.{name}.{key}={wanted}: not from the same run"
                )


@dataclass
class Stages:
    """Both stages of a run, each loaded once, when it is first needed.

    `vllm`: folder or hub name of stage 1, which writes by `settings`; `ldm`: checkpoint of stage 2.
    Without `keep` stage 1 is freed after a call's descriptions: less memory, for one call. Raises
    EgoGenError, here or when a stage is loaded, for models that cannot be used. Threads may share
    one: a stage works for one of them at a time.
    """

    vllm: str | os.PathLike
    ldm: str | os.PathLike
    config: GenerateConfig
    settings: Decoding
    device: torch.device
    keep: bool = True
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self):
        self.ldm = checkpoint_place(self.ldm)  # reported before stage 1 is run

    @cached_property
    def describer(self) -> Describer:
        describer = load_describer(self.vllm, self.settings, device=str(self.device))
        check_features(describer, self.config.model.conditioner.features)
        return describer

    @cached_property
    def model(self) -> LegoModel:
        config = self.config
        model = load_model(config.model, str(self.ldm), self.device, config.loras)
        return prepare(model, config.inference)

    def frames(
        self,
        photos: Sequence[Image.Image],
        actions: Sequence[str],
        names: Sequence[Name] = (NAME,),
        seed: int | None = None,
    ) -> list[Frame]:
        """Photographs (RGB, upright) and actions -> the frames in which these are done.

        What is drawn for a frame belongs to its name and `seed` (None: the config's); equal input
        gives equal frames. The first of the config's guidance scales are used. Raises EgoGenError
        for an action that stage 1 has no room for or writes nothing about.
        """
        described = self.describe(photos, actions, names, seed)
        if not self.keep:
            del self.describer
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return self.draw(photos, actions, described, names, seed)

    def describe(
        self,
        photos: Sequence[Image.Image],
        actions: Sequence[str],
        names: Sequence[Name] = (NAME,),
        seed: int | None = None,
        texts: Sequence[str] | None = None,
        temperature: float | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Description]:
        """Stage 1: descriptions and their features, or the features of `texts` that are given.

        `temperature`: in place of the settings'. `on_text` is told the first sample's text so far
        with each token; what it raises ends the writing. Raises EgoGenError as `frames` does.
        """
        seed = self.config.inference.seed if seed is None else seed
        questions = [question(verb_phrase(action)) for action in actions]
        seeds = [stable_seed(seed, *name) for name in names]
        more: dict = {"on_text": on_text} if on_text else {}
        more |= {"texts": texts} if texts is not None else {}
        with self.lock:
            describer = self.describer
            warmth = self.settings.temperature if temperature is None else temperature
            describer.settings = replace(self.settings, temperature=warmth)
            given: Sequence = texts or [None] * len(photos)
            for asked, name, text in zip(questions, names, given, strict=True):
                if why := describer.too_long(asked, name, text):
                    raise EgoGenError(f"{self.vllm}: {why}")
            made = describer.describe(photos, questions, seeds=seeds, names=names, **more)
        for action in (action for action, one in zip(actions, made, strict=True) if not one.text):
            what = f"{self.vllm}: gave no description of {verb_phrase(action)!r}"
            raise EgoGenError(f"{what}; try another --seed")
        return made

    def draw(
        self,
        photos: Sequence[Image.Image],
        actions: Sequence[str],
        described: Sequence[Description],
        names: Sequence[Name] = (NAME,),
        seed: int | None = None,
        inference: InferenceConfig | None = None,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> list[Frame]:
        """Stage 2: frames of what stage 1 has described, by the config's `inference` or another.

        `on_step` is told how many steps are done; what it raises ends the drawing.
        """
        inference = inference or self.config.inference
        inference = replace(inference, seed=inference.seed if seed is None else seed)
        features = self.config.model.conditioner.features
        pixels = [to_pixels(photo, self.config.data.res) for photo in photos]
        texts = {"description": [one.text for one in described]}
        given = {name: [one.features[name] for one in described] for name in features}
        samples = given_conditions(pixels, texts, given, features)
        scales = inference.scales_img[0], inference.scales_txt[0]

        def told(step: int, t: Tensor, x: Tensor) -> Tensor:
            on_step(step + 1)
            return x

        with self.lock:
            decoded = generate_batch(self.model, samples, names, inference, *scales, on_step=told)
        height, picture = inference.height or decoded.shape[2], inference.picture  # (B, 3, R, R)
        return [
            Frame(to_image(x, photo.size, height, picture), verb_phrase(action), made.text)
            for x, photo, action, made in zip(decoded, photos, actions, described, strict=True)
        ]
