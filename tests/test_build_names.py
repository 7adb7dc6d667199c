"""Clips as people call them, folders of frames by number, tables as programs write them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from made_films import number_in, picture, write_film

from egogen.actions import read_actions
from egogen.build.__main__ import main
from egogen.build.clips import clip_ids, find_clips, open_clip
from egogen.build.rows import Options
from egogen.build.table import read_table, seconds
from egogen.errors import EgoGenError
from egogen.layout import action_file


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", times=range(75)).read_bytes()


def put(videos: Path, *names: str, content: bytes) -> None:
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(content)


def found(videos: Path, name: str) -> tuple[str, str]:
    """-> (file below `videos`, id of the clip)."""
    place = find_clips(videos, [name])[name]
    return str(place.relative_to(videos)), clip_ids({name: place}, [name])[name]


NFC, NFD = (unicodedata.normalize(form, "küche") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("file", "name", "called"),
    [
        ("walk.mp4", "walk.mp4", "walk"),
        ("walk.mp4", "walk", "walk"),
        ("GX010034.MP4", "GX010034", "GX010034"),
        ("GX010034.MP4", "GX010034.mp4", "GX010034"),
        ("GX010034.MP4", "gx010034", "GX010034"),
        ("P01/P01_05.mp4", "P01/P01_05", "P01_05"),
        ("P01/P01_05.MP4", "p01/p01_05", "P01_05"),
        ("2024.06.01_kitchen.mp4", "2024.06.01_kitchen", "2024.06.01_kitchen"),
        ("2024.06.01_kitchen.mp4", "2024.06.01_kitchen.mp4", "2024.06.01_kitchen"),
        ("2024.06.01_kitchen", "2024.06.01_kitchen", "2024.06.01_kitchen"),
        ("00001.MTS", "00001", "00001"),
        ("00001.MTS", "00001.MTS", "00001"),
        ("VID_1.insv", "VID_1", "VID_1"),
        (f"{NFD}.mp4", NFC, NFD),
        (f"{NFC}.mp4", f"{NFD}.mp4", NFC),
    ],
)
def test_a_clip_is_found_by_its_name(file, name, called, film, tmp_path):
    put(tmp_path, file, content=film)
    assert found(tmp_path, name) == (file, called)


def test_a_folder_keeps_its_dots(tmp_path):
    (tmp_path / "2024.06.01_kitchen").mkdir()
    assert found(tmp_path, "2024.06.01_kitchen") == ("2024.06.01_kitchen",) * 2


def test_what_is_written_exactly_goes_first_and_texts_are_no_video(film, tmp_path):
    put(tmp_path, "walk.MP4", "WALK.mp4", "run.mp4", "RUN.mp4", content=film)
    put(tmp_path, "run.txt", "run.srt", content=b"1:00 pick up the mug\n" * 50)
    picture(1).save(tmp_path / "run.png")
    assert found(tmp_path, "walk") == ("walk.MP4", "walk")
    assert found(tmp_path, "run") == ("run.mp4", "run")
    with pytest.raises(EgoGenError, match=r"several of that name \(WALK\.mp4, walk\.MP4\)"):
        find_clips(tmp_path, ["Walk"])
    put(tmp_path, "run.mov", content=film)
    with pytest.raises(EgoGenError, match=r"several of that name \(run\.mov, run\.mp4\)"):
        find_clips(tmp_path, ["run"])


def build(folder: Path, text: str, *flags: str) -> int:
    (folder / "actions.csv").write_text(text, encoding="utf-8")
    words = [str(folder / "out"), "--table", str(folder / "actions.csv"), "--sheets", "0"]
    return main([*words, "--videos", str(folder / "videos"), *flags])


def labels(folder: Path) -> dict[str, str]:
    entries = read_actions(action_file(folder / "out", "epickitchen", "train"))
    return {entry.key: entry.label for entry in entries}


def test_clips_of_one_name_are_refused_and_dotted_ones_built(film, tmp_path):
    put(tmp_path / "videos", "a/x.mp4", "a/y.mp4", "1.2.a.mp4", "1.2.b.mp4", content=film)
    put(tmp_path / "videos", "a_b/y.mp4", "a/b/y.mp4", content=film)
    for one, other, said in (("a/x.mp4", "a/x", "a/x"), ("a_b/y", "a/b/y.mp4", "a/b/y.mp4")):
        with pytest.raises(EgoGenError, match=f"clip {said} has the name of {one}"):
            build(tmp_path, f"clip,start,action\n{one},1,act\n{other},1,act\n")
    assert build(tmp_path, "clip,start,action\n1.2.a,1,cut\n1.2.b,1,pour\n") == 0
    assert labels(tmp_path) == {"1.2.a/0": "cut", "1.2.b/0": "pour"}


def test_a_folder_made_before_is_not_made_again(film, tmp_path):
    """The record of a pair holds the row as the table has it, and nothing that came later."""
    put(tmp_path / "videos", "walk.mp4", content=film)
    text = "clip,start,action\nwalk,1,cut\n"
    assert build(tmp_path, text) == 0
    record = tmp_path / "out" / "build" / "epickitchen" / "pairs" / "walk" / "0.json"
    row = {"clip": "walk", "start": 1.0, "action": "cut", "end": None, "contact": None}
    row |= {"split": "train", "id": "0", "description": ""}
    assert json.loads(record.read_text())["row"] == row
    stamp = record.stat().st_mtime_ns
    assert build(tmp_path, text) == 0 and record.stat().st_mtime_ns == stamp


def frames(folder: Path, names: dict[str, int]) -> Path:
    folder.mkdir(parents=True)
    for name, number in names.items():
        picture(number).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        {f"frame_{k + 1:010d}.jpg": k for k in range(12) if k not in (4, 5)},
        {f"{k}.png": k for k in range(12) if k != 5},
        {f"P01_01_frame_{k + 1:04d}.bmp": k for k in range(12) if k != 5},
    ],
    ids=lambda names: next(iter(names)),
)
def test_frames_are_found_by_their_numbers(names, tmp_path):
    folder = frames(tmp_path / "clip", names)
    (folder / "._frame_3.jpg").write_bytes(b"of the Finder")
    (folder / "notes3.txt").write_text("no frame")
    with open_clip(folder, 10) as clip:
        for number in (0, 3, 6, 11):
            frame = clip.at(number / 10 + 0.05)
            assert (number_in(frame.image), frame.name) == (number, f"{number:010d}")
        with pytest.raises(EgoGenError, match=r"frame [56], of 0\.55 s, is missing"):
            clip.at(0.55)
        with pytest.raises(EgoGenError, match=r"ends at 1\.20 s"):
            clip.at(1.25)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"{k}.png" for k in range(61, 70)], "numbered from 61, expected 0 or 1"),
        ([f"{k}.png" for k in range(1, 61, 6)], "only every frame number 6 is there"),
        (["1.png", "2.png", "2.jpg"], r"2\.(png|jpg): has the number of 2"),
        (["1.png", "2.png", "002.png"], "has the number of"),
        (["1.png", "2.png", "cover.png"], "cover.png: no number in its name"),
        (["1_1080p.png", "2_1080p.png"], "has the number of"),
    ],
)
def test_numbers_that_do_not_count_frames(names, message, tmp_path):
    folder = frames(tmp_path / "clip", dict.fromkeys(names, 0))
    with pytest.raises(EgoGenError, match=message), open_clip(folder, 10):
        pass


@pytest.mark.parametrize(
    ("text", "value"),
    [("83.2", 83.2), ("75:30", 4530), ("1:02:03.5", 3723.5), ("0:59.99", 59.99), (" 7 ", 7)],
)
def test_times_that_are_taken(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text",
    ["00:00:01:12", "1_0", "1e3", "1:75", "1:60:00", "+1", "-1", "inf", "nan", "1,5", "1:", ":1"]
    + ["", "٣", "1:02:03;04", "1 2", "1h", "0x10", "1.2.3", "9" * 40],
)
def test_times_that_are_refused(text):
    with pytest.raises(ValueError):
        seconds(text)


@pytest.mark.parametrize(
    "text",
    [
        "clip ,start , action \nwalk,1.5,cut\n",
        "Clip,START,Action\nwalk,1.5,cut\n",
        "clip,start,action,,\nwalk,1.5,cut,,\n",
        "clip,start,action\nwalk,1.5,cut,,\n",
        "clip,start,action\n,,\nwalk,1.5,cut\n,,\n,,\n",
        "\ufeffclip;start;action\nwalk;1.5;cut\n",
        "clip\tstart\taction\r\nwalk\t1.5\tcut\r\n",
        ",,\nclip,start,action\nwalk,1.5,cut",
    ],
)
def test_tables_as_programs_write_them(text, tmp_path):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    (row,) = read_table(tmp_path / "a.csv", Options()).rows
    assert (row.clip, row.start, row.action, row.id) == ("walk", 1.5, "cut", "0")


def test_an_odd_clip_does_not_end_the_build(film, tmp_path, capsys):
    put(tmp_path / "videos", "walk.mp4", content=film)
    put(tmp_path / "videos", "odd.mp4", content=film[: len(film) // 3])
    put(tmp_path / "videos", "text.mp4", content=b"no video")
    frames(tmp_path / "videos" / "wide", {"1.png": 0, "2.png": 1})
    picture(2).resize((70_000, 1)).save(tmp_path / "videos" / "wide" / "1.png")
    lines = [f"{name},0.5,cut,1.5" for name in ("odd", "text", "wide", "walk")]
    lines += ["walk,999999999,late,", "walk,0.2,pour,0.9"]
    text = "\n".join(["clip,start,action,contact", *lines, ""])
    assert build(tmp_path, text, "--fps", "1", "--after", "1e9") == 1
    assert labels(tmp_path) == {"walk/0": "cut", "walk/2": "pour"}
    told = [line for line in capsys.readouterr().err.splitlines() if "not built" in line]
    assert sorted(line.split()[2] for line in told) == ["odd", "text", "walk", "wide"]
