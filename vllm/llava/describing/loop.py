"""Describing one chunk of a split: texts into one JSON, features into the feature stores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from egogen.actions import ActionEntry, inside, read_actions
from egogen.errors import EXIT_INCOMPLETE, EgoGenError
from egogen.frames import read_rgb
from egogen.jobs import Progress, ceil_chunk, lock
from egogen.seeds import stable_seed
from llava.checkpoints.load import Loaded
from llava.describing.decoding import Decoding
from llava.describing.describe import Description, describe_frames, too_long
from llava.describing.engine import Engine, transformers_engine
from llava.describing.results import claim_results, finished, result_file, write_results
from llava.describing.stores import FeatureStores, model_info
from llava.labels import QUERY, clean_label


@dataclass(frozen=True)
class Job:
    """What to describe and where to put it. Paths may be None: not written."""

    image_dir: Path
    action_label: Path
    dataset: str
    save_path: Path | None
    image_feature_path: Path | None
    text_feature_path: Path | None
    feature_layout: str = "released"
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
    """The entries of the chunk's clips, in the order of the file.

    Raises EgoGenError when two entries of the file would have the same feature file.
    """
    entries, owners = read_actions(job.action_label), {}
    for entry in entries:
        if owners.setdefault(entry.image_0, entry.key) != entry.key and any(job.roots.values()):
            raise EgoGenError(
                f"{job.action_label}: entries {owners[entry.image_0]} and {entry.key} have the "
                f"same image_0 {entry.image_0}, expected one of their own: features go by it"
            )
    clips = set(
        ceil_chunk(list(dict.fromkeys(e.clip for e in entries)), job.num_chunks, job.chunk_idx)
    )
    return [entry for entry in entries if entry.clip in clips]


def prepare(job: Job, loaded: Loaded, entry: ActionEntry, answer: int) -> Sample:
    """Clean the label, look whether an answer of so many tokens fits, and read the frame."""
    action = clean_label(entry.label, job.dataset, job.label_style)
    if not action:
        return Sample(entry, "", None, f"label {entry.label!r} names no action")
    problem = too_long(loaded, action, job.query, answer)
    if problem:
        return Sample(entry, action, None, problem)
    try:
        return Sample(entry, action, read_rgb(inside(job.image_dir, entry.image_0)))
    except EgoGenError as error:
        return Sample(entry, action, None, str(error))


def batches(
    job: Job, loaded: Loaded, entries: Sequence[ActionEntry], answer: Callable[[ActionEntry], int]
) -> Iterator[list[Sample]]:
    """Prepared samples, `batch_size` at a time; the next batch is read while one is described."""
    groups = [
        entries[first : first + job.batch_size] for first in range(0, len(entries), job.batch_size)
    ]
    with ThreadPoolExecutor(min(job.batch_size, 8)) as pool:
        reading = None
        for group in [*groups, []]:
            ahead = [pool.submit(prepare, job, loaded, entry, answer(entry)) for entry in group]
            if reading is not None:
                yield [future.result() for future in reading]
            reading = ahead


def describe_batch(
    job: Job, loaded: Loaded, samples: Sequence[Sample], engine: Engine
) -> list[Description]:
    names = [(sample.entry.clip, sample.entry.action_id) for sample in samples]
    return describe_frames(
        loaded,
        [sample.image for sample in samples],
        [sample.action for sample in samples],
        names=names,
        seeds=[stable_seed(job.seed, *name) for name in names],
        query=job.query,
        engine=engine,
    )


def fields_of(sample: Sample, description: Description) -> dict[str, str]:
    """What the result file says of an entry."""
    return {
        "original action": sample.entry.label,
        "action": sample.action,
        "description": description.text,
    }


def run(
    job: Job,
    loaded: Loaded,
    engine: Engine | None = None,
    origin: Mapping[str, Any] | None = None,
    answer: Callable[[ActionEntry], int] | None = None,
) -> int:
    """Describe the chunk; finished entries are kept. Returns the exit code.

    `engine` writes the texts (default: the model, by `job.settings`) and `origin` says what decides
    them besides model and question; both are recorded beside the results, and results of another
    origin refused. `answer` says how many tokens an entry's text may have. Entries that cannot be
    described (unreadable frame, label without action, too long for the model) are named at the end.
    Released sampling is one stream over the chunk, so it keeps nothing.
    """
    entries = chunk_entries(job)
    made_by = model_info(loaded) | {"query": job.query, "label_style": job.label_style}
    made_by |= origin or {"seed": job.seed, **asdict(job.settings)}
    stores = FeatureStores(job, loaded, made_by)
    path = job.save_path and result_file(job.save_path, job.chunk_idx)
    if path:
        claim_results(job.save_path, {"num_chunks": job.num_chunks, **made_by})
    engine = engine or transformers_engine(loaded, job.settings, job.seed)
    answer = answer or (lambda entry: job.settings.max_new_tokens)
    held = path.with_name(f".{path.stem}.lock") if path else Path(".lock")
    with lock(held, f"describing chunk {job.chunk_idx}", needed=path is not None):
        keep = job.settings.sampling != "released"
        done = finished(path, entries, stores) if keep else {}
        if path and not path.exists():
            write_results(path, entries, done)
        left = batches(job, loaded, [e for e in entries if e.key not in done], answer)
        problems = []
        with Progress(len(entries), "describe", "frames", done=len(done)) as progress:
            for batch in left:
                problems += [sample for sample in batch if sample.problem]
                ready = [sample for sample in batch if not sample.problem]
                done |= _described(job, loaded, ready, engine, stores)
                if path and ready:
                    write_results(path, entries, done)
                progress.update(len(batch))
        stores.close()
    for sample in problems:
        print(f"not described: entry {sample.entry.key}: {sample.problem}", file=sys.stderr)
    where = path or ", ".join(str(root) for root in job.roots.values() if root)
    print(f"{where}: {len(done)} of {len(entries)} entries described")
    return EXIT_INCOMPLETE if problems else 0


def _described(
    job: Job, loaded: Loaded, samples: Sequence[Sample], engine: Engine, stores: FeatureStores
) -> dict[str, dict[str, str]]:
    """Describe a batch and write its features -> entry's key: what the result file says of it."""
    if not samples:
        return {}
    described = describe_batch(job, loaded, samples, engine)
    stores.write([sample.entry for sample in samples], described)
    return {
        sample.entry.key: fields_of(sample, description)
        for sample, description in zip(samples, described, strict=True)
    }
