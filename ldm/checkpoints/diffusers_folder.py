"""Weights in a folder as diffusers has them: one sub-folder for each network.

Written by `ldm.pipeline.LegoPipeline`, or by others for Stable Diffusion v1. Plain weight files are
the EMA where there is one; the live weights of what has an EMA stand beside them as the
variant "non_ema", the name that Stable Diffusion v1.5 was published with.
"""

import inspect
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from egogen import EgoGenError, read_json, read_object, write_text
from egogen.weight_files import check_names, shapes_of
from ldm.checkpoints.layouts import Weights
from ldm.checkpoints.standalone import standalone
from ldm.model import LegoModel
from ldm.sampling import scheduler_for

LIVE_VARIANT, INDEX = "non_ema", "model_index.json"
SETTINGS = ["prediction_type", "beta_start", "beta_end", "num_train_timesteps", "scaling_factor"]


def read_folder(folder: str | os.PathLike, model: LegoModel, start: bool = False) -> Weights:
    """The networks of `folder`, checked against `model`'s names and shapes.

    `start`: Stable Diffusion v1 will do: without a conditioner, which `live` then leaves out, and
    with a first convolution of fewer input channels, which is widened by zeros. Of others' folders
    the plain files are read, as training in the released code starts from an EMA ("emaonly").
    """
    folder = Path(folder)
    own = shapes_of(model.state_dict())
    if start and not (folder / "conditioner").exists():
        own = {name: shape for name, shape in own.items() if not name.startswith("conditioner.")}
    index = read_object(folder / INDEX, needed=False)
    ours = "LegoPipeline" in str(index.get("_class_name"))  # a name or, with code, [file, name]
    live, ema = {}, {}
    for part in dict.fromkeys(name.split(".")[0] for name in own):
        kind = type(getattr(model, part))
        values = _read_network(folder, part, kind)
        if ours and any((folder / part).glob(f"*.{LIVE_VARIANT}.*")):
            ema |= values
            values = _read_network(folder, part, kind, LIVE_VARIANT)
        live |= values
    first = f"{model.denoiser.name}.{model.denoiser.first_weight}"
    if start and first in live:
        live[first] = model.denoiser.widened(live[first])
        ema = {}  # training starts from the live weights
    elif not start:
        _check_settings(folder, model)
    check_names(shapes_of(live), own, str(folder))
    check_names(shapes_of(ema), {n: own[n] for n in ema if n in own}, str(folder))
    return Weights(live, ema, int(index.get("ema_updates", 0)))


def _check_settings(folder: Path, model: LegoModel) -> None:
    """Raises EgoGenError where the folder's schedule or scale of latents is not the config's."""
    schedule, latents = scheduler_for(model.config).config, model.vae.config
    for file, own in (("scheduler/scheduler_config.json", schedule), ("vae/config.json", latents)):
        found = read_json(folder / file, finite=False) if (folder / file).exists() else {}
        for key in set(SETTINGS).intersection(found):
            if found[key] != own[key]:
                differs = f"{key} {found[key]}, but the config's is {own[key]}"
                raise EgoGenError(f"{folder / file}: {differs}")


def _read_network(folder: Path, part: str, kind: Any, variant: str | None = None) -> dict:
    """Read by the library, which knows the names of its own past; -> values by `LegoModel`'s names.

    Raises EgoGenError for files that are missing, broken, or do not fill the network.
    """
    where = folder / part
    try:
        network, report = kind.from_pretrained(
            folder, subfolder=part, variant=variant, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EgoGenError(f"{where}: not a readable {kind.__name__} ({first})") from None
    odd = {name: report[f"{name}_keys"] for name in ("missing", "unexpected", "mismatched")}
    lists = "; ".join(f"{name}: {', '.join(map(str, keys))}" for name, keys in odd.items() if keys)
    if lists:
        raise EgoGenError(f"{where}: {lists}")
    return {f"{part}.{name}": value for name, value in network.state_dict().items()}


# What `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` runs, by diffusers' rules
# for names of files: of the pipeline, and of the component that is no library's (in its folder).
PIPELINE = ["lego_pipeline", "LegoPipeline"]
COMPONENT = ["ldm.conditioning", "FeatureConditioner"]
CARD = Path(__file__).with_name("card.md").read_text("utf-8")


def add_code(folder: str | os.PathLike) -> None:
    """Into a folder that a pipeline has been saved in: what lets diffusers alone load it, one file
    with the code of both classes, in both places.
    """
    path = Path(folder) / "model_index.json"
    index = json.loads(path.read_text("utf-8")) | {"_class_name": PIPELINE}
    this = sys.modules[__name__]  # may be such a file
    code = standalone() if __name__.startswith("ldm.") else inspect.getsource(this)
    write_text(Path(folder) / f"{PIPELINE[0]}.py", code)
    if index.get("conditioner", [None])[0]:
        index["conditioner"] = COMPONENT
        write_text(Path(folder) / "conditioner" / f"{COMPONENT[0]}.py", code)
    write_text(path, json.dumps(index, indent=2, sort_keys=True) + "\n")


def add_card(folder: str | os.PathLike, features: Iterable[str], name: str = ".") -> None:
    """README.md: how the pipeline with these features is used; `name`: the folder's at the hub."""
    arguments = ['"photo.jpg"', '"The right hand lifts the red mug."']
    known = [feature for feature in features if feature in ("image", "text")]
    arguments += [f'{feature}_features="{feature}.npy"' for feature in known]
    others = {feature: f"{feature}.npy" for feature in features if feature not in known}
    arguments += [f"features={json.dumps(others)}"] if others else []
    card = CARD.format(name=name, arguments=", ".join(arguments))
    write_text(Path(folder) / "README.md", card)
