"""What a description job is given: which entries, with which question, and where results go."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from egogen.actions import ActionEntry, read_actions
from egogen.errors import EgoGenError
from egogen.jobs import ceil_chunk
from egogen.labels import QUERY
from llava.describing.describer import Name

TOP_K = 50  # the default of the library that the published runs sampled with


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: drawn from the `top_k` most probable; `temperature` 0 is greedy."""

    temperature: float = 0.2
    top_k: int = TOP_K
    max_new_tokens: int = 1024


@dataclass(frozen=True)
class Job:
    """One chunk of a split.

    save_path      folder of the result files; None: no texts are saved
    feature_paths  {name of a feature: folder of its store}; others are not saved
    seed           decides all draws together with a sample's name; None: nothing is drawn
    """

    image_dir: Path
    action_label: Path
    dataset: str
    save_path: Path | None = None
    feature_paths: Mapping[str, Path] = field(default_factory=dict)
    feature_layout: str = "released"
    query: str = QUERY
    seed: int | None = 42
    num_chunks: int = 1
    chunk_idx: int = 1
    batch_size: int = 8
    label_style: str = "parsed"


@dataclass(frozen=True)
class Sample:
    """One entry, ready to be described unless `problem` says why not.

    `text` is the answer where the describer does not write it itself.
    """

    entry: ActionEntry
    action: str
    question: str = ""
    image: Image.Image | None = None
    text: str | None = None
    problem: str = ""


def name_of(entry: ActionEntry) -> Name:
    return entry.clip, entry.action_id


def chunk_entries(job: Job) -> list[ActionEntry]:
    """The entries of the chunk's clips, in the order of the file.

    Raises EgoGenError when two entries of the file would have the same place in a feature store.
    """
    entries = read_actions(job.action_label)
    owners: dict[str, str] = {}
    for entry in entries:
        if owners.setdefault(entry.image_0, entry.key) != entry.key and job.feature_paths:
            found = f"entries {owners[entry.image_0]} and {entry.key} have the same image_0"
            expected = f"{entry.image_0}, expected one of their own: features go by it"
            raise EgoGenError(f"{job.action_label}: {found} {expected}")
    clips = list(dict.fromkeys(entry.clip for entry in entries))
    chunk = set(ceil_chunk(clips, job.num_chunks, job.chunk_idx))
    return [entry for entry in entries if entry.clip in chunk]
