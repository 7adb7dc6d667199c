"""What a report shows: samples with images and figures, overall figures, training curves."""

import math
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egogen import EgoGenError, inside, read_actions
from egogen.atomic import parse_json, read_json, read_object
from egogen.labels import clean_label
from metrics.frame_pairs import frame_file
from metrics.intervals import SUFFIX
from metrics.registry import KEYS, METRICS
from metrics.reporting.runs import Versus
from metrics.results import SAMPLE_FILE, read_figures, read_table

# Of scores, where they are there; another tool's may hold other things under other names.
SHARES = ("done_rate", "other_action_rate", "verb", "object", "hand", "target", "all")
RANKED_BY = ("psnr_changed_gain", "psnr")  # the first that was measured orders the samples


def verb_of(label: str) -> str:
    """The verb of a label of either dataset: "pick" of "#C C picks up the mug"; maybe empty."""
    return clean_label(label, "ego4d").partition(" ")[0].lower()


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
    done: bool | None = None  # whether the action happened, by the oracle of the mini dataset
    why_not: str = ""
    frame: str = ""  # clip/action/frame.jpg, as per_sample.csv calls it
    captions: dict[str, str] = field(default_factory=dict)  # metric's title -> what it saw


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
    score: dict | None = None  # mini.oracle.score of these frames
    descriptions: dict | None = None  # shares of descriptions that state the right facts
    curves: list[Curve] = field(default_factory=list)
    intervals: dict[str, list[float]] = field(default_factory=dict)  # key -> [low, high]
    versus: Versus | None = None  # this run is B
    other_images: Path | None = None  # frames of A, where they are to be shown

    @property
    def columns(self) -> list[str]:
        """Figures that frames have, in the order of `KEYS`; scaled LPIPS are left to the CSV."""
        measured = set().union(*(sample.figures.keys() for sample in self.samples))
        return [key for key in KEYS if key in measured and not key.endswith("_scaled")]


def read_samples_of(
    options: Namespace, frames: Path, edit_file: Path, metric_folder: Path, score: dict | None
) -> tuple[list[Sample], str]:
    """(measured samples, best first; the figure they are ordered by); `options` are the flags.

    Raises EgoGenError when the entries, their figures and their images do not fit together.
    """
    figures, _ = read_table(metric_folder / SAMPLE_FILE)
    rows = {f"{row['clip']}/{row['action_id']}": row for row in (score or {}).get("rows", [])}
    captions = read_captions(metric_folder)
    samples = [
        Sample(
            entry.key,
            entry.label,
            entry.texts.get(options.llava_key, ""),
            inside(frames, entry.image_0),
            frame_file(Path(options.gen_path), entry.image_1),
            inside(frames, entry.image_1),
            figures[entry.image_1],
            rows.get(entry.key, {}).get("done"),
            str(rows.get(entry.key, {}).get("why_not") or ""),
            entry.image_1,
            {title: texts[entry.key] for title, texts in captions.items() if entry.key in texts},
        )
        for entry in read_actions(edit_file)
        if entry.image_1 in figures
    ]
    if not samples:
        nothing = f"none of its entries is in {metric_folder}/{SAMPLE_FILE}"
        raise EgoGenError(f"{edit_file}: {nothing}, expected figures of the same frames")
    measured = {name for sample in samples for name in sample.figures if name in KEYS}
    rank_by = options.rank_by
    if rank_by not in (None, *measured):
        expected = f"{metric_folder}/{SAMPLE_FILE}, expected one of: {', '.join(sorted(measured))}"
        raise EgoGenError(f"--rank-by {rank_by}: no such figure in {expected}")
    ranked_by = rank_by or next((name for name in (*RANKED_BY, *KEYS) if name in measured), "")
    samples.sort(key=lambda sample: (-rank(sample, ranked_by), sample.key))
    return samples, ranked_by


def read_captions(metric_folder: str | os.PathLike) -> dict[str, dict[str, str]]:
    """{metric's title: {clip/action: caption}} of the caption files that are there."""
    found: dict[str, dict[str, str]] = {}
    for title, name in ((m.title, name) for m in METRICS.values() for name in m.documents):
        for clip, actions in read_object(Path(metric_folder) / name, needed=False).items():
            texts = {f"{clip}/{action}": str(text).strip() for action, text in actions.items()}
            found.setdefault(title, {}).update(texts)
    return found


def rank(sample: Sample, key: str) -> float:
    """The larger the better, whatever the figure's direction; -inf without a value."""
    value = sample.figures.get(key, math.nan)
    if math.isnan(value):
        return -math.inf
    return value if key not in KEYS or KEYS[key].higher_is_better else -value


def gained_and_lost(data: ReportData, count: int) -> tuple[list[tuple[Sample, float]], ...]:
    """Two lists of at most `count` (sample, B - A), largest gains and largest losses first.

    By the figure that ranks the samples; frames that neither gained nor lost are in no list.
    """
    name, before = data.ranked_by, data.versus.first.samples if data.versus else {}
    up, found = name not in KEYS or KEYS[name].higher_is_better, []
    for sample in data.samples:
        other = before.get(sample.frame, {}).get(name, math.nan)
        change = sample.figures.get(name, math.nan) - other
        if math.isfinite(change) and change != 0:
            found.append((sample, change))
    found.sort(key=lambda pair: (-pair[1] if up else pair[1], pair[0].key))
    gained = [pair for pair in found if (pair[1] > 0) == up][:count]
    lost = [pair for pair in reversed(found) if (pair[1] > 0) != up][:count]
    return gained, lost


def read_overall(
    metric_folder: str | os.PathLike,
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    """metric.json -> (figures, intervals by the key of their figure)."""
    figures, intervals = {}, {}
    for name, value in read_figures(Path(metric_folder)).items():
        if not name.endswith(SUFFIX) and (value is None or isinstance(value, int | float)):
            figures[name] = value
        elif isinstance(value, list) and [type(end) for end in value] == [float, float]:
            intervals[name.removesuffix(SUFFIX)] = value
    return figures, intervals


def read_score(path: str | os.PathLike | None, required: Sequence[str] = ()) -> dict | None:
    """An optional JSON object of scores; numbers named in `required` must be there."""
    if path is None:
        return None
    found = read_object(path, "an object of scores")
    for name in (*required, *(name for name in SHARES if found.get(name) is not None)):
        if not isinstance(found.get(name), int | float):
            raise EgoGenError(f"{path}: field {name!r}: expected a number of mini.oracle.score")
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
        records: Any = _json_lines(path)
    else:
        state = read_json(path, finite=False)  # what diverged has NaN there
        records = state.get("log_history") if isinstance(state, dict) else None
        if not isinstance(records, list):
            raise EgoGenError(f"{path}: expected an object with the list 'log_history'")
    names = {"loss": "training", "val_loss": "validation", "eval_loss": "validation"}
    curve = Curve(title)
    for record in (record for record in records if isinstance(record, dict)):
        for name, line in names.items():
            point = record.get("step"), record.get(name)
            step, value = (x if isinstance(x, int | float) else math.nan for x in point)
            if math.isfinite(step) and math.isfinite(value):
                curve.lines.setdefault(line, []).append((step, value))
    if not curve.lines:
        raise EgoGenError(f"{path}: holds no losses, expected records with 'step' and 'loss'")
    return curve


def _json_lines(path: Path) -> list:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise EgoGenError(f"{path}: not a readable log ({error})") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_json(line, f"{path}: line {number}", finite=False))
        except EgoGenError:
            if number < len(lines):
                raise
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
