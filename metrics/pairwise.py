"""Two runs over the same frames: difference, interval, p-value and win rate of every figure.

Intervals are those of `metrics.intervals`: whole clips are resampled, in both runs the same ones.
The p-value of a figure with per-frame values is that of the paired sign-flip (randomisation) test
on the mean difference: if the runs were equally good, which of the two values of a clip came from
which run would be arbitrary, so the signs of all differences of a clip are flipped at random. It
assumes no distribution and is exact for up to 13 clips (all flips are tried). FID has no per-frame
values; its p-value is two-sided normal, with the standard deviation of the resampled differences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from egogen.seeds import stable_seed
from metrics.intervals import SEED, around, clip_numbers, percentiles, resampled_means
from metrics.registry import Key

FLIPS = 10_000  # drawn; all 2^clips where that is fewer


@dataclass
class Comparison:
    """One figure of runs A and B. `difference` is B - A over `frames`, finite in both.

    Wins, ties and losses of B are over frames that have a value in both, infinite ones (PSNR of
    equal pictures) among them; None for figures without per-frame values.
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
        if self.wins is None:
            return None
        return (self.wins + self.ties / 2) / (self.wins + self.ties + self.losses)

    def better(self, key: Key) -> str:
        """ "A", "B" or "" when the interval holds zero or there is none."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "B" if (self.difference > 0) == key.higher_is_better else "A"


def sign_flip_p(differences: np.ndarray, clips: np.ndarray) -> float | None:
    """Two-sided p-value of the mean of `differences` (n,), signs flipped clip by clip.

    Drawn flips count the observed one among them (Phipson & Smyth 2010), so p is never 0. None with
    fewer than two clips.
    """
    sums = np.bincount(clips, differences)
    if len(sums) < 2:
        return None
    # Sums of equal size in another order differ in their last digits; they count as equal.
    observed = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    if 2 ** len(sums) <= FLIPS:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(sums))))
        return float(np.mean(np.abs(signs @ sums) >= observed))
    generator = np.random.default_rng(stable_seed(SEED, "flips", len(sums)))
    signs = generator.integers(0, 2, (FLIPS, len(sums)), dtype=np.int8)
    totals = 2 * (signs @ sums) - sums.sum()
    return float((1 + np.count_nonzero(np.abs(totals) >= observed)) / (1 + FLIPS))


def compare_columns(
    key: str, first: Sequence[float], second: Sequence[float], clips: Sequence[str], up: bool
) -> Comparison | None:
    """Compare per-frame values, pairwise; frames without a finite value in both are left out.

    `up`: higher is better. None where no frame has both.
    """
    values = np.array([first, second], dtype=np.float64)
    greater, smaller, equal = (
        int(np.count_nonzero(compared(values[1], values[0])))
        for compared in (np.greater, np.less, np.equal)
    )
    usable = np.isfinite(values).all(axis=0)
    if not usable.any():
        return None
    values = values[:, usable]
    numbers = clip_numbers(np.asarray(clips, dtype=str)[usable])
    differences = values[1] - values[0]
    return Comparison(
        key,
        math.fsum(values[0]) / values.shape[1],
        math.fsum(values[1]) / values.shape[1],
        math.fsum(differences) / values.shape[1],
        percentiles(resampled_means(differences, numbers)),
        sign_flip_p(differences, numbers),
        "paired sign-flip test over clips",
        values.shape[1],
        wins=greater if up else smaller,
        ties=equal,
        losses=smaller if up else greater,
    )


def compare_resampled(
    key: str,
    overall: tuple[float, float],
    resampled: tuple[Sequence[float], Sequence[float]],
    frames: int,
) -> Comparison:
    """Compare one number a run by its resampled values, draw by draw over the same clips."""
    difference = overall[1] - overall[0]
    spread = np.subtract(resampled[1], resampled[0])
    interval, p_value = around(difference, spread), None
    if interval is not None:
        deviation = float(np.std(spread, ddof=1))
        # Runs that agree in every draw do not differ at all.
        p_value = 1.0 if deviation == 0 else math.erfc(abs(difference) / deviation / math.sqrt(2))
    return Comparison(
        key, *overall, difference, interval, p_value, "normal, resampled clips", frames
    )
