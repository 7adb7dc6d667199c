"""Reading the configuration of stage 2: YAML files and dotted overrides over a typed schema.

A YAML names only what differs from the schema's defaults (`ldm.schema`). An unknown key is an error
that names the nearest valid one. Everything is checked here, once; what comes out are the schema's
dataclasses:

    config = load_config(TrainConfig, ["configs/train_mini.yaml"], ["data.params.batch_size=4"])
    config.data.batch_size  # 4
"""

import difflib
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeVar

from omegaconf import AnyNode, DictConfig, OmegaConf, StringNode
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from egogen import EgoGenError, check_choice, released
from egogen.settings import SETTINGS, load_settings
from ldm import file_layout, released_config
from ldm.file_layout import FREE, OTHER_STORES, TABLE, file_place, flat, node_at
from ldm.released_config import AS_RELEASED, CONDITIONER, DATASETS, SIZES
from ldm.schema import (
    MISSING_PATH,
    DistillParams,
    FeatureParams,
    GenerateConfig,
    ModelParams,
    TrainConfig,
    default_features,
)

Config = TypeVar("Config", TrainConfig, GenerateConfig)
PROJECT = SETTINGS.parent
AUTOENCODER = "model.params.first_stage_config.params.ddconfig"
PATHS = ("_path", ".version", ".teacher")  # ends of keys


def load_config(
    schema: type[Config], paths: Sequence[str], overrides: Sequence[str] = ()
) -> Config:
    """Merge YAML files and dotted overrides (`a.b=1`) over `schema`'s defaults.

    Raises EgoGenError naming file (or override) and key for anything unknown or of wrong type.
    """
    layers = [(str(path), _read_yaml(path)) for path in paths]
    return _load(schema, layers, overrides)


def load_model_params(path: str, overrides: Sequence[str] = ()) -> ModelParams:
    """`model.params` of a config of either kind, such as that in a training run's folder.

    The autoencoder's `resolution` is the size of the config's frames, where it names one.
    """
    whole, size = _read_yaml(path), {"res": f"${{{AUTOENCODER}.resolution}}"}
    for place in reversed(DATASETS):  # of training frames rather than of validation frames
        dataset = released_config.section_at(OmegaConf.to_container(whole), place) or {}
        size = {k: dataset[k] for k in (*SIZES, "res", "aspect_ratio") if k in dataset} or size
    layer = OmegaConf.merge(OmegaConf.masked_copy(whole, ["model"]), {"data": {"params": size}})
    config = _load(GenerateConfig, [(str(path), layer)], overrides)
    config.model.autoencoder.resolution = config.data.res
    return config.model


def to_yaml(config: TrainConfig | GenerateConfig) -> str:
    """The complete config in the layout of files."""
    return OmegaConf.to_yaml(file_layout.to_file(config), resolve=True)


def _load(
    schema: type[Config], layers: list[tuple[str, DictConfig]], overrides: Sequence[str]
) -> Config:
    load_settings()
    files = ", ".join(where for where, _ in layers)
    known = file_layout.known_places(schema)  # type: ignore[arg-type]
    layers += [(f"command line: {text}", _override(text, known)) for text in overrides]
    contents = []
    for where, layer in layers:
        content, lines = released_config.translate(OmegaConf.to_container(layer), where)
        contents.append((where, content))
        for line in lines:  # released keys that do nothing here
            print(f"note: {line}", file=sys.stderr)
    released_config.add_preset(contents, len(layers) - len(overrides))
    table = _released_table(contents)
    config = _merged(schema, table, contents, as_released=False)
    if config.get("as_released"):
        config = _merged(schema, table, contents, as_released=True)
    try:
        OmegaConf.resolve(config)
        _settle_paths(config, known, [text.lstrip("-").partition("=")[0] for text in overrides])
        _check_values(config, schema)
        return file_layout.from_file(schema, config)
    except MissingMandatoryValue as error:
        raise EgoGenError(f"config: {error.full_key}: no value, expected one") from None
    except OmegaConfBaseException as error:
        raise EgoGenError(f"{files or 'config'}: {str(error).splitlines()[0]}") from None


def _override(text: str, known: DictConfig) -> DictConfig:
    """`key=value` as a layer. A text or a path is taken as it stands, except `null` where there may
    be none, `[a, b]` where there may be a list, and ${oc.env:NAME}; other values are YAML.
    """
    key, equals, value = text.lstrip("-").partition("=")
    if not key or not equals or value == "???":  # OmegaConf's word for no value
        raise EgoGenError(f"command line: {text!r}: expected key=value")
    try:
        node = node_at(known, key)
        is_path = _takes_paths(node) or key.rpartition(".")[0].endswith(OTHER_STORES)
        listed = is_path and value.startswith("[") and value.endswith("]")
        if listed or not (is_path or isinstance(node, StringNode)):
            return OmegaConf.from_dotlist([f"{key}={value}"])
        none = value in ("", "null") and (is_path or node._is_optional())
        layer = OmegaConf.create()
        OmegaConf.update(layer, key, None if none else value)
    except Exception as error:  # yaml's errors share no base with OmegaConf's
        first = str(error).splitlines()[0]
        raise EgoGenError(f"command line: {text!r}: not a value for {key} ({first})") from None
    return layer


def _settle_paths(config: DictConfig, known: DictConfig, typed: Collection[str]) -> None:
    """Relative paths of config files that are not there are looked for beside the project too;
    those that were `typed` are not; released folders by all their names. Raises EgoGenError for
    what is no path.
    """
    sections = [f"{dataset}.{OTHER_STORES}" for dataset in DATASETS]
    stores = [f"{at}.{name}" for at in sections for name in OmegaConf.select(config, at) or ()]
    for key in [*flat(OmegaConf.to_container(known)), *stores]:
        value, is_path = OmegaConf.select(config, key), _takes_paths(node_at(known, key))
        if value is None or not (is_path or key in stores or key.endswith(PATHS)):
            continue
        paths = [*value] if OmegaConf.is_list(value) else [value]
        if not all(isinstance(path, str) for path in paths):
            raise EgoGenError(f"config: {key}={value}: expected a path, or a list of them")
        found = [released(path if key in typed else _placed(path)) for path in paths]
        OmegaConf.update(config, key, found if OmegaConf.is_list(value) else found[0])


def _takes_paths(node: Any) -> bool:
    """Whether a path or a list of them may stand there."""
    return isinstance(node, AnyNode) and node._value() == MISSING_PATH


def _placed(path: str) -> str:
    beside = os.path.join(PROJECT, path)
    return beside if os.path.exists(beside) and path and not os.path.exists(path) else path


def _released_table(layers: list[tuple[str, dict[str, Any]]]) -> dict[str, FeatureParams]:
    """The table of features that the released keys of all layers mean; the layers lose those keys.

    `conditioner.features` of the layers is merged over it. Raises EgoGenError where such a key
    comes after a row of a table that would overrule it.
    """
    old, tabled = OmegaConf.create(), ""
    OmegaConf.update(old, CONDITIONER, OmegaConf.structured(released_config.OldTable))
    for where, content in layers:
        keys = released_config.take_old_table(content)
        if keys and tabled:
            key = next(iter(keys["model"]["params"]["conditioner"]))
            raise EgoGenError(
                f"{where}: {CONDITIONER}.{key} comes after {TABLE} of {tabled}, which it cannot "
                f"change; expected {TABLE}.NAME.width, .rows, or =null to leave one out"
            )
        old = _merge(old, OmegaConf.create(keys), where)
        table = OmegaConf.select(OmegaConf.create(content), TABLE)
        if OmegaConf.is_dict(table) and set(table) & set(default_features()):
            tabled = where
    return released_config.released_features(OmegaConf.select(old, CONDITIONER))


def _merged(
    schema: type,
    table: dict[str, FeatureParams],
    layers: list[tuple[str, dict[str, Any]]],
    as_released: bool,
) -> DictConfig:
    """All layers over the defaults; `as_released`: those of the released code where they differ."""
    config = file_layout.file_schema(schema, table)
    for key, value in AS_RELEASED.items() if as_released else ():
        if OmegaConf.select(config, key) is not None:  # training keys are not in every schema
            OmegaConf.update(config, key, value)
    for where, layer in layers:
        config = _merge(config, OmegaConf.create(layer), where)
    return config


def check_at_least(least: int, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise EgoGenError(f"{name}={value!r}: expected at least {least}, an integer")


def is_list(value: Any) -> bool:
    """Whether it is a list or a tuple, or a config's list."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_size(name: str, value: Any, factor: int = 1) -> int | list[int]:
    """A number of pixels, or digits, or [height, width], of multiples of `factor`, checked."""
    sides = [*value] if is_list(value) else [value, value]
    numbers = [int(x) if str(x).isdecimal() else 0 for x in sides]
    if len(numbers) != 2 or any(x < 1 or x % factor for x in numbers):
        expected = f"a multiple of {factor} pixels, or [height, width] of such"
        raise EgoGenError(f"{name}={value}: expected {expected}")
    return numbers[0] if numbers[0] == numbers[1] else numbers


def check_scale(name: str, value: Any) -> None:
    """One guidance scale, called `name` in the error."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise EgoGenError(f"{name}={value!r}: expected a finite number")


def check_range(name: str, value: Any) -> None:
    """[low, high] of scales or of noise levels."""
    ends = [*value] if is_list(value) else [value]
    for end in ends:
        check_scale(name, end)
    if len(ends) != 2 or not 0 <= ends[0] < ends[1]:
        raise EgoGenError(f"{name}={ends}: expected [low, high] with 0 <= low < high")


def distilled_from(note: Mapping[str, Any] | None, where: str) -> DistillParams:
    """A checkpoint's or folder's note on the guidance that its weights stand for, checked."""
    if not note:
        return DistillParams()
    found = {name: note.get(name) for name in ("scale_txt", "scale_img")}
    for name, value in found.items():
        (check_range if is_list(value) else check_scale)(f"{where}distill.{name}", value)
    return DistillParams(where, **found)


def _check_values(config: DictConfig, schema: type) -> None:
    table = OmegaConf.select(config, TABLE)
    _check_names(table, config)
    checked = [(file_place(place), field) for place, _, field in file_layout.leaves(schema)]
    for name in (name for name in table if table[name] is not None):
        checked += [(f"{TABLE}.{name}.{field.name}", field) for field in fields(FeatureParams)]
    for key, field in checked:
        if (value := OmegaConf.select(config, key)) is None:
            continue
        if "allowed" in field.metadata:
            check_choice(f"config: {key}=", value, field.metadata["allowed"])
        if "least" in field.metadata:
            check_at_least(field.metadata["least"], f"config: {key}", value)
        if "share" in field.metadata and not 0 <= value <= 1:
            raise EgoGenError(f"config: {key}={value}: expected a number from 0 to 1")
    _check_lists(config)
    _check_sizes(config)


def _check_sizes(config: DictConfig) -> None:
    """An aspect other than 1.0 is put into `res`, which every later reader takes as it stands."""
    vae = OmegaConf.select(config, AUTOENCODER)
    vae.resolution = check_size(f"config: {AUTOENCODER}.resolution", vae.resolution)
    factor = 2 ** (len(vae.ch_mult) - 1)
    for place in DATASETS:
        dataset: Any = OmegaConf.select(config, place) or {}
        if "aspect_ratio" not in dataset:  # in this schema no dataset stands there
            continue
        size: Any = check_size(f"config: {place}.res", dataset.res, factor)
        if (aspect := dataset.aspect_ratio) != 1:
            single = not OmegaConf.is_list(dataset.res)
            width = int(aspect * size) if single and 0 < aspect < 100 else 0  # NaN: 0
            if width < 1 or width % factor:
                expected = f"1.0, or one number as res and a width of n * {factor}, not {width}"
                raise EgoGenError(f"config: {place}.aspect_ratio={aspect}: expected {expected}")
            size = [size, width]
        dataset.res, dataset.aspect_ratio = size, 1.0


def _check_lists(config: DictConfig) -> None:
    place = "model.params.scheduler_config.params"
    for name, values in OmegaConf.select(config, place).items():
        if len(values) != 1:
            raise EgoGenError(f"config: {place}.{name}={list(values)}: expected one value")
    for name in ("inference.scales_img", "inference.scales_txt"):
        values = list(OmegaConf.select(config, name))
        if not values:
            raise EgoGenError(f"config: {name}={values}: expected numbers")
        for value in values:
            check_scale(f"config: {name}", value)
    distilled_from(OmegaConf.select(config, "model.params.distill"), "config: model.params.")
    if (interval := OmegaConf.select(config, "inference.guidance_interval")) is not None:
        check_range("config: inference.guidance_interval", interval)


def _check_names(table: DictConfig, config: DictConfig) -> None:
    """Of features, where they have a row and where they have a store."""
    for name in (name for name in table if name not in default_features()):
        from torch import nn  # slow to import; its ModuleDict holds the encoders by name

        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise EgoGenError(f"config: {TABLE}.{name}: expected another name for a feature")
    for place in (f"{dataset}.{OTHER_STORES}" for dataset in DATASETS):
        for name in OmegaConf.select(config, place) or ():
            if name not in table:
                known = f"expected one of {TABLE}: {', '.join(table)}"
                raise EgoGenError(f"config: {place}.{name}: no such feature, {known}")


def unknown_key(where: str, prefix: str, key: Any, known: Sequence[str]) -> EgoGenError:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
    key, near = prefix + str(key), prefix + near
    return EgoGenError(f"{where}: unknown key {key!r}; did you mean {near!r}?")


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


def _check_keys(config: DictConfig, layer: DictConfig, where: str, prefix: str) -> None:
    """Raises EgoGenError for unknown keys, and for a value where keys are expected below it."""
    for key in layer:
        is_row = prefix == f"{TABLE}."
        if not is_row and key not in list(config):  # `in config` is false where a value is missing
            raise unknown_key(where, prefix, key, [*config, *released_config.released_keys(prefix)])
        section = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        section = OmegaConf.structured(FeatureParams) if is_row else section
        if not OmegaConf.is_dict(section) or OmegaConf.is_missing(layer, key):
            continue
        if OmegaConf.is_interpolation(layer, key) or (is_row and layer[key] is None):
            continue
        if not OmegaConf.is_dict(layer[key]):
            raise EgoGenError(f"{where}: {prefix}{key}: expected keys below it")
        if not f"{prefix}{key}.".endswith(FREE):
            _check_keys(section, layer[key], where, f"{prefix}{key}.")
