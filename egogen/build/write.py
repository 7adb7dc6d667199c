"""Writing the dataset: frames pair by pair, then the files that name them.

Besides the released layout, `ROOT/build/<dataset>/` holds what made it (made_by.json), a record a
pair (pairs/<clip>/<id>.json), the table of all pairs with their figures (pairs.csv), and contact
sheets: every pair side by side with its label, those with something wrong marked.
"""

import io
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from egogen import DESCRIPTION_KEY, EgoGenError, Progress, check_provenance, record_provenance
from egogen.atomic import TEMPORARY_SUFFIX, read_object, write_bytes, write_csv, write_json
from egogen.build.clips import Frame, open_clip
from egogen.build.judge import Limits, measure, sharpness
from egogen.build.rows import Row, Timing, epic_rate
from egogen.frames import read_rgb
from egogen.layout import GROUND_TRUTH, SPLITS, action_file, frame_folder, metadata_file

JPEG_QUALITY = 95
RECORD_FILE = "made_by.json"
# Of contact sheets.
COLUMNS, ROWS = 3, 6
CELL, GAP, TEXT = (220, 140), 12, 34
PAPER, INK, WRONG = "white", "#222222", "#b3261e"


@dataclass(frozen=True)
class Request:
    """What frames depend on; a folder holds those of one request."""

    dataset: str  # whose layout and label style
    timing: Timing = field(default_factory=Timing)
    height: int | None = None  # of the frames; None: as in the video
    fps: float | None = None  # of folders of frames
    sharpest: int | None = None  # of so many frames around a time; None: the one at it
    views: tuple[str, ...] | None = None  # of folders with several films; None: they have one


@dataclass(frozen=True)
class Pair:
    """A pair that has been written; the two `frames` in its record lie below those of its split."""

    row: Row
    record: dict[str, Any]


def build_folder(root: Path, dataset: str) -> Path:
    return root / "build" / dataset


def refuse_foreign(root: Path, request: Request) -> None:
    """Raises EgoGenError when the folder holds something else, or the same of another request."""
    record = build_folder(root, request.dataset) / RECORD_FILE
    if not record.exists() and frame_folder(root, request.dataset, "train").parent.exists():
        raise EgoGenError(f"{root}: holds {request.dataset} frames that were not built here")
    check_provenance(record, asdict(request))


def write_pairs(
    root: Path, places: Mapping[str, Any], rows: Sequence[Row], request: Request
) -> tuple[list[Pair], list[str]]:
    """Write the missing pairs -> (all pairs in the order of `rows`, a line per one that failed).

    `places`: clip -> video, archive or folder of frames, or `Pictures`. To be called by one process
    at a time: files that a killed one has begun are removed.
    """
    frames = frame_folder(root, request.dataset, SPLITS[0]).parent
    for folder in (build_folder(root, request.dataset), frames):
        for path in folder.rglob(f".*{TEMPORARY_SUFFIX}*"):
            path.unlink()
    record_provenance(build_folder(root, request.dataset) / RECORD_FILE, asdict(request))
    done: dict[Row, Pair] = {}
    failures: list[str] = []
    with Progress(len(rows), "build", "pairs") as bar:
        # in the order of time a video is read fastest
        ordered = sorted(rows, key=lambda row: (row.clip, row.times(request.timing)))
        for clip, group in itertools.groupby(ordered, lambda row: row.clip):
            for row, pair in _clip_pairs(root, places[clip], [*group], request):
                if isinstance(pair, Pair):
                    done[row] = pair
                else:
                    failures.append(f"{row.clip} {row.id}: {pair}")
                bar.update()
    return [done[row] for row in rows if row in done], failures


def _clip_pairs(
    root: Path, place: Any, rows: Sequence[Row], request: Request
) -> Iterator[tuple[Row, Pair | str]]:
    """(row, its pair or what went wrong) for each row of one clip; finished ones are first."""
    known = {row: _finished(root, row, request) for row in rows}
    missing = [row for row, pair in known.items() if pair is None]
    yield from ((row, pair) for row, pair in known.items() if pair is not None)
    if not missing:
        return
    try:
        rate = rows[0].fps or request.fps
        if rate is None and isinstance(place, Path) and place.parent.name == "rgb_frames":
            rate = epic_rate(rows[0].clip_id)  # the own table does not say it
        with open_clip(place, rate) if isinstance(place, Path) else nullcontext(place) as clip:
            for row in missing:
                try:
                    yield row, _write_pair(root, clip, row, request)
                except EgoGenError as error:
                    yield row, str(error)
    except EgoGenError as error:  # nothing of the clip can be read
        yield from ((row, str(error)) for row in missing)


def _write_pair(root: Path, clip, row: Row, request: Request) -> Pair:
    frames = _frames(clip, row, request)
    images = [frame.image for frame in frames]
    record: dict[str, Any] = {"row": row.as_written(), "fps": clip.fps, "frames": []}
    record |= measure(*images)
    record["width"], record["height"] = images[0].size
    for frame in frames:
        name = f"{row.clip_id}/{row.id}/{'' if row.before else 'frame_'}{frame.name}.jpg"
        path = frame_folder(root, request.dataset, row.split) / name
        own = frame.jpeg if request.height in (None, frame.image.height) else None
        if isinstance(own, Path):
            _link(own, path)
        elif own:
            write_bytes(path, own)
        else:
            encoded, image = io.BytesIO(), frame.image
            if height := request.height:
                width = max(round(image.width * height / image.height), 1)
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            try:
                image.save(encoded, "JPEG", quality=JPEG_QUALITY)
            except (OSError, MemoryError) as error:  # a picture of more than 65,500 columns
                raise EgoGenError(f"{image.size} is no size of a JPEG ({error})") from None
            write_bytes(path, encoded.getvalue())
        record["frames"].append(name)
    write_json(_record_file(root, request, row), record)
    return Pair(row, record)


def _frames(clip, row: Row, request: Request) -> list[Frame]:
    """The two of a row. Raises EgoGenError."""
    if row.before:
        return clip.pair(row.before, row.after)
    before, at = row.times(request.timing)
    at = clip.last() if at == math.inf else at
    frames = [_sharpest(clip, time, at - before, request.sharpest or 1) for time in (before, at)]
    if frames[0].name == frames[1].name:
        raise EgoGenError(f"{before:.2f} s and {at:.2f} s are the same frame, expected two")
    return frames


def _sharpest(clip, seconds: float, apart: float, count: int) -> Frame:
    """Of the `count` frames nearest to a time the sharpest; none beyond half way to the other's."""
    found = {}
    for step in range(-(count // 2), count // 2 + 1):
        shift = step / clip.fps
        if step == 0 or abs(shift) < apart / 2 and seconds + shift >= 0:
            with suppress(EgoGenError) if step else nullcontext():  # beyond the end, say
                found[step] = clip.at(seconds + shift)
    return max(found.items(), key=lambda one: (sharpness(one[1].image), -abs(one[0])))[1]


def _link(source: Path, path: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), path)
    except OSError:
        write_bytes(path, source.read_bytes())


def _record_file(root: Path, request: Request, row: Row) -> Path:
    return build_folder(root, request.dataset) / "pairs" / row.clip_id / f"{row.id}.json"


def _finished(root: Path, row: Row, request: Request) -> Pair | None:
    """The pair when it has been written for this very row and its frames are there."""
    record = read_object(_record_file(root, request, row), needed=False)
    folder = frame_folder(root, request.dataset, row.split)
    frames = [folder / name for name in record.get("frames", ())]
    if record.get("row") != row.as_written() or not all(path.is_file() for path in frames):
        return None
    return Pair(row, record)


def write_dataset(root: Path, dataset: str, pairs: Sequence[Pair], kept: Sequence[Pair]) -> None:
    """Action files, metadata and targets of val, of `kept` alone; the table of all pairs."""
    metadata: dict[str, dict[str, Any]] = {}
    actions: dict[str, dict[str, dict]] = {split: {} for split in SPLITS}
    for pair in kept:
        source, target = pair.record["frames"]
        entry = {"image_0": source, "image_1": target, "action": pair.row.action}
        if pair.row.description:
            entry[DESCRIPTION_KEY] = pair.row.description
        actions[pair.row.split].setdefault(pair.row.clip_id, {})[pair.row.id] = entry
        fields = {n: pair.record[n] for n in ("width", "height", "fps") if pair.record[n]}
        clip = metadata.setdefault(pair.row.clip_id, fields)
        if pair.row.boxes:  # corners there, as in the released files left, top, width, height here
            corners = [(box, box["bbox"]) for box in json.loads(pair.row.boxes)]
            boxes = [{**box, "bbox": [x, y, r - x, b - y]} for box, (x, y, r, b) in corners]
            clip.setdefault("actions", {})[pair.row.id] = boxes
    _write_targets(root, dataset, [pair for pair in kept if pair.row.split == "val"])
    for split in SPLITS:
        write_json(action_file(root, dataset, split), actions[split])
    write_json(metadata_file(root, dataset), metadata)
    chosen = {pair.row for pair in kept}
    figures = ("difference", "sharpness", "change")
    table: list[list] = [["clip", "id", "split", "action", *figures, "kept"]]
    for row, record in ((pair.row, pair.record) for pair in pairs):
        values, answer = [record[name] for name in figures], "yes" if row in chosen else "no"
        table.append([row.clip_id, row.id, row.split, row.action, *values, answer])
    write_csv(build_folder(root, dataset) / "pairs.csv", table)


def _write_targets(root: Path, dataset: str, pairs: Sequence[Pair]) -> None:
    """`val_gt_for_metric`: the targets of val and nothing else (FID takes every file there)."""
    folder = frame_folder(root, dataset, GROUND_TRUTH)
    wanted = {folder / pair.record["frames"][1] for pair in pairs}
    for path in set(folder.rglob("*.jpg")) - wanted:
        path.unlink()
    for path in wanted:
        source = frame_folder(root, dataset, "val") / path.relative_to(folder)
        if not (path.exists() and os.path.samefile(path, source)):
            _link(source, path)


def write_sheets(
    root: Path, dataset: str, pairs: Sequence[Pair], limits: Limits, pages: int
) -> list[Path]:
    """`ROOT/build/<dataset>/sheet_N.png`, at most `pages` of them; pairs to look at come first."""
    ordered = sorted(pairs, key=lambda pair: not limits.broken_by(pair.record))  # a stable sort
    written = []
    for page in range(min(pages, -(-len(ordered) // (COLUMNS * ROWS)))):
        group = ordered[page * COLUMNS * ROWS : (page + 1) * COLUMNS * ROWS]
        written.append(build_folder(root, dataset) / f"sheet_{page + 1}.png")
        _sheet(root, dataset, group, limits).save(drawn := io.BytesIO(), "PNG")
        write_bytes(written[-1], drawn.getvalue())
    return written


def _sheet(root: Path, dataset: str, pairs: Sequence[Pair], limits: Limits) -> Image.Image:
    width, height = 2 * CELL[0] + 4, CELL[1] + TEXT
    rows = -(-len(pairs) // COLUMNS)
    size = (COLUMNS * (width + GAP) + GAP, rows * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, pair in enumerate(pairs):
        left = GAP + index % COLUMNS * (width + GAP)
        top = GAP + index // COLUMNS * (height + GAP)
        folder = frame_folder(root, dataset, pair.row.split)
        for place, name in enumerate(pair.record["frames"]):
            image = ImageOps.pad(read_rgb(folder / name), CELL, color=PAPER)
            sheet.paste(image, (left + place * (CELL[0] + 4), top))
        colour, below = INK, f"{pair.row.clip_id}/{pair.row.id} ({pair.row.split})"
        if reasons := limits.broken_by(pair.record):
            colour, below = WRONG, f"{', '.join(reasons)}: {below}"
            box = (left - 3, top - 3, left + width + 2, top + CELL[1] + 2)
            draw.rectangle(box, outline=WRONG, width=3)
        for y, text, ink in ((3, pair.row.action, INK), (18, below, colour)):
            while len(text) > 3 and draw.textlength(text, font) > width:
                text = text[:-4] + "..."
            draw.text((left, top + CELL[1] + y), text, ink, font)
    return sheet
