"""What a report shows: samples with pictures and figures, overall figures, training curves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from egogen.actions import inside, read_actions
from egogen.atomic import read_json
from egogen.errors import EgoGenError
from metrics.results import METRIC_FILE, SAMPLE_FILE, read_samples

RANKED_BY = ("psnr_changed_gain", "psnr")  # the first that was measured orders the samples


@dataclass
class Sample:
    """One generated frame beside what it started from and what it should have become."""

    key: str  # clip/action
    label: str
    description: str
    source: Path
    generated: Path
    target: Path
    figures: dict[str, float]
    done: bool | None = None  # did the action happen, by the oracle of the mini data set
    why_not: str = ""


@dataclass
class Curve:
    """Losses of one training run; points are (step, value)."""

    title: str
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


@dataclass
class ReportData:
    title: str
    subtitle: str
    samples: list[Sample]  # best first
    ranked_by: str
    overall: dict[str, float | None]
    score: dict | None = None  # egogen.mini.score of these frames
    swapped: dict | None = None  # the same of frames made with another action's description
    descriptions: dict | None = None  # shares of descriptions that state the right facts
    curves: list[Curve] = field(default_factory=list)


def read_samples_of(
    gen_path: str | os.PathLike,
    frames: str | os.PathLike,
    edit_file: str | os.PathLike,
    metric_folder: str | os.PathLike,
    llava_key: str,
    score: dict | None,
) -> tuple[list[Sample], str]:
    """(measured samples, best first; the figure they are ordered by).

    Raises EgoGenError when the entries, their figures and their pictures do not fit together.
    """
    figures = read_samples(Path(metric_folder) / SAMPLE_FILE)
    rows = {f"{row['clip']}/{row['action_id']}": row for row in (score or {}).get("rows", [])}
    samples = []
    for entry in read_actions(edit_file):
        if entry.image_1 not in figures:
            continue
        row = rows.get(entry.key, {})
        samples.append(
            Sample(
                entry.key,
                entry.label,
                entry.texts.get(llava_key, ""),
                inside(frames, entry.image_0),
                _generated(Path(gen_path), entry.image_1),
                inside(frames, entry.image_1),
                figures[entry.image_1],
                row.get("done"),
                str(row.get("why_not") or ""),
            )
        )
    if not samples:
        raise EgoGenError(
            f"{edit_file}: none of its entries is in {metric_folder}/{SAMPLE_FILE}, "
            "expected figures of the same frames"
        )
    ranked_by = next(
        (name for name in RANKED_BY if any(name in sample.figures for sample in samples)), ""
    )
    samples.sort(key=lambda sample: (-_rank(sample, ranked_by), sample.key))
    return samples, ranked_by


def _generated(root: Path, relative: str) -> Path:
    path = inside(root, relative)
    png = path.with_suffix(".png")
    return png if png.exists() and not path.exists() else path


def _rank(sample: Sample, ranked_by: str) -> float:
    return sample.figures.get(ranked_by, -math.inf)


def read_overall(metric_folder: str | os.PathLike) -> dict[str, float | None]:
    """metric.json; raises EgoGenError naming the command that writes it when it is not there."""
    path = Path(metric_folder) / METRIC_FILE
    if not path.exists():
        raise EgoGenError(
            f"{path}: no such file; measure first: python metrics/all_metrics_in_one.py --help"
        )
    found = read_json(path)
    if not isinstance(found, dict):
        raise EgoGenError(f"{path}: expected an object of figures, found {type(found).__name__}")
    return {
        name: value
        for name, value in found.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def read_score(path: str | os.PathLike | None, required: Sequence[str] = ()) -> dict | None:
    """An optional JSON object of scores; numbers named in `required` must be there."""
    if path is None:
        return None
    found = read_json(path)
    if not isinstance(found, dict):
        raise EgoGenError(f"{path}: expected an object of scores, found {type(found).__name__}")
    for name in required:
        if not isinstance(found.get(name), int | float):
            raise EgoGenError(f"{path}: field {name!r}: expected a number of egogen.mini.score")
    rows = found.get("rows", [])
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"clip", "action_id"} <= row.keys() for row in rows
    ):
        raise EgoGenError(f"{path}: field 'rows': expected objects with 'clip' and 'action_id'")
    return found


def read_curve(path: str | os.PathLike, title: str) -> Curve:
    """Losses of stage 1 (a Trainer's trainer_state.json) or stage 2 (metrics.jsonl).

    A last line that a killed run left unfinished is not read.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        records = _json_lines(path)
    else:
        state = read_json(path)
        records = state.get("log_history") if isinstance(state, dict) else None
        if not isinstance(records, list):
            raise EgoGenError(f"{path}: expected an object with the list 'log_history'")
    names = {"loss": "training", "val_loss": "validation", "eval_loss": "validation"}
    curve = Curve(title)
    for record in (record for record in records if isinstance(record, dict)):
        for name, line in names.items():
            point = record.get("step"), record.get(name)
            if all(isinstance(value, int | float) and math.isfinite(value) for value in point):
                curve.lines.setdefault(line, []).append(point)
    if not curve.lines:
        raise EgoGenError(f"{path}: holds no losses, expected records with 'step' and 'loss'")
    return curve


def _json_lines(path: Path) -> list:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EgoGenError(f"{path}: not a readable log ({error})") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise EgoGenError(f"{path}: line {number}: not valid JSON ({error})") from None
    return records


def select(
    samples: Sequence[Sample], best: int, worst: int, others: int
) -> dict[str, list[Sample]]:
    """{"best" | "worst" | "others": samples} of a list ordered best first, each sample once.

    The others are taken at equal distances from those in between, best first.
    """
    if len(samples) <= best + worst:  # both ends meet: share what there is
        best = min(best, math.ceil(len(samples) * best / max(1, best + worst)))
        worst = len(samples) - best
    middle = list(samples[best : len(samples) - worst])
    count = min(others, len(middle))
    chosen = [middle[(2 * number + 1) * len(middle) // (2 * count)] for number in range(count)]
    return {
        "best": list(samples[:best]),
        "worst": list(samples[len(samples) - worst :])[::-1] if worst else [],
        "others": chosen,
    }
