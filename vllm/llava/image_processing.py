"""Images to pixel values, as CLIP's image processor does it, with LLaVA's aspect options."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from egogen import EgoGenError, check_choice, read_object, write_json

FILE = "preprocessor_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ASPECTS = ("square", "pad", "squeeze")


@dataclass(frozen=True)
class ImageProcessor:
    """An image of any size and mode -> (3, size, size) float32, normalised by `mean` and `std`.

    aspect "square": short side to `size`, then the centre (as in the released code; 16:9 loses 44 %
    of the width); "pad": square canvas of the mean colour first; "squeeze": all of the frame into
    the square, its sides by different factors.
    """

    size: int = 224
    aspect: str = "square"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self):
        check_choice("image_aspect_ratio ", self.aspect, ASPECTS)

    def square(self, image: Image.Image) -> Image.Image:
        """The image as RGB, `size` pixels high and wide."""
        image = image.convert("RGB")
        if self.aspect == "pad":
            side, own = max(image.size), image
            image = Image.new("RGB", (side, side), tuple(int(255 * part) for part in self.mean))
            image.paste(own, ((side - own.width) // 2, (side - own.height) // 2))
        if self.aspect == "squeeze":
            return image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        short = min(image.size)
        size = int(self.size * image.width / short), int(self.size * image.height / short)
        left, top = (size[0] - self.size) // 2, (size[1] - self.size) // 2
        image = image.resize(size, Image.Resampling.BICUBIC)
        return image.crop((left, top, left + self.size, top + self.size))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        image = self.square(image)
        values = np.asarray(image, dtype=np.float32) / np.float32(255)  # (size, size, 3)
        mean, std = (np.asarray(three, dtype=np.float32) for three in (self.mean, self.std))
        values = (values - mean) / std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def batch(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.stack([self(image) for image in images])  # (B, 3, size, size)

    def settings(self) -> dict[str, Any]:
        """Fields of preprocessor_config.json, for transformers, which knows no aspect option."""
        square = {"height": self.size, "width": self.size}
        size = square if self.aspect == "squeeze" else {"shortest_edge": self.size}
        own = {"size": size, "crop_size": square, "image_mean": self.mean, "image_std": self.std}
        return read_object(Path(__file__).with_name(FILE)) | own

    def save(self, folder: str | os.PathLike) -> None:
        write_json(Path(folder) / FILE, self.settings(), indent=2)


def load_image_processor(folder: str | os.PathLike, size: int, aspect: str) -> ImageProcessor:
    """`size` and `aspect` come from the model's config; mean and std from the folder if there."""
    path = Path(folder) / FILE
    settings = read_object(path, needed=False)
    values = asdict(ImageProcessor(size, aspect))
    for name, field in (("mean", "image_mean"), ("std", "image_std")):
        value = settings.get(field, values[name])
        listed = isinstance(value, list | tuple) and len(value) == 3
        if not listed or not all(isinstance(number, int | float) for number in value):
            raise EgoGenError(f"{path}: field {field!r}: expected three numbers, found {value}")
        values[name] = tuple(map(float, value))
    return ImageProcessor(**values)
