"""Generation of action frames for a chunk of an action file."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image

from egogen import EgoGenError
from egogen.actions import ActionEntry, inside, read_clip_sizes
from egogen.chunks import floor_chunk
from egogen.claims import claim
from egogen.frames import read_rgb
from egogen.progress import Progress
from ldm.checkpoint import load_for_generation, read_weights
from ldm.data import Located, locate_entries, read_condition, stack
from ldm.model import LegoModel, autocast
from ldm.pictures import to_picture, write_picture
from ldm.sampling import SampleNoise, guided_denoiser, sample_euler_ancestral

RELEASED_TEXT_SCALE = 7.5


def run_folder(ckpt: str, seed: int, steps: int, scale_img: float, scale_txt: float) -> Path:
    """Released place of a run, `X/X-e=0-s=100-si=1.5`; other text scales are named too."""
    path = Path(ckpt)
    base = path.with_suffix("") if path.suffix in (".ckpt", ".safetensors") else path
    name = f"{base.name}-e={seed}-s={steps}-si={scale_img}"
    if scale_txt != RELEASED_TEXT_SCALE:
        name += f"-st={scale_txt}"
    return base / name


def fingerprint(ckpt: str) -> str:
    """Of a checkpoint's size and its first and last MiB; the last one of a .ckpt or .pth holds the
    checksums of everything inside.
    """
    path = Path(ckpt)
    if not path.is_file():
        raise EgoGenError(f"{path}: no such checkpoint")
    size, part = path.stat().st_size, 2**20
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(part))
        file.seek(max(0, size - part))
        digest.update(file.read(part))
    return digest.hexdigest()[:16]


def claim_folder(folder: Path, config: DictConfig, ckpt: str) -> None:
    """Record beside the frames what makes them; refuse a folder with frames of something else.

    Otherwise a rerun after more training, or with new descriptions, would keep the old frames.
    """
    data, inference = config.data.params, config.inference
    info = {name: inference[name] for name in ("height", "picture", "jpeg_quality")}
    info |= {
        "checkpoint": fingerprint(ckpt),
        "edit_file": hashlib.sha256(Path(data.edit_path).read_bytes()).hexdigest()[:16],
        "text_prompt_key": data.text_prompt_key,
    }
    claim(folder / "made_by.json", info)


def load_model(params: DictConfig, ckpt: str, device: torch.device) -> LegoModel:
    state = read_weights(ckpt)
    model = LegoModel(params)
    load_for_generation(model, state, use_ema=params.use_ema and params.load_ema)
    return model.to(device).eval()


@torch.no_grad()
def generate_batch(
    model: LegoModel,
    samples: list[dict[str, Any]],
    names: list[tuple[str, ...]],
    inference: DictConfig,
    scale_img: float,
    scale_txt: float,
    pad_to: int = 1,
) -> torch.Tensor:
    """Samples of `read_condition` -> decoded pictures (B, 3, R, R), about [-1, 1].

    Sample i's noise depends on (inference.seed, names[i]) alone. Kernels round differently for
    other batch sizes: with `pad_to` every batch is computed at that size, so that a sample is equal
    bit for bit wherever chunks and restarts have put it.
    """
    device, count = model.device, len(samples)
    samples = samples + samples[-1:] * (pad_to - count)
    names = names + names[-1:] * (pad_to - count)
    with autocast(device, inference.precision):
        conditioning = model.conditioning(
            stack(samples, "pixels", device),
            [sample["prompt"] for sample in samples],
            stack(samples, "image_features", device),
            stack(samples, "text_features", device),
        )
        sigmas = model.schedule.sampling_sigmas(inference.steps).to(device)
        shape = tuple(conditioning.image_latents.shape[1:])
        noise = SampleNoise(inference.seed, names, shape, device)
        denoise = guided_denoiser(
            model.predict,
            model.schedule,
            conditioning,
            scale_txt,
            scale_img,
            model.config.parameterization,
        )
        latents = sample_euler_ancestral(denoise, noise(0) * sigmas[0], sigmas, noise)
        return model.decode(latents)[:count]


def _finished(path: Path) -> bool:
    try:
        read_rgb(path)
    except EgoGenError:
        return False
    return True


def generate_chunk(
    config: DictConfig, ckpt: str, n_chunk: int, chunk_idx: int, device: torch.device
) -> list[str]:
    """Write the frames of one chunk, for every pair of scales; -> entries that could not be done.

    Finished frames are kept, so that the same command continues a killed run.
    """
    data, inference = config.data.params, config.inference
    items = floor_chunk(locate_entries(data), n_chunk, chunk_idx)
    sizes = read_clip_sizes(config.data.metadata_path)
    for item in items:
        if item.entry.clip not in sizes:
            raise EgoGenError(f"{config.data.metadata_path}: clip {item.entry.clip!r} is missing")
    model, failures = None, []
    for scales in itertools.product(inference.scales_img, inference.scales_txt):
        folder = run_folder(ckpt, inference.seed, inference.steps, *scales)
        claim_folder(folder, config, ckpt)
        folder = folder / "images"
        paths = {item: _output(folder, item.entry) for item in items}
        left = [item for item in items if not _finished(paths[item])]
        if left and model is None:
            model = load_model(config.model.params, ckpt, device)
        done = len(items) - len(left)
        with Progress(len(items), "generate", "frames", done) as progress:
            for start in range(0, len(left), inference.batch_size):
                batch = left[start : start + inference.batch_size]
                pictures, failed = _generate_items(model, batch, config, sizes, scales)
                for item, picture in pictures.items():
                    write_picture(paths[item], picture, inference.jpeg_quality)
                failures += failed
                progress.update(len(batch))
    return failures


def _generate_items(
    model: LegoModel,
    items: list[Located],
    config: DictConfig,
    sizes: dict[str, tuple[int, int]],
    scales: tuple[float, float],
) -> tuple[dict[Located, Image.Image], list[str]]:
    """-> pictures at their clips' aspect, and a line for each entry that could not be read."""
    inference, samples, failures = config.inference, {}, []
    for item in items:
        try:
            samples[item] = read_condition(
                item, config.data.params, config.model.params.conditioner
            )
        except EgoGenError as error:
            failures.append(f"{item.entry.key}: {error}")
    if not samples:
        return {}, failures
    names = [(item.entry.clip, item.entry.action_id) for item in samples]
    decoded = generate_batch(
        model, list(samples.values()), names, inference, *scales, pad_to=inference.batch_size
    )
    pictures = {
        item: to_picture(x, sizes[item.entry.clip], inference.height, inference.picture)
        for item, x in zip(samples, decoded, strict=True)
    }
    return pictures, failures


def _output(folder: Path, entry: ActionEntry) -> Path:
    """`clip/action/frame.jpg`: the last three parts of image_1, as released."""
    return inside(folder, "/".join(Path(entry.image_1).parts[-3:]))
