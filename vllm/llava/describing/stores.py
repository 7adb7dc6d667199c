"""The feature stores of a description job, by the names of the describer's features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egogen.actions import ActionEntry
from egogen.errors import EgoGenError
from egogen.features.store import INFO_FILE, FeatureWriter, open_store, record_store
from egogen.provenance import check_provenance
from llava.describing.describer import Describer, Description
from llava.describing.job import Job


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
