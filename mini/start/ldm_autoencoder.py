"""Train the small autoencoder on rendered frames: reconstruction with a light KL term.

Latents of Stable Diffusion come from a far larger network that was also trained adversarially; on
rendered scenes errors of pixels and of their differences are enough for an oracle, and a person, to
read a decoded image. All but the last WHOLE share of the steps see crops, which are cheaper.
"""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from egogen import DESCRIPTION_KEY, SPLITS, stable_seed, track
from egogen.actions import read_actions
from egogen.labels import clean_label
from egogen.layout import action_file, frame_folder
from ldm.images import read_pixels
from mini.start.learning import cosine_rates, learn

KL_WEIGHT = 1e-4  # per latent value; keeps the latents bounded and smooth
EDGE_WEIGHT = 0.2  # of differences between neighbouring pixels, without which edges are blurred
COLOUR_WEIGHT = 2.0  # of colourful pixels: things and skin, not the grain of a table
CROP, WHOLE = 64, 0.12  # pixels, share of the steps


def told_frames(root: Path, datasets: Sequence[str]) -> dict[Path, list[str]]:
    """Paths of frames, each with the texts that it can be asked for by.

    All target frames with description and label, and one source frame a clip (a clip's actions
    start from equal ones) with none.
    """
    told: dict[Path, list[str]] = {}
    for dataset, split in product(datasets, SPLITS):
        folder = frame_folder(root, dataset, split)
        entries = read_actions(action_file(root, dataset, split), ("action", DESCRIPTION_KEY))
        sources = {entry.clip: entry.image_0 for entry in entries}
        told |= {folder / name: [] for name in sources.values()}
        for entry in entries:
            label = clean_label(entry.texts["action"], dataset)
            told[folder / entry.image_1] = [entry.texts[DESCRIPTION_KEY], label]
    return told


def read_frames(paths: Sequence[Path], size: int | Sequence[int]) -> Tensor:
    """-> uint8 (N, 3, H, W), squeezed as stage 2 squeezes them."""
    frames = (read_pixels(path, size) for path in track(paths, len(paths), "read", "frames"))
    return torch.stack([((x + 1) * 127.5).round().to(torch.uint8) for x in frames])


def reconstruction_loss(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, float]:
    """pixels (B, 3, H, W) in [-1, 1] -> loss and the mean squared error (for the record)."""
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample()).sample - pixels  # (B, 3, H, W)
    colourful = pixels.amax(dim=1, keepdim=True) - pixels.amin(dim=1, keepdim=True)  # 0 to 2
    weight = 0.5 + COLOUR_WEIGHT * colourful  # (B, 1, H, W)
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    pointwise = (weight * (error.square() + 0.3 * error.abs())).mean()
    return pointwise + EDGE_WEIGHT * edges + KL_WEIGHT * divergence, error.square().mean().item()


def train_autoencoder(
    vae: AutoencoderKL, frames: Tensor, *, steps: int, batch_size: int, peak: float, seed: int
) -> float:
    """Train in place on `frames` (N, 3, H, W) uint8; -> PSNR in dB over the last tenth of steps."""
    generator = torch.Generator().manual_seed(stable_seed(seed, "autoencoder"))

    def loss_of(step: int) -> tuple[Tensor, float]:
        whole = step >= steps * (1 - WHOLE)
        count = max(1, batch_size * CROP**2 // frames[0, 0].numel()) if whole else batch_size
        rows = torch.randint(len(frames), (count,), generator=generator)
        chosen = frames[rows]  # (B, 3, H, W)
        if not whole:
            size = torch.tensor(chosen.shape[-2:])
            top, left = (torch.rand(2, generator=generator) * (size - CROP + 1)).long().tolist()
            chosen = chosen[..., top : top + CROP, left : left + CROP]
        pixels = chosen.float() / 127.5 - 1
        # brightness and contrast of each channel vary more than in the frames themselves
        gain = 1 + 0.08 * torch.randn(count, 3, 1, 1, generator=generator)
        return reconstruction_loss(vae, (pixels * gain).clamp(-1, 1))

    vae.requires_grad_(True).train()
    rates = cosine_rates(steps, peak)
    error = learn(vae.parameters(), loss_of, rates, "autoencoder", weight_decay=0.0, fused=True)
    vae.eval().requires_grad_(False)
    return psnr_of(error)


def psnr_of(squared_error: float) -> float:
    """Mean squared error of values in [-1, 1] -> dB."""
    return 10 * math.log10(4 / squared_error)


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, frames: Tensor) -> float:
    """1 / standard deviation of the latents, as `scale_factor` is defined."""
    latents = torch.cat(
        [vae.encode(f.float() / 127.5 - 1).latent_dist.mean for f in frames.split(64)]
    )
    return 1 / latents.std().item()
