"""Check a dataset before work that takes hours: every problem is named, none stops the search."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from egogen import layout
from egogen.actions import DESCRIPTION_KEY, ActionEntry, inside, read_clip_sizes, scan_actions
from egogen.errors import EXIT_BAD_INPUT, EXIT_INCOMPLETE, EgoGenError, run_command
from egogen.features.store import open_store, read_info
from egogen.flags import COMMANDS, read_parser
from egogen.frames import read_rgb
from egogen.jobs import track

IMAGE_ROWS = 256  # patches of 224 x 224 pixels, 14 x 14 each, where the store does not say
FILES_PER_MESSAGE = 32  # how many files a worker takes at a time
WORKERS = min(8, os.cpu_count() or 1)
FRAMES, TARGETS = "frames", "targets"
FEATURES = ("image", "text")  # those that stage 1 writes


@dataclass(frozen=True)
class FileTask:
    """One file to read in full: a frame, or a feature that belongs to one."""

    column: str  # FRAMES, TARGETS, or the name of a feature
    entry: str
    root: str
    relative: str


@dataclass
class SplitReport:
    """What was found in one split of one dataset; columns are those of `summary_table`."""

    name: str
    action_file: Path
    entries: list[ActionEntry] = field(default_factory=list)
    good: Counter = field(default_factory=Counter)  # column -> files or entries in order
    asked: Counter = field(default_factory=Counter)  # column -> files or entries looked at
    problems: list[str] = field(default_factory=list)

    def count(self, column: str, problem: str | None) -> None:
        """One more file or entry was looked at, and has the problem or none."""
        self.asked[column] += 1
        if problem is None:
            self.good[column] += 1
        else:
            self.problems.append(problem)


def read_task(task: FileTask) -> tuple[str | None, tuple[int, ...] | None]:
    """Read one file in full -> (problem or None, shape of a feature or None)."""
    try:
        if task.column in (FRAMES, TARGETS):
            read_rgb(inside(task.root, task.relative))
            return None, None
        rows = read_info(task.root).get("rows", IMAGE_ROWS) if task.column == "image" else None
        store = open_store(task.root)
        store.stored(task.relative, rows=rows)  # every value of it
        return None, store.shape(task.relative)
    except EgoGenError as error:
        return str(error), None


def _check_entries(report: SplitReport, key: str, metadata: Path) -> None:
    """Descriptions and metadata are there, and no two entries share a file: they would share its
    feature too, or overwrite each other's result.
    """
    owners: dict[str, str] = {}
    for entry in report.entries:
        where = f"{report.action_file}: entry {entry.key}"
        missing = f"{where}: no description, expected text in field {key!r}"
        report.count("descriptions", None if entry.texts.get(key, "").strip() else missing)
        for name, path in (("image_0", entry.image_0), ("image_1", entry.image_1)):
            if path in owners:
                used = f"path {path} is used twice, first by {owners[path]}"
                twice = f"{where}: field {name!r}: {used}, expected a file of its own"
                report.problems.append(twice)
            owners.setdefault(path, f"{entry.key} {name}")
    clips = dict.fromkeys(entry.clip for entry in report.entries)
    try:
        sizes = read_clip_sizes(metadata)
    except EgoGenError as error:
        report.asked["metadata"] = len(clips)
        report.problems.append(str(error))
        return
    for clip in clips:
        missing = f"{metadata}: no metadata of clip {clip!r}, expected its size"
        report.count("metadata", None if clip in sizes else missing)


def _file_tasks(
    report: SplitReport, root: Path, dataset: str, split: str, features: Mapping[str, str]
) -> Iterator[FileTask]:
    frames = str(layout.frame_folder(root, dataset, split))
    targets = str(layout.frame_folder(root, dataset, layout.GROUND_TRUTH))
    for entry in report.entries:
        for path in (entry.image_0, entry.image_1):
            yield FileTask(FRAMES, entry.key, frames, path)
        if split == "val":
            yield FileTask(TARGETS, entry.key, targets, entry.image_1)
        for name, folder in features.items():
            yield FileTask(name, entry.key, folder, entry.image_0)


def check_split(
    root: str | os.PathLike,
    dataset: str,
    split: str,
    key: str = DESCRIPTION_KEY,
    features: Mapping[str, str] | None = None,
    workers: int = WORKERS,
) -> SplitReport:
    """Check one split of one dataset in the released layout.

    `features`: name -> folder of the store. Raises EgoGenError when the action file cannot be read
    at all or holds no entries: there is nothing to check then.
    """
    root = Path(root)
    report = SplitReport(f"{dataset} {split}", layout.action_file(root, dataset, split))
    report.entries, report.problems = scan_actions(report.action_file)
    if not report.entries and not report.problems:
        raise EgoGenError(f"{report.action_file}: holds no entries, expected at least one")
    report.asked["entries"] = len(report.entries) + len(report.problems)
    report.good["entries"] = len(report.entries)
    _check_entries(report, key, layout.metadata_file(root, dataset))
    tasks = list(_file_tasks(report, root, dataset, split, features or {}))
    with ProcessPoolExecutor(max(workers, 1)) as pool:
        found = pool.map(read_task, tasks, chunksize=FILES_PER_MESSAGE)
        results = [*track(found, len(tasks), f"check {report.name}", "files")]
    # All features of a split come from one model: those of another width are stale or foreign.
    usual = Counter(shape[1] for _, shape in results if shape).most_common(1)
    for task, (problem, shape) in zip(tasks, results, strict=True):
        if shape and shape[1] != usual[0][0]:
            odd = f"has width {shape[1]}, expected {usual[0][0]} as in most others"
            problem = f"{task.root}/{task.relative}: {task.column} feature {odd}"
        report.count(task.column, problem and f"{problem} (entry {task.entry})")
    return report


def summary_table(reports: Sequence[SplitReport]) -> str:
    """One line a split; "good/asked" where they differ."""
    columns = ["entries", "metadata", "descriptions", FRAMES, TARGETS, *FEATURES]
    heads = [f"{column} feats" if column in FEATURES else column for column in columns]
    lines = [["split", *heads, "problems"]]
    for report in reports:
        cells = []
        for column in columns:
            good, asked = report.good[column], report.asked[column]
            cells.append("-" if not asked else str(good) if good == asked else f"{good}/{asked}")
        lines.append([report.name, *cells, str(len(report.problems))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(map(str.ljust, line, widths)) for line in lines)
    return "\n".join(map(str.rstrip, padded))


def feature_folder(values: Sequence[str], name: str, chosen: Sequence[tuple]) -> dict[tuple, str]:
    """`DIR` (one split is checked), `SPLIT=DIR` or `DATASET/SPLIT=DIR` -> folder of each."""
    folders = {}
    for value in values:
        target, _, folder = value.partition("=")
        named = [*layout.SPLITS, *(f"{d}/{s}" for d in layout.DATASETS for s in layout.SPLITS)]
        if target not in named:
            target, folder = "", value  # a path, of which = is a part
        wanted = [pair for pair in chosen if target in ("", pair[1], "/".join(pair))]
        if len(wanted) != 1:
            fits = f"fits {len(wanted)} of the splits to be checked, expected one"
            how = "choose with --dataset and --split, or write DATASET/SPLIT=DIR"
            raise EgoGenError(f"{name} {value}: {fits}; {how}")
        folder = layout.released(folder)
        if not Path(folder).is_dir():
            raise EgoGenError(f"{name} {folder}: no such folder, expected a feature store")
        folders[wanted[0]] = folder
    return folders


def _chosen(root: Path, datasets: Sequence[str], splits: Sequence[str]) -> list[tuple[str, str]]:
    """The (dataset, split) pairs to check; without --dataset those of which anything is there."""
    if not root.is_dir():
        raise EgoGenError(f"{root}: no such folder, expected a dataset root")
    datasets = datasets or [
        dataset
        for dataset in layout.DATASETS
        if layout.frame_folder(root, dataset, "").is_dir()
        or any(layout.action_file(root, dataset, split).exists() for split in layout.SPLITS)
    ]
    if not datasets:
        names = " or ".join(f"{dataset}_{splits[0]}.json" for dataset in layout.DATASETS)
        raise EgoGenError(f"{root}: holds no dataset, expected EgoGen/ and {names}")
    return [(dataset, split) for dataset in datasets for split in splits]


def main(argv: Sequence[str]) -> int:
    choices = {"dataset": layout.DATASETS, "split": layout.SPLITS}
    defaults = {"key": DESCRIPTION_KEY, "workers": WORKERS}
    parser = read_parser(COMMANDS, "egogen.check", __doc__, choices, **defaults)
    options = parser.parse_args(argv)
    splits = options.split or list(layout.SPLITS)
    chosen = _chosen(options.root, options.dataset or [], splits)
    folders = {
        name: feature_folder(getattr(options, f"{name}_features"), f"--{name}-features", chosen)
        for name in FEATURES
    }
    reports, count = [], 0
    for pair in chosen:
        features = {name: found[pair] for name, found in folders.items() if pair in found}
        try:
            report = check_split(options.root, *pair, options.key, features, options.workers)
            reports.append(report)
            problems = report.problems
        except EgoGenError as error:
            problems = [str(error)]
        for problem in problems:
            print(f"problem: {problem}")
        count += len(problems)
    if reports:
        print(summary_table(reports))
    print(f"problems: {count or 'none'}")
    if len(reports) < len(chosen):
        return EXIT_BAD_INPUT
    return EXIT_INCOMPLETE if count else 0


if __name__ == "__main__":
    run_command(main)
