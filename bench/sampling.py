"""A denoising step against what the released code does in one; prints one JSON object."""

import copy
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

from egogen import read_command, read_parser, run_command  # noqa: E402
from egogen.devices import usable_device  # noqa: E402
from ldm.config import Config, GenerateConfig, load_config  # noqa: E402
from ldm.generate import prepare  # noqa: E402
from ldm.model import DTYPES, LegoModel, autocast, resolved_precision  # noqa: E402
from ldm.sampling import Conditioning, Denoise, guidance_branches, guided_denoiser  # noqa: E402
from ldm.schema import InferenceConfig  # noqa: E402

COMMANDS = Path(__file__).with_name("commands.toml")
TEXT, IMAGE = 7.5, 1.5
SIZES = read_command(COMMANDS, "sampling")["sizes"]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Processor time of this process on a CPU; the clock's, between synchronizations, on CUDA."""
    if device.type != "cuda":
        begun = time.process_time()
        call()
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def peak_bytes(device: torch.device) -> int:
    """The most that was held so far: by this process on a CPU, in tensors on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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


@torch.no_grad()
def measure(model: LegoModel, inference: InferenceConfig, batch: int, repeats: int) -> dict:
    """Seconds an image of a denoising step, of both sides in turns."""
    sigma, conditioning = torch.tensor(3.7), made_up(model, batch)
    context, image = conditioning.context[:1], conditioning.image_latents[:1]
    one = Conditioning(context, conditioning.uncond_context, image)
    plain = guidance_branches(one, TEXT, IMAGE)
    told = plain.contexts[plain.rows]  # (3, L, C)
    x = torch.randn_like(conditioning.image_latents) * sigma
    guidance = guidance_branches(conditioning, TEXT, IMAGE)

    def held() -> Denoise:  # its first call computes the keys and values that it keeps
        predict = model.denoiser.hold(guidance.contexts, guidance.rows)
        return guided_denoiser(predict, model.schedule, guidance)

    denoise = held()
    denoise(x, sigma)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        denoise(x, sigma)
    unet = copy.deepcopy(model.unet)
    unet.set_attn_processor(AttnProcessor())
    released = guided_denoiser(lambda x, t: unet(x, t, told).sample, model.schedule, plain)
    prepare(model, inference)
    denoise = held()  # compiled networks are told the context otherwise
    calls: dict[str, Callable] = {"plain_step": lambda: released(x[:1], sigma)}
    calls["step"] = lambda: denoise(x, sigma)
    times, made = {name: [] for name in calls}, {}
    for _ in range(repeats + 1):  # the first one warms up
        for name, call in calls.items():
            taken = seconds(lambda: made.update({name: call()}), x.device)  # noqa: B023
            times[name].append(taken / (batch if name == "step" else 1))
    difference = (made["plain_step"] - made["step"][:1]).abs().max() / made["step"].abs().max()
    found = {f"{name}_s": statistics.median(taken[1:]) for name, taken in times.items()}
    found["step_ratio"] = found["step_s"] / found["plain_step_s"]
    found |= {f"{name}_all_s": taken[1:] for name, taken in times.items()}
    gflop = counter.get_total_flops() / 1e9 / batch
    return found | {"largest_relative_difference": float(difference), "step_gflop": gflop}


def peaks(device: torch.device, precision: str) -> dict[str, float]:
    """Measured GFLOP/s of matrix products (by MKL on CPUs) and of 3x3 convolutions (oneDNN)."""
    size, count, repeats = (8192, 64, 20) if device.type == "cuda" else (2048, 3, 4)
    options = {"device": device, "dtype": DTYPES[precision]}
    a, kernel = torch.randn(size, size, **options), torch.randn(640, 640, 3, 3, **options)
    x = torch.randn(count, 640, 32, 32, **options).to(memory_format=torch.channels_last)
    product, convolution = 2 * size**3, 2 * x.numel() * kernel[0].numel()
    taken = [seconds(lambda: a @ a, device) for _ in range(repeats)]
    other = [seconds(lambda: conv2d(x, kernel, padding=1), device) for _ in range(repeats)]
    return {"matmul": product / min(taken) / 1e9, "convolution": convolution / min(other) / 1e9}


def main(argv: Sequence[str]) -> None:
    parser = read_parser(COMMANDS, "sampling", __doc__, {"size": SIZES})
    arguments = parser.parse_intermixed_args(argv)
    device = usable_device(arguments.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = [f"inference.{word}" for word in arguments.inference]
    model, config = build(GenerateConfig, arguments.size, words)
    model.eval().requires_grad_(False).to(device)
    precision = resolved_precision(device, config.inference.precision)
    with autocast(device, precision):
        found = measure(model, config.inference, arguments.batch, arguments.repeats)
    for name, peak in peaks(device, precision).items():
        reached = found["step_gflop"] / found["step_s"]
        found |= {f"{name}_peak_gflops": peak, f"share_of_{name}_peak": reached / peak}
    memory = peak_bytes(device) / 2**30
    settings = {name: str(value) for name, value in vars(arguments).items()}
    print(json.dumps(settings | {"precision": precision, "peak_gib": memory} | found, indent=1))


if __name__ == "__main__":
    run_command(main)
