"""A dataset from videos and folders of frames: which frames, what is left out, what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from small_dataset import picture

from egogen.actions import read_actions
from egogen.build import write as writing
from egogen.build.__main__ import main
from egogen.build.judge import Limits, measure
from egogen.build.rows import Options, Row, Timing
from egogen.build.table import read_table, seconds
from egogen.check import main as check
from egogen.errors import EgoGenError
from egogen.layout import GROUND_TRUTH, action_file, frame_folder, metadata_file

av = pytest.importorskip("av")
FPS, SIZE = 10, (64, 48)


def numbered(number: int) -> Image.Image:
    """A picture that says which frame it is: its left half is `number` times 4 bright."""
    frame = picture(7, SIZE)
    frame.paste((number * 4,) * 3, (0, 0, SIZE[0] // 2, SIZE[1]))
    return frame


def number_of(path: Path) -> int:
    pixels = np.asarray(Image.open(path).convert("L"), float)
    return round(pixels[8:40, 4:24].mean() / 4)


def write_video(path: Path, frames: int = 50) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.bit_rate, stream.gop_size = 4_000_000, 12
        for number in range(frames):
            for packet in stream.encode(av.VideoFrame.from_image(numbered(number))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_frames(folder: Path, frames: int = 50) -> Path:
    folder.mkdir(parents=True)
    for number in range(frames):
        numbered(number).save(folder / f"{number + 1}.png")  # 10 comes after 9
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "kitchen.mp4")
    write_frames(folder / "P01" / "desk")
    return folder


def table(folder: Path, *lines: str, header="clip,start,action,end,contact,split,id") -> Path:
    path = folder / "actions.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


LINES = (
    "kitchen,1.05,pick up the mug,,3.25,,",  # 0.8 s -> frame 8; 3.25 s -> frame 32
    "kitchen.mp4,0:02.0,open the jar,4.0,,val,jar",  # 1.75 -> 17; 2 + 0.6 * 2 = 3.2 -> 32
    "P01/desk,0.1,close the box,,,val,",  # before the begin -> 0; 1.1 s -> 11
)


def build(out: Path, videos: Path, path: Path, *flags: str) -> int:
    words = [str(out), "--table", str(path), "--videos", str(videos), "--fps", str(FPS), *flags]
    return main(words)


def test_frames_by_time(videos, tmp_path, capsys):
    lines = (LINES[0], LINES[1].replace("kitchen.mp4", "kitchen"), LINES[2])
    out = tmp_path / "out"
    assert build(out, videos, table(tmp_path, *lines)) == 0
    shown = capsys.readouterr().out
    assert "train: 1 pairs" in shown and "val: 2 pairs" in shown
    found = {}
    for split in ("train", "val"):
        for entry in read_actions(action_file(out, "epickitchen", split)):
            frames = frame_folder(out, "epickitchen", split)
            found[entry.key] = [number_of(frames / p) for p in (entry.image_0, entry.image_1)]
            assert entry.image_0.endswith(f"{found[entry.key][0]:010d}.jpg")
    assert found == {"kitchen/0": [8, 32], "kitchen/jar": [17, 32], "desk/0": [0, 11]}
    metadata = json.loads(metadata_file(out, "epickitchen").read_text())
    assert metadata["kitchen"] == {"width": 64, "height": 48, "fps": 10.0}
    targets = frame_folder(out, "epickitchen", GROUND_TRUTH)
    assert sorted(p.parent.name for p in targets.rglob("*.jpg")) == ["0", "jar"]
    assert (out / "build" / "epickitchen" / "sheet_1.png").exists()
    # all that is missing are the descriptions that stage 1 will write
    assert check([str(out), "--key", "action"]) == 0


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_stopped_build_goes_on(videos, tmp_path, monkeypatch):
    path = table(tmp_path, *[f"P01/desk,{k / 5:.1f},act {k},,,val," for k in range(1, 9)])
    assert build(tmp_path / "whole", videos, path) == 0
    calls = iter(range(100))
    write_bytes = writing.write_bytes

    def breaking(*arguments):
        if next(calls) == 7:
            raise KeyboardInterrupt
        write_bytes(*arguments)

    monkeypatch.setattr(writing, "write_bytes", breaking)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", videos, path)
    monkeypatch.setattr(writing, "write_bytes", write_bytes)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("frame*.jpg")}
    assert build(tmp_path / "out", videos, path) == 0
    whole = {k.replace("/whole/", "/out/"): v for k, v in snapshot(tmp_path / "whole").items()}
    assert snapshot(tmp_path / "out") == whole
    kept = [p for p, stamp in before.items() if p.stat().st_mtime_ns == stamp]
    assert len(kept) >= 6  # three pairs were finished


def test_changed_table_is_followed(videos, tmp_path):
    out = tmp_path / "out"
    build(out, videos, table(tmp_path, "P01/desk,1,a,,,val,", "P01/desk,2,b,,,val,"))
    build(out, videos, table(tmp_path, "P01/desk,1,a,,,val,", "P01/desk,3,c,,,val,"))
    entries = read_actions(action_file(out, "epickitchen", "val"))
    assert [entry.label for entry in entries] == ["a", "c"]
    targets = frame_folder(out, "epickitchen", GROUND_TRUTH)
    names = sorted(str(p.relative_to(targets)) for p in targets.rglob("*.jpg"))
    assert names == sorted(entry.image_1 for entry in entries)


def test_pairs_with_nothing_to_see(tmp_path, capsys):
    frames = tmp_path / "videos" / "clip"
    frames.mkdir(parents=True)
    sharp = [Image.effect_noise(SIZE, 120).convert("RGB") for _ in range(4)]
    blurred = [image.filter(ImageFilter.GaussianBlur(8)) for image in sharp]
    for k, image in enumerate([sharp[0], sharp[1], sharp[2], sharp[2], blurred[0], sharp[3]]):
        image.save(frames / f"{k}.png")
    lines = [
        f"clip,{k},act,,{k + 1},val,{name}" for k, name in ((0, "good"), (2, "same"), (4, "soft"))
    ]
    path, out = table(tmp_path, *lines), tmp_path / "out"
    words = [str(out), "--table", str(path), "--videos", str(tmp_path / "videos"), "--fps", "1"]
    words += ["--before", "0"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "similar: 1 (kept; --drop leaves them out): clip/same" in shown
    assert "blurred: 1 (kept; --drop leaves them out): clip/soft" in shown
    assert main([*words, "--drop", "similar", "blurred"]) == 0
    assert "similar: 1 (dropped)" in capsys.readouterr().out
    (entry,) = read_actions(action_file(out, "epickitchen", "val"))
    assert entry.action_id == "good"
    targets = frame_folder(out, "epickitchen", GROUND_TRUTH)
    assert len(list(targets.rglob("*.jpg"))) == 1
    rows = (out / "build" / "epickitchen" / "pairs.csv").read_text().splitlines()
    assert [row.split(",")[-1] for row in rows] == ["kept", "yes", "no", "no"]


def test_measures():
    one = picture(1, (320, 240))
    assert measure(one, one)["difference"] == 0
    brighter = one.point(lambda value: min(value + 12, 255))
    assert Limits().broken_by(measure(one, brighter)) == Limits().broken_by(measure(one, one))
    assert measure(one, picture(2, (320, 240)))["difference"] > 20


def test_times():
    assert seconds("1:02:03.5") == 3723.5 and seconds("83.2") == 83.2
    row = Row("c", 10.0, "a", end=20.0)
    assert row.times(Timing()) == (9.75, 16.0)
    assert Row("c", 0.1, "a").times(Timing(after=2)) == (0.0, 2.1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["kitchen,x,act,,,,"], "row 2: start 'x' is not a time"),
        (["kitchen,-1,act,,,,"], "start '-1' is not a time"),
        (["kitchen,nan,act,,,,"], "start 'nan' is not a time"),
        (["kitchen,1,,,,,"], "row 2: action is empty"),
        (["kitchen,1,a,1,,,"], "end 1 is not after start 1"),
        (["kitchen,1,a,,0.5,,"], "contact 0.5 is not after start 1"),
        (["../x,1,a,,,,"], "leaves the folder"),
        (["/etc/x,1,a,,,,"], "leaves the folder"),
        (["kitchen,1,a,,,dev,"], "split 'dev', expected train, val"),
        (["kitchen,1,a,,,,a/b"], "cannot name a folder"),
        (["x" * 256 + ",1,a,,,,"], "row 2: clip: .*at most 255 bytes"),
        (["kitchen,1,a,,,,1", "kitchen,2,a,,,,1"], "row 3: id 1 stands twice"),
        (["kitchen,1"], "fewer fields"),
        (["kitchen,1,a,,,,,,9"], "fewer fields"),
        (["kitchen,x,a,,,,", "kitchen,1,,,,,"], "row 2: .*; row 3: "),
    ],
)
def test_bad_tables(tmp_path, lines, message):
    with pytest.raises(EgoGenError, match=message):
        read_table(table(tmp_path, *lines), Options())


def test_bad_columns_and_files(tmp_path):
    with pytest.raises(EgoGenError, match="columns are clip, when; expected clip, action"):
        read_table(table(tmp_path, "a,1", header="clip,when"), Options())
    with pytest.raises(EgoGenError, match="no such file"):
        read_table(tmp_path / "none.csv", Options())
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EgoGenError, match="not a CSV table"):
        read_table(tmp_path / "x.csv", Options())


def test_missing_clips_are_named_before_any_work(videos, tmp_path):
    path = table(tmp_path, LINES[0], "nowhere,1,a,,,,", "gone,1,a,,,,")
    with pytest.raises(EgoGenError, match="nowhere: no video or folder.*gone: no video"):
        build(tmp_path / "out", videos, path)
    assert not (tmp_path / "out" / "EgoGen").exists()


def test_what_fails_is_told_and_the_rest_is_built(videos, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    for name in ("kitchen.mp4", "P01"):
        (tmp_path / "videos" / name).symlink_to(videos / name)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"not a video")
    lines = [LINES[0], "kitchen,90,late,,,,late", "broken,1,a,,,,", "P01/desk,4.5,a,,9,,"]
    lines += ["kitchen,2,same,,2.01,,same"]
    flags = ["--before", "0"]
    assert build(tmp_path / "out", tmp_path / "videos", table(tmp_path, *lines), *flags) == 1
    told = capsys.readouterr().err
    assert "kitchen late: " in told and "ends before 90.00 s" in told
    assert "broken.mp4: not a video" in told and "ends at 5.00 s, 9.00 s" in told
    assert "are the same frame" in told
    assert len(read_actions(action_file(tmp_path / "out", "epickitchen", "train"))) == 1


def test_other_settings_ask_for_another_folder(videos, tmp_path):
    path = table(tmp_path, LINES[0])
    build(tmp_path / "out", videos, path)
    with pytest.raises(EgoGenError, match="made_by.json"):
        build(tmp_path / "out", videos, path, "--before", "1")
    frame_folder(tmp_path / "own", "epickitchen", "train").mkdir(parents=True)
    with pytest.raises(EgoGenError, match="were not built here"):
        build(tmp_path / "own", videos, path)


def test_frames_are_scaled(videos, tmp_path):
    build(tmp_path / "out", videos, table(tmp_path, LINES[0]), "--height", "24")
    (entry,) = read_actions(action_file(tmp_path / "out", "epickitchen", "train"))
    folder = frame_folder(tmp_path / "out", "epickitchen", "train")
    assert Image.open(folder / entry.image_0).size == (32, 24)
