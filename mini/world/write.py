"""Writing a mini dataset in the released layout, clip by clip, so that a killed run goes on."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from egogen import EgoGenError, check_provenance, track
from egogen.actions import DESCRIPTION_KEY, conversation
from egogen.atomic import write_bytes, write_json
from egogen.labels import clean_label, question
from egogen.layout import GROUND_TRUTH, SPLITS, action_file, frame_folder, metadata_file
from mini.world.clips import Clip

RECORD = "mini.json"
VERSION = 2  # of scenes and renderer; part of the request, so that old frames are not kept


def truth_file(root: str | Path, dataset: str) -> Path:
    return Path(root) / f"{dataset}_truth.json"


def conversations_file(root: Path, dataset: str) -> Path:
    return Path(root) / f"{dataset}_conversations.json"


def share(total: int, parts: int) -> list[int]:
    """`total` in `parts` nearly equal integers, larger ones first."""
    return [total // parts + (k < total % parts) for k in range(parts)]


def plan(request: dict[str, Any]) -> dict[tuple[str, str], list[Clip]]:
    """(dataset, split) -> clips in order. Raises EgoGenError when a split would be empty."""
    datasets, per_clip = request["datasets"], request["actions_per_clip"]
    pairs = share(request["pairs"], len(datasets))
    val_pairs = share(request["val_pairs"], len(datasets))
    plans = {}
    for dataset, total, val in zip(datasets, pairs, val_pairs, strict=True):
        if val < 1 or total - val < 1:
            raise EgoGenError(
                f"{request['pairs']} pairs with {request['val_pairs']} for val: {dataset} would "
                "have an empty split, expected at least one pair in train and one in val"
            )
        for split, wanted in zip(SPLITS, (total - val, val), strict=True):
            plans[dataset, split] = [
                Clip(request["seed"], dataset, split, i, per_clip, min(per_clip, wanted - first))
                for i, first in enumerate(range(0, wanted, per_clip))
            ]
    return plans


def default_val_pairs(pairs: int, datasets: int, actions_per_clip: int) -> int:
    """About a tenth, in complete clips, at least one clip a dataset."""
    clips = max(1, round(pairs / datasets / 10 / actions_per_clip))
    return min(clips * actions_per_clip * datasets, pairs // 2)


def write_clip(root: Path, clip: Clip) -> tuple[str, dict, dict, dict]:
    """Write the clip's missing frames; (clip id, JSON entries, metadata, truth)."""
    folder = frame_folder(root, clip.dataset, clip.split)
    truths = frame_folder(root, clip.dataset, GROUND_TRUTH)
    entries = clip.entries()
    files: list[tuple[Path, int]] = []
    for k, entry in enumerate(entries.values()):
        files += [(folder / entry["image_0"], 0), (folder / entry["image_1"], k + 1)]
        if clip.split == "val":
            files.append((truths / entry["image_1"], k + 1))
    if not all(path.is_file() for path, _ in files):
        images = clip.images()
        for path, which in files:
            write_bytes(path, images[which])
    return clip.name, entries, clip.metadata(), clip.truth()


def conversations(dataset: str, entries: dict[str, dict[str, dict[str, str]]]) -> list[dict]:
    """The instruction-tuning file of a train split: one question and answer a pair."""
    rows = []
    for actions in entries.values():
        for entry in actions.values():
            name = f"{dataset}_{len(rows):06d}"
            asked = question(clean_label(entry["action"], dataset))
            rows.append(conversation(name, entry["image_0"], asked, entry[DESCRIPTION_KEY]))
    return rows


def check_request(root: Path, request: dict[str, Any]) -> None:
    """Refuse a folder that was begun with another request, and one that is not ours."""
    record = root / RECORD
    check_provenance(record, {"request": request})
    if not record.exists() and (root / "EgoGen").exists():
        raise EgoGenError(
            f"{root}: holds a dataset but no {RECORD}, expected an empty folder or one made here"
        )


def _results(root: Path, clips: Sequence[Clip], workers: int) -> Iterator[tuple]:
    work = partial(write_clip, root)
    if workers <= 1:
        yield from map(work, clips)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(work, clips, chunksize=4)


def write_dataset(root: Path, request: dict[str, Any], workers: int = 1) -> dict[str, Any]:
    """Write everything below `root`; returns the record (counts per dataset and split).

    `request`: seed, pairs, val_pairs, actions_per_clip (1 to 4), datasets. Finished clips are kept.
    """
    root = Path(root)
    request = {**request, "version": VERSION}
    plans = plan(request)
    check_request(root, request)
    write_json(root / RECORD, {"request": request, "complete": False})
    clips = [clip for group in plans.values() for clip in group]
    results = track(_results(root, clips, workers), len(clips), "mini dataset", "clips")
    rows = dict(zip(clips, results, strict=True))
    counts: dict[str, dict[str, int]] = {}
    for dataset in request["datasets"]:
        metadata, truth = {}, {}
        for split in SPLITS:
            group = [rows[clip] for clip in plans[dataset, split]]
            entries = {name: actions for name, actions, _, _ in group}
            metadata.update({name: fields for name, _, fields, _ in group})
            truth.update({name: fields for name, _, _, fields in group})
            write_json(action_file(root, dataset, split), entries)
            if split == "train":
                write_json(conversations_file(root, dataset), conversations(dataset, entries))
            counts.setdefault(dataset, {})[split] = sum(map(len, entries.values()))
        write_json(metadata_file(root, dataset), metadata)
        write_json(truth_file(root, dataset), truth)
    record = {"request": request, "complete": True, "pairs": counts}
    write_json(root / RECORD, record)
    return record
