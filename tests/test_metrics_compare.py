"""Intervals by resampling clips, and `metrics/compare.py`: known answers, symmetry, bad input."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egogen.errors import run_command
from metrics import compare
from metrics import intervals as bootstrap
from metrics.all_metrics_in_one import main as measure
from metrics.intervals import (
    clip_numbers,
    compare_columns,
    compare_resampled,
    intervals,
    percentiles,
    resampled_means,
    sign_flip_p,
)
from metrics.measures.frechet import frechet_distance
from metrics.registry import KEYS, Measured
from metrics.reporting.plots import panels, to_svg
from metrics.reporting.runs import compare_runs, read_run

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).parent / "data" / "metrics" / "ego4d"


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_intervals_of_a_mean_hold_it_as_often_as_they_say():
    clips = [f"clip{number}" for number in range(60)]
    held = 0
    for seed in range(300):
        low, high = percentiles(resampled_means(normal(seed, 60), clip_numbers(clips)))
        held += low <= 0 <= high
    assert 0.91 <= held / 300 <= 0.98  # 0.95 +- what 300 trials allow, less a little: 60 clips


def test_frames_of_a_clip_count_as_one_draw():
    values = np.repeat(normal(1, 40), 25)
    alone = [f"{number}" for number in range(1000)]
    clips = [f"{number // 25}" for number in range(1000)]
    narrow, wide = (
        np.ptp(percentiles(resampled_means(values, clip_numbers(names))))
        for names in (alone, clips)
    )
    assert 4 < wide / narrow < 6.5  # sqrt(25) = 5 times fewer independent frames


def test_intervals_do_not_depend_on_order_and_leave_out_what_has_no_value():
    values, clips = normal(2, 30), [f"clip{number // 3}" for number in range(30)]
    mean = float(values.mean())
    found, _ = intervals(Measured({"psnr": mean}, {"psnr": list(values)}), clips)
    order = np.random.default_rng(3).permutation(30)
    shuffled = Measured({"psnr": mean}, {"psnr": list(values[order])})
    again, _ = intervals(shuffled, [clips[place] for place in order])
    assert again["psnr_ci95"] == pytest.approx(found["psnr_ci95"], abs=1e-12)
    values[:3] = math.nan, math.inf, math.nan
    holes, _ = intervals(Measured({"psnr": 0.0}, {"psnr": list(values)}), clips)
    assert all(map(math.isfinite, holes["psnr_ci95"]))
    one, _ = intervals(Measured({"psnr": mean}, {"psnr": list(values)}), ["same"] * 30)
    assert one == {"psnr_ci95": None}
    none, _ = intervals(Measured({"psnr": None}, {"psnr": [math.inf] * 30}), clips)
    assert none == {"psnr_ci95": None}


def test_pooled_psnr_has_the_interval_of_the_mean_error():
    errors, clips = np.exp(normal(4, 90)) / 100, [f"{number // 3}" for number in range(90)]
    decibels = list(-10 * np.log10(errors))
    overall = {"psnr": 0.0, "psnr_pooled": -10 * math.log10(errors.mean())}
    found, _ = intervals(Measured(overall, {"psnr": decibels}), clips)
    low, high = percentiles(resampled_means(errors, clip_numbers(clips)))
    assert found["psnr_pooled_ci95"] == pytest.approx([-10 * math.log10(e) for e in (high, low)])


def test_the_spread_of_resampled_fid_is_that_of_new_samples():
    def draw(seed):
        target = np.repeat(normal(seed, 40, 16), 3, axis=0) + normal(seed + 500, 120, 16)
        return 0.6 * target + normal(seed + 900, 120, 16), target

    real = np.std([frechet_distance(*reversed(draw(seed))) for seed in range(100)])
    clips = np.arange(120) // 3
    found = [np.std(bootstrap.resampled_fid(*draw(seed), clips)) for seed in range(5)]
    assert 0.8 < np.mean(found) / real < 1.7  # with repeated frames 2.2
    values, _ = intervals(
        Measured({"fid": 3.0}, features=dict(zip(("generated", "target"), draw(1), strict=True))),
        [str(clip) for clip in clips],
    )
    low, high = values["fid_ci95"]
    assert (low + high) / 2 == pytest.approx(3.0)


def test_sign_flips_of_few_clips_are_all_tried():
    differences, clips = np.array([1.0, 2.0, 0.5, -0.25]), np.array([0, 1, 1, 2])
    sums = [1.0, 2.5, -0.25]
    flipped = [
        abs(sum(sign * value for sign, value in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    expected = sum(value >= 3.25 - 1e-12 for value in flipped) / 8
    assert sign_flip_p(differences, clips) == expected == 0.5
    assert sign_flip_p(np.zeros(4), clips) == 1.0
    assert sign_flip_p(np.ones(4), np.zeros(4, int)) is None


def test_p_values_of_equal_runs_are_uniform_and_of_others_small():
    clips = np.arange(90) // 3
    found = [sign_flip_p(normal(seed, 90), clips) for seed in range(300)]
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.09
    assert 0.4 < np.mean(found) < 0.6
    assert sign_flip_p(normal(1, 90) + 1, clips) == pytest.approx(1 / 10_001)


def test_wins_follow_the_direction_and_count_equal_pictures():
    first, second = [20.0, 21.0, 22.0, 23.0], [21.0, 20.5, math.inf, 23.0]
    up = compare_columns("psnr", first, second, list("aabb"), True)
    assert (up.wins, up.ties, up.losses, up.frames) == (2, 1, 1, 3)
    assert up.win_rate == 0.625 and up.difference == pytest.approx(0.5 / 3)
    down = compare_columns("lpips_alex", first, second, list("aabb"), False)
    assert (down.wins, down.ties, down.losses) == (1, 1, 2)
    swapped = compare_columns("psnr", second, first, list("aabb"), True)
    assert swapped.difference == -up.difference and swapped.p_value == up.p_value
    assert swapped.win_rate == 1 - up.win_rate
    assert compare_columns("psnr", [math.nan], [1.0], ["a"], True) is None


def test_fid_of_two_runs_is_compared_draw_by_draw():
    base = normal(1, 100)
    same = compare_resampled("fid", (50.0, 50.0), (base, base), 10)
    assert same.p_value == 1.0 and same.better(KEYS["fid"]) == ""
    lower = compare_resampled("fid", (50.0, 40.0), (base, base - 10 + 0.1 * normal(2, 100)), 10)
    assert lower.p_value < 1e-6 and lower.better(KEYS["fid"]) == "B" and lower.win_rate is None
    spread = math.sqrt(0.01 * np.var(normal(2, 100), ddof=1))
    assert np.ptp(lower.interval) == pytest.approx(2 * 1.959964 * spread, rel=1e-5)


def measured_run(folder: Path, change=None, name="run") -> Path:
    """A copy of the golden run with its pictures changed, measured -> the run's folder."""
    shutil.copytree(DATA / "run/images", folder / name / "images")
    for path in sorted((folder / name / "images").rglob("*.*g")):
        if change is not None:
            change(Image.open(path).convert("RGB"), path).save(path, quality=95)
    measure(
        [
            "--dataset=ego4d",
            f"--gen_path={folder / name / 'images'}",
            f"--gt_path={DATA / 'EgoGen/ego4d.fho/val_gt_for_metric'}",
            f"--edit_file={DATA / 'ego4d_val.json'}",
            "--metrics=psnr,psnr_changed",
        ]
    )
    return folder / name


def nearer(image: Image.Image, path: Path) -> Image.Image:
    name = Path(*path.parts[-3:])
    truth = Image.open(DATA / "EgoGen/ego4d.fho/val_gt_for_metric" / name).convert("RGB")
    return Image.blend(image, truth.resize(image.size), 0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return measured_run(folder, name="plain"), measured_run(folder, nearer, name="nearer")


def test_compare_through_the_command_line(runs, tmp_path):
    command = [sys.executable, PROJECT / "metrics/compare.py", *runs, "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/compare.json").read_text())
    figures = [json.loads((run / "metric/metric.json").read_text()) for run in runs]
    assert (found["a"]["name"], found["b"]["name"]) == ("plain", "nearer")
    assert (found["frames"], found["clips"]) == (6, 3)
    psnr = found["figures"]["psnr"]
    assert (psnr["a"], psnr["b"]) == pytest.approx([figure["psnr"] for figure in figures])
    assert psnr["difference"] == pytest.approx(figures[1]["psnr"] - figures[0]["psnr"])
    assert psnr["win_rate"] == 1.0 and psnr["better"] == "B" and psnr["higher_is_better"]
    assert psnr["difference_ci95"][0] > 0 and psnr["p_value"] == 2 / 8  # all flips of three clips
    line = next(line for line in done.stdout.splitlines() if line.startswith("PSNR, dB"))
    assert f"{psnr['a']:.2f}" in line and "100.0 %" in line and "0.2500" in line


def test_a_run_s_name_is_no_formula(runs, tmp_path):
    """matplotlib would read what stands between two dollars as one, and stop at this."""
    name = r"lr $\rate$ of a run whose name is long $\s$"
    shutil.copytree(runs[0], tmp_path / name)
    versus = compare_runs(read_run(tmp_path / name), read_run(runs[1]))
    drawn = [to_svg(draw) for draw in panels(versus)]
    assert drawn and all("A: lr $" in text for text in drawn)


def test_comparing_the_other_way_round_mirrors_everything(runs):
    there, back = (compare_runs(*map(read_run, pair)).figures for pair in (runs, runs[::-1]))
    for first, second in zip(there, back, strict=True):
        assert second.difference == pytest.approx(-first.difference)
        assert second.interval == pytest.approx([-end for end in first.interval[::-1]])
        assert second.p_value == first.p_value and second.win_rate == 1 - first.win_rate


def test_bad_comparisons_are_one_line(runs, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    inputs = json.loads((other / "metric/inputs.json").read_text())
    frame = next(iter(inputs["targets"]))
    inputs["targets"][frame] = "0"
    (other / "metric/inputs.json").write_text(json.dumps(inputs))
    (tmp_path / "empty").mkdir()
    cases = [
        ([runs[0], tmp_path / "none"], "no such folder"),
        ([runs[0], tmp_path / "empty"], "holds no metric.json"),
        ([runs[0], other], f"{frame}: measured against another ground truth"),
        ([runs[0], runs[0]], "is both A and B"),
    ]
    for argv, expected in cases:
        with pytest.raises(SystemExit) as stopped:
            run_command(compare.main, [*map(str, argv), f"--out={tmp_path / 'out'}"])
        error = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and "\n" not in error and expected in error, error
    assert not (tmp_path / "out").exists()


def test_other_weights_and_frames_are_named_not_compared(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    path = other / "metric/inputs.json"
    inputs = json.loads(path.read_text())
    inputs["metrics"]["psnr"]["from"]["weights"] = {"network.pth": "1"}
    table = other / "metric/per_sample.csv"
    lines = table.read_text().splitlines()
    del inputs["targets"][lines[-1].split(",")[2]]
    path.write_text(json.dumps(inputs))
    table.write_text("\n".join(lines[:-1]) + "\n")
    versus = compare_runs(read_run(runs[0]), read_run(other))
    assert [figure.key for figure in versus.figures] == ["psnr_changed", "psnr_changed_gain"]
    assert len(versus.frames) == len(lines) - 2
    assert versus.skipped == [
        "frames: 1 only in A, 0 only in B",
        "psnr: computed with other weights in A than in B",
    ]
