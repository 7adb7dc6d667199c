"""Describing one chunk of a split: texts into one JSON, features into the feature store."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from egogen.actions import ActionEntry, inside, read_actions
from egogen.chunks import ceil_chunk
from egogen.errors import EXIT_INCOMPLETE, EgoGenError
from egogen.features import write_feature
from egogen.frames import read_rgb
from egogen.progress import Progress
from egogen.seeds import stable_seed
from llava.checkpoint import Loaded
from llava.decoding import Decoding
from llava.describe import Description, describe_frames
from llava.labels import QUERY, clean_label
from llava.results import claim_root, fingerprint, finished, result_file, write_results


@dataclass(frozen=True)
class Job:
    """What to describe and where to put it. Feature roots may be None (not written)."""

    image_dir: Path
    action_label: Path
    dataset: str
    save_path: Path
    image_feature_path: Path | None
    text_feature_path: Path | None
    query: str = QUERY
    seed: int = 42
    num_chunks: int = 1
    chunk_idx: int = 1
    batch_size: int = 8
    label_style: str = "parsed"
    settings: Decoding = Decoding()

    @property
    def roots(self) -> dict[str, Path | None]:
        return {"image": self.image_feature_path, "text": self.text_feature_path}


@dataclass(frozen=True)
class Sample:
    """One entry, ready to be described; `problem` says why it is not."""

    entry: ActionEntry
    action: str
    image: Image.Image | None
    problem: str = ""


def chunk_entries(job: Job) -> list[ActionEntry]:
    """The entries of the chunk's clips, in the order of the file."""
    entries = read_actions(job.action_label)
    clips = set(
        ceil_chunk(list(dict.fromkeys(e.clip for e in entries)), job.num_chunks, job.chunk_idx)
    )
    return [entry for entry in entries if entry.clip in clips]


def prepare(job: Job, entry: ActionEntry) -> Sample:
    """Clean the label and read the frame."""
    action = clean_label(entry.label, job.dataset, job.label_style)
    if not action:
        return Sample(entry, "", None, f"label {entry.label!r} names no action")
    try:
        return Sample(entry, action, read_rgb(inside(job.image_dir, entry.image_0)))
    except EgoGenError as error:
        return Sample(entry, action, None, str(error))


def batches(job: Job, entries: Sequence[ActionEntry]) -> Iterator[list[Sample]]:
    """Prepared samples, `batch_size` at a time; the next batch is read while one is described."""
    groups = [
        entries[first : first + job.batch_size] for first in range(0, len(entries), job.batch_size)
    ]
    with ThreadPoolExecutor(min(job.batch_size, 8)) as pool:
        reading = None
        for group in [*groups, []]:
            ahead = [pool.submit(prepare, job, entry) for entry in group]
            if reading is not None:
                yield [future.result() for future in reading]
            reading = ahead


def save(job: Job, sample: Sample, description: Description) -> dict[str, str]:
    """Write both features of a sample; its fields of the result file."""
    if job.image_feature_path is not None:
        write_feature(job.image_feature_path, sample.entry.image_0, description.image_features)
    if job.text_feature_path is not None:
        write_feature(job.text_feature_path, sample.entry.image_0, description.text_features)
    return {
        "original action": sample.entry.label,
        "action": sample.action,
        "description": description.text,
    }


def claim_roots(job: Job, loaded: Loaded) -> None:
    model = loaded.model
    common = {
        "width": model.config.text_config.hidden_size,
        "dtype": "float16",
        "model": fingerprint(model),
        "seed": job.seed,
        "query": job.query,
        "temperature": job.settings.temperature,
    }
    for kind, root in job.roots.items():
        if root is not None:
            rows = {"rows": model.patches} if kind == "image" else {}
            claim_root(root, {"kind": kind, **rows, **common})


def run(job: Job, loaded: Loaded) -> int:
    """Describe the chunk; finished entries are kept. Returns the exit code.

    Entries that cannot be described (unreadable frame, label without action) are named at the end.
    """
    entries = chunk_entries(job)
    model, path = loaded.model, result_file(job.save_path, job.chunk_idx)
    claim_roots(job, loaded)
    done = finished(path, entries, job.roots, model.config.text_config.hidden_size, model.patches)
    left = [entry for entry in entries if entry.key not in done]
    problems = []
    if not path.exists():
        write_results(path, entries, done)
    with Progress(len(entries), "describe", "frames", done=len(done)) as progress:
        for batch in batches(job, left):
            problems += [sample for sample in batch if sample.problem]
            ready = [sample for sample in batch if not sample.problem]
            if ready:
                seeds = [
                    stable_seed(job.seed, sample.entry.clip, sample.entry.action_id)
                    for sample in ready
                ]
                described = describe_frames(
                    loaded,
                    [sample.image for sample in ready],
                    [sample.action for sample in ready],
                    seeds=seeds,
                    query=job.query,
                    settings=job.settings,
                )
                for sample, description in zip(ready, described, strict=True):
                    done[sample.entry.key] = save(job, sample, description)
                write_results(path, entries, done)
            progress.update(len(batch))
    for sample in problems:
        print(f"not described: entry {sample.entry.key}: {sample.problem}", file=sys.stderr)
    print(f"{path}: {len(done)} of {len(entries)} entries described")
    return EXIT_INCOMPLETE if problems else 0
