"""Config files of the released code, as this project's: class paths, names, and what has no effect.

Every key of the released files either is one of `ldm.file_layout`, where it has its effect, or is
in the tables here. `translate` is applied to each file and to each override before it is merged.
So are keys that this project's files had once (`conditioner.variant`, `dropout_share`).
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from egogen import EgoGenError
from ldm.schema import FeatureParams, default_features

ANY = object()

# Where a class is named: {released class path: what stands in its place here}.
CLASSES: dict[str, dict[str, str]] = {
    "model": {"ldm.models.diffusion.ddpm_egogen.LatentDiffusion": "ldm.model.LegoModel"},
    "model.params.unet_config": {
        "ldm.modules.diffusionmodules.openaimodel.UNetModel": "diffusers.UNet2DConditionModel"
    },
    "model.params.first_stage_config": {
        "ldm.models.autoencoder.AutoencoderKL": "diffusers.AutoencoderKL"
    },
    "model.params.cond_stage_config": {
        "ldm.modules.encoders.modules.FrozenCLIPEmbedder": "transformers.CLIPTextModel"
    },
    "model.params.scheduler_config": {
        "ldm.lr_scheduler.LambdaLinearScheduler": "ldm.training.module.rate_factor"
    },
    "data": {
        "main.DataModuleFromConfig": "ldm.training.run.PairData",
        "egogen_dataset.EgoGenDatasetEval": "ldm.data.read_condition",
    },
    "data.params.train": {"egogen_dataset.EgoGenDataset": "ldm.data.TrainingPairs"},
    "data.params.validation": {"egogen_dataset.EgoGenDataset": "ldm.data.TrainingPairs"},
    "lightning.callbacks.image_logger": {"main.ImageLogger": "ldm.training.callbacks.SampleImages"},
}


@dataclass(frozen=True)
class Unused:
    """A key that is accepted and does nothing here."""

    reason: str
    only: Any = ANY  # the one value that says what is done anyway; others are refused
    noted: bool = False  # print a line: somebody may count on it


UNET = "model.params.unet_config.params."
VAE = "model.params.first_stage_config.params."
WITHOUT_EFFECT: dict[str, Unused] = {
    "model.params.num_timesteps_cond": Unused("the condition is never noised", 1),
    "model.params.log_every_t": Unused("no images of single denoising steps are logged"),
    "model.params.first_stage_key": Unused("the target frame is what is diffused", "edited"),
    "model.params.cond_stage_key": Unused("frame and text are the condition", "edit"),
    "model.params.image_size": Unused("latents have the size that data.*.res gives"),
    "model.params.aspect_ratio": Unused("frames are squeezed to squares", 1.0),
    "model.params.cond_stage_trainable": Unused("the text tower is frozen", False),
    "model.params.conditioning_key": Unused("frame in channels, text in attention", "hybrid"),
    "model.params.monitor": Unused("no checkpoint is chosen by a measure", noted=True),
    UNET + "use_spatial_transformer": Unused("levels that attend do so to the context", True),
    UNET + "legacy": Unused("heads have channels / num_heads values each", False),
    VAE + "monitor": Unused("the autoencoder is not trained"),
    VAE + "lossconfig": Unused("the autoencoder is not trained"),
    VAE + "ddconfig.dropout": Unused("the autoencoder is not trained"),
    VAE + "ddconfig.double_z": Unused("the encoder gives mean and variance", True),
    VAE + "ddconfig.attn_resolutions": Unused("attention in the middle alone", []),
    "model.params.cond_stage_config.params.device": Unused("all networks are on one device"),
    "dataset.split": Unused("the paths say which"),
    "dataset.aspect_ratio": Unused("frames are squeezed to squares", 1.0),
    "lightning.callbacks.image_logger.params.increase_log_steps": Unused(
        "images are made every batch_frequency steps", False
    ),
    "inference.output_path": Unused(
        "frames go beside the checkpoint, logs/X.ckpt -> logs/X/, as in the released code",
        noted=True,
    ),
}
OLD_TABLE = ("variant", "feature_dim", "image_rows", "text_rows")  # before features had names
CONDITIONER = "model.params.conditioner"
DATASETS = ("data.params", "data.params.train.params", "data.params.validation.params")
SIZES = ("min_resize_res", "max_resize_res", "crop_res")  # of frames, three keys for one number
RENAMED = {  # known to `translate` and to `take_old_table`
    "dataset": (*SIZES, "additional_cross_attn"),
    CONDITIONER: OLD_TABLE,
    "model.params": ("dropout_share",),
}


def translate(layer: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """A file or an override in the released keys -> in those of `ldm.schema`, and lines to print.

    Keys that are known nowhere stay for the schema to refuse. Raises EgoGenError for a class path
    that nothing stands in for, and for values that cannot be had here.
    """
    lines: list[str] = []
    layer = _without_unused(layer, where, "", lines)
    for path in DATASETS:
        dataset = _at(layer, path)
        if dataset is not None:
            _translate_dataset(layer, dataset, where, path)
    model = _at(layer, "model.params")
    if model is not None and "dropout_share" in model:
        model["cond_drop_prob"] = model.pop("dropout_share")
    return layer, lines


def take_old_table(layer: dict[str, Any]) -> dict[str, Any]:
    """The keys OLD_TABLE of a translated layer, at their place; the layer loses them."""
    node = _at(layer, CONDITIONER) or {}
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
    variants = ("none", *table, "both")
    if keys.variant not in variants:
        expected = ", ".join(variants)
        raise EgoGenError(
            f"config: {CONDITIONER}.variant={keys.variant!r}: expected one of {expected}"
        )
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
            _check_class(value, where, prefix.rstrip("."))
        elif unused is None:
            inside = isinstance(value, dict)
            kept[key] = _without_unused(value, where, f"{path}.", lines) if inside else value
        elif unused.only is not ANY and value != unused.only:
            raise EgoGenError(
                f"{where}: {path}={value!r}: expected {unused.only!r} ({unused.reason})"
            )
        elif unused.noted:
            lines.append(f"{where}: {path} has no effect: {unused.reason}")
    return kept


def generic_key(path: str) -> str:
    """Datasets stand in three places: their keys are looked up under "dataset."."""
    return re.sub(r"^data\.params\.((train|validation)\.params\.)?", "dataset.", path)


def _check_class(given: Any, where: str, place: str) -> None:
    known = CLASSES[place]
    if given not in known:
        near = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.0)[0]
        raise EgoGenError(
            f"{where}: {place}.target is {given!r}, which nothing here stands in for; expected "
            f"{near!r} (or no target)"
        )


def _at(layer: dict, path: str) -> dict | None:
    node: Any = layer
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def _translate_dataset(layer: dict, dataset: dict, where: str, path: str) -> None:
    """Three sizes -> `res`; `additional_cross_attn: false` -> conditioning variant "none"."""
    sizes = {name: dataset.pop(name) for name in SIZES if name in dataset}
    if len(set(sizes.values())) > 1:
        raise EgoGenError(
            f"{where}: {path}: {_listed(sizes)}: expected equal values, frames are not resized at "
            "random"
        )
    if sizes and dataset.setdefault("res", next(iter(sizes.values()))) not in sizes.values():
        raise EgoGenError(f"{where}: {path}: {_listed(sizes)} but res={dataset['res']}")
    if dataset.pop("additional_cross_attn", True) is False:
        model = layer.setdefault("model", {}).setdefault("params", {})
        variant = model.setdefault("conditioner", {}).setdefault("variant", "none")
        if variant != "none":
            raise EgoGenError(
                f"{where}: {path}.additional_cross_attn=False is conditioner.variant=none, but "
                f"the variant is {variant!r}"
            )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def released_keys(prefix: str) -> list[str]:
    """Names below `prefix` ("" or ending in ".") that only released files have, to suggest."""
    place = generic_key(prefix)
    names = [path.removeprefix(place) for path in WITHOUT_EFFECT if path.startswith(place)]
    return [name for name in names if "." not in name] + list(RENAMED.get(place.rstrip("."), ()))
