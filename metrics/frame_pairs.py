"""Which generated frame is compared with which ground truth, all checked before any is measured."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from egogen import ActionEntry, EgoGenError, inside, scan_actions, track
from egogen.frames import read_rgb
from egogen.layout import GROUND_TRUTH

SUFFIXES = (".jpg", ".jpeg", ".png")
ASPECT_SLACK = 0.02  # relative; frames are saved at whole pixels, so aspects agree only nearly


@dataclass(frozen=True)
class Pair:
    """A generated frame, its ground truth, and the source frame both start from."""

    entry: ActionEntry
    generated: Path
    target: Path
    source: Path | None  # image_0 of the entry; None where no chosen metric needs it
    target_digest: str = ""  # of the file's content
    place: int = 0  # of the entry in the edit file

    @property
    def key(self) -> str:
        """`clip/action/frame.jpg`, as the ground truth is called."""
        return self.entry.image_1


@dataclass
class Population:
    """The pairs that can be measured, what is wrong with the others, and what was read."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    identity: str = ""  # changes with any generated or ground truth frame, and with the pairing
    source_identity: str = ""  # changes with any source frame


def source_folder(gt_path: str | os.PathLike) -> Path | None:
    """Folder of the source frames: `val` beside a ground truth folder of the released name."""
    folder = Path(os.path.abspath(gt_path))
    if folder.name != GROUND_TRUTH:
        return None
    found = folder.parent / GROUND_TRUTH.split("_")[0]
    return found if found.is_dir() else None


def frame_file(root: Path, relative: str) -> Path:
    """`root/relative`, or the same name as PNG or JPEG where only that is there."""
    path = inside(root, relative)
    others = [inside(root, str(Path(relative).with_suffix(suffix))) for suffix in SUFFIXES]
    return next((other for other in (path, *others) if other.exists()), path)


def _extra_notes(root: Path, entries: Sequence[ActionEntry], edit_file: Path) -> list[str]:
    """A line for every image below `root` that belongs to no entry; hidden files are none."""
    known = {Path(entry.image_1).with_suffix("") for entry in entries}
    found, seen = {}, set()  # path without suffix, relative -> path
    for folder, below, names in os.walk(root, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(place)
        for path in (Path(folder, name) for name in names if name[0] != "."):
            if path.suffix.lower() in SUFFIXES:
                found[path.relative_to(root).with_suffix("")] = path
    extra = [found[stem] for stem in sorted(found.keys() - known, key=str)]
    return [f"note: {path}: belongs to no entry of {edit_file}, left out" for path in extra]


def _read_pair(pair: Pair) -> tuple[list[str], dict[str, str]]:
    """Read the files of a pair in full -> (problems, digest of each file that is in order)."""
    problems, digests, sizes = [], {}, []
    files = [("generated", pair.generated), ("ground truth", pair.target)]
    files += [("source", pair.source)] if pair.source else []
    for name, path in files:
        try:
            sizes.append(read_rgb(path).size)  # decodes the image to its last row
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        except EgoGenError as error:
            problems.append(f"{error} ({name} frame of entry {pair.entry.key})")
    if not problems and not same_aspect(*sizes[:2]):
        size, truth = (f"{width}x{height}" for width, height in sizes[:2])
        expected = f"expected the aspect of its ground truth, {truth}"
        problems.append(f"{pair.generated}: size {size} of entry {pair.entry.key}, {expected}")
    return problems, digests


def same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether (width, height) sizes agree up to scale and the rounding to whole pixels."""
    width = first[0] * second[1] / first[1]
    return abs(width - second[0]) <= max(2.0, ASPECT_SLACK * second[0])


def _unique(entries: Sequence[ActionEntry], problems: list[str]) -> list[ActionEntry]:
    """Entries sorted by target frame, the first of each; a frame that stands twice is a problem."""
    first: dict[str, ActionEntry] = {}
    for entry in entries:
        if (other := first.setdefault(entry.image_1, entry)) is not entry:
            both = f"{other.key} and {entry.key}"
            problems.append(f"{entry.image_1}: target of entries {both}, expected one")
    return [first[name] for name in sorted(first)]


def _described(
    entries: Sequence[ActionEntry], key: str, edit_file: str | os.PathLike, problems: list[str]
) -> list[ActionEntry]:
    """Entries that have the field `key`; the others are problems, all of them an error."""
    missing = [entry for entry in entries if key not in entry.texts]
    if len(missing) == len(entries):
        known = ", ".join(sorted({name for entry in entries for name in entry.texts}))
        lacks = f"no entry has field {key!r} (--llava_key)"
        raise EgoGenError(f"{edit_file}: {lacks}, expected one of: {known}")
    lacks = f"field {key!r} is missing (--llava_key)"
    problems += [f"{edit_file}: entry {entry.key}: {lacks}" for entry in missing]
    return [entry for entry in entries if key in entry.texts]


def find_pairs(
    gen_path: str | os.PathLike,
    gt_path: str | os.PathLike,
    edit_file: str | os.PathLike,
    workers: int = 1,
    sources: str | os.PathLike | None = None,
    with_sources: bool = True,
    text_key: str | None = None,
) -> Population:
    """Pair every entry of the edit file, sorted by frame, and read every file once.

    `sources` is the folder of the source frames (default: `source_folder`), read unless
    `with_sources` is false. Missing, unreadable and wrongly shaped frames and entries without the
    field `text_key` become problems, images of no entry notes. Raises EgoGenError when there is
    nothing to pair at all.
    """
    gen_root, gt_root = Path(os.path.abspath(gen_path)), Path(os.path.abspath(gt_path))
    sources = (sources or source_folder(gt_path)) if with_sources else None
    roots = [(gen_root, "--gen_path"), (gt_root, "--gt_path")]
    roots += [(Path(sources), "--source-path")] if sources else []
    for root, name in roots:
        if not root.is_dir():
            raise EgoGenError(f"{root}: no such folder, expected the frames of {name}")
    population = Population()
    entries, population.problems = scan_actions(edit_file)
    if not entries:
        raise EgoGenError(*population.problems[:1] or [f"{edit_file}: holds no entries"])
    for root in (gt_root, gen_root):
        population.notes += _extra_notes(root, entries, Path(edit_file))
    if text_key:
        entries = _described(entries, text_key, edit_file, population.problems)
    places = {entry.key: number for number, entry in enumerate(entries)}
    pairs = []
    for entry in _unique(entries, population.problems):
        generated, target = (frame_file(root, entry.image_1) for root in (gen_root, gt_root))
        source = frame_file(Path(sources), entry.image_0) if sources else None
        pairs.append(Pair(entry, generated, target, source, place=places[entry.key]))
    identity, of_sources = hashlib.sha256(), hashlib.sha256()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        read = track(pool.map(_read_pair, pairs), len(pairs), "check frames", "pairs")
        for pair, (problems, digests) in zip(pairs, read, strict=True):
            if problems:
                population.problems += problems
                continue
            population.pairs.append(replace(pair, target_digest=digests["ground truth"]))
            identity.update(f"{pair.key}\0{digests['generated']}\0".encode())
            identity.update(f"{digests['ground truth']}\n".encode())
            of_sources.update(f"{pair.key}\0{digests.get('source')}\n".encode())
    population.identity = identity.hexdigest()
    population.source_identity = of_sources.hexdigest()
    return population
