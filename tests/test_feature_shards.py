"""The compact feature store: few large files, parallel writers, kills, random access."""

import pickle

import numpy as np
import pytest
import torch

from egogen.atomic import write_json
from egogen.errors import EgoGenError
from egogen.features.projector import Projector, keep_projector
from egogen.features.shards import PATTERN, ShardReader, ShardWriter
from egogen.features.store import (
    INFO_FILE,
    FeatureWriter,
    feature_key,
    open_store,
)

ROWS, VISION, WIDTH = 16, 6, 24


def value(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((3, 5)).astype(np.float16)


def items(*numbers: int) -> dict[str, np.ndarray]:
    return {f"clip/{number}/frame": value(number) for number in numbers}


def files(root):
    return sorted(root.glob(PATTERN))


def assert_holds(root, numbers):
    reader = ShardReader(root)
    assert all(name in reader for name in items(*numbers))
    for number in np.random.default_rng(0).permutation(numbers):
        name = f"clip/{number}/frame"
        assert reader.shape(name) == (3, 5)
        assert np.array_equal(reader.read(name), value(number))


def test_batches_become_few_files(tmp_path):
    writer = ShardWriter(tmp_path, "1-of-1", shard=10)
    for first in range(0, 24, 3):
        writer.write(items(*range(first, first + 3)))
        assert len(files(tmp_path)) <= 2 + 3  # full ones, and pieces of the one that is growing
    writer.join()
    assert len(files(tmp_path)) == 2
    assert_holds(tmp_path, list(range(24)))


def test_parallel_writers_share_a_folder(tmp_path):
    writers = [ShardWriter(tmp_path, f"{k}-of-2", shard=4) for k in (1, 2)]
    for number in range(12):
        writers[number % 2].write(items(number))
    for writer in writers:
        writer.join()
    assert_holds(tmp_path, list(range(12)))


def test_a_writer_goes_on_where_a_killed_one_was(tmp_path):
    """Killed after a piece; and killed between joining pieces and removing them."""
    ShardWriter(tmp_path, "1-of-1", shard=4).write(items(0, 1))
    pieces = {path: path.read_bytes() for path in files(tmp_path)}
    writer = ShardWriter(tmp_path, "1-of-1", shard=4)
    writer.write(items(2, 3))
    for path, content in pieces.items():
        path.write_bytes(content)
    assert_holds(tmp_path, [0, 1, 2, 3])
    again = ShardWriter(tmp_path, "1-of-1", shard=4)
    again.write(items(4))
    again.join()
    assert_holds(tmp_path, [0, 1, 2, 3, 4])


def test_what_is_written_later_holds(tmp_path):
    writer = ShardWriter(tmp_path, "2-of-2", shard=10)
    writer.write(items(2))
    writer.write(items(0, 1))
    reader = ShardReader(tmp_path)
    assert np.array_equal(reader.read("clip/0/frame"), value(0))
    ShardWriter(tmp_path, "1-of-2", shard=10).write({"clip/0/frame": value(7)})
    writer.join()
    assert np.array_equal(ShardReader(tmp_path).read("clip/0/frame"), value(7))


def test_nothing_is_joined_when_nothing_was_written(tmp_path):
    writer = ShardWriter(tmp_path, "1-of-1", shard=4)
    writer.write(items(0))
    before = [(path, path.stat().st_mtime_ns) for path in files(tmp_path)]
    ShardWriter(tmp_path, "1-of-1", shard=4).join()
    assert before == [(path, path.stat().st_mtime_ns) for path in files(tmp_path)]


def test_a_reader_sees_what_is_added_and_travels(tmp_path):
    writer = ShardWriter(tmp_path, "1-of-1")
    writer.write(items(0))
    reader = ShardReader(tmp_path)
    with pytest.raises(KeyError):
        reader.read("clip/1/frame")
    writer.write(items(1))
    assert np.array_equal(pickle.loads(pickle.dumps(reader)).read("clip/1/frame"), value(1))
    assert np.array_equal(reader.read("clip/1/frame"), value(1))


def test_damaged_shards_are_named(tmp_path):
    ShardWriter(tmp_path, "1-of-1").write(items(0, 1))
    path = files(tmp_path)[0]
    for content in (path.read_bytes()[:-3], b"", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(EgoGenError, match=path.name):
            ShardReader(tmp_path).read("clip/0/frame")
        with pytest.raises(EgoGenError, match=path.name):
            ShardWriter(tmp_path, "1-of-1")


# ---- the store on top


def projector(layers: int = 1, seed: int = 0) -> Projector:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(WIDTH, VISION), (WIDTH, WIDTH)][:layers]
    state = {}
    for number, size in enumerate(sizes, start=1):
        state[f"linear_{number}.weight"] = torch.randn(size, generator=generator) / size[1] ** 0.5
        state[f"linear_{number}.bias"] = torch.randn(size[0], generator=generator)
    return Projector(state, "test")


def image_store(root, layers=1, **info):
    keep_projector(root, projector(layers))
    write_json(root / INFO_FILE, {"kind": "image", "layout": "compact", **info})
    return FeatureWriter(root, "image", "compact", "1-of-1")


@pytest.mark.parametrize("layers", [1, 2])
def test_images_are_projected_when_read(tmp_path, layers):
    vision = np.random.default_rng(0).standard_normal((ROWS, VISION)).astype(np.float16)
    image_store(tmp_path, layers).write({"c/0/f.jpg": vision})
    first, *rest = projector(layers).state.values()
    rows = torch.from_numpy(vision).float() @ first.T + rest[0]
    if layers == 2:
        rows = torch.nn.functional.gelu(rows) @ rest[1].T + rest[2]
    found = open_store(tmp_path).read("c/0/f.jpg", width=WIDTH, rows=ROWS)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, rows.numpy(), atol=2e-3, rtol=1e-3)  # half's rounding
    store = open_store(tmp_path)
    assert np.array_equal(store.stored("c/0/f.jpg", WIDTH, ROWS), vision)
    assert store.shape("c/0/f.jpg") == (ROWS, WIDTH)


def test_texts_are_cut_to_what_stage_2_reads(tmp_path):
    write_json(tmp_path / INFO_FILE, {"kind": "text", "layout": "compact"})
    rows = np.random.default_rng(0).standard_normal((90, WIDTH)).astype(np.float16)
    FeatureWriter(tmp_path, "text", "compact", "1-of-1").write(
        {"c/0/f.jpg": rows, "c/1/f.jpg": rows[:1]}
    )
    assert np.array_equal(open_store(tmp_path).read("c/0/f.jpg", width=WIDTH), rows[:77])
    assert open_store(tmp_path).read("c/1/f.jpg").shape == (1, WIDTH)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("c/0/f.jpg", WIDTH + 1, None), "width 24"),
        (("c/0/f.jpg", WIDTH, ROWS + 1), f"expected ({ROWS + 1}"),
        (("c/9/f.jpg", None, None), "no feature of frame c/9/f.jpg"),
        (("../f.jpg", None, None), "leaves the dataset root"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, arguments, words):
    image_store(tmp_path).write({"c/0/f.jpg": np.ones((ROWS, VISION))})
    with pytest.raises(EgoGenError) as error:
        open_store(tmp_path).stored(*arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, 1e6])
def test_numbers_that_half_precision_has_not_are_not_written(tmp_path, bad):
    with pytest.raises(EgoGenError, match="c/0/f.jpg"):
        image_store(tmp_path).write({"c/0/f.jpg": np.full((ROWS, VISION), bad)})
    assert not files(tmp_path)


def test_not_numbers_in_a_foreign_shard_are_refused(tmp_path):
    image_store(tmp_path)
    bad = np.full((ROWS, VISION), np.inf, np.float16)
    ShardWriter(tmp_path, "x").write({feature_key("c/0/f.jpg"): bad})
    with pytest.raises(EgoGenError, match="NaN or infinity"):
        open_store(tmp_path).stored("c/0/f.jpg")


def test_stores_of_unknown_layout_or_without_projector_are_refused(tmp_path):
    write_json(tmp_path / INFO_FILE, {"kind": "image", "layout": "zip"})
    with pytest.raises(EgoGenError, match="layout 'zip'"):
        open_store(tmp_path)
    other = tmp_path / "other"
    write_json(other / INFO_FILE, {"kind": "image", "layout": "compact"})
    FeatureWriter(other, "image", "compact", "1-of-1").write({"c/0/f.jpg": np.ones((ROWS, VISION))})
    with pytest.raises(EgoGenError, match="projector.safetensors: no such file"):
        open_store(other).read("c/0/f.jpg")


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"linear_1.weight": torch.ones(3, 2)},
        {"linear_1.weight": torch.ones(3, 2), "linear_1.bias": torch.ones(2)},
        {"w": torch.ones(3, 2), "b": torch.ones(3)},
    ],
)
def test_other_tensors_are_no_projector(state):
    with pytest.raises(EgoGenError, match="here.pt"):
        Projector(state, "here.pt")


def test_a_compact_image_feature_takes_a_fifth(tmp_path):
    """At full size: (256, 1024) in place of (256, 5120)."""
    vision = np.ones((256, 1024), np.float16)
    writer = FeatureWriter(tmp_path, "image", "compact", "1-of-1")
    writer.write({f"clip_{k:04d}/{k}/pre_frame.jpg": vision for k in range(8)})
    share = sum(path.stat().st_size for path in files(tmp_path)) / 8 / (256 * 5120 * 2)
    assert 0.19 < share <= 0.25


def test_an_entry_is_looked_at_once_until_the_files_change(tmp_path, monkeypatch):
    from egogen.features import store

    looked, real = [], store._check_finite
    monkeypatch.setattr(store, "_check_finite", lambda *given: (looked.append(1), real(*given)))
    write_json(tmp_path / INFO_FILE, {"kind": "text", "layout": "compact", "width": 5})
    writer = ShardWriter(tmp_path, "1-of-1", shard=2)
    writer.write(items(0))
    opened, counts = open_store(tmp_path), []
    for number in (0, 0, 1, 0):
        if number == 1:
            writer.write(items(1))
        opened.stored(f"clip/{number}/frame.jpg")
        counts.append(len(looked))
    assert counts == [1, 1, 2, 3]
