"""A description job: which entries, with which question, and the stores where features go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from egogen import ActionEntry, EgoGenError, check_provenance, read_actions
from egogen.features.store import INFO_FILE, FeatureWriter, open_store, record_store
from egogen.jobs import ceil_chunk
from egogen.labels import QUERY
from llava.describing.describer import Describer, Description, Name

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


def shape_of(root: Path, image_0: str) -> tuple[int, int] | None:
    """(n, width) of a frame's feature in a store; None where it is not there and complete."""
    try:
        return open_store(root).shape(image_0)
    except EgoGenError:
        return None


class FeatureStores:
    """A store per entry of `Job.feature_paths`; features that have none there are not saved."""

    def __init__(self, job: Job, describer: Describer, made_by: Mapping[str, Any]):
        """Raises EgoGenError where another origin than `made_by` is recorded, or a feature is asked
        for that the describer does not make.
        """
        self.roots, self.compact = job.feature_paths, job.feature_layout == "compact"
        self.job, self.made_by = job, made_by
        self.features, self.writers = {}, {}
        for name, root in self.roots.items():
            if name not in describer.features:
                expected = f"expected one of {', '.join(describer.features)}"
                raise EgoGenError(f"{root}: {describer.name} makes no feature {name!r}, {expected}")
            self.features[name] = describer.features[name]
            check_provenance(root / INFO_FILE, dict(made_by))

    def begin(self) -> None:
        """Record in every store what makes it: there will be something to be written."""
        for name, root in self.roots.items():
            feature, job = self.features[name], self.job
            info = {**self.made_by, "width": feature.width}
            if feature.rows is not None:
                info["rows"] = feature.rows
            project = feature.projector if self.compact else None
            record_store(root, name, job.feature_layout, info, project and project())
            writer = f"{job.chunk_idx}-of-{job.num_chunks}"
            self.writers[name] = FeatureWriter(root, name, job.feature_layout, writer)

    def hold(self, entry: ActionEntry) -> bool:
        """Whether all features of the entry are there, complete and of the right shape."""
        for name, root in self.roots.items():
            feature, shape = self.features[name], shape_of(root, entry.image_0)
            if shape is None or feature.rows not in (None, shape[0]) or feature.width != shape[1]:
                return False
        return True

    def write(self, entries: Sequence[ActionEntry], described: Sequence[Description]) -> None:
        for name, writer in self.writers.items():
            smaller = self.compact and self.features[name].projector is not None
            rows = [(made.compact if smaller else made.features)[name] for made in described]
            frames = [entry.image_0 for entry in entries]
            writer.write(dict(zip(frames, rows, strict=True)))

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
