"""A table that changes between two builds of one folder, and the bytes of the frames."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_dataset import picture

from egogen.actions import read_actions
from egogen.build.__main__ import main
from egogen.layout import GROUND_TRUTH, SPLITS, action_file, frame_folder

SIZE = (60, 40)


def numbered(number: int) -> Image.Image:
    """Its left half is `number` times 4 bright."""
    frame = picture(3, SIZE)
    frame.paste((number * 4,) * 3, (0, 0, SIZE[0] // 2, SIZE[1]))
    return frame


def number_of(path: Path) -> int:
    return round(np.asarray(Image.open(path).convert("L"), float)[8:32, 4:24].mean() / 4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    (folder / "desk").mkdir()
    for number in range(40):
        numbered(number).save(folder / "desk" / f"{number}.png")
    return folder


def build(folder: Path, videos: Path, *lines: str) -> dict:
    """{split: {"clip/id": (label, numbers seen in source and target)}}."""
    table = folder / "actions.csv"
    table.write_text("\n".join(["clip,start,action,end,contact,split,id", *lines]) + "\n")
    out = folder / "out"
    words = [str(out), "--table", str(table), "--videos", str(videos), "--fps", "10"]
    assert main([*words, "--before", "0", "--name", "ego4d"]) == 0
    found = {}
    for split in SPLITS:
        if action_file(out, "ego4d", split).read_text().strip() != "{}":
            frames = frame_folder(out, "ego4d", split)
            found[split] = {
                entry.key: (
                    entry.label,
                    [number_of(frames / p) for p in (entry.image_0, entry.image_1)],
                )
                for entry in read_actions(action_file(out, "ego4d", split))
            }
    return found


def targets(folder: Path) -> list[int]:
    root = frame_folder(folder / "out", "ego4d", GROUND_TRUTH)
    return sorted(number_of(path) for path in root.rglob("*.jpg"))


FIRST, STAYS = "desk,1.0,open,,2.0,val,a", "desk,0.5,shut,,0.7,val,b"
BESIDE = {"desk/b": ("shut", [5, 7])}


@pytest.mark.parametrize(
    "moved, expected",
    [
        ("desk,1.5,open,,2.0,val,a", ("open", [15, 20])),
        ("desk,1.0,open,,3.1,val,a", ("open", [10, 31])),
        ("desk,1.0,open,2.0,,val,a", ("open", [10, 16])),  # an end in place of the contact
        ("desk,1.0,open the jar,,2.0,val,a", ("open the jar", [10, 20])),
    ],
)
def test_a_row_that_moves_under_its_id_gives_the_new_frames(videos, tmp_path, moved, expected):
    before = {"val": {"desk/a": ("open", [10, 20]), **BESIDE}}
    assert build(tmp_path, videos, FIRST, STAYS) == before
    stays = frame_folder(tmp_path / "out", "ego4d", "val") / "desk" / "b"
    stamps = [path.stat().st_mtime_ns for path in sorted(stays.iterdir())]
    assert build(tmp_path, videos, moved, STAYS) == {"val": {"desk/a": expected, **BESIDE}}
    assert targets(tmp_path) == sorted([expected[1][1], 7])
    assert [path.stat().st_mtime_ns for path in sorted(stays.iterdir())] == stamps
    assert build(tmp_path, videos, FIRST, STAYS) == before  # and back
    assert targets(tmp_path) == [7, 20]


def test_a_row_that_moves_to_the_other_split(videos, tmp_path):
    build(tmp_path, videos, FIRST, STAYS)
    found = build(tmp_path, videos, FIRST.replace("val", "train"), STAYS)
    assert found == {"train": {"desk/a": ("open", [10, 20])}, "val": BESIDE}
    assert targets(tmp_path) == [7]


def test_what_a_killed_build_had_begun_goes(videos, tmp_path):
    build(tmp_path, videos, FIRST)
    out = tmp_path / "out"
    whole = sorted(path for path in out.rglob("*") if path.is_file())
    (out / "build" / "ego4d" / "pairs" / "desk" / ".7-0a1b2c3d.tmp.json").write_text("{")
    for split in ("val", GROUND_TRUTH):
        frames = frame_folder(out, "ego4d", split) / "desk" / "a"
        (frames / ".7-0a1b2c3d.tmp.jpg").write_bytes(b"half")
    build(tmp_path, videos, FIRST)
    assert sorted(path for path in out.rglob("*") if path.is_file()) == whole


def test_ids_that_change_places(videos, tmp_path):
    build(tmp_path, videos, FIRST, STAYS)
    swapped = [FIRST.replace(",a", ",b"), STAYS.replace(",b", ",a")]
    found = build(tmp_path, videos, *swapped)
    assert found == {"val": {"desk/b": ("open", [10, 20]), "desk/a": ("shut", [5, 7])}}


def test_frames_are_jpeg_of_quality_95(videos, tmp_path):
    build(tmp_path, videos, FIRST)
    frames = frame_folder(tmp_path / "out", "ego4d", "val")
    (entry,) = read_actions(action_file(tmp_path / "out", "ego4d", "val"))
    for name, number in ((entry.image_0, 10), (entry.image_1, 20)):
        expected = io.BytesIO()
        numbered(number).save(expected, "JPEG", quality=95)
        assert (frames / name).read_bytes() == expected.getvalue()
    target = frame_folder(tmp_path / "out", "ego4d", GROUND_TRUTH) / entry.image_1
    assert target.read_bytes() == (frames / entry.image_1).read_bytes()
