"""Checkpoints of stage 2 from one form into another, losslessly: `scripts/convert_checkpoint.py`.

No form that is written here holds an optimizer: training starts from it, it does not continue.
"""

import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from egogen import EgoGenError
from egogen.atomic import TEMPORARY_SUFFIX, as_umask_says, atomic_path
from ldm.checkpoints import adapter_files, layouts
from ldm.checkpoints.diffusers_folder import LIVE_VARIANT
from ldm.checkpoints.layouts import Weights
from ldm.checkpoints.load import read_file, weights_in
from ldm.checkpoints.lora import adapted, read_lora
from ldm.checkpoints.released_names import LIVE
from ldm.config import distilled_from
from ldm.model import LegoModel
from ldm.pipeline import LegoPipeline
from ldm.schema import ModelParams

Place = str | os.PathLike


def convert(
    source: Place, target: Place, form: str, params: ModelParams, loras: Iterable[str] = ()
) -> list[str]:
    """Write what `source`, in any form, holds to `target` in `form`; -> lines to print. `loras`:
    files of adapters, FILE or FILE:SCALE, that become part of the weights, live and EMA.

    `params` is `model.params` of the config that the weights belong to; names and shapes are
    checked against it. Raises EgoGenError, and writes nothing, when `target` is there or anything
    does not fit.
    """
    target = Path(target)
    if target.exists():
        raise EgoGenError(f"{target}: is there already, expected a new name")
    if form != "diffusers" and target.suffix != ".ckpt":
        raise EgoGenError(f"{target}: expected a name that ends in .ckpt for the form {form!r}")
    distill = distilled_from(read_file(source)[1].get("distill"), f"{source}: ")
    if form == "released" and distill.drawn:
        raise EgoGenError(f"{source}: is told guidance scales, which the released layout cannot be")
    model = bare_model(replace(params, distill=distill))
    weights = read_any(source, model)
    for file, scale in adapter_files(loras):
        averaged = adapted(weights.live | weights.ema, read_lora(file), scale, file)
        weights.live = adapted(weights.live, read_lora(file), scale, file)
        weights.ema = {name: averaged[name] for name in weights.ema}
    if form == "diffusers":
        write_folder(target, weights, model)
    else:
        state = layouts.to_own(weights) if form == "own" else layouts.to_released(weights, model)
        content: dict[str, Any] = {"state_dict": state}
        if form == "own":
            content["ema_updates"] = weights.updates
            content |= {"distill": distill.note} if distill.note else {}
        with atomic_path(target) as temporary:
            torch.save(content, temporary)
    lines = [f"written: {target}", *_report(weights, form)]
    if form == "released" and distill.note:
        lines.append(f"distilled from {distill.note}: its one branch is that of both scales at 1")
    return lines


def bare_model(params: ModelParams) -> LegoModel:
    """Only names and shapes, without memory for the weights."""
    with torch.device("meta"):
        return LegoModel(params)


def read_any(source: Place, model: LegoModel) -> Weights:
    """Of a file or a folder. Raises EgoGenError for an EMA of another decay than the config's."""
    state, notes = read_file(source)
    decay = layouts.with_known_names(state, model, str(source)).get(layouts.DECAY)
    known = torch.tensor(model.config.ema_decay)
    if decay is not None and not layouts.same_numbers(decay.reshape(()), known, 1e-6):
        raise EgoGenError(
            f"{source}: its EMA has the decay {float(decay):.6g}, but the config "
            f"model.params.ema_decay={model.config.ema_decay}"
        )
    return weights_in(str(source), model, state, notes.get("ema_updates", 0))


def write_folder(folder: Path, weights: Weights, model: LegoModel) -> None:
    """The folder appears only when it is complete."""
    with_ema = {name.split(".")[0] for name in weights.ema}
    temporary = folder.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    model.load_state_dict(weights.chosen(bool(with_ema), str(folder)), assign=True)
    pipeline = LegoPipeline.from_model(model, weights.updates)
    try:
        pipeline.save_pretrained(temporary)
        model.load_state_dict(weights.live, assign=True)
        for part in sorted(with_ema):
            getattr(model, part).save_pretrained(temporary / part, variant=LIVE_VARIANT)
        as_umask_says(temporary)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _report(weights: Weights, form: str) -> list[str]:
    parts = sorted({name.split(".")[0] for name in weights.ema})
    if not parts:
        return ["holds live weights; there is no EMA"]
    names = ", ".join(parts)
    lines = [f"holds live weights and, after {weights.updates} updates, the EMA of: {names}"]
    if form == "released" and "conditioner" in parts:
        lines.append(
            f"the conditioner's live weights stand under {LIVE!r}, which the released code ignores"
        )
    return lines
