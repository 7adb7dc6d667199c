"""Reading the results of two runs and comparing every figure that both have."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from egogen import EgoGenError, read_json, read_object
from metrics.intervals import SUFFIX, Comparison, compare_columns, compare_resampled
from metrics.registry import KEYS, MEASURE
from metrics.results import INPUT_FILE, METRIC_FILE, PARTS, SAMPLE_FILE, read_figures, read_table

INSIDE = ("metric", "metrics")  # where a run's folder holds its results


@dataclass
class Run:
    """The results of one run, as `metrics.results` wrote them."""

    name: str
    folder: Path
    overall: dict
    samples: dict[str, dict[str, float]]
    clips: dict[str, str]
    inputs: dict


@dataclass
class Versus:
    """Two runs side by side, over the frames that both measured (sorted)."""

    first: Run
    second: Run
    frames: list[str]
    figures: list[Comparison]
    skipped: list[str]  # lines: what was not compared, and why

    @property
    def clips(self) -> int:
        return len({self.first.clips[frame] for frame in self.frames})

    def values(self, key: str) -> tuple[list[float], ...]:
        """Per-frame values of A and B, nan where there is none."""
        of_runs = self.first.samples, self.second.samples
        return tuple([of[frame].get(key, math.nan) for frame in self.frames] for of in of_runs)

    def to_json(self) -> dict:
        names = ("frames", "wins", "ties", "losses", "win_rate", "p_value", "test")
        return {
            "a": {"name": self.first.name, "folder": str(self.first.folder)},
            "b": {"name": self.second.name, "folder": str(self.second.folder)},
            "frames": len(self.frames),
            "clips": self.clips,
            "figures": {
                found.key: {
                    "a": found.first,
                    "b": found.second,
                    "difference": found.difference,
                    "difference" + SUFFIX: found.interval,
                    "higher_is_better": KEYS[found.key].higher_is_better,
                    "better": found.better(KEYS[found.key]) or None,
                    **{name: getattr(found, name) for name in names},
                }
                for found in self.figures
            },
            "skipped": self.skipped,
        }


def read_run(path: str | os.PathLike, name: str | None = None) -> Run:
    """Results in `path` or in the folder `metric` of it; the name is that of the run's folder."""
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        raise EgoGenError(f"{path}: no such folder, expected the results of a run")
    places = [folder, *(folder / inside for inside in INSIDE)]
    found = next((place for place in places if (place / METRIC_FILE).is_file()), folder)
    overall, inputs = read_figures(found), read_object(found / INPUT_FILE)
    if not {"metrics", "targets"} <= inputs.keys():
        expected = "expected 'metrics' and 'targets'; of an earlier version?"
        raise EgoGenError(f"{found / INPUT_FILE}: {expected} Measure again: {MEASURE}")
    samples, clips = read_table(found / SAMPLE_FILE)
    missing = sorted(inputs["targets"].keys() - samples.keys())
    if missing:
        lacking = f"{len(missing)} of {len(inputs['targets'])} frames are missing"
        raise EgoGenError(f"{found / SAMPLE_FILE}: {lacking}, first {missing[0]}; measure again")
    named = found.parent if found.name in INSIDE else found
    return Run(name or named.name, found, overall, samples, clips, inputs)


def common_frames(first: Run, second: Run) -> list[str]:
    """Frames that both measured; raises EgoGenError when there are none, or truths differ."""
    frames = sorted(first.samples.keys() & second.samples.keys())
    if not frames:
        expected = "no frame in common, expected runs over one split"
        raise EgoGenError(f"{first.folder} and {second.folder}: {expected}")
    truths = [run.inputs["targets"] for run in (first, second)]
    for frame in frames:
        if truths[0].get(frame) != truths[1].get(frame):
            other = f"another ground truth in {first.folder} than in {second.folder}"
            raise EgoGenError(f"{frame}: measured against {other}, expected the same file")
    return frames


def _incomparable(name: str, first: Run, second: Run, same_frames: bool) -> str | None:
    """Why a metric's values in both runs do not mean the same, or None."""
    known, other = (run.inputs["metrics"][name]["from"] for run in (first, second))
    for field in ("weights", "dataset", *(("sources", "texts") if same_frames else ())):
        if known.get(field) != other.get(field):
            return f"{name}: computed with other {field} in A than in B"
    return None


def compare_runs(first: Run, second: Run) -> Versus:
    """Every figure of both, in the order of `KEYS`; what cannot be compared is named."""
    versus = Versus(first, second, common_frames(first, second), [], [])
    same_frames = first.samples.keys() == second.samples.keys()
    if not same_frames:
        only = [len(run.samples) - len(versus.frames) for run in (first, second)]
        versus.skipped.append(f"frames: {only[0]} only in A, {only[1]} only in B")
    both = [name for name in first.inputs["metrics"] if name in second.inputs["metrics"]]
    for run, letter in ((first, "A"), (second, "B")):
        only_here = [name for name in run.inputs["metrics"] if name not in both]
        if only_here:
            versus.skipped.append(f"measured only in {letter}: {', '.join(only_here)}")
    for name in both:
        if reason := _incomparable(name, first, second, same_frames):
            versus.skipped.append(reason)
            continue
        for key in first.inputs["metrics"][name]["figures"]:
            if key in KEYS and key in second.inputs["metrics"][name]["figures"]:
                _compare(versus, name, key, same_frames)
    if not versus.figures:
        reasons = "; ".join(versus.skipped)
        raise EgoGenError(f"{first.folder} and {second.folder}: nothing to compare ({reasons})")
    return versus


def _compare(versus: Versus, metric: str, key: str, same_frames: bool) -> None:
    """Append the comparison of one figure, or why there is none."""
    first, second = versus.values(key)
    clips = [versus.first.clips[frame] for frame in versus.frames]
    found = compare_columns(key, first, second, clips, KEYS[key].higher_is_better)
    runs = versus.first, versus.second
    overall: list = [run.overall.get(key) for run in runs]
    if found is None and same_frames and all(isinstance(value, int | float) for value in overall):
        # A figure without per-frame values (FID): by what its intervals were made of.
        parts = [read_json(run.folder / PARTS / f"{metric}.json") for run in runs]
        resampled = [part.get("resampled", {}).get(key) for part in parts]
        if all(resampled):
            found = compare_resampled(key, overall, resampled, len(versus.frames))
    if found is not None:
        versus.figures.append(found)
    elif key != "psnr_pooled":  # `psnr` says all that can be said of it
        versus.skipped.append(f"{key}: no value that the runs share")
