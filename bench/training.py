"""A training sample of stage 2 against what the released code does for one, on random weights.

    python bench/training.py                         # CPU, one thread, full size: about 3 minutes
    python bench/training.py --device cuda --batch 32 [--precision bf16]
    python bench/training.py --size tiny             # does the bench itself work?

Baseline: autoencoder and text encoder in every step, attention that holds all scores, gradient
checkpointing always on, no cache. Ours: the encoders' outputs as the cache has them, PyTorch's
fused attention, no checkpointing. Forward and backward of the same weights and draws; reading
images or the cache is left out of both, and so are AdamW and the EMA, which are the same on both
sides (and would not fit beside the weights on a small machine). Prints JSON: seconds a sample (CPU
time on a CPU), their ratio, both losses, and the peak memory of training at `--memory-batch`,
computed by running the same step on tensors without contents (0: not computed). On CUDA also the
peak that was measured, without AdamW and the EMA.
"""

import argparse
import functools
import json
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.weak import WeakIdKeyDictionary  # noqa: E402

from bench.measuring import peak_bytes, seconds  # noqa: E402
from bench.sampling import SIZES, build  # noqa: E402
from egogen.errors import command_parser, run_command  # noqa: E402
from ldm.config import TrainConfig  # noqa: E402
from ldm.model import autocast  # noqa: E402
from ldm.training.module import LegoTraining  # noqa: E402

# How training is run where its memory is measured: (all scores, checkpointing, cache).
MEMORY_SIDES = {
    "baseline (all scores, checkpointing, no cache)": (True, True, False),
    "no cache, checkpointing": (False, True, False),
    "no cache, no checkpointing": (False, False, False),
    "cache, checkpointing": (False, True, True),
    "cache, no checkpointing": (False, False, True),
}


def random_training(size: str) -> LegoTraining:
    model, config = build(TrainConfig, size, ["model.params.use_ema=false"])
    return LegoTraining(model, config.optimizer, config.lightning, seed=0).train()


def set_side(module: LegoTraining, released: bool, checkpointing: bool) -> None:
    unet = module.model.unet
    for layer in (m for m in unet.modules() if isinstance(m, Attention)):
        layer.set_processor(AttnProcessor() if released else AttnProcessor2_0())
    (unet.enable_gradient_checkpointing if checkpointing else unet.disable_gradient_checkpointing)()


def make_batch(module: LegoTraining, count: int, resolution: int) -> dict:
    """Frames, draws and features of `count` samples, without texts."""
    latents = count, *module.model.latent_shape(resolution)
    with module.device:  # where tensors are made
        return {
            "features": {
                name: torch.randn(count, spec.rows, spec.width)
                for name, spec in module.model.conditioner.features.items()
            },
            "t": torch.linspace(0, 999, count).long(),
            "draw": torch.ones(count),
            "noise": torch.randn(latents),
            "posterior_noise": torch.randn(latents),
        } | {name: torch.rand(count, 3, resolution, resolution) for name in ("source", "edited")}


def training_step(module: LegoTraining, batch: dict, released: bool, precision: str) -> Tensor:
    """Forward and backward of one micro-batch -> the loss."""
    with autocast(module.device, precision):
        if released:  # the text of the unconditional prompt is encoded in every step
            module.model.encode_text([""])
        loss = module.losses(batch).mean()
    loss.backward()
    module.zero_grad(set_to_none=True)
    return loss.detach()


def with_texts(batch: dict) -> dict:
    return batch | {"prompt": [""] * len(batch["t"])}


@torch.no_grad()
def as_cached(module: LegoTraining, batch: dict) -> dict:
    """What `ldm.cache` stores and training reads in place of frames and texts."""
    encoded = module.encode(with_texts(batch))
    for name in ("source", "edited"):
        encoded[name] = encoded.pop(f"{name}_moments")
    return encoded


def timed(step: Callable[[], Tensor], repeats: int, device: torch.device) -> tuple[float, float]:
    """-> (least seconds of a call, its loss)."""
    taken, losses = [], []
    for _ in range(repeats):
        torch.manual_seed(0)  # the conditioner's dropout: the same on both sides
        taken.append(seconds(lambda: losses.append(step().item()), device))
    return min(taken), losses[-1]


def compare(args: argparse.Namespace) -> dict:
    """Both sides on the same weights, draws and frames."""
    module = random_training(args.size).to(args.device)
    batch = make_batch(module, args.batch, args.resolution)
    cached = as_cached(module, batch)
    sides = {"baseline": (True, with_texts(batch), "fp32"), "ours": (False, cached, args.precision)}
    found, repeats = {}, args.repeats + (args.device == "cuda")  # the first one picks kernels
    for name, (released, inputs, precision) in sides.items():
        set_side(module, released, checkpointing=released)
        step = functools.partial(training_step, module, inputs, released, precision)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken, loss = timed(step, repeats, module.device)
        found[name] = {"seconds_per_sample": round(taken / args.batch, 5), "loss": loss}
        if args.device == "cuda":
            found[name]["measured_peak_gb"] = round(peak_bytes(module.device) / 1e9, 2)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    times = [found[name]["seconds_per_sample"] for name in ("ours", "baseline")]
    return found | {"ratio": round(times[0] / times[1], 3)}


def fill_anew(module: nn.Module) -> None:
    """Parameters made one by one: those that were deep-copied are of no use to FakeTensorMode."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(torch.empty(value.shape), value.requires_grad)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made inside it, and the most that lived at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.now, self.most = WeakIdKeyDictionary(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for storage in storages((args, kwargs)):
            self.known.setdefault(storage, True)  # made outside, a weight
        result = function(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage not in self.known:
                self.known[storage] = True
                self.add(storage.nbytes())
                weakref.finalize(storage, self.add, -storage.nbytes())
        return result

    def add(self, count: int) -> None:
        self.now += count
        self.most = max(self.most, self.now)


def storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def tracked_peak(step: Callable[[], object]) -> int:
    """Bytes of the tensors that `step` makes, at their most."""
    with LiveBytes() as live:
        step()
    return live.most


def computed_memory(args: argparse.Namespace) -> dict:
    """Peak of training in GB (10^9 bytes), float32, from shapes alone.

    Weights, two moments of AdamW and the EMA stay; activations and gradients are at their
    most inside forward and backward; the encoders' weights stay, and their own activations come
    and go before the UNet's.
    """
    count, peaks = args.memory_batch, {}
    with FakeTensorMode():
        module = random_training(args.size)
        fill_anew(module)
        batch = make_batch(module, count, args.resolution)
        trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
        frozen = sum(p.nbytes for part in module.frozen_parts() for p in part.parameters())
        cached = as_cached(module, batch)
        encoding = tracked_peak(lambda: as_cached(module, batch))
        for name, (released, checkpointing, cache) in MEMORY_SIDES.items():
            set_side(module, released, checkpointing)
            peak = tracked_peak(lambda: training_step(module, cached, False, "fp32"))
            print(f"{name}: {peak / 1e9:.2f} GB beside weights", file=sys.stderr, flush=True)
            peak = peak if cache else frozen + max(encoding, peak)
            peaks[name] = round((4 * trained + peak) / 1e9, 2)  # weights, two moments, EMA
    return {
        "batch": count,
        "trained_gb": round(trained / 1e9, 2),
        "encoders_gb": round(frozen / 1e9, 2),
        "encoding_gb": round(encoding / 1e9, 2),
        "peak_gb": peaks,
    }


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--memory-batch", type=int, default=32)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = {name: getattr(args, name) for name in ("size", "device", "batch", "resolution")}
    head |= {"threads": 1, "precision_of_ours": args.precision, "torch": torch.__version__}
    if args.device == "cuda":
        head["device"] = torch.cuda.get_device_name()
    result = head | compare(args)
    if args.memory_batch:
        result["peak_memory"] = computed_memory(args)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_command(main)
