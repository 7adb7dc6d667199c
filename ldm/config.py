"""Reading the configuration of stage 2: YAML files and dotted overrides over a typed schema.

A YAML names only what differs from the schema's defaults (`ldm.schema`). An unknown key is an error
that names the nearest valid one.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from egogen import EgoGenError
from egogen.settings import load_settings
from ldm.released_config import released_keys, translate
from ldm.sampling import SAMPLERS
from ldm.schema import AS_RELEASED, AT_LEAST_1, CHOICES, GenerateConfig, TrainConfig

__all__ = ["GenerateConfig", "TrainConfig", "as_list", "load_config", "load_model_params"]


def load_config(schema: type, paths: Sequence[str], overrides: Sequence[str] = ()) -> DictConfig:
    """Merge YAML files and dotted overrides (`a.b=1`) over `schema`'s defaults.

    Raises EgoGenError naming file (or override) and key for anything unknown or of wrong type.
    """
    layers = [(str(path), _read_yaml(path)) for path in paths]
    return _load(schema, layers, overrides)


def load_model_params(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """`model.params` of a config of either kind, such as that in a training run's folder."""
    layer = OmegaConf.masked_copy(_read_yaml(path), ["model"])
    return _load(GenerateConfig, [(str(path), layer)], overrides).model.params


def _load(
    schema: type, layers: list[tuple[str, DictConfig]], overrides: Sequence[str]
) -> DictConfig:
    load_settings()
    files = ", ".join(where for where, _ in layers)
    for override in overrides:
        if "=" not in override.lstrip("-"):
            raise EgoGenError(f"command line: {override!r}: expected key=value")
        layer = OmegaConf.from_dotlist([override.lstrip("-")])
        layers.append((f"command line: {override}", layer))
    layers = [(where, _translated(layer, where)) for where, layer in layers]
    config = _merge_all(OmegaConf.structured(schema), layers)
    if config.get("as_released"):
        config = _merge_all(_as_released(schema), layers)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise EgoGenError(f"{files}: {error}") from None
    _check_values(config)
    return config


def _check_values(config: DictConfig) -> None:
    for key, allowed in (CHOICES | {"inference.sampler": tuple(SAMPLERS)}).items():
        value = OmegaConf.select(config, key)
        if value is not None and value not in allowed:
            raise EgoGenError(f"config: {key}={value!r}: expected one of {', '.join(allowed)}")
    for key in AT_LEAST_1:
        value = OmegaConf.select(config, key)
        if value is not None and value < 1:
            raise EgoGenError(f"config: {key}={value}: expected at least 1")
    place = "model.params.scheduler_config.params"
    for name, values in OmegaConf.select(config, place).items():
        if len(values) != 1:
            raise EgoGenError(f"config: {place}.{name}={list(values)}: expected one value")


def _translated(layer: DictConfig, where: str) -> DictConfig:
    """In this project's keys; keys of the released code that do nothing here are told."""
    content, lines = translate(OmegaConf.to_container(layer), where)
    for line in lines:
        print(f"note: {line}", file=sys.stderr)
    return OmegaConf.create(content)


def _merge_all(config: DictConfig, layers: list[tuple[str, DictConfig]]) -> DictConfig:
    for where, layer in layers:
        config = _merge(config, layer, where)
    return config


def _as_released(schema: type) -> DictConfig:
    """The schema's defaults with the released values of what differs."""
    config = OmegaConf.structured(schema)
    for key, value in AS_RELEASED.items():
        if OmegaConf.select(config, key) is not None:  # training keys are not in every schema
            OmegaConf.update(config, key, value)
    return config


def _read_yaml(path: str) -> DictConfig:
    if not os.path.isfile(path):
        raise EgoGenError(f"{path}: no such config file")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # yaml's errors share no base with OmegaConf's
        raise EgoGenError(f"{path}: not a readable YAML file ({error})") from None
    if not isinstance(layer, DictConfig) or not layer:
        raise EgoGenError(f"{path}: expected a mapping at the top of the file")
    return layer


def _merge(config: DictConfig, layer: DictConfig, where: str) -> DictConfig:
    _check_keys(config, layer, where, "")
    try:
        return OmegaConf.merge(config, layer)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise EgoGenError(f"{where}: {key}{str(error).splitlines()[0]}") from None


def _check_keys(config: Any, layer: DictConfig, where: str, prefix: str) -> None:
    if not isinstance(config, DictConfig) or OmegaConf.get_type(config) is dict:
        return  # free-form part, such as the trainer's arguments
    for key in layer:
        if key not in config:
            known = [*config, *released_keys(prefix)]
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            hint = f"; did you mean {prefix + near[0]!r}?" if near else ""
            raise EgoGenError(f"{where}: unknown key {prefix + str(key)!r}{hint}")
        child = None if OmegaConf.is_missing(layer, key) else layer._get_node(key)
        if isinstance(child, DictConfig) and isinstance(child._value(), dict):
            _check_keys(config[key], child, where, f"{prefix}{key}.")


def as_list(value: Any) -> list[str]:
    """A path or a list of paths (training on several datasets) -> list."""
    return list(value) if isinstance(value, (list, tuple, ListConfig)) else [value]
