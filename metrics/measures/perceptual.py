"""LPIPS version 0.1 (squeeze, vgg, alex): torchmetrics' networks, backbones from weight files.

The released script passes images in [0, 1] where the metric means [-1, 1]. The keys of the released
script keep that, so that they compare with published numbers; `<key>_scaled` is the metric as it is
defined.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torchmetrics.functional.image.lpips import _LPIPS

from metrics.frame_pairs import Pair
from metrics.images import batches, equal_groups, read_ahead, read_pair
from metrics.loading import fill, load_state_dict
from metrics.registry import METRICS, Measured, Settings, finite_mean

SLICE = re.compile(r"^slice(s\.)?\d+\.")


def network(kind: str, path: Path) -> torch.nn.Module:
    """The LPIPS network of `kind` with the `features.*` of a torchvision classifier file."""
    lpips = _LPIPS(pretrained=True, net=kind, pnet_rand=True)
    state = load_state_dict(path, ("features.",))
    # The library cuts the backbone into slices and keeps the layers' numbers: slice3.6.weight, or
    # slices.2.6.weight, is features.6.weight of the file.
    names = {name: SLICE.sub("features.", name) for name in lpips.net.state_dict()}
    fill(lpips.net, {own: state[name] for own, name in names.items() if name in state}, path)
    return lpips.eval().requires_grad_(False)


@torch.inference_mode()
def distances(lpips: torch.nn.Module, pairs: Sequence[tuple], device: str) -> list:
    """Pairs of images (3, H, W) in [0, 1] -> (as in the released code, scaled to [-1, 1]) for each.

    Images of one size go through the network together.
    """
    values = torch.empty(len(pairs), 2)
    for numbers in equal_groups([tuple(first.shape) for first, _ in pairs], len(pairs)):
        images = zip(*(pairs[number] for number in numbers), strict=True)
        first, second = (torch.stack(side).to(device) for side in images)
        values[numbers, 0] = lpips(first, second).flatten().cpu()
        values[numbers, 1] = lpips(first, second, normalize=True).flatten().cpu()
    return values.tolist()


def _measure(kind: str, pairs: Sequence[Pair], settings: Settings) -> Measured:
    key = f"lpips_{kind}"
    lpips = network(kind, METRICS[key].weight_files(settings)[0]).to(settings.device)
    read = read_ahead(read_pair, pairs, settings, key)
    # Feature maps of one image just fit a processor's cache; batches are up to a third slower.
    size = 1 if settings.device == "cpu" else settings.batch_size
    values = [
        value for batch in batches(read, size) for value in distances(lpips, batch, settings.device)
    ]
    columns = dict(zip((key, f"{key}_scaled"), map(list, zip(*values, strict=True)), strict=True))
    return Measured({name: finite_mean(column) for name, column in columns.items()}, columns)


measure_squeeze = partial(_measure, "squeeze")
measure_vgg = partial(_measure, "vgg")
measure_alex = partial(_measure, "alex")
