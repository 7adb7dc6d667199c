"""Everything that a config reads from disk, looked for before any work starts."""

from __future__ import annotations

from egogen.settings import require_paths
from ldm.config import as_list
from ldm.file_layout import file_place
from ldm.schema import DatasetParams, GenerateConfig, TrainConfig

FEATURES = {"llava_image": ("image", "both"), "llava_text": ("text", "both")}  # which variants read


def paths_of(config: TrainConfig | GenerateConfig) -> dict[str, str | None]:
    """Config key -> path, of a training or a generation config."""
    named: dict[str, str | None] = {}
    datasets: dict[str, DatasetParams] = (
        {"data.train": config.data.train, "data.validation": config.data.validation}
        if isinstance(config, TrainConfig)
        else {"data": config.data}
    )
    for place, data in datasets.items():
        part = file_place(place)
        for key in ("data_path", "edit_path"):
            named |= _named(f"{part}.{key}", getattr(data, key))
        for kind, variants in FEATURES.items():
            if config.model.conditioner.variant in variants:
                key = f"additional_cond_path.{kind}"
                named |= _named(f"{part}.{key}", getattr(data.additional_cond_path, kind))
    if isinstance(config, GenerateConfig):
        named["data.metadata_path"] = config.metadata_path
    named["model.params.ckpt_path"] = config.model.ckpt_path
    return named


def _named(key: str, value) -> dict[str, str | None]:
    """A key with several paths (training on several datasets) names each."""
    paths = as_list(value)
    return {key if len(paths) == 1 else f"{key}[{i}]": path for i, path in enumerate(paths)}


def check_paths(config: TrainConfig | GenerateConfig, **more: str) -> None:
    """Raises EgoGenError that names all paths of the config, and of `more`, that do not exist."""
    require_paths(paths_of(config) | more)
