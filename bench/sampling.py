"""A denoising step against what the released code does in one; prints one JSON object.

    python bench/sampling.py                                   # a denoising step on the CPU
    python bench/sampling.py --device cuda --batch 16
    python bench/sampling.py --size tiny --repeats 1           # seconds; for a look at the output

Both sides are measured in this process on one set of random weights, in turns. The plain step: one
image at a time in three branches, attention that holds all scores, keys and values of the context
anew in every step. Time is processor time of one thread on the CPU and wall time between
synchronizations on CUDA.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

from bench.measuring import peak_bytes, seconds  # noqa: E402
from egogen.errors import command_parser, run_command  # noqa: E402
from ldm.config import Config, GenerateConfig, load_config  # noqa: E402
from ldm.generate import prepare  # noqa: E402
from ldm.model import DTYPES, LegoModel, autocast, resolved_precision  # noqa: E402
from ldm.sampling import Conditioning, Denoise, guidance_branches, guided_denoiser  # noqa: E402

TEXT, IMAGE = 7.5, 1.5
SIZES = {
    "full": (),
    "tiny": (
        "model.params.unet_config.params.model_channels=32",
        "model.params.unet_config.params.num_res_blocks=1",
        "model.params.unet_config.params.channel_mult=[1,2]",
        "model.params.first_stage_config.params.ddconfig.ch=32",
        "model.params.conditioner.feature_dim=64",
        "model.params.conditioner.feedforward_dim=64",
    ),
}


def build(kind: type[Config], size: str, overrides: Sequence[str]) -> tuple[LegoModel, Config]:
    """A model with random weights, and its config."""
    config = load_config(kind, [], [*SIZES[size], *overrides])
    model = LegoModel(config.model)
    # There need be no tokenizer: which ids stand in a text does not change the work.
    model.tokenize = lambda prompts: torch.zeros(len(prompts), 77, dtype=torch.int64)
    return model, config


def made_up(model: LegoModel, batch: int) -> Conditioning:
    """Random conditioning of real shape: 410 rows of 768, latents of 256 x 256 pixels."""
    device, rows = model.device, 77 + model.conditioner.rows
    width = model.config.unet.context_dim
    return Conditioning(
        torch.randn(batch, rows, width, device=device),
        torch.randn(1, rows, width, device=device),
        torch.randn(batch, *model.latent_shape(256), device=device),
    )


def plain_denoiser(model: LegoModel, conditioning: Conditioning) -> Denoise:
    """Classifier-free guidance as in the released code, for one image."""
    zeros = torch.zeros_like(conditioning.image_latents)
    uncond = conditioning.uncond_context
    context = torch.cat([conditioning.context, uncond, uncond])
    images = torch.cat([conditioning.image_latents, conditioning.image_latents, zeros])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x_in = torch.cat([torch.cat([x / (sigma**2 + 1) ** 0.5] * 3), images], dim=1)
        t = model.schedule.timestep(sigma).to(x.device).expand(3)
        eps = model.unet(x_in, t, context).sample.float()
        cond, image, none = (x - sigma * part for part in eps.chunk(3))
        return none + TEXT * (cond - image) + IMAGE * (image - none)

    return denoise


@torch.no_grad()
def measure_steps(model: LegoModel, precision: str, batch: int, repeats: int) -> dict:
    """Seconds an image of one denoising step, of both sides in turns; and of the held context."""
    device, usual = model.device, dict(model.unet.attn_processors)
    sigma, conditioning = torch.tensor(3.7), made_up(model, batch)
    one = Conditioning(
        conditioning.context[:1], conditioning.uncond_context, conditioning.image_latents[:1]
    )
    x = torch.randn_like(conditioning.image_latents) * sigma
    guidance = guidance_branches(conditioning, TEXT, IMAGE)
    plain, first, ours, results = [], [], [], []
    with autocast(device, precision):
        for turn in range(repeats + 1):  # the first one warms up
            model.unet.set_attn_processor(AttnProcessor())
            denoise = plain_denoiser(model, one)
            plain.append(seconds(lambda: results.append(denoise(x[:1], sigma)), device))  # noqa: B023
            model.unet.set_attn_processor(dict(usual))
            predict = model.denoiser.hold(guidance.contexts, guidance.rows)
            denoise = guided_denoiser(predict, model.schedule, guidance)
            # The first call of a predictor computes the keys and values that it then keeps.
            first.append(seconds(lambda: denoise(x, sigma), device))  # noqa: B023
            ours.append(seconds(lambda: results.append(denoise(x, sigma)), device))  # noqa: B023
            if turn == 0:
                with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                    denoise(x, sigma)
    difference = (results[0] - results[1][:1]).abs().max() / results[0].abs().max()
    plain_step = statistics.median(plain[1:])
    own_step = statistics.median(ours[1:]) / batch
    return {
        "plain_step_s": plain_step,
        "step_s": own_step,
        "step_ratio": own_step / plain_step,
        "held_context_s": statistics.median(first[1:]) / batch - own_step,
        "plain_all_s": plain[1:],
        "step_all_s": [value / batch for value in ours[1:]],
        "largest_relative_difference": float(difference),
        "step_gflop": counter.get_total_flops() / 1e9 / batch,
    }


def matmul_gflops(device: torch.device, precision: str) -> float:
    """Measured peak of matrix products on this device, in the precision of the run."""
    size, repeats = (8192, 20) if device.type == "cuda" else (2048, 3)
    a = torch.randn(size, size, device=device, dtype=DTYPES[precision])
    a @ a
    taken = min(seconds(lambda: a @ a, device) for _ in range(repeats))
    return 2 * size**3 / taken / 1e9


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--batch", type=int, default=1, help="of this project's side")
    parser.add_argument("--repeats", type=int, default=3, help="timed denoising steps")
    parser.add_argument("inference", nargs="*", help="keys of inference, as channels_last=true")
    arguments = parser.parse_intermixed_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = [f"inference.{word}" for word in arguments.inference]
    model, config = build(GenerateConfig, arguments.size, words)
    prepare(model.eval().requires_grad_(False).to(arguments.device), config.inference)
    precision = resolved_precision(arguments.device, config.inference.precision)
    found = measure_steps(model, precision, arguments.batch, arguments.repeats)
    peak = matmul_gflops(arguments.device, precision)
    found["matmul_peak_gflops"] = peak
    found["share_of_peak"] = found["step_gflop"] / found["step_s"] / peak
    memory = peak_bytes(arguments.device) / 2**30
    settings = {name: str(value) for name, value in vars(arguments).items()}
    print(json.dumps(settings | {"precision": precision, "peak_gib": memory} | found, indent=1))


if __name__ == "__main__":
    run_command(main)
