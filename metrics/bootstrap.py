"""95 % intervals of figures, by resampling the clips that were measured.

Frames of one clip show one scene and often start from one source frame, so whole clips are drawn,
with replacement, as many as there are (the cluster bootstrap; Davison & Hinkley 1997, section 3.8).
The draws depend on the number of clips alone: two runs over the same frames get the same ones, so
that the difference of their resampled figures is a paired one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from egogen.progress import track
from egogen.seeds import stable_seed
from metrics.registry import Measured

RESAMPLES = 2000  # of means
LEVEL = 0.95
SEED = 42  # that of the released script
NORMAL_QUANTILE = 1.959963984540054  # of (1 + LEVEL) / 2
FID_RESAMPLES, FID_RESAMPLES_MANY, MANY = 200, 100, 1000  # the last one: frames
SUFFIX = "_ci95"


def clip_numbers(clips: Sequence[str]) -> np.ndarray:
    """Clip of each frame as a number, (n,) int, by the clips' order of names."""
    return np.unique(np.asarray(clips, dtype=str), return_inverse=True)[1]


@functools.lru_cache(maxsize=1)
def draws(clips: int, resamples: int) -> np.ndarray:
    """(resamples, clips) int64, read-only: how often each clip is drawn."""
    generator = np.random.default_rng(stable_seed(SEED, "clips", clips))
    found = generator.multinomial(clips, np.full(clips, 1 / clips), size=resamples)
    found.flags.writeable = False
    return found


def resampled_means(values: Sequence[float], clips: np.ndarray) -> np.ndarray:
    """Means of the finite values in each draw of clips, (at most RESAMPLES,) float64.

    Draws without any finite value are left out; fewer than two clips give none.
    """
    values = np.asarray(values, dtype=np.float64)
    count = int(clips.max()) + 1
    if count < 2:
        return np.empty(0)
    finite = np.isfinite(values)
    sums = np.bincount(clips, np.where(finite, values, 0.0), minlength=count)
    totals = draws(count, RESAMPLES) @ np.stack([sums, np.bincount(clips, finite)], axis=1)
    totals = totals[totals[:, 1] > 0]
    return totals[:, 0] / totals[:, 1]


def percentiles(resampled: np.ndarray) -> list[float] | None:
    """The central LEVEL of resampled values, [low, high]; None without any."""
    if not len(resampled):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return [float(low), float(high)] if math.isfinite(low) and math.isfinite(high) else None


def around(value: float, resampled: Sequence[float]) -> list[float] | None:
    """`value` +- 1.96 standard deviations of the resampled values; None with fewer than two."""
    if len(resampled) < 2:
        return None
    margin = NORMAL_QUANTILE * float(np.std(resampled, ddof=1))
    return [value - margin, value + margin]


def pooled_psnr_interval(psnr: Sequence[float], clips: np.ndarray) -> list[float] | None:
    """Interval of the PSNR, dB, of the mean error of all frames, from the frames' dB values."""
    errors = percentiles(resampled_means(10 ** (-np.asarray(psnr, dtype=np.float64) / 10), clips))
    if errors is None or min(errors) <= 0:
        return None
    return [-10 * math.log10(error) for error in reversed(errors)]


def resampled_fid(
    generated: np.ndarray, target: np.ndarray, clips: np.ndarray, device: str = "cpu"
) -> list[float]:
    """Frechet distances of the frames of drawn clips; features are (n, d) float64, one row a pair.

    Drawn frames repeat, which raises every resampled distance by much the same amount: their spread
    means something, their place does not (hence `around`, which errs on the wide side). 200 draws,
    100 for more than 1,000 frames: the cost of one grows with min(n, d)^3.
    """
    count = int(clips.max()) + 1
    if count < 2:
        return []
    resamples = FID_RESAMPLES if len(clips) <= MANY else FID_RESAMPLES_MANY
    centre = target.mean(axis=0)
    rows = [torch.from_numpy(x - centre).to(device) for x in (generated, target)]
    distance = _by_gram(*rows) if len(clips) <= target.shape[1] else _by_covariance(*rows)
    found = []
    drawn = draws(count, resamples)[:, clips]  # (resamples, n): how often each frame counts
    for weights in track(drawn, resamples, "interval of fid", "resamples"):
        if np.count_nonzero(weights) >= 2:
            found.append(float(distance(torch.from_numpy(weights).to(device, torch.float64))))
    return found


def _by_gram(first: torch.Tensor, second: torch.Tensor):
    """Weighted Frechet distance by products of rows, (n, d) each, for n <= d.

    As `metrics.frechet.frechet_distance`; frame i counts w_i times, and N = sum w.
    """
    gram_11, gram_22, gram_12 = first @ first.T, second @ second.T, first @ second.T

    def distance(weights: torch.Tensor) -> torch.Tensor:
        total = weights.sum()
        p = weights / total
        mean_term = p @ (gram_11 + gram_22 - 2 * gram_12) @ p
        traces = sum(p @ gram.diagonal() - p @ gram @ p for gram in (gram_11, gram_22))
        used = weights > 0
        cross = gram_12 - gram_12 @ p[:, None] - p @ gram_12 + p @ gram_12 @ p
        root = p[used].sqrt()
        cross = root[:, None] * cross[used][:, used] * root
        scale = total / (total - 1)
        return mean_term + scale * (traces - 2 * torch.linalg.svdvals(cross).sum())

    return distance


def _by_covariance(first: torch.Tensor, second: torch.Tensor):
    """The same by covariances (d, d), for n > d: tr sqrt(S1 S2) = tr sqrt(R S2 R), R = sqrt S1."""

    def distance(weights: torch.Tensor) -> torch.Tensor:
        p = weights / weights.sum()
        means = [p @ rows for rows in (first, second)]
        centred = [rows - mean for rows, mean in zip((first, second), means, strict=True)]
        scaled = p / (1 - 1 / weights.sum())
        covariances = [(rows * scaled[:, None]).T @ rows for rows in centred]
        values, vectors = torch.linalg.eigh(covariances[0])
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        product = torch.linalg.eigvalsh(root @ covariances[1] @ root)
        traces = covariances[0].trace() + covariances[1].trace()
        return (means[0] - means[1]).square().sum() + traces - 2 * product.clamp(min=0).sqrt().sum()

    return distance


def intervals(
    measured: Measured, clips: Sequence[str], device: str = "cpu"
) -> tuple[dict[str, list[float] | None], dict[str, list[float]]]:
    """({key + "_ci95": [low, high] or None}, {key: resampled values of keys without a column}).

    `clips` names the clip of each frame. Counts have no interval.
    """
    numbers = clip_numbers(clips)
    found = {
        key + SUFFIX: percentiles(resampled_means(values, numbers))
        for key, values in measured.columns.items()
        if key in measured.overall
    }
    resampled = {}
    if "psnr_pooled" in measured.overall:
        found["psnr_pooled" + SUFFIX] = pooled_psnr_interval(measured.columns["psnr"], numbers)
    if measured.features:
        features = measured.features
        resampled["fid"] = resampled_fid(features["generated"], features["target"], numbers, device)
        found["fid" + SUFFIX] = around(measured.overall["fid"], resampled["fid"])
    return found, resampled
