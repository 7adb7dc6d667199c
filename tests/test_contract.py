"""The contract of both stages: action files, chunks and features."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from egogen import layout
from egogen.actions import read_actions, read_clip_sizes, scan_actions
from egogen.atomic import read_json
from egogen.errors import EgoGenError
from egogen.features.store import feature_path, open_store, write_feature
from egogen.jobs import ceil_chunk, floor_chunk

GOOD = {"image_0": "c/0/a.jpg", "image_1": "c/0/b.jpg", "action": "#C C opens the jar"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---- action files


def test_action_files_keep_their_order_and_every_text(tmp_path):
    content = {
        clip: {str(a): {**GOOD, "llava_forecast_finetune": f"{clip} {a}", "n": 3} for a in (10, 2)}
        for clip in ("z", "a")
    }
    entries = read_actions(write(tmp_path / "x.json", json.dumps(content)))
    assert [entry.key for entry in entries] == ["z/10", "z/2", "a/10", "a/2"]
    assert entries[0].label == GOOD["action"] and entries[0].image_1 == "c/0/b.jpg"
    assert entries[2].texts == {"action": GOOD["action"], "llava_forecast_finetune": "a 10"}


BAD_ACTIONS = {
    "list": ([], "expected an object of clips"),
    "empty": ({}, "holds no entries"),
    "clip is text": ({"c": "x"}, "clip 'c': expected an object of actions"),
    "entry is a list": ({"c": {"0": []}}, "entry c/0: expected an object"),
    "no image_0": ({"c": {"0": {"image_1": "b", "action": "x"}}}, "field 'image_0' is missing"),
    "no image_1": ({"c": {"0": {"image_0": "b", "action": "x"}}}, "field 'image_1' is missing"),
    "no action": ({"c": {"0": {"image_0": "a", "image_1": "b"}}}, "field 'action' is missing"),
    "action is a number": ({"c": {"0": {**GOOD, "action": 3}}}, "field 'action': expected text"),
    "path is null": ({"c": {"0": {**GOOD, "image_0": None}}}, "expected a relative path"),
    "path is empty": ({"c": {"0": {**GOOD, "image_0": ""}}}, "expected a relative path"),
    "absolute": ({"c": {"0": {**GOOD, "image_0": "/etc/passwd"}}}, "leaves the dataset root"),
    "parent": ({"c": {"0": {**GOOD, "image_1": "c/../../b.jpg"}}}, "leaves the dataset root"),
    "backslash": ({"c": {"0": {**GOOD, "image_1": "c\\b.jpg"}}}, "without backslash"),
    "zero byte": ({"c": {"0": {**GOOD, "image_1": "c\0b.jpg"}}}, "zero byte"),
    "long name": ({"c": {"0": {**GOOD, "image_1": "x" * 256}}}, "at most 255 bytes"),
    "long id": ({"c": {"台" * 86: GOOD}}, "at most 255 bytes"),
    "only a dot": ({"c": {"0": {**GOOD, "image_1": "."}}}, "expected a relative path"),
    "clip with slash": ({"a/b": {"0": GOOD}}, "cannot name a folder"),
    "clip is parent": ({"..": {"0": GOOD}}, "cannot name a folder"),
    "action with slash": ({"c": {"../0": GOOD}}, "cannot name a folder"),
    "action without name": ({"c": {"": GOOD}}, "cannot name a folder"),
}


@pytest.mark.parametrize("case", BAD_ACTIONS)
def test_bad_action_files_name_file_entry_and_expectation(tmp_path, case):
    content, expected = BAD_ACTIONS[case]
    path = write(tmp_path / "ego4d_val.json", json.dumps(content))
    with pytest.raises(EgoGenError) as error:
        read_actions(path)
    message = str(error.value)
    assert str(path) in message and expected in message and "\n" not in message


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ('{"c": {}, "c": {}}', "stands twice"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff{}", "not a UTF-8 text file"),
        (b"\xff\xfe{}", "not valid JSON"),
    ],
)
def test_files_that_are_not_json(tmp_path, text, expected):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EgoGenError, match=expected):
        read_json(path)


def test_missing_files_and_folders_in_their_place(tmp_path):
    with pytest.raises(EgoGenError, match="no such file"):
        read_actions(tmp_path / "none.json")
    with pytest.raises(EgoGenError, match="found a folder"):
        read_actions(tmp_path)


def test_scanning_collects_what_reading_refuses(tmp_path):
    content = {"c": {"0": GOOD, "1": {}, "2": {**GOOD, "image_0": "/x"}}, "d": 3, "e": {"0": GOOD}}
    entries, problems = scan_actions(write(tmp_path / "x.json", json.dumps(content)))
    assert [entry.key for entry in entries] == ["c/0", "e/0"]
    assert (
        len(problems) == 3 and "c/1" in problems[0] and "c/2" in problems[1] and "d" in problems[2]
    )


@pytest.mark.parametrize(
    "fields", [[], {"width": 3}, {"width": 0, "height": 2}, {"width": "4", "height": 2}, None]
)
def test_metadata_needs_positive_sizes(tmp_path, fields):
    good = write(tmp_path / "m.json", '{"c": {"width": 1920, "height": 1080.0, "fps": 30}}')
    assert read_clip_sizes(good) == {"c": (1920, 1080)}
    bad = write(tmp_path / "n.json", json.dumps({"clip": fields}))
    with pytest.raises(EgoGenError, match="clip 'clip': expected positive"):
        read_clip_sizes(bad)


def test_the_layout_is_the_released_one():
    assert layout.frame_folder("r", "ego4d", "val") == Path("r/EgoGen/ego4d.fho/val")
    folder = layout.frame_folder("r", "epickitchen", layout.GROUND_TRUTH)
    assert folder == Path("r/EgoGen/epickitchen/val_gt_for_metric")
    assert layout.action_file("r", "epickitchen", "train") == Path("r/epickitchen_train.json")
    assert layout.metadata_file("r", "ego4d") == Path("r/ego4d_metadata.json")


# ---- chunks


@pytest.mark.parametrize("split", [ceil_chunk, floor_chunk])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 100])
def test_chunks_cover_everything_once_and_in_order(split, count):
    items = list(range(count))
    for chunks in (1, 3, 5, 8, 13):
        parts = [split(items, chunks, index) for index in range(1, chunks + 1)]
        assert [item for part in parts for item in part] == items


def test_chunk_sizes_are_the_released_ones():
    items = list(range(9))
    assert [len(ceil_chunk(items, 5, k)) for k in range(1, 6)] == [2, 2, 2, 2, 1]
    assert [len(ceil_chunk(items[:6], 5, k)) for k in range(1, 6)] == [2, 2, 2, 0, 0]
    assert [list(floor_chunk(items, 4, k)) for k in (1, 2, 3, 4)] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7, 8],
    ]


@pytest.mark.parametrize("chunks, index", [(3, 0), (3, 4), (3, -1), (0, 1), (-2, 1)])
def test_chunk_numbers_are_checked(chunks, index):
    for split in (ceil_chunk, floor_chunk):
        with pytest.raises(EgoGenError, match="expected"):
            split([1, 2, 3], chunks, index)


# ---- features


def test_features_are_half_precision_beside_their_frame(tmp_path):
    rows = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
    path = write_feature(tmp_path, "clip/0/frame.jpg", rows)
    assert path == tmp_path / "clip/0/frame.npy"
    assert np.load(path, allow_pickle=False).dtype == np.float16
    assert np.array_equal(
        open_store(tmp_path).read("clip/0/frame.jpg", 4, 3), rows.astype(np.float16)
    )


def test_released_features_of_every_shape_are_read(tmp_path):
    rows = np.arange(12, dtype=np.float16).reshape(3, 4)
    for name, stored, expected in (
        ("three", np.stack([rows - 1, rows], axis=1), rows),
        ("one", rows[0], rows[:1]),
        ("wide", rows.astype(np.float32), rows.astype(np.float32)),  # as precise as it is
    ):
        np.save(tmp_path / f"{name}.npy", stored)
        found = open_store(tmp_path).read(f"{name}.jpg")
        assert found.dtype == expected.dtype and np.array_equal(found, expected), name


def test_the_released_place_is_found_where_a_folder_holds_jpg(tmp_path):
    (tmp_path / "npyfolder").mkdir()
    np.save(tmp_path / "npyfolder/a.npy", np.ones((1, 2), np.float16))
    assert feature_path(tmp_path, "jpgfolder/a.jpg") == tmp_path / "jpgfolder/a.npy"
    assert open_store(tmp_path).read("jpgfolder/a.jpg").shape == (1, 2)
    write_feature(tmp_path, "jpgfolder/a.jpg", np.zeros((3, 2)))
    assert open_store(tmp_path).read("jpgfolder/a.jpg").shape == (3, 2)


BAD_FEATURES = {
    "NaN": (np.full((256, 2), np.nan, np.float16), "holds NaN"),
    "infinity": (np.full((256, 2), np.inf, np.float16), "holds NaN or infinity"),
    "rows": (np.zeros((255, 2), np.float16), "expected (256, 2)"),
    "width": (np.zeros((256, 3), np.float16), "expected (256, 2)"),
    "no rows": (np.zeros((0, 2), np.float16), "expected (256, 2)"),
    "a number": (np.float16(3), "expected (256, 2)"),
    "four axes": (np.zeros((1, 1, 1, 2), np.float16), "expected (256, 2)"),
    "integers": (np.zeros((256, 2), np.int64), "floating point"),
    "text": (np.array([["a", "b"]]), "floating point"),
    "objects": (np.array([[{}, {}]], dtype=object), "not a readable .npy"),
    "not numpy": (b"hello", "not a readable .npy"),
    "nothing": (b"", "not a readable .npy"),
    "missing": (None, "no such feature file"),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_bad_features_are_named(tmp_path, case):
    content, expected = BAD_FEATURES[case]
    path = tmp_path / "c/f.npy"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(EgoGenError) as error:
        open_store(tmp_path).read("c/f.jpg", width=2, rows=256)
    assert str(path) in str(error.value) and expected in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_features_and_huge_headers_are_refused(tmp_path):
    path = write_feature(tmp_path, "f.jpg", np.ones((256, 64)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(EgoGenError, match="not a readable"):
        open_store(tmp_path).read("f.jpg")
    for shape in (b"(9999, 9)", b"(9**9, 9)"):
        path.write_bytes(data.replace(b"(256, 64)", shape))
        with pytest.raises(EgoGenError, match="not a readable"):
            open_store(tmp_path).read("f.jpg")
    header = b"{'descr': '<f2', 'fortran_order': False, 'shape': (10000000000, 5120), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(EgoGenError, match="not a readable"):
        open_store(tmp_path).read("f.jpg")


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    for rows in (np.array([[1e9]]), np.array([[np.nan]]), np.zeros((0, 3)), np.zeros(3)):
        with pytest.raises(EgoGenError):
            write_feature(tmp_path, "f.jpg", rows)
    with pytest.raises(EgoGenError, match="leaves"):
        write_feature(tmp_path / "store", "../f.jpg", np.ones((1, 1)))
    assert not list(tmp_path.rglob("*.npy*"))
