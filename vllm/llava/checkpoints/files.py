"""Weight files of checkpoint folders: found, read as data, renamed, checked, written.

Tensors read here are maps of the files: memory is used where and while one is looked at, so that
a 26 GB checkpoint can be renamed, converted and put on a GPU on a machine with far less.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from egogen import EgoGenError, atomic_path, read_object, track, write_json
from egogen.weight_files import COMPUTED, fit_names, read_weight_file, tensors

# Rules for `rename`, explained there.
_RULES = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text("utf-8"))
MODEL_NAMES, TOWER_NAMES = _RULES["model"], _RULES["tower"]
RELEASED_NAMES, HUB_NAMES = _RULES["released"], _RULES["hub"]
WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")  # or their `.index.json` with shards
SHARD_SIZE = "4GB"


def rename(name: str, rules: Mapping[str, str]) -> str:
    """`name` after all rules, in their order."""
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files: safetensors before .bin, one file or those that an index lists.

    Raises EgoGenError when there are none, or shards are missing.
    """
    for name in WHOLE_FILES:
        index = folder / f"{name}.index.json"
        if index.exists():
            return _shards(index)
        if (folder / name).exists():
            return [folder / name]
    expected = f"expected {' or '.join(WHOLE_FILES)} or shards with an index"
    raise EgoGenError(f"{folder}: holds no weights, {expected}")


def _shards(index: Path) -> list[Path]:
    found = read_object(index).get("weight_map")
    names: list[Any] = list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(name, str) and name == os.path.basename(name) for name in names):
        raise EgoGenError(f"{index}: expected a 'weight_map' from weights to files beside it")
    files = [index.parent / name for name in sorted(set(names))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise EgoGenError(f"{index}: {len(missing)} shards are missing: {', '.join(missing)}")
    return files


def read_weights(folder: Path, names: Collection[str] = ()) -> dict[str, Tensor]:
    """All weights of a folder under the model's names, mapped.

    `names`, those that the model has, tell what wrappers have added to others and taken from them.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        state |= tensors(read_weight_file(path), path)
    known = fit_names(
        state, lambda name: rename(name, MODEL_NAMES) in names, folder, levels=("model.",)
    )
    return {rename(name, MODEL_NAMES): value for name, value in known.items()}


def read_tower(files: Iterable[Path]) -> dict[str, Tensor]:
    """A vision tower from the weight files of its own folder, under its names in the model."""
    state = {}
    for path in files:
        found = tensors(read_weight_file(path), path)
        found = fit_names(found, lambda name: rename(name, TOWER_NAMES) != name, path)
        for name, value in found.items():
            inside = rename(name, TOWER_NAMES)
            if inside != name and not name.endswith(COMPUTED):
                state[inside] = value
    return state


def write_weights(
    state: Mapping[str, Tensor], folder: Path, name_of: Callable[[str], str]
) -> list[Path]:
    """Write safetensors, shards of 4 GB with their index; each file appears whole or not at all.

    At most one shard is in memory. Returns the files.
    """
    named = {name_of(name): value for name, value in state.items()}
    # Planned on tensors without data: those of one mapped file count as one there.
    sizes = {name: value.to("meta") for name, value in named.items()}
    plan = split_torch_state_dict_into_shards(
        sizes, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD_SIZE
    )
    shards = plan.filename_to_tensors
    for file, names in track(shards.items(), len(shards), "write", "shards"):
        with atomic_path(folder / file) as temporary:
            held = {name: named[name].contiguous() for name in names}
            save_file(held, temporary, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index, indent=2)
    return [folder / file for file in shards]
