"""Everything that a config reads from disk, looked for before any work starts."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from egogen.settings import require_paths
from ldm.config import as_list

FEATURES = {"llava_image": ("image", "both"), "llava_text": ("text", "both")}  # which variants read


def paths_of(config: DictConfig) -> dict[str, str | None]:
    """Config key -> path, of a training or a generation config."""
    named: dict[str, str | None] = {}
    variant = config.model.params.conditioner.variant
    for part in ("data.params.train.params", "data.params.validation.params", "data.params"):
        data = OmegaConf.select(config, part)
        if data is None or "data_path" not in data:
            continue
        for key in ("data_path", "edit_path"):
            named |= _named(f"{part}.{key}", data[key])
        for kind, variants in FEATURES.items():
            if variant in variants:
                key = f"additional_cond_path.{kind}"
                named |= _named(f"{part}.{key}", OmegaConf.select(data, key))
    for key in ("data.metadata_path", "model.params.ckpt_path"):
        named |= _named(key, OmegaConf.select(config, key))
    return named


def _named(key: str, value) -> dict[str, str | None]:
    """A key with several paths (training on several datasets) names each."""
    paths = as_list(value)
    return {key if len(paths) == 1 else f"{key}[{i}]": path for i, path in enumerate(paths)}


def check_paths(config: DictConfig, **more: str) -> None:
    """Raises EgoGenError that names all paths of the config, and of `more`, that do not exist."""
    require_paths(paths_of(config) | more)
