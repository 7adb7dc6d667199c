"""Images as tensors, and reading many of them while the network is busy."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from PIL import Image
from torch.nn.functional import interpolate

from egogen.frames import read_rgb
from egogen.jobs import track
from metrics.frame_pairs import Pair
from metrics.registry import Settings

Item = TypeVar("Item")
Result = TypeVar("Result")
# Of the images that CLIP was trained on (Radford et al. 2021; BLIP keeps them), RGB in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image -> (3, H, W) float32 in [0, 1]."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255


def resized(image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(3, H, W) at the size of `like`: bilinear, not antialiased, as in the released code."""
    if image.shape[-2:] == like.shape[-2:]:
        return image
    return interpolate(image[None], like.shape[-2:], mode="bilinear", align_corners=False)[0]


def squeezed(
    images: Sequence[torch.Tensor], side: int, mode: str, device: str | torch.device
) -> torch.Tensor:
    """Images (3, H, W) of any sizes -> (n, 3, side, side), not antialiased, aspect not kept."""
    resize = partial(interpolate, size=(side, side), mode=mode, align_corners=False)
    return torch.cat([resize(image[None].to(device)) for image in images])


def read_unresized(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """(generated, target), (3, H, W) float32 in [0, 1], each at its own size."""
    return to_tensor(read_rgb(pair.generated)), to_tensor(read_rgb(pair.target))


def read_pair(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `read_unresized`, with the generated frame brought to the target's size."""
    generated, target = read_unresized(pair)
    return resized(generated, target), target


def read_source(pair: Pair) -> Image.Image:
    """The source frame; ValueError for a pair that was made without one."""
    if pair.source is None:
        raise ValueError(f"{pair.key}: was paired without its source frame")
    return read_rgb(pair.source)


def read_ahead(
    function: Callable[[Item], Result], items: Sequence[Item], settings: Settings, what: str
) -> Iterator[Result]:
    """Yield `function(item)` in order, with progress; 4 items a worker are read in advance."""
    window = 4 * max(1, settings.workers)
    with ThreadPoolExecutor(max(1, settings.workers)) as pool:
        waiting = deque(pool.submit(function, item) for item in items[:window])
        for number in track(range(len(items)), len(items), what, "frames"):
            result = waiting.popleft().result()
            if number + window < len(items):
                waiting.append(pool.submit(function, items[number + window]))
            yield result


def batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    while batch := list(itertools.islice(items, size)):
        yield batch


def equal_groups(keys: Sequence, size: int) -> Iterator[list[int]]:
    """Numbers of at most `size` items that have one key, by the order of the keys."""
    order = sorted(range(len(keys)), key=keys.__getitem__)
    for _, numbers in itertools.groupby(order, key=keys.__getitem__):
        yield from batches(numbers, size)
