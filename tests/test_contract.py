"""The contract of both stages: action files, chunks, features, frames, atomic files, seeds."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egogen import layout
from egogen.actions import inside, read_actions, read_clip_sizes, scan_actions
from egogen.atomic import atomic_path, read_json, write_json, write_npy, write_text
from egogen.chunks import ceil_chunk, floor_chunk
from egogen.errors import EgoGenError, run_command
from egogen.features import feature_path, read_feature, write_feature
from egogen.frames import read_rgb
from egogen.progress import Progress
from egogen.seeds import stable_seed

PROJECT = Path(__file__).resolve().parents[1]
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
    "backslash": ({"c": {"0": {**GOOD, "image_1": "c\\b.jpg"}}}, "leaves the dataset root"),
    "zero byte": ({"c": {"0": {**GOOD, "image_1": "c\0b.jpg"}}}, "leaves the dataset root"),
    "only a dot": ({"c": {"0": {**GOOD, "image_1": "."}}}, "leaves the dataset root"),
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
        (b"\xff\xfe{}", "not a UTF-8 text file"),
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


def test_links_cannot_lead_out_of_the_root(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path)
    (tmp_path / "root/loop").symlink_to(tmp_path / "root/loop")
    assert inside(tmp_path / "root", "a/b.jpg") == tmp_path / "root/a/b.jpg"
    with pytest.raises(EgoGenError, match="leaves"):
        inside(tmp_path / "root", "link/x.jpg")


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
    assert np.array_equal(read_feature(tmp_path, "clip/0/frame.jpg", 4, 3), rows.astype(np.float16))


def test_released_features_of_every_shape_are_read(tmp_path):
    rows = np.arange(12, dtype=np.float16).reshape(3, 4)
    for name, stored, expected in (
        ("three", np.stack([rows - 1, rows], axis=1), rows),
        ("one", rows[0], rows[:1]),
        ("wide", rows.astype(np.float32), rows),
    ):
        np.save(tmp_path / f"{name}.npy", stored)
        found = read_feature(tmp_path, f"{name}.jpg")
        assert found.dtype == np.float16 and np.array_equal(found, expected), name


def test_the_released_place_is_found_where_a_folder_holds_jpg(tmp_path):
    (tmp_path / "npyfolder").mkdir()
    np.save(tmp_path / "npyfolder/a.npy", np.ones((1, 2), np.float16))
    assert feature_path(tmp_path, "jpgfolder/a.jpg") == tmp_path / "jpgfolder/a.npy"
    assert read_feature(tmp_path, "jpgfolder/a.jpg").shape == (1, 2)
    write_feature(tmp_path, "jpgfolder/a.jpg", np.zeros((3, 2)))
    assert read_feature(tmp_path, "jpgfolder/a.jpg").shape == (3, 2)


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
        read_feature(tmp_path, "c/f.jpg", width=2, rows=256)
    assert str(path) in str(error.value) and expected in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_features_and_huge_headers_are_refused(tmp_path):
    path = write_feature(tmp_path, "f.jpg", np.ones((256, 64)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(EgoGenError, match="not a readable"):
        read_feature(tmp_path, "f.jpg")
    for shape in (b"(9999, 9)", b"(9**9, 9)"):
        path.write_bytes(data.replace(b"(256, 64)", shape))
        with pytest.raises(EgoGenError, match="not a readable"):
            read_feature(tmp_path, "f.jpg")
    header = b"{'descr': '<f2', 'fortran_order': False, 'shape': (10000000000, 5120), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(EgoGenError, match="not a readable"):
        read_feature(tmp_path, "f.jpg")


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    for rows in (np.array([[1e9]]), np.array([[np.nan]]), np.zeros((0, 3)), np.zeros(3)):
        with pytest.raises(EgoGenError):
            write_feature(tmp_path, "f.jpg", rows)
    with pytest.raises(EgoGenError, match="leaves"):
        write_feature(tmp_path / "store", "../f.jpg", np.ones((1, 1)))
    assert not list(tmp_path.rglob("*.npy*"))


# ---- frames

COLOUR = (200, 100, 50)


def _saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def test_pictures_of_every_mode_become_rgb(tmp_path):
    plain = Image.new("RGB", (6, 4), COLOUR)
    grey = plain.convert("L")
    level = grey.getpixel((0, 0))
    deep = Image.fromarray(np.full((4, 6), level * 256 + 128, np.uint16))
    clear = Image.new("RGBA", (6, 4), (*COLOUR, 0))
    half = Image.new("RGBA", (6, 4), (*COLOUR, 128))
    cases = [
        (_saved(plain, tmp_path / "rgb.png"), COLOUR),
        (_saved(plain.quantize(4), tmp_path / "palette.png"), COLOUR),
        (_saved(plain.convert("CMYK"), tmp_path / "cmyk.jpg", quality=100), COLOUR),
        (_saved(plain.convert("YCbCr"), tmp_path / "ycc.jpg", quality=100), COLOUR),
        (_saved(grey, tmp_path / "grey.png"), (level,) * 3),
        (_saved(grey, tmp_path / "grey.jpg", quality=100), (level,) * 3),
        (_saved(deep, tmp_path / "deep.png"), (level,) * 3),
        (_saved(plain.convert("1"), tmp_path / "bits.png"), None),
        (_saved(clear, tmp_path / "clear.png"), (255,) * 3),
        (_saved(half, tmp_path / "half.png"), (227, 177, 152)),
        (_saved(clear.convert("LA"), tmp_path / "la.png"), (255,) * 3),
        (_saved(plain, tmp_path / "webp.webp", lossless=True), COLOUR),
    ]
    for path, expected in cases:
        found = read_rgb(path)
        assert found.mode == "RGB" and found.size == (6, 4), path.name
        if expected:
            difference = np.abs(np.array(found.getpixel((3, 2))) - expected)
            assert difference.max() <= 3, path.name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_photographs_stand_upright(tmp_path, orientation):
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste((255, 0, 0), (0, 0, 20, 12))  # red at the top left
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_rgb(_saved(stored, tmp_path / "p.jpg", exif=exif, quality=95))
    assert found.size == (40, 24)
    assert found.getpixel((5, 4))[1] < 60 and found.getpixel((35, 20))[1] > 200


def _png_header(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND\xaeB`\x82"


def test_unreadable_pictures_are_named(tmp_path):
    whole = _saved(Image.effect_noise((64, 48), 80), tmp_path / "whole.jpg").read_bytes()
    png = _saved(Image.effect_noise((64, 48), 80), tmp_path / "whole.png").read_bytes()
    cases = {
        "cut.jpg": whole[: len(whole) * 2 // 3],
        "cut.png": png[: len(png) // 2],
        "head.jpg": whole[:20],
        "empty.jpg": b"",
        "text.jpg": b"<html>404</html>",
        "bomb.png": _png_header(60_000, 60_000),
        "large.png": _png_header(11_000, 9_000),
        "no_data.png": _png_header(20, 20),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EgoGenError, match=f"{name}: unreadable picture") as error:
            read_rgb(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(EgoGenError, match="no such picture"):
        read_rgb(tmp_path / "none.jpg")
    with pytest.raises(EgoGenError, match="unreadable"):
        read_rgb(tmp_path)


# ---- atomic files


def leftovers(folder: Path, *names: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name not in names]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "new/x.json"
    write_json(path, {"a": 1})
    for bad in ({"a": float("nan")}, {"a": float("inf")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, bad)
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass  # nothing was written
    assert read_json(path) == {"a": 1} and not leftovers(tmp_path, "x.json")


def test_temporary_names_keep_the_suffix_and_hide(tmp_path):
    with atomic_path(tmp_path / "a.b.png") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".png"
        assert temporary.name.startswith(".") and ".tmp" in temporary.name
        Image.new("RGB", (2, 2)).save(temporary)
    assert read_rgb(tmp_path / "a.b.png").size == (2, 2)


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    """The process is killed while its temporary file is half-written."""
    path = tmp_path / "x.txt"
    write_text(path, "old")
    code = (
        "import sys, time\nfrom egogen.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    file = open(temporary, 'w'); file.write('half'); file.flush()\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """A limit on the size of files stands for the full disk: no mount and no root needed."""
    for name in ("x.npy", "x.json"):
        (tmp_path / name).write_bytes(b"old")
    code = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from egogen.atomic import write_json, write_npy
from egogen.errors import run_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
folder = Path(sys.argv[1])
for write in (lambda: write_npy(folder / "x.npy", np.zeros(100_000)),
              lambda: write_json(folder / "x.json", list(range(100_000)))):
    try:
        write()
    except OSError as error:
        print(type(error).__name__, error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split("\n")) == 3 and "OSError" in done.stdout
    assert [(tmp_path / name).read_bytes() for name in ("x.npy", "x.json")] == [b"old", b"old"]
    assert not leftovers(tmp_path, "x.npy", "x.json")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_command_says_that_the_disk_is_full(capsys):
    def main(_):
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    with pytest.raises(SystemExit) as stopped:
        run_command(main, [])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: ") and "No space left" in error


def test_parallel_writers_never_mix(tmp_path):
    code = (
        "import sys\nfrom egogen.atomic import write_text\n"
        "for _ in range(40): write_text(sys.argv[1], sys.argv[2] * 50_000)\n"
    )
    path = tmp_path / "x"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, path, letter], cwd=PROJECT) for letter in "ab"
    ]
    seen = set()
    while any(process.poll() is None for process in processes):
        if path.exists():
            seen.add(path.read_text())
        time.sleep(0.005)
    assert [process.returncode for process in processes] == [0, 0]
    assert seen <= {"a" * 50_000, "b" * 50_000} and not leftovers(tmp_path, "x")


def test_arrays_are_stored_without_pickle(tmp_path):
    with pytest.raises(ValueError):
        write_npy(tmp_path / "x.npy", np.array([{}], dtype=object))
    assert not leftovers(tmp_path)


# ---- errors, progress, seeds


def test_errors_become_one_line_and_an_exit_code(capsys):
    def bad(_):
        raise EgoGenError("file: entry:\n expected this")

    def bug(_):
        raise KeyError("bug")

    cases = [(bad, 2), (lambda _: None, 0), (lambda _: 1, 1)]
    for main, code in cases:
        with pytest.raises(SystemExit) as stopped:
            run_command(main, [])
        assert stopped.value.code == code
    assert capsys.readouterr().err == "error: file: entry: expected this\n"
    with pytest.raises(SystemExit):
        run_command(bad, ["--debug"])
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(KeyError):  # not the user's to mend: never hidden
        run_command(bug, [])


def test_progress_is_a_plain_line_in_a_log(capsys):
    with Progress(8, "describe", "frames", done=3) as progress:
        progress.update(5)
    line = capsys.readouterr().err
    assert line.startswith("describe: 8/8 frames") and line.count("\n") == 1


def test_seeds_belong_to_the_sample_alone():
    assert stable_seed(42, "clip", "1") == 4788441435254069586
    assert stable_seed(42, "clip", 1) == stable_seed(42, "clip", "1")
    seeds = {
        stable_seed(seed, clip, action)
        for seed in (0, 1)
        for clip in ("a", "a1", "b")
        for action in ("1", "11", "2")
    }
    assert len(seeds) == 18 and all(0 <= seed < 2**63 for seed in seeds)
    assert stable_seed(0, "a", "11") != stable_seed(0, "a1", "1")
