"""95 % intervals of figures, by resampling the clips that were measured.

Frames of one clip show one scene and often start from one source frame, so whole clips are drawn,
with replacement, as many as there are (the cluster bootstrap; Davison & Hinkley 1997, section 3.8);
for FID without replacement, see `resampled_fid`.
The draws depend on the number of clips alone: two runs over the same frames get the same ones, so
that the difference of their resampled figures is a paired one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from egogen.jobs import track
from egogen.seeds import stable_seed
from metrics.measures.frechet import frechet_distance
from metrics.registry import Measured

RESAMPLES = 2000  # of means
LEVEL = 0.95
SEED = 42  # that of the released script
NORMAL_QUANTILE = 1.959963984540054  # of (1 + LEVEL) / 2
FID_SHARE = 0.8  # of the clips, in each draw
FID_DRAWS, FID_DRAWS_MANY, MANY = 200, 50, 500  # the last one: frames
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


def resampled_fid(generated: np.ndarray, target: np.ndarray, clips: np.ndarray) -> list[float]:
    """Frechet distances of parts of the frames, spread as those of new clips would be.

    Features are (n, d) float64, one row a pair. Drawn with replacement, frames would repeat, which
    changes covariances so much that intervals become two to five times too wide; so FID_SHARE of
    the clips is drawn without replacement, m of c, and the deviations are scaled by sqrt(m/(c - m))
    (delete-d jackknife, Shao & Wu 1989). Simulated intervals are 1 to 1.6 times as wide as the
    real spread. FID_DRAWS draws, FID_DRAWS_MANY for more than MANY frames: one costs min(n, d)^3.
    """
    count = int(clips.max()) + 1
    part = min(count - 1, round(FID_SHARE * count))
    if part < 1:
        return []
    generator = np.random.default_rng(stable_seed(SEED, "parts", count))
    draws_wanted = FID_DRAWS if len(clips) <= MANY else FID_DRAWS_MANY
    found = []
    for _ in track(range(draws_wanted), draws_wanted, "interval of fid", "draws"):
        used = np.isin(clips, generator.permutation(count)[:part])
        if used.sum() >= 2:
            found.append(frechet_distance(target[used], generated[used]))
    values = np.asarray(found or [0.0])
    scaled = values.mean() + math.sqrt(part / (count - part)) * (values - values.mean())
    return scaled.tolist() if found else []


def intervals(
    measured: Measured, clips: Sequence[str]
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
        resampled["fid"] = resampled_fid(features["generated"], features["target"], numbers)
        found["fid" + SUFFIX] = around(measured.overall["fid"], resampled["fid"])
    return found, resampled
