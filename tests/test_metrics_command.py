"""The command around the metrics: which frames, what is kept, what is refused, killed runs."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egogen.errors import EgoGenError
from metrics import compare, copy_source, report
from metrics.all_metrics_in_one import main
from metrics.frame_pairs import find_pairs
from metrics.measures import frechet
from metrics.registry import KEYS, METRICS, Key, Measured, Metric
from metrics.results import PARTS

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).parent / "data" / "metrics"
FRAME = "clip-00b7/3/frame_0000000388.jpg"


@pytest.fixture
def root(tmp_path):
    shutil.copytree(DATA / "ego4d", tmp_path / "ego4d")
    return tmp_path / "ego4d"


def arguments(root: Path, *more: str) -> list[str]:
    return [
        "--dataset=ego4d",
        f"--gen_path={root / 'run/images'}",
        f"--gt_path={root / 'EgoGen/ego4d.fho/val_gt_for_metric'}",
        f"--edit_file={root / 'ego4d_val.json'}",
        *more,
    ]


def figures(root: Path, out: str = "run/metric") -> dict:
    return json.loads((root / out / "metric.json").read_text())


def test_order_of_entries_and_of_listing_changes_no_byte(root, monkeypatch):
    main(arguments(root, "--metrics=psnr,psnr_changed"))
    names = ("metric.json", "per_sample.csv")
    before = [(root / "run/metric" / name).read_bytes() for name in names]
    content = json.loads((root / "ego4d_val.json").read_text())
    turned = {
        clip: dict(reversed(list(actions.items())))
        for clip, actions in reversed(list(content.items()))
    }
    (root / "ego4d_val.json").write_text(json.dumps(turned))
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda top, **more: reversed(list(walk(top, **more))))
    main(arguments(root, f"--out={root / 'again'}", "--metrics=psnr_changed,psnr", "--workers=3"))
    assert [(root / "again" / name).read_bytes() for name in names] == before


def test_source_frames_are_image_0_in_the_folder_that_is_given(root, capsys):
    main(arguments(root, "--metrics=psnr_changed"))
    before = figures(root)["psnr_changed"]
    shutil.move(root / "EgoGen/ego4d.fho/val", root / "elsewhere")
    with pytest.raises(EgoGenError, match="psnr_changed: needs the source frames"):
        main(arguments(root, "--metrics=psnr,psnr_changed"))
    # A name that sorts after its target's, and another file beside it: image_0 alone counts.
    content = json.loads((root / "ego4d_val.json").read_text())
    for actions in content.values():
        for entry in actions.values():
            path = root / "elsewhere" / entry["image_0"]
            entry["image_0"] = str(Path(entry["image_0"]).with_name(f"zz_{path.name}"))
            path.rename(root / "elsewhere" / entry["image_0"])
            Image.new("RGB", (9, 9)).save(path.with_name("aa.png"))
    (root / "ego4d_val.json").write_text(json.dumps(content))
    more = [f"--source-path={root / 'elsewhere'}/", f"--out={root / 'again'}"]
    main(arguments(root, "--metrics=psnr_changed", *more))
    assert figures(root, "again")["psnr_changed"] == before


def test_source_frames_matter_only_to_metrics_that_need_them(root, capsys):
    source = next((root / "EgoGen/ego4d.fho/val/clip-00b7/3").glob("*300.jpg"))
    source.write_bytes(b"no picture")
    assert main(arguments(root, "--metrics=psnr")) == 0
    with pytest.raises(EgoGenError, match="1 problems"):
        main(arguments(root, "--metrics=psnr,psnr_changed"))
    assert f"{source}: unreadable image" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", ["ego4d", "epickitchen"])
def test_a_pixel_more_or_less_is_resized_as_released(dataset, tmp_path):
    shutil.copytree(DATA / dataset, tmp_path / dataset)
    root = tmp_path / dataset
    gt_path = next((root / "EgoGen").glob("*/val_gt_for_metric"))
    pair = find_pairs(root / "run/images", gt_path, root / f"{dataset}_val.json").pairs[0]
    width, height = Image.open(pair.target).size
    image = Image.open(pair.generated).convert("RGB").resize((width - 1, height))
    image.save(pair.generated.with_suffix(".png"))
    if pair.generated.suffix != ".png":
        pair.generated.unlink()
    argv = [f"--dataset={dataset}", f"--gen_path={root / 'run/images'}", f"--gt_path={gt_path}"]
    assert main([*argv, f"--edit_file={root / f'{dataset}_val.json'}", "--metrics=psnr"]) == 0
    with open(root / "run/metric/per_sample.csv", newline="") as file:
        value = next(float(r["psnr"]) for r in csv.DictReader(file) if r["frame"] == pair.key)
    wide, target = (np.asarray(x, np.float64) / 255 for x in (image, Image.open(pair.target)))
    # Bilinear on the tensor, pixel centres aligned, not antialiased.
    places = np.clip((np.arange(width) + 0.5) * (width - 1) / width - 0.5, 0, width - 2)
    low = np.minimum(places.astype(int), width - 3)
    share = (places - low)[None, :, None]
    resized = wide[:, low] * (1 - share) + wide[:, low + 1] * share
    assert value == pytest.approx(-10 * np.log10(np.mean((resized - target) ** 2)), abs=1e-4)


def test_problems_of_the_action_file_are_listed_with_the_others(root, capsys):
    content = json.loads((root / "ego4d_val.json").read_text())
    del content["clip-00b7"]["3"]["llava_forecast_finetune"]
    content["clip-01c2"]["twin"] = content["clip-01c2"]["0"]
    (root / "ego4d_val.json").write_text(json.dumps(content))
    (root / "run/images/clip-000a/0/frame_0000001111.jpg").unlink()
    with pytest.raises(EgoGenError, match=r"fid: needs pt_inception.* \| .*3 problems"):
        main(arguments(root, "--metrics=psnr,fid", f"--weights={root}"))
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("problem: ")]
    assert len(lines) == 3
    assert "entry clip-00b7/3: field 'llava_forecast_finetune' is missing" in lines[0]
    assert "target of entries clip-01c2/0 and clip-01c2/twin" in lines[1]
    assert main(arguments(root, "--metrics=psnr", "--allow-missing")) == 0
    found = figures(root)
    assert (found["samples"], found["problems"]) == (4, 3)


def test_only_what_changed_inputs_touch_is_measured_again(root, capsys, monkeypatch):
    main(arguments(root, "--metrics=psnr,psnr_changed"))
    before = figures(root)
    source = next((root / "EgoGen/ego4d.fho/val/clip-00b7/3").glob("*300.jpg"))
    Image.open(source).point(lambda value: value // 2).save(source)
    capsys.readouterr()
    main(arguments(root, "--metrics=psnr,psnr_changed"))
    printed = capsys.readouterr().out
    assert "kept: PSNR (psnr)" in printed and "kept: PSNR of" not in printed
    assert figures(root)["psnr_changed"] != before["psnr_changed"]
    # A part that was damaged, or that another version wrote, is measured again.
    for damage in ('{"format": 1', '{"format": 0}', "[]"):
        (root / "run/metric" / PARTS / "psnr.json").write_text(damage)
        main(arguments(root, "--metrics=psnr"))
        assert "kept" not in capsys.readouterr().out
        assert figures(root)["psnr"] == before["psnr"]


def test_texts_belong_to_what_metrics_of_texts_are_made_from(root, monkeypatch, capsys):
    calls = []

    def count(self, pairs, settings):
        calls.append(self.name)
        values = [float(len(pair.entry.texts[settings.llava_key])) for pair in pairs]
        document = {"clip": {"0": " a cup"}}
        return Measured({"words": sum(values)}, {}, documents={"words.json": document})

    metric = Metric("blip_base", "Words", "none", needs_text=True, documents=("words.json",))
    monkeypatch.setitem(METRICS, "blip_base", metric)
    monkeypatch.setattr(Metric, "measure", count)
    for _ in range(2):
        main(arguments(root, "--metrics=blip_base"))
    assert len(calls) == 1
    (root / "run/metric/words.json").unlink()
    main(arguments(root, "--metrics=blip_base"))  # kept: its caption file too
    assert len(calls) == 1 and (root / "run/metric/words.json").exists()
    main(arguments(root, "--metrics=blip_base", "--llava_key=action"))
    assert len(calls) == 2


TOY = """
from PIL import ImageStat
from egogen.frames import read_rgb
from metrics.images import read_ahead
from metrics.registry import Measured, finite_mean

def grey(pair):
    first, second = (read_rgb(path).convert("L") for path in (pair.generated, pair.target))
    return abs(ImageStat.Stat(first).mean[0] - ImageStat.Stat(second).mean[0])

def measure(pairs, settings):
    values = list(read_ahead(grey, pairs, settings, "toy"))
    return Measured({"toy": finite_mean(values)}, {"toy": values})
"""


def test_a_new_metric_is_one_module_and_one_row(root, tmp_path, monkeypatch, capsys):
    (tmp_path / "toy_metric.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    row = Metric("toy", "Toy", "toy_metric.measure", {"toy": Key("Grey, apart", "toy", "", False)})
    monkeypatch.setitem(METRICS, row.name, row)
    monkeypatch.setitem(KEYS, "toy", row.keys["toy"])
    argv = arguments(root, f"--out={root / 'run/metric'}", "--metrics=toy,psnr")
    assert main(argv) == 0
    found = figures(root)
    assert found["toy"] > 0 and len(found["toy_ci95"]) == 2
    assert main(argv) == 0 and "kept: Toy (toy)" in capsys.readouterr().out
    copied = [f"--source-path={root / 'EgoGen/ego4d.fho/val'}", f"--out={root / 'copied/images'}"]
    copy_source.main([*copied, f"--edit_file={root / 'ego4d_val.json'}"])
    main(arguments(root, f"--gen_path={root / 'copied/images'}", "--metrics=toy,psnr"))
    capsys.readouterr()
    assert compare.main([str(root / "copied"), str(root / "run"), f"--out={tmp_path}"]) == 0
    assert "Grey, apart \N{DOWNWARDS ARROW}" in capsys.readouterr().out
    argv = ["--dataset=ego4d", f"--dataset-root={root}", f"--gen_path={root / 'run/images'}"]
    assert report.main([*argv, "--rank-by=toy", f"--against={root / 'copied'}"]) == 0
    page = (root / "run/report/report.html").read_text(encoding="utf-8")
    assert f">{found['toy']:.2f}</td>" in page and page.count("Grey, apart") > 8


def test_a_killed_run_goes_on_with_the_metric_it_was_at(root):
    """Killed while the second metric waits for a picture; the first one's values are on disk."""
    script = (
        "import sys, time\n"
        "from metrics.measures import psnr\n"
        "psnr._changed = lambda pair: time.sleep(600)\n"
        "from metrics.all_metrics_in_one import main\n"
        "main(sys.argv[1:])\n"
    )
    argv = arguments(root, "--metrics=psnr,psnr_changed")
    process = subprocess.Popen([sys.executable, "-c", script, *argv], cwd=PROJECT)
    part = root / "run/metric" / PARTS / "psnr.json"
    deadline = time.monotonic() + 300
    while not (root / "run/metric/inputs.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert part.exists() and list(figures(root)) == [
        "samples",
        "problems",
        "psnr",
        "psnr_pooled",
    ] + [
        "psnr_ci95",
        "psnr_pooled_ci95",
    ]
    stamp = part.stat().st_mtime_ns
    assert main(argv) == 0
    assert part.stat().st_mtime_ns == stamp
    main(arguments(root, "--metrics=psnr,psnr_changed", f"--out={root / 'undisturbed'}"))
    assert figures(root) == figures(root, "undisturbed")


def test_reference_features_are_kept_until_a_frame_changes(root, tmp_path, capsys):
    weights = tmp_path / "weights/network.pth"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    computed = []

    def compute():
        computed.append(1)
        return np.arange(12.0).reshape(6, 2) / 3

    def kept():
        gt_path = root / "EgoGen/ego4d.fho/val_gt_for_metric"
        pairs = find_pairs(root / "run/images", gt_path, root / "ego4d_val.json").pairs
        return frechet.reference_features(pairs, weights, "cpu", compute)

    first, second = kept(), kept()
    assert len(computed) == 1
    np.testing.assert_array_equal(second, np.float32(first))
    stored = next((weights.parent / "fid_reference").iterdir())
    stored.write_bytes(stored.read_bytes()[:-3])
    kept()
    assert len(computed) == 2
    frame = root / "EgoGen/ego4d.fho/val_gt_for_metric" / FRAME
    Image.open(frame).point(lambda value: value // 2).save(frame)
    kept()
    assert len(computed) == 3
    weights.write_bytes(b"others!")
    kept()
    assert len(computed) == 4
    shutil.rmtree(weights.parent / "fid_reference")
    (weights.parent / "fid_reference").write_text("in the way")
    kept()
    assert len(computed) == 5 and "not kept for the next run" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more", ["--batch-size=0", "--workers=-1", "--device=none", "--device=xpu"]
)
def test_settings_that_cannot_be_are_refused_before_any_frame_is_read(root, more):
    shutil.rmtree(root / "run")
    with pytest.raises(EgoGenError, match=more.partition("=")[0]):
        main(arguments(root, more))


def test_copying_gains_nothing_over_copying(root):
    argv = [f"--source-path={root / 'EgoGen/ego4d.fho/val'}", f"--out={root / 'copied/images'}"]
    copy_source.main([*argv, f"--edit_file={root / 'ego4d_val.json'}"])
    names = "--metrics=psnr,psnr_changed,psnr_kept"
    argv = arguments(root, f"--gen_path={root / 'copied/images'}", names)
    assert main(argv) == 0
    found = figures(root, "copied/metric")
    assert found["samples"] == 6 and found["psnr_changed_gain"] == pytest.approx(0, abs=1e-9)
    assert found["psnr_changed_gain_ci95"] == pytest.approx([0, 0], abs=1e-9)


def test_a_source_frame_is_copied_byte_by_byte_whatever_the_case_of_its_suffix(tmp_path):
    entry = {"image_0": "clip/0/a.JPG", "image_1": "clip/0/b.jpg", "action": "#C C lifts"}
    (tmp_path / "val/clip/0").mkdir(parents=True)
    Image.effect_noise((16, 12), 90).save(tmp_path / "val" / entry["image_0"], quality=60)
    (tmp_path / "val.json").write_text(json.dumps({"clip": {"0": entry}}))
    copy_source.copy_sources(tmp_path / "val", tmp_path / "val.json", tmp_path / "copied")
    files = tmp_path / "val" / entry["image_0"], tmp_path / "copied" / entry["image_1"]
    assert len({file.read_bytes() for file in files}) == 1


def test_a_target_of_an_unknown_suffix_is_refused(root):
    content = json.loads((root / "ego4d_val.json").read_text())
    content["clip-000a"]["0"]["image_1"] = "clip-000a/0/frame.xyz"
    (root / "ego4d_val.json").write_text(json.dumps(content))
    argv = [f"--source-path={root / 'EgoGen/ego4d.fho/val'}", f"--out={root / 'copied'}"]
    with pytest.raises(EgoGenError, match=r"entry clip-000a/0: image_1 .*xyz.*expected .jpg"):
        copy_source.main([*argv, f"--edit_file={root / 'ego4d_val.json'}"])


def test_the_evaluation_knows_no_network():
    """Nothing heavy is imported before the frames were checked."""
    code = (
        "import sys; import metrics.all_metrics_in_one\n"
        "heavy = {'transformers', 'open_clip', 'torchmetrics', 'pytorch_fid'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
