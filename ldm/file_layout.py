"""Between the layout of config files (the released one) and the program's (`ldm.schema`).

PLACES is the only table. The typed schema that files and overrides are merged over is built from the
program's dataclasses and this table, so that every default stands once.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

# Program place -> place in files; the longest beginning of a path decides, others are the same.
PLACES = {
    "optimizer": "model",
    "model": "model.params",
    "model.learning_rate": "model.params.scheduler_config.params",
    "model.unet": "model.params.unet_config.params",
    "model.autoencoder": "model.params.first_stage_config.params.ddconfig",
    "model.autoencoder.embed_dim": "model.params.first_stage_config.params.embed_dim",
    "model.text_encoder": "model.params.cond_stage_config.params",
    "metadata_path": "data.metadata_path",
    "data": "data.params",
    "data.train": "data.params.train.params",
    "data.validation": "data.params.validation.params",
    "lightning.image_logger": "lightning.callbacks.image_logger.params",
}
T = TypeVar("T")


def file_place(place: str) -> str:
    """ "model.unet.num_heads" -> "model.params.unet_config.params.num_heads"."""
    parts = place.split(".")
    for count in range(len(parts), 0, -1):
        start = ".".join(parts[:count])
        if start in PLACES:
            return ".".join([PLACES[start], *parts[count:]])
    return place


def file_schema(schema: type) -> DictConfig:
    """The defaults of a program schema (TrainConfig, GenerateConfig), typed, in the files' layout."""
    tree: dict[str, Any] = {}
    for place, kind, field in _leaves(schema):
        *parents, name = file_place(place).split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = (name, kind, _copy(field))
    return OmegaConf.structured(_dataclass(schema.__name__, tree))


def from_file(schema: type[T], content: DictConfig) -> T:
    """A config in the files' layout -> an object of the program's schema."""
    return _build(schema, OmegaConf.to_object(content), "")


def to_file(config: Any) -> DictConfig:
    """The reverse: what is printed, and written into a run's folder."""
    content = file_schema(type(config))
    for place, _, _ in _leaves(type(config)):
        OmegaConf.update(content, file_place(place), _at(config, place))
    return content


def _leaves(schema: type, prefix: str = "") -> typing.Iterator[tuple[str, Any, dataclasses.Field]]:
    """(place, type, field) of everything in a schema that is not a dataclass itself."""
    kinds = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind, place = kinds[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            yield from _leaves(typing.cast(type, kind), f"{place}.")
        else:
            yield place, kind, field


def _copy(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field(default=field.default)


def _dataclass(name: str, tree: dict[str, Any]) -> type:
    fields = []
    for key, node in tree.items():
        if isinstance(node, dict):
            kind = _dataclass(f"{name}_{key}", node)
            node = (key, kind, dataclasses.field(default_factory=kind))
        fields.append(node)
    return dataclasses.make_dataclass(name, fields)


def _build(schema: type[T], content: Any, prefix: str) -> T:
    values = {}
    kinds = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        kind, place = kinds[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            values[field.name] = _build(typing.cast(type, kind), content, f"{place}.")
        else:
            values[field.name] = _at(content, file_place(place))
    return schema(**values)


def _at(node: Any, place: str) -> Any:
    for name in place.split("."):
        node = getattr(node, name)
    return node
