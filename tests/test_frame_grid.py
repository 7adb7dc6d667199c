"""`scripts/frame_grid.py`: which entries it draws, what stands where, what it refuses."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_dataset import write_dataset

from egogen import layout
from egogen.actions import read_actions
from egogen.errors import run_command

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/frame_grid.py"
TOP, ROW, COLUMN, BOX = 26, 214, 328, (320, 180)  # pixels, as in the script


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four entries; the generated frame of each is its ground truth upside down."""
    root = write_dataset(tmp_path_factory.mktemp("grid") / "data", splits=("val",))
    frames = layout.frame_folder(root, "ego4d", "val")
    for entry in read_actions(layout.action_file(root, "ego4d", "val")):
        path = root.parent / "images" / entry.image_1
        path.parent.mkdir(parents=True)
        turned = Image.open(frames / entry.image_1).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        turned.save(path.with_suffix(".png"))  # found though the entry says .jpg
    return root


@pytest.fixture(scope="module")
def script():
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("frame_grid", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def arguments(root: Path, out: Path, *more: str) -> list[str]:
    command = [f"--dataset-root={root}", "--dataset=ego4d", f"--out={out}"]
    return [*command, f"--images={root.parent / 'images'}", *more]


def shown(grid: Path, root: Path) -> list[str]:
    """Keys of the entries by the source frames in the rows; all three images are checked."""
    entries = read_actions(layout.action_file(root, "ego4d", "val"))
    frames = layout.frame_folder(root, "ego4d", "val")
    image = Image.open(grid)
    found = []
    for top in range(TOP, image.height, ROW):
        boxes = [
            np.asarray(
                image.crop((8 + COLUMN * x, top, 8 + COLUMN * x + BOX[0], top + BOX[1])), float
            )
            for x in range(3)
        ]

        def distance(entry, boxes=boxes):
            paths = (frames / entry.image_0, frames / entry.image_1)
            source, target = (np.asarray(Image.open(path).resize(BOX), float) for path in paths)
            expected = (source, target[::-1], target)
            # A little of the box is white at the sides: the frames have another aspect.
            return max(
                np.abs(box - other)[8:-8, 8:-8].mean()
                for box, other in zip(boxes, expected, strict=True)
            )

        best = min(entries, key=distance)
        assert distance(best) < 12
        found.append(best.key)
    return found


def test_entries_at_equal_distances_with_all_three_frames(root, script, tmp_path):
    command = [sys.executable, SCRIPT, *arguments(root, tmp_path / "grid.jpg", "--entries=2")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    keys = [entry.key for entry in read_actions(layout.action_file(root, "ego4d", "val"))]
    assert shown(tmp_path / "grid.jpg", root) == [keys[1], keys[3]]
    assert (tmp_path / "grid.jpg").stat().st_size < 300_000
    assert script.main(arguments(root, tmp_path / "again.jpg", "--entries=2")) == 0
    assert (tmp_path / "again.jpg").read_bytes() == (tmp_path / "grid.jpg").read_bytes()


def test_a_score_leaves_only_what_was_done(root, script, tmp_path):
    entries = read_actions(layout.action_file(root, "ego4d", "val"))
    rows = [
        {"clip": entry.clip, "action_id": entry.action_id, "done": number == 2}
        for number, entry in enumerate(entries)
    ]
    (tmp_path / "score.json").write_text(json.dumps({"rows": rows}))
    more = [f"--score={tmp_path / 'score.json'}"]
    assert script.main(arguments(root, tmp_path / "grid.png", *more)) == 0
    assert shown(tmp_path / "grid.png", root) == [entries[2].key]


def test_bad_input_is_one_line_and_leaves_no_file(root, script, tmp_path, capsys):
    (tmp_path / "score.json").write_text('{"rows": []}')
    shutil.copytree(root.parent, tmp_path / "copy")
    next((tmp_path / "copy/images").rglob("*.png")).unlink()
    cases = [
        (root, ["--entries=0"], "--entries 0 of 4: expected at least 1"),
        (root, [f"--score={tmp_path / 'score.json'}"], "--entries 4 of 0"),
        (tmp_path / "copy/data", [], "no such image"),
    ]
    cases.append((root, [f"--out={tmp_path / 'out/grid.xyz'}"], "ends in .jpg or .png"))
    for place, more, expected in cases:
        with pytest.raises(SystemExit) as stopped:
            run_command(script.main, arguments(place, tmp_path / "out/grid.jpg", *more))
        error = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and "\n" not in error and expected in error, error
        assert not [*tmp_path.glob("out/*")]
