"""The command on the golden folders with all networks at full size (minutes; 2 GB of files)."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from golden_weights import DATA, state_dict
from offline import offline  # noqa: F401 (no hidden downloads)
from safetensors.torch import save_file
from word_piece_folder import write_vocabulary

from metrics import all_metrics_in_one
from metrics.measures import egovlp
from metrics.registry import KEYS, METRICS

FOLDER = {"ego4d": "ego4d.fho", "epickitchen": "epickitchen"}
EGOVLP = {"ego4d": ("egovlp_4f", "egovlp.pth"), "epickitchen": ("egovlp_16f", "epic_mir_plus.pth")}

pytestmark = pytest.mark.timeout(7200)  # full-size networks on a busy machine
FULL_SIZE = pytest.mark.slow("metrics by full-size networks")


def golden(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


class Evaluation:
    """The command on a copy of a golden folder; weights exist only while they are needed."""

    def __init__(self, dataset: str, folder: Path):
        self.dataset, self.root, self.weights = dataset, folder / dataset, folder / "weights"
        shutil.copytree(DATA / dataset, self.root)
        for name in ("distilbert-base-uncased", "bert-base-uncased"):
            write_vocabulary(self.weights / name)

    def save(self, name: str, state: dict) -> None:
        path = self.weights / name
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)

    def __call__(self, names: str, edit_file: Path | None = None) -> None:
        command = [
            f"--dataset={self.dataset}",
            "--llava_key=llava_forecast_finetune",
            f"--gen_path={self.root / 'run/images'}",
            f"--gt_path={self.root / 'EgoGen' / FOLDER[self.dataset] / 'val_gt_for_metric'}",
            f"--edit_file={edit_file or self.root / f'{self.dataset}_val.json'}",
            f"--weights={self.weights}",
            f"--metrics={names}",
            "--batch-size=3",
            "--device=cpu",
        ]
        assert all_metrics_in_one.main(command) == 0

    def result(self, name: str):
        return json.loads((self.root / "run/metric" / name).read_text())

    def column(self, key: str) -> dict[str, float]:
        with open(self.root / "run/metric/per_sample.csv", newline="") as file:
            return {row["frame"]: float(row[key]) for row in csv.DictReader(file)}

    def agrees(self, key: str, expected: dict, **tolerance) -> None:
        """Frame by frame and in the mean."""
        assert self.column(key) == pytest.approx(expected["per_image"], **tolerance)
        assert self.result("metric.json")[key] == pytest.approx(expected["mean"], **tolerance)


def measure_pictures(run: Evaluation) -> None:
    """Everything but EgoVLP and BLIP."""
    run.save("pt_inception-2015-12-05-6726825d.pth", state_dict("inception"))
    run.save("squeezenet1_1-b8a52dc0.pth", state_dict("squeezenet1_1", r"features\."))
    run.save("vgg16-397923af.safetensors", state_dict("vgg16", r"features\."))
    run.save("alexnet-owt-7be5be79.pth", state_dict("alexnet", r"features\."))
    run("fid,psnr,lpips")
    dataset = run.dataset
    exact = golden("fid")[dataset]["exact"]["fid"]
    assert run.result("metric.json")["fid"] == pytest.approx(exact, rel=1e-4)
    run.agrees("psnr", golden("psnr")[dataset], abs=1e-4)
    for kind in ("squeeze", "vgg", "alex"):
        figures = golden("lpips")[dataset]
        run.agrees(f"lpips_{kind}", figures["as_released"][kind], rel=1e-4)
        run.agrees(f"lpips_{kind}_scaled", figures["scaled_to_minus1_1"][kind], rel=1e-4)
    run.save("ViT-L-14.safetensors", state_dict("clip_vit_l14_visual"))
    run("clip")
    run.agrees("clip_image_sim", golden("clip")[dataset], abs=1e-4)


def check_egovlp(run: Evaluation) -> None:
    figures = golden(f"egovlp_{run.dataset}")
    run.agrees("egovlp_image_sim", figures["no_context"], abs=1e-4)
    run.agrees("egovlp_plus_image_sim", figures["with_context"], abs=1e-4)


@pytest.fixture
def run(request, tmp_path):
    yield Evaluation(request.param, tmp_path)
    egovlp.video_network.cache_clear()
    egovlp.text_tower.cache_clear()
    shutil.rmtree(tmp_path)  # gigabytes


@FULL_SIZE
@pytest.mark.parametrize("run", FOLDER, indirect=True)
def test_pictures(run):
    measure_pictures(run)


@FULL_SIZE
@pytest.mark.parametrize("run", ["ego4d"], indirect=True)
def test_ego4d_videos(run):
    run.save("egovlp.pth", {"state_dict": state_dict("egovlp_4f", "video_model|vid_proj")})
    run("egovlp,egovlp_plus")
    check_egovlp(run)


@FULL_SIZE
@pytest.mark.parametrize("run", ["ego4d"], indirect=True)
@pytest.mark.parametrize(
    "kind,name,file,count",
    [
        ("base", "model_base_caption_capfilt_large.pth", "blip.json", 3),
        ("large", "model_large_caption.pth", "blip-l.json", 1),
    ],
)
def test_ego4d_captions(run, kind, name, file, count):
    run.save("egovlp.pth", state_dict("egovlp_4f", "text_model|txt_proj"))
    run.save(name, {"model": state_dict(f"blip_{kind}")})
    run(f"blip_{kind}")
    document = run.result(file)
    entries = json.loads((run.root / "ego4d_val.json").read_text())
    assert {clip: list(actions) for clip, actions in document.items()} == {
        clip: list(actions) for clip, actions in entries.items()
    }
    figures = golden(f"blip_{kind}")
    captions = figures["beam"]["captions"]
    for frame, caption in zip(figures["images"][:count], captions, strict=True):
        clip, action, _ = frame.split("/")
        assert document[clip][action] == caption
    key = f"blip_{kind}_egovlp_sim"
    values = run.column(key)
    # Frames with one caption and other descriptions differ, so the right texts were compared.
    assert len(set(values.values())) == 6 and all(-1 <= value <= 1 for value in values.values())
    mean = sum(values.values()) / 6
    assert run.result("metric.json")[key] == pytest.approx(mean, abs=1e-6)


@FULL_SIZE
@pytest.mark.parametrize("run", ["epickitchen"], indirect=True)
def test_epickitchen_videos_of_the_two_golden_pairs(run):
    frames = golden("egovlp_epickitchen")["no_context"]["per_image"]
    entries = json.loads((run.root / "epickitchen_val.json").read_text())
    kept = {
        clip: {name: entry for name, entry in actions.items() if entry["image_1"] in frames}
        for clip, actions in entries.items()
    }
    edit_file = run.root / "two.json"
    edit_file.write_text(json.dumps(kept))
    manifest, name = EGOVLP["epickitchen"]
    run.save(name, state_dict(manifest, "video_model|vid_proj"))
    run("egovlp,egovlp_plus", edit_file)
    check_egovlp(run)


def test_released_keys_order_and_files():
    outputs = golden("outputs")
    assert outputs["metric.json"]["keys"].keys() <= KEYS.keys()
    released = ["fid", "psnr", "lpips_squeeze", "clip", "egovlp", "egovlp_plus", "blip_base"]
    order = [name for name in METRICS if name in released or name == "blip_large"]
    assert order == [*released, "blip_large"]
    assert METRICS["blip_base"].documents == ["blip.json"]
    assert METRICS["blip_large"].documents == ["blip-l.json"]
