"""95 % intervals of figures, and two runs compared figure by figure.

docs/metrics.md says what they mean. Whole clips are drawn (the cluster bootstrap; Davison & Hinkley
1997, section 3.8), for FID without replacement, see `resampled_fid`. The draws depend on the number
of clips alone: two runs over the same frames get the same ones, so that the difference of their
resampled figures is a paired one.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from egogen import stable_seed, track
from metrics.registry import Key, Measured

RESAMPLES = 2000  # of means
LEVEL = 0.95
SEED = 42  # that of the released script
NORMAL_QUANTILE = 1.959963984540054  # of (1 + LEVEL) / 2
FID_SHARE = 0.8  # of the clips, in each draw
FID_DRAWS, FID_DRAWS_MANY, MANY = 200, 50, 500  # the last one: frames
FLIPS = 10_000  # drawn; all 2^clips where that is fewer
SUFFIX = "_ci95"
Numbers = Sequence[float] | np.ndarray


def clip_numbers(clips: Sequence[str] | np.ndarray) -> np.ndarray:
    """Clip of each frame as a number, (n,) int, by the clips' order of names."""
    return np.unique(np.asarray(clips, dtype=str), return_inverse=True)[1]


@functools.lru_cache(maxsize=1)
def draws(clips: int, resamples: int, what: str = "clips") -> np.ndarray:
    """(resamples, clips) int64, read-only: how often each clip, or `what` it is, is drawn."""
    generator = np.random.default_rng(stable_seed(SEED, what, clips))
    found = generator.multinomial(clips, np.full(clips, 1 / clips), size=resamples)
    found.flags.writeable = False
    return found


def resampled_means(values: Numbers, clips: np.ndarray) -> np.ndarray:
    """Means of the finite values in each draw of clips, (at most RESAMPLES,) float64.

    Draws without any finite value are left out; fewer than two clips give none.
    """
    found = np.asarray(values, dtype=np.float64)
    count = int(clips.max()) + 1
    if count < 2:
        return np.empty(0)
    finite = np.isfinite(found)
    sums = np.bincount(clips, np.where(finite, found, 0.0), minlength=count)
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


def around(value: float, resampled: Numbers) -> list[float] | None:
    """`value` +- 1.96 standard deviations of the resampled values; None with fewer than two."""
    if len(resampled) < 2:
        return None
    margin = NORMAL_QUANTILE * float(np.std(resampled, ddof=1))
    return [value - margin, value + margin]


def pooled_psnr_interval(psnr: Numbers, clips: np.ndarray) -> list[float] | None:
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
    from metrics.measures.frechet import frechet_distance  # slow to import

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
        found["fid" + SUFFIX] = around(float(measured.overall["fid"] or 0.0), resampled["fid"])
    return found, resampled


@dataclass
class Comparison:
    """One figure of runs A and B. `difference` is B - A over `frames`, finite in both.

    Wins, ties and losses of B are over frames that have a value in both, infinite ones (PSNR of
    equal images) among them; None for figures without per-frame values.
    """

    key: str
    first: float
    second: float
    difference: float
    interval: list[float] | None
    p_value: float | None
    test: str
    frames: int
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None

    @property
    def win_rate(self) -> float | None:
        """Share of frames in which B is better, a tie counting half."""
        if self.wins is None or self.ties is None or self.losses is None:
            return None
        return (self.wins + self.ties / 2) / (self.wins + self.ties + self.losses)

    def better(self, key: Key) -> str:
        """The better run, "A" or "B"; "" when the interval holds zero or there is none."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "B" if (self.difference > 0) == key.higher_is_better else "A"


def sign_flip_p(differences: np.ndarray, clips: np.ndarray) -> float | None:
    """Two-sided p-value of the mean of `differences` (n,), signs flipped clip by clip.

    Drawn flips count the observed one among them (Phipson & Smyth 2010), so p is never 0. None with
    fewer than two clips.
    """
    from scipy.stats import permutation_test  # slow to import

    sums = np.bincount(clips, differences)
    if len(sums) < 2:
        return None
    scale = np.abs(sums).sum() or 1.0

    def size(flipped: np.ndarray, axis: int) -> np.ndarray:
        # Sums of equal size in another order differ in their last digits; they count as equal.
        return np.abs(flipped.sum(axis=axis) / scale).round(9)

    found = permutation_test(
        (sums,),
        size,
        permutation_type="samples",  # of one sample: its signs
        alternative="greater",
        vectorized=True,
        n_resamples=FLIPS,
        batch=max(1, 1_000_000 // len(sums)),  # bounds the memory
        random_state=np.random.default_rng(stable_seed(SEED, "flips", len(sums))),
    )
    return float(found.pvalue)


def compare_columns(
    key: str, first: Numbers, second: Numbers, clips: Sequence[str], up: bool
) -> Comparison | None:
    """Compare per-frame values, pairwise; frames without a finite value in both are left out.

    `up`: higher is better. None where no frame has both.
    """
    values = np.array([first, second], dtype=np.float64)
    greater, smaller, ties = (
        int(np.count_nonzero(compared(values[1], values[0])))
        for compared in (np.greater, np.less, np.equal)
    )
    wins, losses = (greater, smaller) if up else (smaller, greater)
    usable = np.isfinite(values).all(axis=0)
    if not usable.any():
        return None
    values = values[:, usable]
    numbers = clip_numbers(np.asarray(clips, dtype=str)[usable])
    differences = values[1] - values[0]
    count, p_value = len(differences), sign_flip_p(differences, numbers)
    one, other, mean = (math.fsum(row) / count for row in (*values, differences))
    interval = percentiles(resampled_means(differences, numbers))
    test = "paired sign-flip test over clips"
    return Comparison(key, one, other, mean, interval, p_value, test, count, wins, ties, losses)


def compare_resampled(
    key: str, overall: Sequence[float], resampled: Sequence[Numbers], frames: int
) -> Comparison:
    """Compare one number a run by its resampled values, draw by draw over the same clips."""
    first, second = overall
    difference = second - first
    spread = np.subtract(resampled[1], resampled[0])
    interval, p_value = around(difference, spread), None
    if interval is not None:
        deviation = float(np.std(spread, ddof=1))
        # Runs that agree in every draw do not differ at all.
        p_value = 1.0 if deviation == 0 else math.erfc(abs(difference) / deviation / math.sqrt(2))
    test = "normal, resampled clips"
    return Comparison(key, first, second, difference, interval, p_value, test, frames)
