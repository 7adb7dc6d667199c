"""One split of a dataset, opened once: its entries with their folders, and clip sizes, all checked.

Opening raises EgoGenError that names a path, a folder or a key; after it nothing but the frames and
the features of single entries can be missing.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egogen import EgoGenError, floor_chunk
from egogen.actions import ActionEntry, inside, read_actions, read_clip_sizes
from egogen.download.hub import local_path
from egogen.settings import require_paths
from ldm.checkpoints import adapter_files
from ldm.file_layout import TABLE, file_place, store_key
from ldm.schema import MISSING_PATH, DatasetParams, FeatureParams, GenerateConfig, TrainConfig

Features = Mapping[str, FeatureParams]
Paths = dict[str, str | os.PathLike | None]


@dataclass(frozen=True)
class Located:
    """An entry and the folders that its paths are relative to; `stores`: of features, by name."""

    entry: ActionEntry
    frames: str
    stores: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def source(self) -> Path:
        return inside(self.frames, self.entry.image_0)

    @property
    def target(self) -> Path:
        return inside(self.frames, self.entry.image_1)


@dataclass(frozen=True)
class Split:
    """`sizes`: (width, height) of each clip, read where frames are to be written."""

    data: DatasetParams
    features: Features
    items: Sequence[Located]
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def prompt(self, item: Located) -> str:
        return item.entry.texts[self.data.text_prompt_key]


def open_training(config: TrainConfig) -> dict[str, Split]:
    """{"train": Split, "validation": Split}. Raises EgoGenError, see above."""
    features = config.model.conditioner.features
    parts = {"train": config.data.train, "validation": config.data.validation}
    paths: Paths = {}
    for name, data in parts.items():
        paths |= _paths(data, features, f"data.{name}")
    paths["model.params.distill.teacher"] = config.model.distill.teacher
    require_paths(paths | {"model.params.ckpt_path": config.model.ckpt_path})
    shown = config.inference.scales_txt[0], config.inference.scales_img[0]
    config.model.distill.check(*shown)  # sample images are made with these
    return {name: open_split(data, features) for name, data in parts.items()}


def open_generation(config: GenerateConfig, ckpt: str, n_chunk: int, chunk_idx: int) -> Split:
    """The chunk `chunk_idx` of `n_chunk`, counted from 1."""
    features = config.model.conditioner.features
    paths = _paths(config.data, features, "data")
    paths["data.metadata_path"], paths["ckpt"] = config.metadata_path, local_path(ckpt)
    require_paths(paths | {"model.params.ckpt_path": config.model.ckpt_path})
    adapter_files(config.loras)
    items = floor_chunk(locate_entries(config.data, features), n_chunk, chunk_idx)
    check_stores(items, features)
    sizes = read_clip_sizes(config.metadata_path)
    for item in items:
        if item.entry.clip not in sizes:
            raise EgoGenError(f"{config.metadata_path}: clip {item.entry.clip!r} is missing")
    return Split(config.data, features, items, sizes)


def open_split(data: DatasetParams, features: Features) -> Split:
    """All entries of one dataset's config, without clip sizes."""
    items = locate_entries(data, features)
    check_stores(items, features)
    return Split(data, features, items)


def as_list(value: Any) -> list[str]:
    """A path or a list of paths (training on several datasets) -> list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _columns(data: DatasetParams, features: Features) -> dict[str, list[str]]:
    """Key in files -> paths, one for each training set, of all that a dataset's config names."""
    named = {"data_path": data.data_path, "edit_path": data.edit_path}
    named |= {store_key(name): data.features.get(name) for name in features}
    return {key: as_list(value or MISSING_PATH) for key, value in named.items()}


def _paths(data: DatasetParams, features: Features, place: str) -> Paths:
    """Complete key in files -> path."""
    paths: Paths = {}
    for key, values in _columns(data, features).items():
        where = f"{file_place(place)}.{key}"
        paths |= {where if len(values) == 1 else f"{where}[{i}]": x for i, x in enumerate(values)}
    return paths


def locate_entries(data: DatasetParams, features: Features) -> list[Located]:
    """Paths in the config may be lists, one item per training set."""
    columns = _columns(data, features)
    count, edits, *lengths = [len(column) for column in columns.values()]
    if edits != count or not set(lengths) <= {1, count}:
        raise EgoGenError(
            f"config: {', '.join(columns)} name {[count, edits, *lengths]} paths, expected the "
            "same number each"
        )
    located = []
    for i in range(count):
        frames, edit_path, *stores = (x[i if len(x) > 1 else 0] for x in columns.values())
        named = dict(zip(features, stores, strict=True))
        for entry in read_actions(edit_path, (data.text_prompt_key,)):
            located.append(Located(entry, frames, named))
    return located


def store_folder(item: Located, name: str) -> Path:
    path = item.stores.get(name)
    if not path or not Path(path).is_dir():
        raise EgoGenError(f"config: {store_key(name)}={path or ''!r}: no such folder")
    return Path(path)


def check_stores(items: Sequence[Located], features: Features) -> None:
    """What stores say about themselves against the config, before any work.

    Raises EgoGenError when features are of another width or number of rows than the model takes,
    or when stores of different layouts or vision widths would meet in one batch.
    """
    from egogen.features.store import INFO_FILE, read_info  # slow to import: paths come first

    for name, spec in features.items():
        widths: dict[Any, Path] = {}  # of what is stored, where a projector makes it wider
        for root in {store_folder(item, name): None for item in items}:
            info = read_info(root)
            _check_info(info, root / INFO_FILE, name, spec)
            compact = info.get("layout", "released") == "compact"
            widths.setdefault(info.get("vision_width") if compact else None, root)
        if len(widths) > 1:
            one, other = list(widths.values())[:2]
            raise EgoGenError(
                f"{one} and {other}: {name} stores of different layout or vision width, expected "
                "one kind in a run; convert one (python -m llava.eval.convert_features)"
            )


def _check_info(info: Mapping[str, Any], where: Path, name: str, spec: FeatureParams) -> None:
    expected = {"width": spec.width} if spec.padded else {"width": spec.width, "rows": spec.rows}
    for key, value in expected.items():
        if info.get(key, value) != value:
            raise EgoGenError(
                f"{where}: features with {key} {info[key]}, but the config has "
                f"{TABLE}.{name}.{key}={value}: not from the model it is meant for"
            )
    most = info.get("text_rows", spec.rows)
    if spec.padded and spec.rows > most:
        raise EgoGenError(
            f"{where}: holds the first {most} {name} rows, but the config has "
            f"{TABLE}.{name}.rows={spec.rows}"
        )
