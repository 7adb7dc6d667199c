"""Config files of the released code, as this project's: class paths, names, and what has no effect.

Every key of the released files either is one of `ldm.file_layout`, where it has its effect, or is
in the tables here; so are keys that this project's files had once (`dropout_share`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from egogen import EgoGenError, check_choice
from ldm.schema import FeatureParams, default_features

# Tables of what these files say, each explained there.
TABLES: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("released.yaml")))
AS_RELEASED: dict[str, Any] = TABLES["as_released"]
PRESETS: dict[str, dict[str, Any]] = TABLES["presets"]
CLASSES: dict[str, dict[str, str]] = TABLES["classes"]
WITHOUT_EFFECT: dict[str, dict[str, Any]] = TABLES["without_effect"]
CONDITIONER = "model.params.conditioner"
DATASETS = ("data.params", "data.params.train.params", "data.params.validation.params")
RENAMED: dict[str, list[str]] = TABLES["renamed"]
*SIZES, _ = RENAMED["dataset"]  # of frames, three keys for one number
OLD_TABLE = RENAMED[CONDITIONER]


def translate(layer: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """A file or an override in the released keys -> in those of `ldm.schema`, and lines to print.

    Keys that are known nowhere stay for the schema to refuse. Raises EgoGenError for a class path
    that nothing stands in for, and for values that cannot be had here.
    """
    lines: list[str] = []
    layer = _without_unused(layer, where, "", lines)
    for path in DATASETS:
        dataset = section_at(layer, path)
        if dataset is not None:
            _translate_dataset(layer, dataset, where, path)
    model = section_at(layer, "model.params")
    if model is not None and "dropout_share" in model:
        model["cond_drop_prob"] = model.pop("dropout_share")
    return layer, lines


def add_preset(layers: list[tuple[str, dict[str, Any]]], files: int) -> None:
    """Inserts what `inference.preset`, the last that is named, sets: before the file that names it,
    or where the `files` end and what is typed begins. Raises EgoGenError for an unknown one.
    """
    found = {i: section_at(layer, "inference") or {} for i, (_, layer) in enumerate(layers)}
    *_, (place, name) = (None, None), *((i, x["preset"]) for i, x in found.items() if "preset" in x)
    if name is not None:
        check_choice("config: inference.preset=", name, tuple(PRESETS))
        layers.insert(min(place, files), (f"preset {name}", PRESETS[name]))


def take_old_table(layer: dict[str, Any]) -> dict[str, Any]:
    """The keys OLD_TABLE of a translated layer, at their place; the layer loses them."""
    node = section_at(layer, CONDITIONER) or {}
    found = {name: node.pop(name) for name in OLD_TABLE if name in node}
    return {"model": {"params": {"conditioner": found}}} if found else {}


@dataclass
class OldTable:
    """What these keys are by default, for typed merging."""

    variant: str = "both"
    feature_dim: int = default_features()["image"].width
    image_rows: int = default_features()["image"].rows
    text_rows: int = default_features()["text"].rows


def released_features(old: Mapping[str, Any]) -> dict[str, FeatureParams]:
    """The table of features that the keys OLD_TABLE mean; those that are not given are released.

    Raises EgoGenError for an unknown variant.
    """
    keys = OldTable(**{name: old[name] for name in OLD_TABLE if name in old})
    rows, table = {"image": keys.image_rows, "text": keys.text_rows}, default_features()
    check_choice(f"config: {CONDITIONER}.variant=", keys.variant, ("none", *table, "both"))
    return {
        name: replace(spec, width=keys.feature_dim, rows=rows[name])
        for name, spec in table.items()
        if keys.variant in (name, "both")
    }


def _without_unused(node: dict, where: str, prefix: str, lines: list[str]) -> dict:
    kept = {}
    for key, value in node.items():
        path = f"{prefix}{key}"
        unused = WITHOUT_EFFECT.get(generic_key(path))
        if key == "target" and prefix.rstrip(".") in CLASSES:
            if value not in (known := [*CLASSES[prefix.rstrip(".")]]):
                raise EgoGenError(f"{where}: {path} is {value!r}, expected of {known} or no target")
        elif unused is None:
            inside = isinstance(value, dict)
            kept[key] = _without_unused(value, where, f"{path}.", lines) if inside else value
        elif "only" in unused and value != unused["only"]:
            raise EgoGenError(
                f"{where}: {path}={value!r}: expected {unused['only']!r} ({unused['reason']})"
            )
        elif unused.get("noted"):
            lines.append(f"{where}: {path} has no effect: {unused['reason']}")
    return kept


def generic_key(path: str) -> str:
    """Datasets stand in three places: their keys are looked up under "dataset."."""
    return re.sub(r"^data\.params\.((train|validation)\.params\.)?", "dataset.", path)


def section_at(layer: dict, path: str) -> dict | None:
    node: Any = layer
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def _translate_dataset(layer: dict, dataset: dict, where: str, path: str) -> None:
    """Three sizes -> `res`; `additional_cross_attn: false` -> conditioning variant "none"."""
    sizes = {name: dataset.pop(name) for name in (*SIZES, "res") if name in dataset}
    for name, size in sizes.items():
        if name != "res" and isinstance(size, list | dict):
            raise EgoGenError(f"{where}: {path}.{name}={size}: expected one number of pixels")
        if size != dataset.setdefault("res", size):
            given = ", ".join(f"{name}={value}" for name, value in sizes.items())
            raise EgoGenError(
                f"{where}: {path}: {given}: expected equal values, frames are not resized at random"
            )
    if dataset.pop("additional_cross_attn", True) is False:
        model = layer.setdefault("model", {}).setdefault("params", {})
        variant = model.setdefault("conditioner", {}).setdefault("variant", "none")
        if variant != "none":
            raise EgoGenError(
                f"{where}: {path}.additional_cross_attn=False is conditioner.variant=none, but "
                f"the variant is {variant!r}"
            )


def released_keys(prefix: str) -> list[str]:
    """Names below `prefix` ("" or ending in ".") that only released files have, to suggest."""
    place = generic_key(prefix)
    names = [path.removeprefix(place) for path in WITHOUT_EFFECT if path.startswith(place)]
    return [name for name in names if "." not in name] + list(RENAMED.get(place.rstrip("."), ()))
