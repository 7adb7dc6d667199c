"""Sharpest frames, pairs that are too different, boxes, last frames, videos that are not there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_films import number_in, picture, write_film
from PIL import Image, ImageFilter, ImageOps
from small_dataset import picture as scene

from egogen.actions import read_actions
from egogen.build import __main__ as command
from egogen.build.judge import Limits, measure
from egogen.build.rows import Row, Skipped, Table
from egogen.errors import EgoGenError
from egogen.layout import action_file, frame_folder, metadata_file


def frames(folder: Path, blurred: set[int], count: int = 20) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        image = picture(number)
        image = image.filter(ImageFilter.GaussianBlur(3)) if number in blurred else image
        image.save(folder / f"{number}.png")
    return folder


def build(folder: Path, text: str, *flags: str) -> int:
    (folder / "a.csv").write_text(text)
    words = [str(folder / "out"), "--table", str(folder / "a.csv"), "--sheets", "0"]
    return command.main([*words, "--videos", str(folder / "videos"), "--before", "0", *flags])


def built(folder: Path) -> dict[str, list[int]]:
    """clip/id -> numbers in the two frames."""
    root = frame_folder(folder / "out", "epickitchen", "train")
    return {
        entry.key: [number_in(Image.open(root / name)) for name in (entry.image_0, entry.image_1)]
        for entry in read_actions(action_file(folder / "out", "epickitchen", "train"))
    }


@pytest.mark.parametrize(
    ("count", "source", "target", "expected"),
    [
        (None, 6, 13, ({6}, {13})),
        (1, 6, 13, ({6}, {13})),
        (3, 6, 13, ({7}, {12})),
        (3, 9, 14, ({8, 9, 10}, {13, 14, 15})),
        (5, 2, 18, ({4}, {16})),
        (9, 0, 19, ({4}, {16})),  # no frame before the first or behind the last
        (9, 10, 14, ({9, 10, 11}, {13, 14, 15})),  # none from half way to the other on
    ],
)
def test_the_sharpest_of_some_neighbours(count, source, target, expected, tmp_path):
    frames(tmp_path / "videos" / "clip", set(range(20)) - {4, 7, 12, 16})
    text = f"clip,source,target,action\nclip,{source / 10},{target / 10},cut\n"
    flags = ["--sharpest", str(count)] if count else []
    assert build(tmp_path, text, "--fps", "10", *flags) == 0
    numbers = built(tmp_path)["clip/0"]
    assert numbers[0] in expected[0] and numbers[1] in expected[1]


def test_a_folder_of_other_neighbours_is_another(tmp_path):
    frames(tmp_path / "videos" / "clip", set())
    text = "clip,source,target,action\nclip,0.5,1,cut\n"
    assert build(tmp_path, text, "--fps", "10") == 0
    made_by = tmp_path / "out" / "build" / "epickitchen" / "made_by.json"
    old = {
        n: v for n, v in json.loads(made_by.read_text()).items() if n not in ("sharpest", "views")
    }
    made_by.write_text(json.dumps(old))  # as it was written before
    assert build(tmp_path, text, "--fps", "10") == 0
    with pytest.raises(EgoGenError, match="made with sharpest None, expected 3"):
        build(tmp_path, text, "--fps", "10", "--sharpest", "3")
    made_by.write_text(json.dumps({**old, "sharpest": 3}))
    with pytest.raises(EgoGenError, match="made with sharpest 3, expected None"):
        build(tmp_path, text, "--fps", "10")


def turned(image: Image.Image, share: float) -> Image.Image:
    """What a camera sees that has turned by a share of its width."""
    pixels, other = np.asarray(image), np.asarray(ImageOps.mirror(image))
    by = round(image.width * share)
    return Image.fromarray(np.concatenate([pixels[:, by:], other[:, :by]], 1))


def test_cuts_and_turned_heads_are_different_and_hands_are_not():
    counts = dict.fromkeys(("cut", "turned", "hand", "dark"), 0)
    for seed in range(20):
        image = scene(seed, (320, 200))
        others = {"cut": scene(seed + 50, (320, 200)), "turned": turned(image, 0.4)}
        others["hand"] = image.copy()
        others["hand"].paste((190, 140, 110), (120, 90, 200, 200))
        others["dark"] = image.point(lambda value: value * 2 // 3 + 20).resize((160, 100))
        for what, other in others.items():
            counts[what] += "different" in Limits().broken_by(measure(image, other))
    assert min(counts["cut"], counts["turned"]) >= 17 and counts["hand"] == counts["dark"] == 0
    grey = Image.new("RGB", (64, 48), "grey")
    assert Limits(sharpness=0).broken_by(measure(grey, grey)) == ["similar"]


def test_pairs_that_are_too_different_are_told_and_dropped(tmp_path, capsys):
    folder = tmp_path / "videos" / "clip"
    folder.mkdir(parents=True)
    for number, seed in enumerate((1, 2)):
        scene(seed, (320, 200)).save(folder / f"{number}.png")
    text = "clip,source,target,action\nclip,0,1,cut\n"
    flags = ["--fps", "1", "--min-sharpness", "0"]
    assert build(tmp_path, text, *flags) == 0
    assert "different: 1 (kept; --drop leaves them out): clip/0" in capsys.readouterr().out
    record = tmp_path / "out" / "build" / "epickitchen" / "pairs" / "clip" / "0.json"
    change = json.loads(record.read_text())["change"]
    assert build(tmp_path, text, *flags, "--drop", "different") == 0
    assert "different: 1 (dropped)" in capsys.readouterr().out
    table = (tmp_path / "out" / "build" / "epickitchen" / "pairs.csv").read_text().splitlines()
    assert table[0].endswith("sharpness,change,kept") and table[1].endswith(",no")
    assert float(table[1].split(",")[-2]) == pytest.approx(change, abs=0.02)
    assert build(tmp_path, text, *flags, "--drop", "different", "--max-change", "2") == 0
    assert "different" not in capsys.readouterr().out


@pytest.fixture
def form(monkeypatch):
    """An official form whose file says these rows."""

    def say(*rows: Row, skipped=()) -> None:
        table = Table(list(rows), list(skipped))
        monkeypatch.setattr(command, "read_form", lambda *arguments: table)

    return say


ROW = Row("P01_01", None, "cut", id="4", source=0.1, target=1.0)


def test_rows_without_a_video_are_left_out_and_told(form, tmp_path, capsys):
    folder = tmp_path / "videos" / "P01" / "videos"
    folder.mkdir(parents=True)
    write_film(folder / "P01_01.MP4", kind="mp4")
    gone = [replace(ROW, clip="P02_01", id=str(k)) for k in range(30)]
    form(ROW, *gone, skipped=[Skipped("row 9", "no end")])
    assert build(tmp_path, "", "--from", "epic100") == 1
    told = capsys.readouterr().err
    assert "left out, no end: 1 (row 9)" in told
    assert "left out, no video: 30 (P02_01 0, " in told and "and 10 more" in told
    assert built(tmp_path) == {"P01_01/4": [3, 30]}
    form(*gone)
    with pytest.raises(EgoGenError, match=r"none of the videos of .*: P02_01"):
        build(tmp_path, "", "--from", "epic100")


def test_the_views_of_a_form(form, tmp_path):
    folder = tmp_path / "videos" / "R1" / "Export_py"
    folder.mkdir(parents=True)
    write_film(folder / "Video_compress.mp4", times=range(60))
    write_film(folder / "Video_pitchshift.mp4", times=range(60))
    form(replace(ROW, clip="R1"))
    assert build(tmp_path, "", "--from", "holoassist") == 0
    assert built(tmp_path) == {"R1/4": [3, 30]}
    with pytest.raises(EgoGenError, match="made with views"):
        build(tmp_path, "", "--from", "holoassist", "--view", "*compress*")
    with pytest.raises(EgoGenError, match=r"R1: holds .*Video_compress\.mp4.*--view"):
        build(tmp_path, "", "--from", "epic100")


def test_the_last_frame_of_films_and_folders(form, tmp_path):
    frames(tmp_path / "videos" / "7", set())
    write_film(tmp_path / "videos" / "8.webm", "libvpx", times=range(45))
    rows = [Row(clip, None, "cut", id="0", source=0, target=math.inf) for clip in ("7", "8")]
    form(*rows)
    for _ in range(2):  # the second finds them done
        assert build(tmp_path, "", "--from", "ssv2", "--fps", "12") == 0
    assert built(tmp_path) == {"7/0": [0, 19], "8/0": [0, 44]}


def test_rates_that_are_asked_for_go_before_those_of_the_form(form, tmp_path):
    frames(tmp_path / "videos" / "P01_01", set())
    form(replace(ROW, fps=10.0))
    assert build(tmp_path, "", "--from", "epic100") == 0
    assert built(tmp_path) == {"P01_01/4": [1, 10]}
    (tmp_path / "out").rename(tmp_path / "other")
    assert build(tmp_path, "", "--from", "epic100", "--fps", "15") == 0
    assert built(tmp_path) == {"P01_01/4": [1, 15]}


def test_boxes_go_into_the_metadata(form, tmp_path):
    frames(tmp_path / "videos" / "P01_01", set())
    boxes = [{"frame": "source", "object": "mug", "bbox": [10, 20.5, 30, 60]}]
    form(replace(ROW, boxes=json.dumps(boxes)), replace(ROW, id="5", source=0.2))
    assert build(tmp_path, "", "--from", "ego4d-fho", "--fps", "10", "--height", "48") == 0
    metadata = json.loads(metadata_file(tmp_path / "out", "ego4d").read_text())
    box = {
        "frame": "source",
        "object": "mug",
        "bbox": [10, 20.5, 20, 39.5],
    }  # of the video's pixels
    video = {"width": 160, "height": 96, "fps": 10.0}
    assert metadata == {"P01_01": {**video, "actions": {"4": [box]}}}
