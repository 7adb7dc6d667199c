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

import contextlib
import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.measuring import seconds  # noqa: E402
from egogen.actions import DESCRIPTION_KEY  # noqa: E402
from egogen.atomic import write_json, write_text  # noqa: E402
from egogen.errors import command_parser, run_command  # noqa: E402
from metrics.frame_pairs import Pair, find_pairs  # noqa: E402
from metrics.measures import captions, clip_image, egovlp, frechet, perceptual  # noqa: E402
from metrics.networks import beam_search, loading, text_similarity  # noqa: E402
from metrics.registry import METRICS, Metric, Settings, choose  # noqa: E402

READERS = (perceptual, clip_image, egovlp, captions, text_similarity)  # of weight files
SIZES = ((455, 256), (341, 256))  # pixels: Ego4D's two aspects at the height of the frames
DESCRIPTION = "The person reaches with the right hand for the cup and lifts it off the table."


def random_tensors(module: torch.nn.Module, *_: object) -> dict[str, torch.Tensor]:
    """In place of a file's tensors; activations neither die out nor blow up.

    Tensors of one shape are equal, and so are those that a network ties.
    """
    state = {}
    for name, tensor in module.state_dict().items():
        shape = tensor.shape
        if len(shape) > 1:
            fan_in = max(1, shape[1:].numel())
            generator = torch.Generator().manual_seed(shape.numel())
            state[name] = torch.randn(shape, generator=generator, device="cpu") * fan_in**-0.5
        else:
            ones = name.endswith(("weight", "running_var"))
            fill = torch.ones if ones else torch.zeros
            state[name] = fill(shape, dtype=tensor.dtype, device="cpu")
    return state


def random_inception(_: Path) -> torch.nn.Module:
    """`frechet.inception` without its file."""
    from pytorch_fid import inception as library

    with (
        mock.patch.object(library, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(torch.nn.Module, "load_state_dict", lambda *_, **__: None),
    ):
        network = library.InceptionV3([3], resize_input=False, normalize_input=True)
    network.load_state_dict(random_tensors(network))
    return network.eval().requires_grad_(False)


class RecomputingDecoder:
    """In place of the decoder of `beam_search`: nothing is kept between word pieces."""

    def __init__(self, network: torch.nn.Module, states: torch.Tensor):
        self.network, self.states = network, states
        self.seen = torch.empty(len(states), 0, dtype=torch.long, device=states.device)

    def widen(self, beams: int) -> None:
        self.seen, self.states = (
            rows.repeat_interleave(beams, dim=0) for rows in (self.seen, self.states)
        )

    def reorder(self, rows: torch.Tensor) -> None:
        self.seen = self.seen[rows]

    def __call__(self, pieces: torch.Tensor) -> torch.Tensor:
        self.seen = torch.cat([self.seen, pieces], dim=1)
        logits = self.network(self.seen, encoder_hidden_states=self.states, use_cache=False).logits
        return logits[:, -1].log_softmax(dim=-1)


@contextlib.contextmanager
def step_by_step():
    """Inside, BLIP computes as the library does, and every word piece anew."""
    with (
        mock.patch.object(beam_search, "_Decoder", RecomputingDecoder),
        mock.patch.object(beam_search, "held_images", lambda *_: contextlib.nullcontext()),
        mock.patch.object(captions, "image_states", lambda tower, x: tower(x).last_hidden_state),
    ):
        yield


def write_vocabulary(folder: Path) -> None:
    """A vocabulary of BERT's size in which every piece is a word; unknown words are one piece."""
    words = [f"w{number}" for number in range(text_similarity.VOCABULARY)]
    words[0], words[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    write_text(folder / "vocab.txt", "\n".join(words) + "\n")


def smooth_pairs(count: int, folder: Path) -> list[Pair]:
    """Pairs of smooth random frames of SIZES, six of them, repeated until there are `count`."""
    random, entries = np.random.default_rng(0), {}
    for number in range(6):
        names = [f"clip{number}/0/frame_{place}.jpg" for place in range(2)]
        for root, name in (("val", names[0]), ("val_gt_for_metric", names[1]), ("run", names[1])):
            coarse = random.integers(0, 256, (12, 20, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(SIZES[number % 2], Image.Resampling.BICUBIC)
            path = folder / "frames" / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=95)
        entry = {"image_0": names[0], "image_1": names[1], "action": "#C C lifts the cup"}
        entries[f"clip{number}"] = {"0": {**entry, DESCRIPTION_KEY: DESCRIPTION}}
    write_json(folder / "val.json", entries)
    frames = folder / "frames"
    found = find_pairs(frames / "run", frames / "val_gt_for_metric", folder / "val.json").pairs
    return [found[number % len(found)] for number in range(count)]


class NoTensors(dict):
    """In place of a file's tensors, as an argument of functions whose results are kept."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@contextlib.contextmanager
def same_networks() -> Iterator[None]:
    """Inside, each network is built once, with random weights; they go at the end."""
    builders = (
        (frechet, "inception", random_inception),
        (perceptual, "network", perceptual.network),
        (clip_image, "image_tower", clip_image.image_tower),
        (captions, "captioner", captions.captioner),
    )
    nothing = NoTensors()
    with contextlib.ExitStack() as stack:
        for module, name, build in builders:
            stack.enter_context(mock.patch.object(module, name, functools.cache(build)))
        for module in READERS:
            stack.enter_context(mock.patch.object(module, "load_state_dict", lambda *_: nothing))
        stack.enter_context(mock.patch.object(loading, "fitting", random_tensors))
        yield
    egovlp.video_network.cache_clear()
    text_similarity.text_tower.cache_clear()


def measure_metric(metric: Metric, pairs: Sequence[Pair], settings: Settings) -> dict:
    """Frames per second of both sides; a pair (FID: two) is measured before, to build all."""
    device, single = torch.device(settings.device), dataclasses.replace(settings, batch_size=1)
    with same_networks():
        metric.measure(pairs[: 2 if metric.name == "fid" else 1], single)
        with step_by_step():
            loop = seconds(lambda: metric.measure(pairs, single), device)
        batched = seconds(lambda: metric.measure(pairs, settings), device)
    sides = {"loop": loop, "batched": batched}
    found = {f"{side}_seconds": round(taken, 2) for side, taken in sides.items()}
    rates = {f"{s}_frames_per_second": round(len(pairs) / t, 4) for s, t in sides.items()}
    return found | rates | {"ratio": round(loop / batched, 2)}


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
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
        for vocabulary in ("bert-base-uncased", "distilbert-base-uncased"):
            write_vocabulary(weights / vocabulary)
        pairs, figures = smooth_pairs(options.pairs, Path(name)), {}
        # Without it the second side would find the ground truth's features in the cache.
        with mock.patch.object(frechet, "reference_features", lambda *arguments: arguments[-1]()):
            for metric in choose(options.metrics):
                figures[metric.name] = measure_metric(metric, pairs, settings)
                print(metric.name, figures[metric.name], file=sys.stderr, flush=True)
    loop, batched = (
        sum(one[f"{side}_seconds"] for one in figures.values()) for side in ("loop", "batched")
    )
    result = {name: getattr(options, name) for name in ("pairs", "batch_size", "device")}
    result |= {
        "metrics": figures,
        "suite_loop_seconds": round(loop, 1),
        "suite_batched_seconds": round(batched, 1),
        "suite_ratio": round(loop / batched, 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_command(main)
