"""Generation of action frames for a chunk of an action file.

Letters: B batch, R side of the squeezed frames, c latent channels, h w latent size.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egogen import EgoGenError, Progress, check_provenance, inside, record_provenance
from egogen.download.hub import is_hub_name
from egogen.features.store import read_info
from egogen.frames import is_whole
from ldm.checkpoints import adapter_files, checkpoint_place
from ldm.checkpoints.load import load_weights, read_file
from ldm.checkpoints.lora import FILE, adapted, read_lora
from ldm.config import distilled_from
from ldm.data import collate, read_condition
from ldm.images import to_image, write_image
from ldm.model import DTYPES, LegoModel, autocast, resolved_precision
from ldm.networks import cpu
from ldm.sampling import (
    SAMPLERS,
    Conditioning,
    Denoise,
    ProcessNoise,
    guidance_branches,
    guided_denoiser,
    sample_noise,
)
from ldm.schema import GenerateConfig, InferenceConfig, ModelParams, height_width
from ldm.split import Located, Split, as_list, open_generation

TEXT_SCALE, SAMPLER = 7.5, "euler_ancestral"  # of the released code
WEIGHT_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt")


def run_folder(
    ckpt: str,
    seed: int,
    steps: int,
    scale_img: float,
    scale_txt: float,
    sampler: str = SAMPLER,
    interval: Sequence[float] | None = None,
    loras: Sequence[str] = (),
) -> Path:
    """Where the released code puts the frames of X.ckpt, `X/X-e=0-s=100-si=1.5`. Those of OWNER/X
    at the hub go below the working directory.

    What that name leaves out (text scale, sampler, interval) is added where it is not as released;
    adapters, by the last part of their path that is no usual name.
    """
    path = Path(Path(ckpt).name if is_hub_name(ckpt) else ckpt)
    base = path.with_suffix("") if path.suffix in WEIGHT_SUFFIXES else path
    name = f"{base.name}-e={seed}-s={steps}-si={scale_img}"
    name += f"-st={scale_txt}" if scale_txt != TEXT_SCALE else ""
    name += f"-{sampler}" if sampler != SAMPLER else ""
    name += f"-gi={interval[0]}-{interval[1]}" if interval else ""
    for file, scale in adapter_files(loras):
        usual = ("checkpoints", Path(FILE).stem)
        parts = [x for x in Path(file).absolute().with_suffix("").parts if x not in usual]
        name += f"-lora={parts[-1]}" + (f"@{scale:g}" if scale != 1 else "")
    return base / name


def fingerprint(ckpt: str) -> str:
    """Hash of the size, and of the first and last MiB, of a checkpoint, or of each weight file of a
    folder: 16 hexadecimal digits.

    The last MiB of a .ckpt or .pth has the checksums of everything inside.
    """
    path, part, digest = checkpoint_place(ckpt), 2**20, hashlib.sha256()
    inside = sorted([*path.glob("*/*.safetensors"), *path.glob("*/*.bin")])
    for weights in inside or [path]:
        size = weights.stat().st_size
        digest.update(str(size).encode())
        with open(weights, "rb") as file:
            digest.update(file.read(part))
            file.seek(max(0, size - part))
            digest.update(file.read(part))
    return digest.hexdigest()[:16]


# Settings of `InferenceConfig` in the record of frames.
SAME = ("picture", "jpeg_quality", "noise", "half_weights")


def made_by(
    config: GenerateConfig, ckpt: str, n_chunk: int, device: torch.device
) -> dict[str, Any]:
    """The provenance record beside the frames: what they depend on, by content and not by path.

    A folder with frames of something else is refused: otherwise a rerun after more training, or
    with new descriptions, would keep the old ones. Of feature stores it is what they say of
    themselves; frames of the same names in another folder are taken for the same.
    """
    data, params, inference = config.data, config.model, config.inference
    stores = {name: as_list(data.features[name]) for name in params.conditioner.features}
    infos = {name: [read_info(path) for path in paths] for name, paths in stores.items()}
    return {
        **{name: getattr(inference, name) for name in SAME},
        "height": inference.height or height_width(data.res)[0],
        "n_chunk": "any" if inference.noise == "sample" else n_chunk,
        "precision": resolved_precision(device, inference.precision),
        "mask_text_padding": params.conditioner.mask_text_padding,
        "checkpoint": fingerprint(ckpt),
        "loras": [[fingerprint(file), scale] for file, scale in adapter_files(config.loras)],
        "edit_file": _digest(Path(data.edit_path).read_bytes()),
        "text_prompt_key": data.text_prompt_key,
        "load_ema": params.use_ema and params.load_ema,
        "res": data.res,
        "parameterization": params.parameterization,
        "guidance_interval": inference.guidance_interval,
        "scale_factor": params.scale_factor,
        "metadata": _digest(Path(config.metadata_path).read_bytes()),
        "features": _digest(json.dumps(infos, sort_keys=True).encode()),
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def load_model(params: ModelParams, ckpt: str, device: torch.device, loras: Any = ()) -> LegoModel:
    """Of a file, a folder or a hub name. `loras`: files of adapters, FILE or FILE:SCALE, that are
    added to the weights.
    """
    ckpt = str(checkpoint_place(ckpt))
    state, notes = read_file(ckpt)
    model = LegoModel(replace(params, distill=distilled_from(notes.get("distill"), f"{ckpt}: ")))
    load_weights(model, state, params.use_ema and params.load_ema, ckpt)
    for file, scale in adapter_files(loras):
        model.load_state_dict(adapted(model.state_dict(), read_lora(file), scale, file))
    return model.to(device).eval()


def prepare(model: LegoModel, inference: InferenceConfig) -> LegoModel:
    """Precision of the UNet's weights, memory format and compilation as configured, in place.

    In float32 on a CPU the model can then make frames alone: see `ldm.networks.cpu.REORDERED`.
    """
    precision = resolved_precision(model.device, inference.precision)
    channels_last = inference.channels_last
    if channels_last is None:
        channels_last = model.device.type == "cuda"
    if inference.half_weights and precision == "fp32":
        raise EgoGenError("config: inference.half_weights: needs inference.precision fp16 or bf16")
    dtype = DTYPES[precision] if inference.half_weights else None
    model.denoiser.prepare(dtype, channels_last, inference.compile)
    if (model.device.type, precision, inference.compile) == ("cpu", "fp32", False):
        cpu.exchange(model.denoiser.network, cpu.REORDERED)  # the autoencoder gets slower by it
    return model


def generate_batch(
    model: LegoModel,
    samples: list[dict[str, Any]],
    names: Sequence[tuple[str, ...]],
    inference: InferenceConfig,
    scale_img: float,
    scale_txt: float,
    pad_to: int = 1,
    noise: Callable[[int], Tensor] | None = None,
    decode: bool = True,
    on_step: Callable[[int, Tensor, Tensor], Tensor] = lambda step, t, x: x,
) -> Tensor:
    """Samples of `read_condition` -> decoded images (B, 3, H, W), about [-1, 1], or, without
    `decode`, scaled latents (B, c, h, w). `on_step`: number and t of a step, x after it -> x to go
    on with, or StopIteration(x). The model is left in the mode that it was in.

    The noise of sample i depends only on (inference.seed, names[i]), unless a source is given.
    Kernels round differently for other batch sizes: with `pad_to` every batch is computed at that
    size, so that a sample is equal bit for bit wherever chunks and restarts have put it.
    """
    device, count, schedule = model.device, len(samples), model.schedule
    sampler = SAMPLERS[inference.sampler]
    size = max(count, pad_to)
    samples = samples + samples[-1:] * (size - count)
    with model.sampling(), autocast(device, inference.precision):
        batch = collate(samples, model.conditioner.features, device)
        conditioning = model.conditioning(batch["pixels"], batch["prompt"], batch["features"])
        if negative := batch.get("negative_prompt"):  # of each sample, in place of ""
            conditioning.uncond_context = model.uncond_context(model.encode_text(negative))
        shape = tuple(conditioning.image_latents.shape[1:])
        source = noise or sample_noise(inference.seed, names, shape, device)
        how = (scale_txt, scale_img), inference.guidance_interval
        denoise = model_denoiser(model, conditioning, *how)

        def padded(k: int) -> Tensor:
            rows = source(k)  # (B, c, h, w)
            return torch.cat([rows, rows[-1:].expand(size - count, *shape)])  # (size, c, h, w)

        sigmas = sampler.sigmas(schedule, inference.steps)

        t, start = schedule.timestep(sigmas[:-1]), padded(0)  # (steps,), (size, c, h, w)
        try:
            latents = sampler.run(denoise, start, sigmas, padded, lambda i, x: on_step(i, t[i], x))
        except StopIteration as stop:
            latents = stop.value
        return (model.decode(latents) if decode else latents)[:count]


def model_denoiser(
    model: LegoModel, given: Conditioning, scales: tuple[float, float], interval: Any
) -> Denoise:
    """Of a batch of B: guided by the scales of text and image, where `interval` is given at noise
    levels low < sigma <= high alone (Kynkäänniemi et al. 2024); elsewhere, and where it was
    distilled, by one branch. Raises EgoGenError for scales that it was not distilled from.
    """
    distill, prediction = model.config.distill, model.config.parameterization
    distill.check(*scales)

    def guided(*scales: float, **told: Tensor) -> Denoise:
        guidance = guidance_branches(given, *scales)
        predict = model.denoiser.hold(guidance.contexts, guidance.rows, **told)
        return guided_denoiser(predict, model.schedule, guidance, prediction)

    if distill.teacher is not None:
        rows = torch.tensor([scales] * len(given.context), dtype=torch.float32)  # (B, 2)
        return guided(1, 1, **({"scales": rows.to(model.device)} if distill.drawn else {}))
    inside, outside = guided(*scales), guided(1, 1)
    low, high = interval or (0, float("inf"))
    return lambda x, sigma: (inside if low < sigma <= high else outside)(x, sigma)


def generate_chunk(
    config: GenerateConfig, ckpt: str, n_chunk: int, chunk_idx: int, device: torch.device
) -> list[str]:
    """Write the frames of one chunk, for every pair of scales; -> entries that could not be done.

    Finished frames are kept, so that the same command continues a killed run.
    """
    inference, split = config.inference, open_generation(config, ckpt, n_chunk, chunk_idx)
    check_steps("config: inference.steps", inference.steps, config.model.timesteps)
    items = split.items
    info = made_by(config, ckpt, n_chunk, device)
    failures: list[str] = []
    pairs = [*itertools.product(inference.scales_img, inference.scales_txt)]

    @functools.cache
    def loaded() -> tuple[LegoModel, ProcessNoise | None]:  # only if there is a frame to be made
        model = prepare(load_model(config.model, ckpt, device, config.loras), inference)
        for scales in pairs:
            model.config.distill.check(*scales[::-1])
        stream = None
        if inference.noise == "process":
            draws = SAMPLERS[inference.sampler].draws(inference.steps)
            shape = model.latent_shape(split.data.res)
            stream = ProcessNoise(inference.seed, shape, draws, device)
        return model, stream

    for number, scales in enumerate(pairs):
        how = inference.sampler, inference.guidance_interval
        folder = run_folder(ckpt, inference.seed, inference.steps, *scales, *how, config.loras)
        check_provenance(folder / "made_by.json", info)
        # `clip/action/frame.jpg`: the last three parts of image_1, as in the released code.
        names = {item: "/".join(Path(item.entry.image_1).parts[-3:]) for item in items}
        paths = {item: inside(folder / "images", name) for item, name in names.items()}
        # Positions in the process, which the noise depends on in the order of the released code.
        places = {item: number * len(items) + i for i, item in enumerate(items)}
        with ThreadPoolExecutor() as pool:
            whole = dict(zip(paths, pool.map(is_whole, paths.values()), strict=True))
        left = [item for item in items if not whole[item]]
        if left:
            loaded()
        record_provenance(folder / "made_by.json", info)
        with Progress(len(items), "generate", "frames", len(items) - len(left)) as progress:
            for start in range(0, len(left), inference.batch_size):
                batch = {item: places[item] for item in left[start : start + inference.batch_size]}
                model, stream = loaded()
                decoded, failed = make_frames(model, split, inference, stream, batch, scales)
                for item, x in decoded.items():
                    size, height = split.sizes[item.entry.clip], inference.height or x.shape[1]
                    image = to_image(x, size, height, inference.picture)
                    write_image(paths[item], image, inference.jpeg_quality)
                failures += failed
                progress.update(len(batch))
    return failures


def check_steps(name: str, steps: int, timesteps: int) -> None:
    if steps > timesteps:
        raise EgoGenError(f"{name}={steps}: expected at most {timesteps}, the training's timesteps")


def make_frames(
    model: LegoModel,
    split: Split,
    inference: InferenceConfig,
    stream: ProcessNoise | None,
    places: dict[Located, int],
    scales: tuple[float, float],
) -> tuple[dict[Located, Tensor], list[str]]:
    """-> decoded images (3, H, W) of the items that can be read, a line for each other.

    `places`: their numbers in the noise that `stream`, if any, draws in turn; `scales`: of the
    image and of the text.
    """
    samples, failures = {}, []
    for item in places:
        try:
            samples[item] = read_condition(item, split)
        except EgoGenError as error:
            failures.append(f"{item.entry.key}: {error}")
    if not samples:
        return {}, failures
    names = [(item.entry.clip, item.entry.action_id) for item in samples]
    noise = stream.of([places[item] for item in samples]) if stream else None
    decoded = generate_batch(
        model, [*samples.values()], names, inference, *scales, inference.batch_size, noise
    )
    return dict(zip(samples, decoded, strict=True)), failures
