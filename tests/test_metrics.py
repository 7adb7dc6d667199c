"""`metrics/all_metrics_in_one.py` on pictures whose figures the released script computed."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image import PeakSignalNoiseRatio

from egogen.errors import EgoGenError, run_command
from metrics.all_metrics_in_one import main
from metrics.registry import METRICS, choose

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).parent / "data" / "metrics"
FOLDER = {"ego4d": "ego4d.fho", "epickitchen": "epickitchen"}


def copy_of(dataset: str, folder: Path) -> Path:
    shutil.copytree(DATA / dataset, folder / dataset)
    return folder / dataset


def arguments(root: Path, dataset: str, gen_path=None) -> list[str]:
    return [
        f"--dataset={dataset}",
        "--llava_key=llava_forecast_finetune",
        f"--gen_path={gen_path or root / 'run/images'}",
        f"--gt_path={root / 'EgoGen' / FOLDER[dataset] / 'val_gt_for_metric'}",
        f"--edit_file={root / f'{dataset}_val.json'}",
    ]


def run(*argv) -> int:
    with pytest.raises(SystemExit) as stopped:
        run_command(main, [str(argument) for argument in argv])
    return stopped.value.code


def strict_json(path: Path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("dataset", FOLDER)
def test_psnr_as_released_through_the_command_line(dataset, tmp_path):
    golden = json.loads((DATA / "psnr.json").read_text())[dataset]
    root = copy_of(dataset, tmp_path)
    command = [sys.executable, PROJECT / "metrics/all_metrics_in_one.py"]
    command += arguments(root, dataset, f"{root}/run/images/")  # with the slash that misled before
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    figures = strict_json(root / "run/metric/metric.json")
    assert figures["psnr"] == pytest.approx(golden["mean"], abs=1e-4)
    with open(root / "run/metric/per_sample.csv", newline="") as file:
        rows = {row["frame"]: row for row in csv.DictReader(file)}
    assert rows.keys() == golden["per_image"].keys()
    for frame, value in golden["per_image"].items():
        assert float(rows[frame]["psnr"]) == pytest.approx(value, abs=1e-4)
        assert "/".join((rows[frame]["clip"], rows[frame]["action"])) == str(Path(frame).parent)
    assert sorted(os.listdir(root / "run/images")) == sorted(
        os.listdir(DATA / dataset / "run/images")
    )
    # Everything that needs weights is named, with the file and the command that fetches it.
    skipped = [line for line in done.stdout.splitlines() if line.startswith("skipped: ")]
    assert [line.split("(")[-1].split(")")[0] for line in skipped] == [
        name for name, metric in METRICS.items() if metric.files
    ]
    assert all("bash scripts/download_metric_weights.sh" in line for line in skipped)
    egovlp = "egovlp.pth" if dataset == "ego4d" else "epic_mir_plus.pth"
    assert sum(egovlp in line for line in skipped) == 4


def test_naming_a_metric_without_its_weights_is_an_error(tmp_path, capsys):
    root = copy_of("ego4d", tmp_path)
    assert run(*arguments(root, "ego4d"), "--metrics", "psnr,lpips,fid") == 2
    error = capsys.readouterr().err
    for name in ("vgg16-397923af.pth", "pt_inception-2015-12-05-6726825d.pth", "bash scripts/"):
        assert name in error
    assert not (root / "run/metric").exists()


def test_all_problems_are_listed_before_anything_is_measured(tmp_path, capsys):
    root = copy_of("ego4d", tmp_path)
    images = root / "run/images"
    (images / "clip-000a/0/frame_0000001111.jpg").unlink()
    truncated = images / "clip-000a/12/frame_0000002071.jpg"
    truncated.write_bytes(truncated.read_bytes()[:2000])
    wrong = images / "clip-00b7/3/frame_0000000388.jpg"
    Image.open(wrong).resize((256, 256)).save(wrong)
    (root / "EgoGen/ego4d.fho/val_gt_for_metric/clip-01c2/0/frame_0000000150.jpg").unlink()
    (images / "extra/0").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "extra/0/frame_1.jpg")
    assert run(*arguments(root, "ego4d")) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.startswith("problem: ")]
    assert len(lines) == 4
    assert "frame_0000001111.jpg: no such image (generated frame of entry clip-000a/0)" in lines[0]
    assert "frame_0000002071.jpg: unreadable image" in lines[1]
    assert "size 256x256 of entry clip-00b7/3" in lines[2]
    assert "val_gt_for_metric/clip-01c2/0" in lines[3] and "ground truth" in lines[3]
    assert "extra/0/frame_1.jpg: belongs to no entry" in printed.out
    assert "4 problems" in printed.err and "--allow-missing" in printed.err
    assert not (root / "run/metric").exists()

    assert run(*arguments(root, "ego4d"), "--allow-missing") == 0
    figures = strict_json(root / "run/metric/metric.json")
    golden = json.loads((DATA / "psnr.json").read_text())["ego4d"]["per_image"]
    rest = [golden[f"clip-000a/1/frame_{213:010}.png"], golden[f"clip-00b7/7/frame_{640:010}.png"]]
    assert figures["psnr"] == pytest.approx(sum(rest) / 2, abs=1e-4)
    assert (figures["samples"], figures["problems"]) == (2, 4)


def test_frames_equal_to_their_truth_leave_valid_json(tmp_path):
    root = copy_of("ego4d", tmp_path)
    truth = root / "EgoGen/ego4d.fho/val_gt_for_metric"
    same = "clip-01c2/0/frame_0000000150.jpg"
    shutil.copy(truth / same, root / "run/images" / same)
    assert run(*arguments(root, "ego4d"), "--metrics", "psnr") == 0
    figures = strict_json(root / "run/metric/metric.json")
    golden = json.loads((DATA / "psnr.json").read_text())["ego4d"]["per_image"]
    others = [value for frame, value in golden.items() if frame != same]
    assert figures["psnr"] == pytest.approx(sum(others) / 5, abs=1e-4)
    assert figures["psnr_identical"] == 1
    shutil.rmtree(root / "run/images")
    shutil.copytree(truth, root / "run/images")
    assert run(*arguments(root, "ego4d"), "--metrics", "psnr") == 0
    figures = strict_json(root / "run/metric/metric.json")
    assert figures["psnr"] is None and figures["psnr_identical"] == 6


def test_greyscale_rgba_and_png_instead_of_jpeg_are_measured(tmp_path):
    root = copy_of("ego4d", tmp_path)
    images = root / "run/images"
    grey = images / "clip-00b7/3/frame_0000000388.jpg"
    Image.open(grey).convert("L").save(grey)
    jpeg = images / "clip-01c2/0/frame_0000000150.jpg"
    Image.open(jpeg).convert("RGBA").save(jpeg.with_suffix(".png"))
    jpeg.unlink()
    assert run(*arguments(root, "ego4d"), "--metrics", "psnr") == 0
    with open(root / "run/metric/per_sample.csv", newline="") as file:
        values = {row["frame"]: float(row["psnr"]) for row in csv.DictReader(file)}
    golden = json.loads((DATA / "psnr.json").read_text())["ego4d"]["per_image"]
    same = "clip-01c2/0/frame_0000000150.jpg"
    assert values[same] == pytest.approx(golden[same], abs=1e-4)
    assert values[str(grey.relative_to(images))] < 40


def test_a_frame_that_lacks_a_column_is_resized_on_both_datasets(tmp_path):
    for dataset, folder in FOLDER.items():
        root = copy_of(dataset, tmp_path)
        frame = sorted((root / "run/images").rglob("*.png"))[0]
        image = Image.open(frame)
        image.crop((0, 0, image.width - 1, image.height)).save(frame)
        assert run(*arguments(root, dataset), "--metrics", "psnr") == 0
        name = str(frame.relative_to(root / "run/images"))
        with open(root / "run/metric/per_sample.csv", newline="") as file:
            found = {row["frame"]: float(row["psnr"]) for row in csv.DictReader(file)}[name]
        truth = Image.open(root / "EgoGen" / folder / "val_gt_for_metric" / name)
        first, second = (
            torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 255
            for picture in (Image.open(frame), truth)
        )
        size = second.shape[-2:]
        first = torch.nn.functional.interpolate(first, size, mode="bilinear", align_corners=False)
        expected = PeakSignalNoiseRatio(data_range=1.0)(first, second)
        assert found == pytest.approx(float(expected), abs=1e-4)


def test_fid_of_one_frame_is_an_error(tmp_path, capsys):
    root = copy_of("ego4d", tmp_path)
    entries = json.loads((root / "ego4d_val.json").read_text())
    one = {"clip-01c2": entries["clip-01c2"]}
    (root / "ego4d_val.json").write_text(json.dumps(one))
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "pt_inception-2015-12-05-6726825d.pth").touch()
    assert run(*arguments(root, "ego4d"), "--metrics", "fid", "--weights", weights) == 2
    assert "fid: 1 frame, expected at least 2" in capsys.readouterr().err


def test_a_second_run_keeps_what_it_knows_and_nothing_stale(tmp_path, capsys):
    root = copy_of("ego4d", tmp_path)
    assert run(*arguments(root, "ego4d"), "--metrics", "psnr") == 0
    before = strict_json(root / "run/metric/metric.json")
    capsys.readouterr()
    assert run(*arguments(root, "ego4d")) == 0
    assert "kept: PSNR (psnr)" in capsys.readouterr().out
    both = strict_json(root / "run/metric/metric.json")
    assert both["psnr"] == before["psnr"] and both["psnr_changed_gain"] is not None
    frame = root / "run/images/clip-00b7/3/frame_0000000388.jpg"
    Image.open(frame).point(lambda value: value // 2).save(frame)
    assert run(*arguments(root, "ego4d"), "--metrics", "psnr") == 0
    assert "kept" not in capsys.readouterr().out
    after = strict_json(root / "run/metric/metric.json")
    assert after["psnr"] != before["psnr"]
    assert "psnr_changed" not in after, "a figure of other frames must not stay"


def test_bad_arguments_are_one_line(tmp_path, capsys):
    root = copy_of("ego4d", tmp_path)
    good = arguments(root, "ego4d")
    cases = [
        ([*good, "--metrics", "psrn"], "no metric 'psrn'"),
        ([*good, "--metrics", ","], "names no metric"),
        ([*good, "--gen_path", str(tmp_path / "none")], "no such folder"),
        ([*good, "--edit_file", str(tmp_path / "none.json")], "no such file"),
        ([*good, "--llava_key", "lava"], "no entry has field 'lava'"),
    ]
    for argv, expected in cases:
        assert run(*argv) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and expected in error, expected
    assert not (root / "run/metric").exists()


def test_lpips_stands_for_its_three_networks():
    names = [metric.name for metric in choose(" psnr, lpips ")]
    assert names == ["psnr", "lpips_squeeze", "lpips_vgg", "lpips_alex"]
    with pytest.raises(EgoGenError):
        choose("clip,nothing")
