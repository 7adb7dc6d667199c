"""Ready pairs: images as files or in archives, laid out like a dataset."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_dataset import picture
from test_build_found import tar

from egogen.actions import DESCRIPTION_KEY, read_actions
from egogen.build.__main__ import main
from egogen.build.rows import Options
from egogen.build.table import read_pairs
from egogen.check import main as check
from egogen.errors import EgoGenError
from egogen.layout import GROUND_TRUTH, action_file, frame_folder, metadata_file

SIZE = (96, 64)


def encoded(seed: int, kind: str = "jpeg") -> bytes:
    data = io.BytesIO()
    picture(seed, SIZE).save(data, kind, **({"quality": 88} if kind == "jpeg" else {}))
    return data.getvalue()


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def build(folder: Path, rows: list[dict], *flags: str) -> int:
    lines = [json.dumps(row) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [str(folder / "out"), "--from", "pairs", "--table", str(folder / "pairs.jsonl")]
    return main([*words, "--videos", str(folder / "images"), *flags])


def entries(folder: Path, split: str = "train") -> dict[str, tuple[str, str, str]]:
    found = read_actions(action_file(folder / "out", "epickitchen", split))
    return {entry.key: (entry.label, entry.image_0, entry.image_1) for entry in found}


def test_files_are_linked_and_others_written_as_jpeg(tmp_path):
    images = put(
        tmp_path / "images",
        {
            "P01/7_before.jpg": encoded(1),
            "P01/7_after.JPEG": encoded(2),
            "P02/a.png": encoded(3, "png"),
            "P02/b.webp": encoded(4, "webp"),
            "P02/c.jpg": encoded(5, "png"),  # what it is stands inside
        },
    )
    os.chmod(images / "P01" / "7_before.jpg", 0o400)
    rows = [
        {"before": "P01/7_before.jpg", "after": "P01/7_after.JPEG", "action": "pick up the mug"},
        {"before": "P02/a.png", "after": "P02/b.webp", "action": "cut", "split": "validation"},
        {"before": "P02/c.jpg", "after": "./P02/a.png", "action": "pour", "id": 9},
    ]
    rows[0]["description"] = "The right hand\nlifts  the mug."
    assert build(tmp_path, rows) == 0
    assert entries(tmp_path) == {
        "P01/0": ("pick up the mug", "P01/0/7_before.jpg", "P01/0/7_after.jpg"),
        "P02/9": ("pour", "P02/9/c.jpg", "P02/9/a.jpg"),
    }
    train, val = (frame_folder(tmp_path / "out", "epickitchen", s) for s in ("train", "val"))
    for name, own in (("7_before.jpg", "7_before.jpg"), ("7_after.jpg", "7_after.JPEG")):
        assert os.path.samefile(train / "P01" / "0" / name, images / "P01" / own)
    assert oct((images / "P01" / "7_before.jpg").stat().st_mode)[-3:] == "400"
    for path, source in ((val / "P02/0/b.jpg", 4), (train / "P02/9/c.jpg", 5)):
        assert path.read_bytes()[:2] == b"\xff\xd8"
        seen, meant = (np.asarray(i, int) for i in (Image.open(path), picture(source, SIZE)))
        assert abs(seen - meant).mean() < 8
    written = json.loads(action_file(tmp_path / "out", "epickitchen", "train").read_text())
    assert written["P01"]["0"][DESCRIPTION_KEY] == "The right hand lifts the mug."
    metadata = json.loads(metadata_file(tmp_path / "out", "epickitchen").read_text())
    assert metadata["P01"] == {"width": 96, "height": 64}
    targets = frame_folder(tmp_path / "out", "epickitchen", GROUND_TRUTH)
    assert [path.name for path in targets.rglob("*.jpg")] == ["b.jpg"]
    assert check([str(tmp_path / "out"), "--key", "action"]) == 0


def test_images_in_archives(tmp_path):
    images = tmp_path / "images"
    first = {f"{k:06d}.{n}.jpg": encoded(2 * k + e) for k in range(3) for e, n in enumerate("ab")}
    tar(images / "shards" / "train-0.tar", first)
    second = {f"x/{k}.jpg": encoded(20 + k) for k in range(2)}
    tar(images / "train-1.tar.gz", second | {"000000.a.jpg": b""}, "w:gz")
    rows = [
        {
            "image_0": "000001.a.jpg",
            "image_1": "000001.b.jpg",
            "label": "found by name",
            "uid": "n",
        },
        {
            "source": "shards/train-0.tar/000002.a.jpg",
            "target": "shards/train-0.tar/000002.b.jpg",
            "narration": "named whole",
            "clip": "P01/P01_05",
        },
        {"before": "x/0.jpg", "after": "x/1.jpg", "tar": "train-1.tar.gz", "action": "column"},
    ]
    assert build(tmp_path, rows) == 0
    assert {key: label for key, (label, *_) in entries(tmp_path).items()} == {
        "pairs/n": "found by name",
        "P01_P01_05/0": "named whole",
        "train-1/0": "column",
    }
    frames = frame_folder(tmp_path / "out", "epickitchen", "train")
    for key, member in (("pairs/n", first["000001.a.jpg"]), ("train-1/0", second["x/0.jpg"])):
        assert (frames / entries(tmp_path)[key][1]).read_bytes() == member
    rows = [{"before": "000000.a.jpg", "after": "000000.b.jpg", "action": "in two"}]
    assert build(tmp_path, rows) == 1


def test_equal_names_are_told_apart_and_the_rest_is_built(tmp_path, capsys):
    put(tmp_path / "images", {"before/1.jpg": encoded(1), "after/1.jpg": encoded(2)})
    put(tmp_path / "images", {"before/2.jpg": encoded(1)[:200], "before/3.jpg": encoded(1)})
    rows = [
        {"before": f"before/{k}.jpg", "after": f"after/{k}.jpg", "action": "cut"} for k in (1, 2, 3)
    ]
    assert build(tmp_path, rows) == 1
    assert entries(tmp_path) == {"pairs/0": ("cut", "pairs/0/1_0.jpg", "pairs/0/1_1.jpg")}
    told = capsys.readouterr().err
    assert "before/2.jpg: unreadable image" in told and "after/3.jpg: no such image" in told


def test_pairs_are_judged_scaled_and_go_on(tmp_path, capsys):
    put(tmp_path / "images", {"a.jpg": encoded(1), "b.jpg": encoded(1), "c.jpg": encoded(2)})
    rows = [
        {"before": "a.jpg", "after": "b.jpg", "action": "nothing", "id": "same"},
        {"before": "a.jpg", "after": "c.jpg", "action": "cut", "id": "cut"},
    ]
    flags = ("--height", "32", "--drop", "similar", "--min-sharpness", "0", "--name", "epickitchen")
    assert build(tmp_path, rows, *flags) == 0
    shown = capsys.readouterr().out
    assert "similar: 1 (dropped): pairs/same" in shown and "different: 1 (kept;" in shown
    assert list(entries(tmp_path)) == ["pairs/cut"]
    frames = sorted((tmp_path / "out" / "EgoGen").rglob("*.jpg"))
    assert {Image.open(path).size for path in frames} == {(48, 32)}
    stamps = [path.stat().st_mtime_ns for path in frames]
    assert build(tmp_path, rows, *flags) == 0
    assert [path.stat().st_mtime_ns for path in frames] == stamps
    rows[1]["after"] = "b.jpg"  # another image under the old id
    assert build(tmp_path, rows, *flags) == 0
    with pytest.raises(EgoGenError, match="no entries"):
        entries(tmp_path)


def test_tables_as_people_have_them(tmp_path):
    text = "Before_Image;After_Image;Label;Split\na b/1.jpg;a b/2.jpg;cut;test\n"
    (tmp_path / "a.csv").write_text("\ufeff" + text)
    (row,) = read_pairs(tmp_path / "a.csv", Options()).rows
    assert (row.before, row.after, row.action, row.split, row.clip, row.id) == (
        *("a b/1.jpg", "a b/2.jpg", "cut", "val", "a b", "0"),
    )
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"before": ["1.jpg"] * 2, "after": ["2.jpg"] * 2, "action": ["cut", "pour"]}
    table |= {"id": [3.0, float("nan")], "description": [None, "x"], "clip": [5, 5]}
    parquet.write_table(pyarrow.table(table), tmp_path / "val.parquet")
    rows = read_pairs(tmp_path / "val.parquet", Options()).rows
    assert [(row.id, row.clip, row.split, row.description) for row in rows] == [
        ("3", "5", "val", ""),
        ("1", "5", "val", "x"),
    ]


def test_ready_pairs_have_no_table_of_times(tmp_path):
    with pytest.raises(EgoGenError, match="--table-only: ready pairs have no times"):
        main(["--from", "pairs", "--table", "p.csv", "--table-only", str(tmp_path / "t.csv")])
