"""A training sample of stage 2 against what the released code does for one, on random weights."""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.optim import Optimizer  # noqa: E402

from bench.sampling import COMMANDS, SIZES, build, peak_bytes, seconds  # noqa: E402
from egogen import read_parser, run_command  # noqa: E402
from ldm.config import TrainConfig  # noqa: E402
from ldm.model import FROZEN_PARTS, autocast  # noqa: E402
from ldm.networks.cpu import TRAINED, TrainedConv, exchange  # noqa: E402
from ldm.training.module import LegoTraining  # noqa: E402


def set_side(module: LegoTraining, released: bool) -> None:
    unet = module.model.unet
    for layer in (m for m in unet.modules() if isinstance(m, Attention)):
        layer.set_processor(AttnProcessor() if released else AttnProcessor2_0())
    exchange(unet, {TrainedConv: torch.nn.Conv2d} if released else TRAINED)
    (unet.enable_gradient_checkpointing if released else unet.disable_gradient_checkpointing)()


def make_batch(module: LegoTraining, count: int, resolution: int) -> dict:
    """Frames, texts, draws and features of `count` samples."""
    latents = count, *module.model.latent_shape(resolution)
    with module.device:  # where tensors are made
        return {
            "features": {
                name: torch.randn(count, spec.rows, spec.width)
                for name, spec in module.model.conditioner.features.items()
            },
            "t": torch.linspace(0, 999, count).long(),
            "draw": torch.ones(count),
            "prompt": [""] * count,
            "noise": torch.randn(latents),
            "posterior_noise": torch.randn(latents),
        } | {name: torch.rand(count, 3, resolution, resolution) for name in ("source", "edited")}


def training_step(
    module: LegoTraining, batch: dict, released: bool, precision: str, optimizer: Optimizer | None
) -> Tensor:
    """Forward and backward of one micro-batch, and what the optimizer does with it -> the loss."""
    with autocast(module.device, precision):
        if released:  # the text of the unconditional prompt is encoded in every step
            module.model.encode_text([""])
        loss = module.losses(batch).mean()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        module.ema.update()
    module.zero_grad(set_to_none=True)
    return loss.detach()


def compare(args: argparse.Namespace) -> dict:
    """All sides on the same weights, draws and frames."""
    words = [f"model.params.use_ema={str(args.whole).lower()}", *args.overrides]
    model, config = build(TrainConfig, args.size, words)
    module = LegoTraining(model, config.optimizer, config.lightning, seed=0).to(args.device).train()
    optimizer = module.configure_optimizers()["optimizer"] if args.whole else None
    batch = make_batch(module, args.batch, args.resolution)
    with torch.no_grad():  # what `ldm.cache` stores and training reads in place of frames and texts
        cached = module.encode(batch)
    cached |= {name: cached.pop(f"{name}_moments") for name in ("source", "edited")}
    sides = {"baseline": (True, batch, "fp32"), "uncached": (False, batch, args.precision)}
    sides["ours"] = False, cached, args.precision
    found, repeats = {}, args.repeats + (args.device == "cuda")  # the first one picks kernels
    for name, (released, inputs, precision) in sides.items():
        set_side(module, released)
        for part in FROZEN_PARTS if inputs is cached else ():
            getattr(model, part).to("cpu")  # as where training reads a cache
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step = functools.partial(training_step, module, inputs, released, precision, optimizer)
        taken, losses = [], []
        for _ in range(repeats):
            torch.manual_seed(0)  # the conditioner's dropout: the same on both sides
            # The fastest counts, and the last loss.
            taken.append(seconds(lambda: losses.append(step().item()), module.device))  # noqa: B023
        found[name] = {"seconds_per_sample": round(min(taken) / args.batch, 5), "loss": losses[-1]}
        found[name]["peak_gib"] = round(peak_bytes(module.device) / 2**30, 2)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    times = [found[name]["seconds_per_sample"] for name in ("ours", "baseline")]
    return found | {"ratio": round(times[0] / times[1], 3)}


def main(argv: Sequence[str]) -> None:
    args = read_parser(COMMANDS, "training", __doc__, {"size": SIZES}).parse_intermixed_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = {**vars(args), "threads": 1, "torch": torch.__version__}
    if args.device == "cuda":
        head["device"] = torch.cuda.get_device_name()
    print(json.dumps(head | compare(args), indent=1))


if __name__ == "__main__":
    run_command(main)
