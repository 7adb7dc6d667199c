"""Frames per second of every metric, against a loop of one pair at a time; prints one JSON object.

    python bench/metrics.py                                       # every metric, on the CPU
    python bench/metrics.py --pairs 64 --batch-size 32 --device cuda
    python bench/metrics.py --metrics psnr,lpips_alex,fid         # a minute

Both sides are measured in this process on the same full-size networks with random weights, which
are built before and count for neither. The loop does what the released script does: one pair at a
time, no reading ahead, and BLIP with the library's unfused attention and nothing kept between
word pieces.
Time is processor time of one thread on the CPU and wall time on CUDA; reading counts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import torch

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT), str(PROJECT / "tests")]

from golden_weights import DATA  # noqa: E402
from word_piece_folder import write_vocabulary  # noqa: E402

from egogen.errors import run_command  # noqa: E402
from metrics.frame_pairs import Pair, find_pairs  # noqa: E402
from metrics.measures import captions, clip_image, egovlp, frechet, perceptual  # noqa: E402
from metrics.networks import beam_search, text_similarity  # noqa: E402
from metrics.registry import METRICS, Metric, Settings, choose  # noqa: E402

MANIFESTS = {  # weight file -> names and shapes of what it holds
    "pt_inception-2015-12-05-6726825d.pth": "inception",
    "squeezenet1_1-b8a52dc0.pth": "squeezenet1_1",
    "vgg16-397923af.pth": "vgg16",
    "alexnet-owt-7be5be79.pth": "alexnet",
    "ViT-L-14.pt": "clip_vit_l14_visual",
    "egovlp.pth": "egovlp_4f",
    "model_base_caption_capfilt_large.pth": "blip_base",
    "model_large_caption.pth": "blip_large",
}
# Where networks are built: kept, so that both sides have the same ones, built before.
BUILDERS = (
    (frechet, "inception"),
    (perceptual, "network"),
    (clip_image, "image_tower"),
    (captions, "captioner"),
)
READERS = (frechet, perceptual, clip_image, egovlp, captions, text_similarity)


def random_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of the shapes of a released file; activations neither die out nor blow up."""
    manifest = MANIFESTS[Path(path).name]
    shapes = json.loads((DATA / "manifests" / f"{manifest}.json").read_text())
    tied = json.loads((DATA / "fill_rules.json").read_text()).get(manifest, {}).get("alias", {})
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            state[name] = torch.randn(shape) * fan_in**-0.5
        else:
            ones = name.endswith(("weight", "running_var"))
            state[name] = torch.ones(shape) if ones else torch.zeros(shape)
    return state | {name: state[other] for name, other in tied.items()}


class RecomputingDecoder:
    """Stands in for the decoder of `metrics.networks.beam_search`: nothing is kept between word pieces."""

    def __init__(self, network: torch.nn.Module, states: torch.Tensor):
        self.network, self.states, self.seen = network, states, None

    def widen(self, beams: int) -> None:
        self.seen, self.states = (
            rows.repeat_interleave(beams, dim=0) for rows in (self.seen, self.states)
        )

    def reorder(self, rows: torch.Tensor) -> None:
        self.seen = self.seen[rows]

    def __call__(self, pieces: torch.Tensor) -> torch.Tensor:
        self.seen = pieces if self.seen is None else torch.cat([self.seen, pieces], dim=1)
        logits = self.network(self.seen, encoder_hidden_states=self.states, use_cache=False).logits
        return logits[:, -1].log_softmax(dim=-1)


@contextlib.contextmanager
def step_by_step():
    """Inside, BLIP computes as the library does, and every word piece anew."""
    with (
        mock.patch.object(beam_search, "_Decoder", RecomputingDecoder),
        mock.patch.object(beam_search, "held_pictures", lambda *_: contextlib.nullcontext()),
        mock.patch.object(captions, "picture_states", lambda tower, x: tower(x).last_hidden_state),
    ):
        yield


def seconds(work: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    begun = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - begun


def test_pairs(count: int, folder: Path) -> list[Pair]:
    """Pairs of the tests' Ego4D frames (455x256 and 341x256), repeated until there are `count`."""
    root = folder / "ego4d"
    shutil.copytree(DATA / "ego4d", root)
    truth = root / "EgoGen/ego4d.fho/val_gt_for_metric"
    found = find_pairs(root / "run/images", truth, root / "ego4d_val.json").pairs
    return [found[number % len(found)] for number in range(count)]


def built_once(build: Callable) -> Callable:
    """`build` for each kind and path once, whatever tensors it is given then."""
    built = {}

    def kept(*arguments):
        key = tuple(word for word in arguments if isinstance(word, str | Path))
        if key not in built:
            built[key] = build(*arguments)
        return built[key]

    return kept


@contextlib.contextmanager
def same_networks():
    """Networks are built once, from random tensors, and go at the end."""
    with contextlib.ExitStack() as stack:
        for module, name in BUILDERS:
            kept = built_once(getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, kept))
        state = functools.cache(random_state)
        for module in READERS:
            stack.enter_context(mock.patch.object(module, "load_state_dict", state))
        yield
    egovlp.video_network.cache_clear()
    text_similarity.text_tower.cache_clear()


def measure_metric(metric: Metric, pairs: Sequence[Pair], settings: Settings) -> dict:
    """Frames per second of both sides; a pair (FID: two) is measured before, to build all."""
    alone = dataclasses.replace(settings, batch_size=1, workers=1)
    with same_networks():
        metric.measure(pairs[: 2 if metric.name == "fid" else 1], alone)
        with step_by_step():
            loop = seconds(lambda: metric.measure(pairs, alone), settings.device)
        batched = seconds(lambda: metric.measure(pairs, settings), settings.device)
    return {
        "loop_seconds": round(loop, 2),
        "batched_seconds": round(batched, 2),
        "loop_frames_per_second": round(len(pairs) / loop, 4),
        "batched_frames_per_second": round(len(pairs) / batched, 4),
        "ratio": round(loop / batched, 2),
    }


def measure_all(names: str, count: int, settings: Settings, folder: Path) -> dict[str, dict]:
    """{metric: its figures}; each is told on stderr as soon as it is known."""
    for vocabulary in ("bert-base-uncased", "distilbert-base-uncased"):
        write_vocabulary(settings.weights / vocabulary)
    pairs = test_pairs(count, folder)
    figures = {}
    for metric in choose(names):
        figures[metric.name] = measure_metric(metric, pairs, settings)
        print(metric.name, figures[metric.name], file=sys.stderr, flush=True)
    return figures


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python bench/metrics.py --metrics psnr,fid --pairs 16",
    )
    parser.add_argument("--metrics", default=",".join(METRICS), help="comma-separated names")
    parser.add_argument("--pairs", type=int, default=8, help="generated frames to measure")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    if options.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        weights = Path(name) / "weights"
        settings = Settings("ego4d", weights, options.device, options.batch_size, 1)
        # Without it the second side would find the ground truth's features in the cache.
        with mock.patch.object(frechet, "kept", lambda *arguments: arguments[-1]()):
            figures = measure_all(options.metrics, options.pairs, settings, Path(name))
    loop, batched = (
        sum(one[side] for one in figures.values()) for side in ("loop_seconds", "batched_seconds")
    )
    result = {
        "pairs": options.pairs,
        "batch_size": options.batch_size,
        "device": options.device,
        "metrics": figures,
        "suite_loop_seconds": round(loop, 1),
        "suite_batched_seconds": round(batched, 1),
        "suite_ratio": round(loop / batched, 2),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    run_command(main)
