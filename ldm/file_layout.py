"""Between the layout of config files (the released one) and the program's (`ldm.schema`).

PLACES and STORES are the only tables. What files and overrides are merged over is built from the
program's dataclasses and these, so that every default stands once.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from ldm.released_config import TABLES
from ldm.schema import MISSING_PATH, FeatureParams, default_features

PLACES: dict[str, str] = TABLES["places"]  # program place -> place in files
# Where a dataset's `features` stand in files: those of the released code, and all others.
STORES = {"image": "additional_cond_path.llava_image", "text": "additional_cond_path.llava_text"}
OTHER_STORES = "feature_path"
TABLE = "model.params.conditioner.features"
FREE = ("lightning.trainer.", f".{OTHER_STORES}.")  # below these any key may stand
T = TypeVar("T")


def file_place(place: str) -> str:
    """ "model.unet.num_heads" -> "model.params.unet_config.params.num_heads"."""
    parts = place.split(".")
    for count in range(len(parts), 0, -1):
        start = ".".join(parts[:count])
        if start in PLACES:
            return ".".join([PLACES[start], *parts[count:]])
    return place


def store_key(name: str) -> str:
    """What a dataset's folder of a feature is called in files, below the dataset's own place."""
    return STORES.get(name, f"{OTHER_STORES}.{name}")


def file_schema(config: Any, table: Mapping[str, FeatureParams | None]) -> DictConfig:
    """A config, or the defaults of a schema (TrainConfig, GenerateConfig), with this table of
    features, in the files' layout; each value keeps the type that it has in the schema.
    """
    values, content = OmegaConf.structured(config), OmegaConf.create()
    for place, _, _ in leaves(OmegaConf.get_type(values)):
        node = node_at(values, place)
        if part := _dataset(place):
            for name in {**STORES, **node}:
                path = node.get(name, MISSING_PATH)
                OmegaConf.update(content, f"{part}.{store_key(name)}", path, force_add=True)
            OmegaConf.update(content, f"{part}.{OTHER_STORES}", {})  # also where there are none
        elif file_place(place) == TABLE:  # null leaves a feature out
            rows = DictConfig(dict(table), element_type=FeatureParams | None)
            OmegaConf.update(content, TABLE, rows)
        else:
            OmegaConf.update(content, file_place(place), node)
    return content


@functools.cache
def known_places(schema: type) -> DictConfig:
    """The defaults of a schema in the files' layout without a feature, only to be read."""
    return file_schema(schema, {})


def node_at(config: DictConfig, key: str) -> Any:
    """The node at a dotted key, which knows its type; None where there is none."""
    section, _, name = key.rpartition(".")
    found = OmegaConf.select(config, section) if section else config
    return found._get_node(name) if OmegaConf.is_dict(found) else None


def from_file(schema: type[T], content: DictConfig) -> T:
    """A config in the files' layout -> an object of the program's schema.

    Raises MissingMandatoryValue, with the key in files, where a value is missing.
    """
    plain: Any = OmegaConf.to_container(content, throw_on_missing=True)  # typed and checked already
    return _from_plain(schema, plain, "")


def _from_plain(kind: type[T], plain: Mapping[str, Any], prefix: str) -> T:
    """An object of the schema's dataclass that stands at the program's place `prefix`."""
    values: dict[str, Any] = {}
    for name, inner in typing.get_type_hints(kind).items():
        place = prefix + name
        if dataclasses.is_dataclass(inner):
            values[name] = _from_plain(typing.cast(type, inner), plain, f"{place}.")
        elif part := _dataset(place):
            paths = {n: _plain_at(plain, f"{part}.{key}") for n, key in STORES.items()}
            paths |= _plain_at(plain, f"{part}.{OTHER_STORES}")
            values[name] = {n: path for n, path in paths.items() if path}
        elif file_place(place) == TABLE:
            rows = _plain_at(plain, TABLE).items()
            values[name] = {n: FeatureParams(**row) for n, row in rows if row is not None}
        else:
            values[name] = _plain_at(plain, file_place(place))
    return kind(**values)


def _plain_at(plain: Any, key: str) -> Any:
    """What stands at a dotted key of nested mappings."""
    for part in key.split("."):
        plain = plain[part]
    return plain


def to_file(config: Any) -> DictConfig:
    """The reverse: what is printed, and written into a run's folder."""
    table = {**dict.fromkeys(default_features()), **config.model.conditioner.features}
    return file_schema(config, table)  # a feature of the default table that is left out is null


def file_values(config: Any) -> dict[str, Any]:
    """{key in files: value} of everything in a config."""
    return flat(OmegaConf.to_container(to_file(config)))


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> {dotted key: value}."""
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {k: v for key in node for k, v in flat(node[key], f"{prefix}{key}.").items()}


def _dataset(place: str) -> str:
    """Where in files a dataset stands whose `features` are at `place`; "" for other places."""
    place, _, name = place.rpartition(".")
    return file_place(place) if place.startswith("data") and name == "features" else ""


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """(place, type, field) of everything in a schema that is not a dataclass itself."""
    kinds = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind, place = kinds[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            yield from leaves(typing.cast(type, kind), f"{place}.")
        else:
            yield place, kind, field
