"""EgoVLP and EgoVLP+: similarity of a generated frame and its ground truth as videos.

A still image becomes a video by repetition (EgoVLP), or follows the source frame, half of the
video each (EgoVLP+; so both videos of a pair share half of their frames).
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity
from torchvision.transforms.functional import center_crop, normalize, resize

from metrics.frame_pairs import Pair
from metrics.images import batches, read_ahead, read_source, read_unresized, resized, to_tensor
from metrics.networks.egovlp_towers import PARTS, SIDE, VideoTransformer
from metrics.networks.loading import filled, load_state_dict
from metrics.registry import METRICS, Measured, Settings, finite_mean

FRAMES = {"ego4d": 4, "epickitchen": 16}  # of a video, in the released weights of each dataset
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]


@lru_cache(maxsize=1)
def video_network(path: Path, frames: int, device: str) -> VideoTransformer:
    """The network of an EgoVLP file; kept, since both metrics use it."""
    state = load_state_dict(path, PARTS)
    return filled(partial(VideoTransformer, frames), state, path).to(device)


def frame_input(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [0, 1] -> (3, 224, 224), normalised.

    Shorter side to 224 (bilinear, not antialiased, as in the released environment), then the
    centre: the sides of a wide frame are lost.
    """
    return normalize(center_crop(resize(image, SIDE, antialias=False), SIDE), MEAN, STD)


def still_videos(pair: Pair, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(generated, target), each (frames, 3, 224, 224): the same image all the time."""
    generated, target = map(frame_input, read_unresized(pair))
    return generated.expand(frames, -1, -1, -1), target.expand(frames, -1, -1, -1)


def videos_with_source(pair: Pair, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(generated, target), each (frames, 3, 224, 224): the source frame, then the image."""
    source = to_tensor(read_source(pair))
    first = frame_input(source).expand(frames // 2, -1, -1, -1)

    def video(image: torch.Tensor) -> torch.Tensor:
        last = frame_input(resized(image, source)).expand(frames - len(first), -1, -1, -1)
        return torch.cat([first, last])

    generated, target = read_unresized(pair)
    return video(generated), video(target)


@torch.inference_mode()
def _measure(name: str, key: str, make, pairs: Sequence[Pair], settings: Settings) -> Measured:
    frames = FRAMES[settings.dataset]
    path = METRICS[name].weight_files(settings)[0]
    network = video_network(path, frames, settings.device)
    read = read_ahead(partial(make, frames=frames), pairs, settings, name)
    values: list[float] = []
    for batch in batches(read, settings.batch_size):
        sides = (torch.stack(videos).to(settings.device) for videos in zip(*batch, strict=True))
        generated, target = map(network, sides)
        values += cosine_similarity(generated, target, dim=1).tolist()
    return Measured({key: finite_mean(values)}, {key: values})


measure = partial(_measure, "egovlp", "egovlp_image_sim", still_videos)
measure_plus = partial(_measure, "egovlp_plus", "egovlp_plus_image_sim", videos_with_source)
