"""Both feature stores of a description job: what made them, what they hold, writing to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import align_module_device

from egogen.actions import ActionEntry
from egogen.errors import EgoGenError
from egogen.features.projector import PROJECTOR_FILE, Projector, read_projector, write_projector
from egogen.features.store import (
    INFO_FILE,
    TEXT_ROWS,
    CompactWriter,
    ReleasedWriter,
    open_store,
)
from egogen.provenance import record_provenance
from llava.checkpoints.load import Loaded, quantization_of
from llava.describing.describe import Description
from llava.model import Llava

if TYPE_CHECKING:
    from llava.describing.loop import Job


def fingerprint(model: Llava) -> str:
    """A short name for the model's weights, from the parts that any tuning changes."""
    digest = hashlib.sha256()
    modules = [
        *model.model.multi_modal_projector.children(),
        model.model.language_model.norm,
        model.lm_head,
    ]
    for module in modules:
        with align_module_device(module):  # a device map may keep it elsewhere
            for part in module.parameters():
                rows = part if module is not model.lm_head else part[:64]
                digest.update(rows.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def model_info(loaded: Loaded) -> dict[str, Any]:
    """What the checkpoint says about the features: stage 2 compares it with its config."""
    model = loaded.model
    return {
        "model": fingerprint(model),
        "width": model.config.text_config.hidden_size,
        "image_size": model.config.vision_config.image_size,
        "quantization": quantization_of(model),
    }


def projector_of(model: Llava) -> Projector:
    state = model.model.multi_modal_projector.state_dict()
    return Projector({name: value.cpu() for name, value in state.items()}, "the model's projector")


def claim_store(
    root: Path, kind: str, layout: str, info: Mapping[str, Any], projector: Projector | None
) -> None:
    """Record what made a store, or refuse one that something else made. `projector` belongs to
    compact image stores; it is written before the record that says so.
    """
    shape = {"kind": kind, "layout": layout, "dtype": "float16"}
    if layout == "compact" and kind == "text":
        shape["text_rows"] = TEXT_ROWS
    if projector is not None:
        shape["vision_width"] = projector.input_width
        if not (root / PROJECTOR_FILE).exists():
            write_projector(root, projector)
        elif not read_projector(root).same_as(projector):
            raise EgoGenError(
                f"{root / PROJECTOR_FILE}: another model's projector; choose another folder, or "
                "remove this one"
            )
    record_provenance(root / INFO_FILE, shape | dict(info))


class FeatureStores:
    """The stores that a job writes; either may be left out."""

    def __init__(self, job: Job, loaded: Loaded, made_by: Mapping[str, Any]):
        self.width = loaded.model.config.text_config.hidden_size
        self.rows = {"image": loaded.model.patches, "text": None}
        self.compact = job.feature_layout == "compact"
        self.roots = {kind: root for kind, root in job.roots.items() if root is not None}
        self.writers = {}
        for kind, root in self.roots.items():
            info = {**made_by, "rows": self.rows[kind]} if kind == "image" else made_by
            projector = projector_of(loaded.model) if self.compact and kind == "image" else None
            claim_store(root, kind, job.feature_layout, info, projector)
            self.writers[kind] = (
                CompactWriter(root, kind, f"{job.chunk_idx}-of-{job.num_chunks}")
                if self.compact
                else ReleasedWriter(root)
            )

    def hold(self, entry: ActionEntry) -> bool:
        """Whether all features of the entry are there, whole and of the right shape."""
        for kind, root in self.roots.items():
            try:
                rows, width = open_store(root).shape(entry.image_0)
            except EgoGenError:
                return False
            if width != self.width or self.rows[kind] not in (None, rows):
                return False
        return True

    def write(self, entries: Sequence[ActionEntry], described: Sequence[Description]) -> None:
        pairs = list(zip(entries, described, strict=True))
        if "image" in self.writers:
            field = "vision_features" if self.compact else "image_features"
            self.writers["image"].write({e.image_0: getattr(d, field) for e, d in pairs})
        if "text" in self.writers:
            self.writers["text"].write({e.image_0: d.text_features for e, d in pairs})

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
