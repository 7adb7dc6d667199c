"""Both stages for one photograph: describe the action, then generate its frame, in one process."""

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from egogen.errors import EgoGenError
from egogen.labels import clean_label, question
from egogen.seeds import stable_seed
from ldm.data import Sample, to_features
from ldm.file_layout import TABLE
from ldm.generate import generate_batch, load_model, prepare
from ldm.images import to_image, to_pixels
from ldm.schema import GenerateConfig
from ldm.split import Features
from llava.describing.decoding import Decoding
from llava.describing.describer import Describer, Description, load_describer

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


def describe(
    folder: str | os.PathLike,
    photo: Image.Image,
    action: str,
    seed: int,
    settings: Decoding,
    device: torch.device,
    features: Features,
) -> Description:
    """Load stage 1, describe the action, and free its memory for stage 2."""
    describer = load_describer(folder, settings, device=str(device))
    check_features(describer, features)
    seeds = [stable_seed(seed, *NAME)]
    (description,) = describer.describe([photo], [question(action)], seeds=seeds, names=[NAME])
    if not description.text:
        raise EgoGenError(f"{folder}: gave no description of {action!r}; try another --seed")
    del describer
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return description


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

    The first of the config's guidance scales and its seed are used. Equal input gives an equal
    frame.
    """
    action, inference = verb_phrase(action), config.inference
    if not Path(ldm).is_file():
        raise EgoGenError(f"{ldm}: no such checkpoint")  # reported before stage 1 is run
    features = config.model.conditioner.features
    description = describe(vllm, photo, action, inference.seed, settings, device, features)
    sample: Sample = {  # as `ldm.data.read_condition` gives it for an entry on disk
        "pixels": to_pixels(photo, config.data.res),
        "prompt": description.text,
        "features": to_features(description.features, features),
    }
    model = prepare(load_model(config.model, str(ldm), device, config.loras), inference)
    scales = inference.scales_img[0], inference.scales_txt[0]
    decoded = generate_batch(model, [sample], [NAME], inference, *scales)[0]
    height = inference.height or decoded.shape[1]
    return Frame(to_image(decoded, photo.size, height, inference.picture), action, description.text)
