"""Both stages for one photograph: describe the action, then generate its frame, in one process."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from egogen.errors import EgoGenError
from egogen.seeds import stable_seed
from ldm.data import to_features
from ldm.file_layout import TABLE
from ldm.generate import generate_batch, load_model, prepare
from ldm.images import to_image, to_pixels
from ldm.schema import GenerateConfig
from ldm.split import Features
from llava.checkpoints.load import load
from llava.describing.decoding import Decoding
from llava.describing.describe import Description, describe_frames
from llava.labels import clean_label

SAMPLE = ("photo", "0")  # stands for clip and action in everything that is drawn at random
WIDEST = 6.0  # longer side over shorter; beyond it a frame squeezed to a square shows nothing


@dataclass(frozen=True)
class Frame:
    """`image` has the photograph's aspect."""

    image: Image.Image
    action: str
    description: str


def verb_phrase(action: str) -> str:
    """What the question asks about: "pick up the mug", also from "#C C picks up the mug"."""
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


def describe(
    folder: str | os.PathLike,
    photo: Image.Image,
    action: str,
    seed: int,
    settings: Decoding,
    device: torch.device,
    features: Features,
) -> Description:
    """Only stage 1; its model is let go of afterwards, so that stage 2 has the memory.

    Raises EgoGenError when its features are not as wide as those of stage 2.
    """
    loaded = load(folder, device=str(device))
    found = loaded.model.config.text_config.hidden_size
    for name, spec in features.items():
        if spec.width != found:
            raise EgoGenError(
                f"{folder}: features of width {found}, but the config of stage 2 has "
                f"{TABLE}.{name}.width={spec.width}: not from the same run"
            )
    seeds = [stable_seed(seed, *SAMPLE)]
    description = describe_frames(loaded, [photo], [action], seeds=seeds, settings=settings)[0]
    if not description.text:
        raise EgoGenError(f"{folder}: gave no description of {action!r}; try another --seed")
    del loaded
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return description


def condition(photo: Image.Image, description: Description, config: GenerateConfig) -> dict:
    """What stage 2 sees, as `ldm.data.read_condition` gives it for an entry on disk.

    Raises EgoGenError when the features have another number of rows than the config expects.
    """
    features = config.model.conditioner.features
    found = {"image": description.image_features, "text": description.text_features}
    for name, spec in features.items():
        if name not in found:
            raise EgoGenError(f"config: {TABLE}.{name}: stage 1 gives {', '.join(found)} alone")
        if not spec.padded and len(found[name]) != spec.rows:
            raise EgoGenError(
                f"stage 1 gives {len(found[name])} {name} rows, but the config of stage 2 has "
                f"{TABLE}.{name}.rows={spec.rows}"
            )
    return {
        "pixels": to_pixels(photo, config.data.res),
        "prompt": description.text,
        "features": to_features(found, features),
    }


def generate_frame(
    photo: Image.Image,
    action: str,
    *,
    vllm: str | os.PathLike,
    ldm: str | os.PathLike,
    config: GenerateConfig,
    settings: Decoding,
    device: torch.device,
) -> Frame:
    """Photograph (RGB, upright) and action -> the frame in which it is done, and its description.

    `config` is a `GenerateConfig`; the first of its guidance scales and its seed are used. Equal
    input gives an equal frame.
    """
    action, inference = verb_phrase(action), config.inference
    if not Path(ldm).is_file():
        raise EgoGenError(f"{ldm}: no such checkpoint")  # reported before stage 1 is run
    features = config.model.conditioner.features
    description = describe(vllm, photo, action, inference.seed, settings, device, features)
    sample = condition(photo, description, config)
    model = prepare(load_model(config.model, str(ldm), device), inference)
    scales = inference.scales_img[0], inference.scales_txt[0]
    decoded = generate_batch(model, [sample], [SAMPLE], inference, *scales)[0]
    image = to_image(decoded, photo.size, inference.height, inference.picture)
    return Frame(image, action, description.text)
