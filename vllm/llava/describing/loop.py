"""Describing one chunk of a split: texts into one JSON file, features into their stores.

A batch's features are written before its texts, so that an entry in the result file or its journal
is finished work: a job that was killed at any moment continues by the same command.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

from egogen import EXIT_INCOMPLETE, ActionEntry, EgoGenError, Progress, inside, lock, stable_seed
from egogen.frames import read_rgb
from egogen.labels import clean_label, question
from egogen.provenance import check_provenance, record_provenance
from llava.describing import results
from llava.describing.describer import Describer
from llava.describing.job import FeatureStores, Job, Sample, chunk_entries, name_of
from llava.describing.results import append_results, finished, journal_of, write_results
from llava.describing.texts import TextSource


def provenance(job: Job, describer: Describer, source: TextSource | None) -> dict[str, Any]:
    """What the texts and features of a job depend on: recorded beside them."""
    origin = source.origin if source else {}
    info = {**describer.provenance, **origin, "query": job.query, "label_style": job.label_style}
    return info if job.seed is None else {**info, "seed": job.seed}


def prepare(
    job: Job, describer: Describer, source: TextSource | None, entry: ActionEntry
) -> Sample:
    """Clean the label, read the frame, ask `source` for the text, look whether all has room.

    Raises EgoGenError where the source will not answer any more.
    """
    action = clean_label(entry.label, job.dataset, job.label_style)
    if not action:
        return Sample(entry, "", problem=f"label {entry.label!r} names no action")
    asked, name, text = question(action, job.query), name_of(entry), None
    problem = describer.too_long(asked, name)
    if problem:
        return Sample(entry, action, asked, problem=problem)
    try:
        image = read_rgb(inside(job.image_dir, entry.image_0))
    except EgoGenError as error:
        return Sample(entry, action, asked, problem=str(error))
    if source:
        text, problem = source.text(image, asked, stable_seed(job.seed or 0, *name), name)
        try:
            problem = problem or describer.too_long(asked, name, text)
        except EgoGenError as error:  # a text that this model has no tokens for
            problem = str(error)
    return Sample(entry, action, asked, image, text, problem)


def batches(
    job: Job, describer: Describer, source: TextSource | None, entries: Sequence[ActionEntry]
) -> Iterator[list[Sample]]:
    """Prepared samples, `batch_size` at a time; those of the next are prepared meanwhile.

    Where a source does not answer any more (EgoGenError), what it has answered comes first.
    """
    at_once = source.at_once if source else min(job.batch_size, 8)
    most = job.batch_size + max(job.batch_size, 2 * at_once)
    waiting: deque[Future[Sample]] = deque()
    left = iter(entries)
    pool = ThreadPoolExecutor(at_once)
    try:
        while True:
            for entry in islice(left, most - len(waiting)):
                waiting.append(pool.submit(prepare, job, describer, source, entry))
            if not waiting:
                return
            batch: list[Sample] = []
            try:
                while waiting and len(batch) < job.batch_size:
                    batch.append(waiting.popleft().result())
            except EgoGenError:
                batch += [one.result() for one in waiting if one.done() and not one.exception()]
                batch = [sample for sample in batch if not sample.problem]
                for start in range(0, len(batch), job.batch_size):
                    yield batch[start : start + job.batch_size]
                raise
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if source:
            source.stop()


def describe_batch(
    job: Job, describer: Describer, samples: Sequence[Sample], stores: FeatureStores
) -> dict[str, dict[str, str]]:
    """Describe a batch and write its features -> entry's key: what the result file says of it."""
    if not samples:
        return {}
    names = [name_of(sample.entry) for sample in samples]
    seeds = [stable_seed(job.seed or 0, *name) for name in names]
    texts = [sample.text for sample in samples if sample.text is not None]
    given: dict = {"texts": texts} if texts else {}  # all samples have one, or none
    images = [sample.image for sample in samples if sample.image is not None]
    questions = [sample.question for sample in samples]
    described = describer.describe(images, questions, seeds=seeds, names=names, **given)
    stores.write([sample.entry for sample in samples], described)
    made = {}
    for sample, description in zip(samples, described, strict=True):
        said = sample.entry.label, sample.action, description.text
        made[sample.entry.key] = dict(zip(results.FIELDS, said, strict=True))
    return made


def run(job: Job, describer: Describer, source: TextSource | None = None) -> int:
    """Describe the chunk, with the texts of `source` if any; finished entries are kept.

    Returns the exit code.

    What decides the texts and features is recorded beside them; results of another origin are
    refused (EgoGenError). Entries that cannot be described (unreadable frame, label without action,
    too long for the model) are named at the end.
    """
    entries = chunk_entries(job)
    made_by = provenance(job, describer, source)
    stores = FeatureStores(job, describer, made_by)
    path = results.result_file(job.save_path, job.chunk_idx) if job.save_path else None
    # The number of chunks is part of it: files of another number overlap with these.
    record = {"num_chunks": job.num_chunks, **made_by}
    if path:
        check_provenance(path.with_name(results.RECORD_FILE), record)
    held = path.with_name(f".{path.stem}.lock") if path else Path(".lock")
    with lock(held, f"describing chunk {job.chunk_idx}", needed=path is not None):
        done = finished(path, entries, stores.hold)
        left = [entry for entry in entries if entry.key not in done]
        work = batches(job, describer, source, left)
        first = next(work, [])  # what never answers made nothing, and is not recorded
        stores.begin()
        if path:
            record_provenance(path.with_name(results.RECORD_FILE), record)
        if path and (not path.exists() or journal_of(path).exists()):
            write_results(path, entries, done)
        problems = []
        with Progress(len(entries), "describe", "frames", done=len(done)) as progress:
            for batch in chain([first], work):
                problems += [sample for sample in batch if sample.problem]
                ready = [sample for sample in batch if not sample.problem]
                made = describe_batch(job, describer, ready, stores)
                if path and made:
                    append_results(path, [sample.entry for sample in ready], made)
                done |= made
                progress.update(len(batch))
        if path and journal_of(path).exists():
            write_results(path, entries, done)
        stores.close()
    for sample in problems:
        print(f"not described: entry {sample.entry.key}: {sample.problem}", file=sys.stderr)
    where = path or ", ".join(map(str, job.feature_paths.values()))
    print(f"{where}: {len(done)} of {len(entries)} entries described")
    return EXIT_INCOMPLETE if problems else 0
