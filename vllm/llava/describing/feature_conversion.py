"""Feature stores of one layout made from the other.

released -> compact   vision features are found from the projected ones by least squares; the
                      projector has more outputs (5120) than inputs (1024), so there is one answer.
                      What it projects to is compared with what was stored, and refused when it is
                      not that: then the features are another model's. Text is cut to 77 rows.
compact -> released   vision features are projected; text is copied.

P patches, C vision width, D language width.
"""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egogen import EXIT_INCOMPLETE, ActionEntry, EgoGenError, Progress
from egogen.features.projector import Projector, read_projector
from egogen.features.store import FeatureWriter, open_store, read_info, record_store
from llava.checkpoints.config import read_config
from llava.checkpoints.load import read_state
from llava.describing.job import shape_of

LARGEST_RESIDUAL = 0.01  # half precision alone gives some 3e-4, bfloat16 2e-3, other weights 0.9
BATCH = 32  # frames; what a kill may lose
PREFIX = "model.multi_modal_projector."


def projector_from(folder: Path) -> Projector:
    """The projector of a checkpoint folder of any layout, or of a compact image store."""
    if read_info(folder).get("layout") == "compact":
        return read_projector(folder)
    state = read_state(folder, read_config(folder))
    state = {n.removeprefix(PREFIX): v for n, v in state.items() if n.startswith(PREFIX)}
    return Projector(state, folder)


class Unprojector:
    """Least squares in float64 against a projector of one layer: (P, D) -> (P, C).

    `residual` is how far, at most so far, vision features project from what was given, relative.
    """

    residual = 0.0

    def __init__(self, projector: Projector):
        if projector.layers != 1:
            found = "two layers with GELU between, which least squares cannot undo"
            advice = "make compact features anew with python -m llava.eval.make_features"
            raise EgoGenError(f"the projector has {found}; {advice}")
        self.weight = projector.state["linear_1.weight"].double()  # (D, C)
        self.bias = projector.state["linear_1.bias"].double()
        self.inverse = torch.linalg.pinv(self.weight)  # (C, D)

    def __call__(self, rows: np.ndarray, where: str) -> np.ndarray:
        """-> vision features (P, C) float16. Raises EgoGenError for another model's features."""
        projected = torch.from_numpy(rows).double()
        vision = ((projected - self.bias) @ self.inverse.T).half()
        error = vision.double() @ self.weight.T + self.bias - projected
        residual = float(error.norm() / projected.norm())
        if residual > LARGEST_RESIDUAL:
            found = f"residual {residual:.2g}, expected at most {LARGEST_RESIDUAL}"
            other = "it was not made with this projector"
            raise EgoGenError(f"{where}: no vision features project to it ({found}); {other}")
        self.residual = max(self.residual, residual)
        return vision.numpy()


def _record(job: Namespace, shape: tuple[int, int], projector: Projector | None) -> None:
    layout_says = ("kind", "layout", "dtype", "vision_width", "text_rows", "projector")
    info = {k: v for k, v in read_info(job.source).items() if k not in layout_says}
    info |= {"width": shape[1], "converted": True}
    if job.kind == "image":
        info["rows"] = shape[0]
    if projector and projector.output_width != shape[1]:
        found = f"features of width {shape[1]}, but the projector makes {projector.output_width}"
        raise EgoGenError(f"{job.source}: {found}: not from the same model")
    record_store(job.target, job.kind, job.to, info, projector)


def _sound(source: Any, entries: Sequence[ActionEntry]) -> tuple[dict[str, str], tuple[int, int]]:
    """Entry -> why its feature cannot be taken over; and (n, d) of the first one that can.

    Only the files' headers are read. A width that differs from most is such a reason. Raises
    EgoGenError when nothing is sound.
    """
    shapes, problems, frames = {}, {}, {entry.key: entry.image_0 for entry in entries}
    for entry in entries:
        try:
            shapes[entry.key] = source.shape(entry.image_0)
        except EgoGenError as error:
            problems[entry.key] = str(error)
    if not shapes:
        raise EgoGenError(f"{source.root}: has no features of these entries")
    usual = Counter(width for _, width in shapes.values()).most_common(1)[0][0]
    for key, (_, width) in shapes.items():
        if width != usual:
            where = f"{source.root}: feature of {frames[key]}"
            problems[key] = f"{where} has width {width}, expected {usual} as in most others"
    return problems, next(shape for shape in shapes.values() if shape[1] == usual)


def convert(job: Namespace, entries: Sequence[ActionEntry]) -> int:
    """Convert the features of `entries`; what the target has already is kept. -> exit code.

    `job` holds the flags of the command. Frames whose feature is missing, cut short or not finite
    are named at the end. Raises EgoGenError when the features were not made with the projector.
    """
    info, projector = read_info(job.source), None
    if not job.source.is_dir():
        raise EgoGenError(f"{job.source}: no such folder, expected a feature store")
    if info.get("layout", "released") == job.to:
        raise EgoGenError(f"{job.source}: has the {job.to} layout already, expected the other one")
    if info.get("kind", job.kind) != job.kind:
        raise EgoGenError(f"{job.source}: a store of {info['kind']} features, not of {job.kind}")
    if job.target.resolve() == job.source.resolve():
        raise EgoGenError(f"{job.target}: source and target are one folder, expected two")
    if job.kind == "image" and job.to == "compact":
        if not job.projector:
            raise EgoGenError("image features to compact: expected --projector CHECKPOINT")
        projector = projector_from(job.projector)
    source = open_store(job.source)
    problems, shape = _sound(source, entries)
    _record(job, shape, projector)
    unproject = None if projector is None else Unprojector(projector)
    left = [e for e in entries if e.key not in problems and not shape_of(job.target, e.image_0)]
    parallel = f"{job.chunk_idx}-of-{job.num_chunks}"
    writer = FeatureWriter(job.target, job.kind, job.to, parallel)
    done = len(entries) - len(left)
    with Progress(len(entries), f"to {job.to}", "features", done=done) as progress:
        for first in range(0, len(left), BATCH):
            group = left[first : first + BATCH]
            rows = {}
            for entry in group:
                try:
                    found = source.read(entry.image_0)
                except EgoGenError as error:
                    problems[entry.key] = str(error)
                    continue
                where = f"{source.root}: feature of frame {entry.image_0}"
                rows[entry.image_0] = unproject(found, where) if unproject else found
            writer.write(rows)
            progress.update(len(group))
    writer.close()
    if unproject is not None:
        print(f"largest residual of what was converted now: {unproject.residual:.2g}")
    for key, problem in problems.items():
        print(f"not converted: entry {key}: {problem}", file=sys.stderr)
    print(f"{job.target}: {len(entries) - len(problems)} of {len(entries)} features")
    return EXIT_INCOMPLETE if problems else 0
