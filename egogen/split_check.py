"""What can be wrong with one split: entries, descriptions, metadata, frames, features."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from egogen import layout
from egogen.actions import DESCRIPTION_KEY, ActionEntry, inside, read_clip_sizes, scan_actions
from egogen.errors import EgoGenError
from egogen.features.store import open_store, read_info
from egogen.frames import read_rgb
from egogen.jobs import track

IMAGE_ROWS = 256  # patches of 224 x 224 pixels, 14 x 14 each, where the store does not say
FILES_PER_MESSAGE = 32  # how many files a worker takes at a time


@dataclass(frozen=True)
class FileTask:
    """One file to read in full: a frame, or a feature that belongs to one."""

    column: str  # "frames", "targets", "image feats" or "text feats"
    entry: str
    root: str
    relative: str


@dataclass
class SplitReport:
    """What was found in one split of one dataset."""

    name: str
    action_file: Path
    entries: list[ActionEntry] = field(default_factory=list)
    good: Counter = field(default_factory=Counter)  # column -> files or entries in order
    asked: Counter = field(default_factory=Counter)  # column -> files or entries looked at
    problems: list[str] = field(default_factory=list)


def read_task(task: FileTask) -> tuple[str | None, tuple[int, int] | None]:
    """Read one file in full -> (problem or None, shape of a feature or None)."""
    try:
        if task.column in ("frames", "targets"):
            read_rgb(inside(task.root, task.relative))
            return None, None
        rows = None
        if task.column == "image feats":
            rows = read_info(task.root).get("rows", IMAGE_ROWS)
        store = open_store(task.root)
        store.stored(task.relative, rows=rows)  # every value of it
        return None, store.shape(task.relative)
    except EgoGenError as error:
        return str(error), None


def _read_tasks(tasks: Sequence[FileTask], workers: int) -> Iterator[tuple]:
    if workers <= 1:
        yield from map(read_task, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(read_task, tasks, chunksize=FILES_PER_MESSAGE)


def _check_texts(report: SplitReport, key: str) -> None:
    report.asked["descriptions"] = len(report.entries)
    for entry in report.entries:
        if entry.texts.get(key, "").strip():
            report.good["descriptions"] += 1
        else:
            report.problems.append(
                f"{report.action_file}: entry {entry.key}: no description, "
                f"expected text in field {key!r}"
            )


def _check_paths(report: SplitReport) -> None:
    """Two entries that share a file also share its feature, or overwrite each other's result."""
    owners: dict[str, str] = {}
    for entry in report.entries:
        for name, path in (("image_0", entry.image_0), ("image_1", entry.image_1)):
            if path in owners:
                report.problems.append(
                    f"{report.action_file}: entry {entry.key}: field {name!r}: path {path} is used "
                    f"twice, first by {owners[path]}, expected a file of its own"
                )
            owners.setdefault(path, f"{entry.key} {name}")


def _check_metadata(report: SplitReport, path: Path) -> None:
    clips = {entry.clip: None for entry in report.entries}
    report.asked["metadata"] = len(clips)
    try:
        sizes = read_clip_sizes(path)
    except EgoGenError as error:
        report.problems.append(str(error))
        return
    for clip in clips:
        if clip in sizes:
            report.good["metadata"] += 1
        else:
            report.problems.append(f"{path}: no metadata of clip {clip!r}, expected its size")


def _file_tasks(
    report: SplitReport, root: Path, dataset: str, split: str, features: dict[str, str]
) -> Iterator[FileTask]:
    frames = str(layout.frame_folder(root, dataset, split))
    targets = str(layout.frame_folder(root, dataset, layout.GROUND_TRUTH))
    for entry in report.entries:
        for path in (entry.image_0, entry.image_1):
            yield FileTask("frames", entry.key, frames, path)
        if split == "val":
            yield FileTask("targets", entry.key, targets, entry.image_1)
        for column, folder in features.items():
            yield FileTask(column, entry.key, folder, entry.image_0)


def _check_widths(report: SplitReport, widths: Iterable[tuple[FileTask, int]]) -> None:
    """All features of a split come from one model; files of another width are stale or foreign."""
    widths = list(widths)
    if not widths:
        return
    usual = Counter(width for _, width in widths).most_common(1)[0][0]
    for task, width in widths:
        if width != usual:
            report.good[task.column] -= 1
            report.problems.append(
                f"{task.root}/{task.relative}: {task.column.split()[0]} feature of entry "
                f"{task.entry} has width {width}, expected {usual} as in most others"
            )


def check_split(
    root: str | os.PathLike,
    dataset: str,
    split: str,
    key: str = DESCRIPTION_KEY,
    features: dict[str, str] | None = None,
    workers: int = 1,
) -> SplitReport:
    """Check one split of one dataset in the released layout.

    `features` maps "image feats" and/or "text feats" to the folder of the store. Raises EgoGenError
    when the action file cannot be read at all or holds no entries: there is nothing to check then.
    """
    root = Path(root)
    report = SplitReport(f"{dataset} {split}", layout.action_file(root, dataset, split))
    report.entries, report.problems = scan_actions(report.action_file)
    if not report.entries and not report.problems:
        raise EgoGenError(f"{report.action_file}: holds no entries, expected at least one")
    report.asked["entries"] = len(report.entries) + len(report.problems)
    report.good["entries"] = len(report.entries)
    _check_texts(report, key)
    _check_paths(report)
    _check_metadata(report, layout.metadata_file(root, dataset))
    tasks = list(_file_tasks(report, root, dataset, split, features or {}))
    widths = []
    results = track(_read_tasks(tasks, workers), len(tasks), f"check {report.name}", "files")
    for task, (problem, shape) in zip(tasks, results, strict=True):
        report.asked[task.column] += 1
        if problem is None:
            report.good[task.column] += 1
        else:
            report.problems.append(f"{problem} (entry {task.entry})")
        if shape is not None:
            widths.append((task, shape[1]))
    _check_widths(report, widths)
    return report
