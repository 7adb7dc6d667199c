"""A whole tiny run of both stages, as scripts/quickstart.sh makes it, and one frame of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from warm_python import warm_python

ROOT = Path(__file__).parents[1]
VARIANT = "description_image_text"


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Runs a command; its steps run by the same `python`."""
    with warm_python(tmp_path_factory.mktemp("warm")) as python:

        def run(*words):
            line = [*map(str, (python, *words))]
            return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

        yield run


@pytest.fixture(scope="module")
def tiny(call, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "run"
    done = call("mini/run.py", "tiny", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def images_of(out):
    return next((out / "logs" / VARIANT / "checkpoints" / "last").glob("*/images"))


def test_everything_is_there(tiny):
    entries = json.loads((tiny / "described" / "ego4d_val.json").read_text())
    metadata = json.loads((tiny / "data" / "ego4d_metadata.json").read_text())
    for clip, actions in entries.items():
        size = metadata[clip]["width"], metadata[clip]["height"]
        for fields in actions.values():
            assert fields["llava_forecast_finetune"]
            feature = Path(fields["image_0"]).with_suffix(".npy")
            image, text = (
                np.load(tiny / "features" / kind / "val" / feature) for kind in ("image", "text")
            )
            assert image.shape[0] == 256 and image.dtype == text.dtype == np.float16
            assert image.shape[1] == text.shape[1]
            frame = Image.open(images_of(tiny) / fields["image_1"])
            assert frame.size == (round(256 * size[0] / size[1]), 256)
    metric = json.loads((tiny / "metrics" / "metric.json").read_text())
    assert metric["psnr"] > 5
    assert "<html" in (tiny / "report" / "report.html").read_text()
    assert (tiny / "report" / "report.html").read_text().count("data:image/jpeg;base64,") >= 9
    assert list((tiny / "logs" / VARIANT / "samples").glob("*.png"))


def test_a_second_run_does_nothing(call, tiny):
    done = call("mini/run.py", "tiny", "--out", tiny)
    assert done.returncode == 0 and "==" not in done.stdout and "report:" in done.stdout


def test_a_lost_frame_comes_back(call, tiny):
    frame = next(images_of(tiny).rglob("*.jpg"))
    before = frame.read_bytes()
    frame.unlink()
    done = call("mini/run.py", "tiny", "--out", tiny)
    assert done.returncode == 0, done.stderr
    assert frame.read_bytes() == before
    assert "== frames of" in done.stdout and "== training" not in done.stdout
    assert "== oracle on" in done.stdout and "== report" in done.stdout  # what follows is done anew


def test_dataset_check_of_the_run(call, tiny):
    words = ["-m", "egogen.check", tiny / "data", "--dataset", "ego4d", "--split", "val"]
    for kind in ("image", "text"):
        words += [f"--{kind}-features", tiny / "features" / kind / "val"]
    assert call(*words).returncode == 0
    lost = next((tiny / "features" / "text" / "val").rglob("*.npy"))
    content = lost.read_bytes()
    lost.write_bytes(content[:50])
    done = call(*words)
    lost.write_bytes(content)
    assert done.returncode == 1 and lost.name in done.stdout + done.stderr


def photographs(folder):
    """Photographs of every kind that cameras and editors write -> (path, upright size)."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    rgb.save(folder / "turned.jpg", exif=exif)
    for mode, name in (("L", "grey.png"), ("RGBA", "alpha.png"), ("CMYK", "cmyk.jpg")):
        rgb.convert(mode).save(folder / name)
    return {
        "turned.jpg": (60, 90),
        "grey.png": (90, 60),
        "alpha.png": (90, 60),
        "cmyk.jpg": (90, 60),
    }


@pytest.fixture(scope="module")
def one_frame(tiny):
    """The script's main with the tiny models, in this process: they are imported once."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from generate_frame import main

    models = ["--vllm", str(tiny / "vllm"), "--max-new-tokens", "8", "inference.steps=2"]
    models += ["--ldm", str(tiny / "logs" / VARIANT / "checkpoints" / "last.ckpt")]

    def run(image, out, action="pick up the mug", *more):
        words = ["--image", str(image), "--action", action, "--out", str(out), *models, *more]
        return main(words)

    return run


def test_one_frame_from_any_photograph(one_frame, tmp_path, capsys):
    for name, (width, height) in photographs(tmp_path).items():
        out = tmp_path / f"{name}.out.png"
        assert one_frame(tmp_path / name, out) == 0
        assert Image.open(out).size == (round(width / height * 256), 256)
        record = json.loads(out.with_suffix(".json").read_text())
        assert record["action"] == "pick up the mug" and record["description"]
    again = tmp_path / "again.png"
    one_frame(tmp_path / "grey.png", again, "#C C picks up the mug")
    assert again.read_bytes() == (tmp_path / "grey.png.out.png").read_bytes()


def test_one_frame_refuses(one_frame, tiny, tmp_path):
    from egogen import EgoGenError

    photographs(tmp_path)
    photo, out = tmp_path / "grey.png", tmp_path / "none.png"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((tmp_path / "cmyk.jpg").read_bytes()[:300])
    other_stage = str(next((tiny / "vllm").glob("*.safetensors")))
    cases = {
        "broken.jpg: unreadable image": (broken, out),
        "none.jpg: no such image": (tmp_path / "none.jpg", out),
        "names no action": (photo, out, "#C C"),
        "expected a name that ends in": (photo, tmp_path / "none.gif"),
        "is the photograph itself": (photo, photo),
        "did you mean 'inference.steps'": (photo, out, "open jar", "inference.step=3"),
        "expected a released one": (photo, out, "open jar", "--ldm", other_stage),
        "no such folder|expected what --vllm names": (photo, out, "open jar", "--vllm", "/none"),
        "expected a vision-language model|no such file": (
            (photo, out, "open jar", "--vllm", str(tiny / "logs" / VARIANT))
        ),
    }
    for expected, (image, target, *more) in cases.items():
        with pytest.raises(EgoGenError, match=expected):
            one_frame(image, target, *more)
        assert not out.exists() and not out.with_suffix(".json").exists()
