"""Guided sampling of the tiny released model, step by step and end to end, gives the released
numbers and pictures (tolerances as stated with them).
"""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from released_model import DATA, SETTINGS, check, inputs, pixels, tiny_model

from egogen.features.store import write_feature
from egogen.jobs import floor_chunk
from ldm import generate
from ldm.conditioning import FeatureConditioner, pad_rows
from ldm.config import GenerateConfig, load_config
from ldm.images import to_image
from ldm.sampling import (
    Conditioning,
    ancestral_step_sizes,
    guidance_branches,
    guided_denoiser,
    sample_euler_ancestral,
)
from ldm.schedule import NoiseSchedule

GOLDEN = np.load(DATA / "sampling.npz")
STEPS, TEXT, IMAGE = SETTINGS["steps"], SETTINGS["txt"], SETTINGS["im"]


def test_schedule_in_sigmas():
    schedule = NoiseSchedule()
    np.testing.assert_allclose(schedule.sigmas, GOLDEN["all_sigmas"], rtol=1e-5)
    sigma = torch.from_numpy(GOLDEN["t_of_sigma/sigma"])
    np.testing.assert_allclose(
        schedule.timestep(sigma), GOLDEN["t_of_sigma/t"], rtol=1e-5, atol=1e-5
    )
    sigma = torch.from_numpy(GOLDEN["sigma_of_t/sigma"])
    np.testing.assert_allclose(
        schedule.timestep(sigma), GOLDEN["sigma_of_t/t"], rtol=1e-5, atol=1e-2
    )


def test_ancestral_step_sizes():
    sigmas = NoiseSchedule().sampling_sigmas(STEPS)
    down, up = ancestral_step_sizes(sigmas[:-1], sigmas[1:])
    np.testing.assert_allclose(down, GOLDEN["ancestral/sigma_down"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(up, GOLDEN["ancestral/sigma_up"], rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_guided_denoiser():
    model, z = tiny_model(), 3.7 * inputs("cfg.z", 1, 4, 32, 32)
    conditioning = Conditioning(
        inputs("cfg.cond_context", 1, 410, 768),
        inputs("cfg.uncond_context", 1, 410, 768),
        inputs("cfg.c_concat", 1, 4, 32, 32),
    )
    # D = D_i + s_t (D_c - D_i) at image scale 1, so that scales of 1 and 0 single out a branch.
    scales = {"denoised": (TEXT, IMAGE), "branch_cond": (1, 1), "branch_image_only": (0, 1)}
    scales["branch_uncond"] = (0, 0)
    for key, pair in scales.items():
        guidance = guidance_branches(conditioning, *pair)
        predict = model.denoiser.hold(guidance.contexts, guidance.rows)
        denoise = guided_denoiser(predict, model.schedule, guidance)
        check(denoise(z, torch.tensor(SETTINGS["sigma"])), GOLDEN, f"cfg/{key}", 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("case", ["full_context", "text_only"])
def test_trajectory(case):
    model = tiny_model()
    if case == "text_only":
        model = copy.copy(model)
        model._modules = {**model._modules, "conditioner": FeatureConditioner([])}
    text = pad_rows(inputs("cond.llava_text.5", 5, 5120), 77)[None]
    features = {"image": inputs("cond.llava_image", 256, 5120)[None], "text": text}
    conditioning = model.conditioning(pixels("cond.image"), [SETTINGS["prompts"][2]], features)
    assert conditioning.context.shape[1] == (410 if case == "full_context" else 77)
    guidance = guidance_branches(conditioning, TEXT, IMAGE)
    sigmas = model.schedule.sampling_sigmas(STEPS)

    def noise(index):
        return inputs(f"sample.noise.{index}", 1, 4, 32, 32)

    predict = model.denoiser.hold(guidance.contexts, guidance.rows)
    denoise = guided_denoiser(predict, model.schedule, guidance)
    places = []  # x before each step, and what is made of it

    def follow(x, sigma):
        places.append((x, denoise(x, sigma)))
        return places[-1][1]

    latents = sample_euler_ancestral(follow, noise(0), sigmas, noise)
    assert len(places) == STEPS
    check(places[0][0], GOLDEN, f"{case}/x_start", 1e-5, 1e-5)
    for step, x in enumerate([*(x for x, _ in places[1:]), latents]):
        check(x, GOLDEN, f"{case}/x_after/{step}", 5e-3, 1e-3)
    for step in (0, STEPS - 1):
        check(places[step][1], GOLDEN, f"{case}/denoised/{step}", 5e-3, 1e-3)
    check(model.decode(latents)[0], GOLDEN, f"{case}/decoded", 5e-3)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """The small released dataset with features of full width -> (config, entries' facts)."""
    root = tmp_path_factory.mktemp("e2e")
    facts = json.loads((DATA / "pictures.json").read_text())["end_to_end"]
    actions = json.loads((DATA / "dataset" / "edits.json").read_text())
    for fact in facts:
        image_0 = actions[fact["clip"]][fact["action"]]["image_0"]
        for kind, rows in (("image", 256), ("text", fact["n_text_tokens"])):
            values = inputs(f"feature_{kind}:{image_0}", rows, 5120).numpy()
            write_feature(root / kind, image_0, values)
    overrides = [
        "as_released=true",
        f"data.metadata_path={DATA}/dataset/metadata.json",
        f"data.params.data_path={DATA}/dataset/frames",
        f"data.params.edit_path={DATA}/dataset/edits.json",
        f"data.params.additional_cond_path.llava_image={root}/image",
        f"data.params.additional_cond_path.llava_text={root}/text",
        f"inference.steps={STEPS}",
        "inference.batch_size=5",
    ]
    return load_config(GenerateConfig, [], overrides), facts


class GoldenNoise:
    """In place of the process's stream: the draws of the golden run, by place in the process."""

    def __init__(self, *_):
        pass

    def of(self, places):
        return lambda k: torch.cat([inputs(f"e2e.{p}.noise.{k}", 1, 4, 32, 32) for p in places])


def test_end_to_end(entries, monkeypatch, tmp_path):
    """The whole command as released: five entries, to JPEG files."""
    config, facts = entries
    golden, seen = np.load(DATA / "pictures.npz"), {}

    def picture_of(x, size, height, encoding):
        picture = to_image(x, size, height, encoding)
        seen[len(seen)] = (x, np.asarray(picture))
        return picture

    monkeypatch.setattr(generate, "load_model", lambda *_: copy.deepcopy(tiny_model()))
    monkeypatch.setattr(generate, "ProcessNoise", GoldenNoise)
    monkeypatch.setattr(generate, "to_image", picture_of)
    ckpt = tmp_path / "tiny.ckpt"
    ckpt.write_bytes(b"stands for weights")
    assert generate.generate_chunk(config, str(ckpt), 1, 1, torch.device("cpu")) == []
    for k, fact in enumerate(facts):
        decoded, picture = seen[k]
        check(decoded, golden, f"e2e/{k}/decoded", 5e-3)
        assert list(picture.shape) == fact["shape"]
        flat = picture.reshape(-1)[:: int(golden[f"e2e/{k}/picture/stride"])].astype(int)
        difference = np.abs(flat - golden[f"e2e/{k}/picture"].reshape(-1))
        assert difference.max() <= 2 and (difference <= 1).mean() >= 0.99
    for k in (0, 1):
        expected = np.asarray(Image.open(DATA / "pictures" / f"e2e_{k}.png").convert("RGB"), int)
        assert np.abs(seen[k][1] - expected).max() <= 2
    check_files(tmp_path, facts, [picture for _, picture in seen.values()])


def check_files(root, facts, pictures):
    """Names as released, and the loss of its JPEG quality."""
    released = json.loads((DATA / "pictures.json").read_text())
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*.jpg"))
    assert files == released["end_to_end_files"]
    for fact, picture in zip(facts, pictures, strict=True):
        name = next(f for f in files if f"{fact['clip']}/{fact['action']}/" in f)
        error = np.abs(np.asarray(Image.open(root / name), int) - picture).mean()
        assert error == pytest.approx(released["jpeg_mean_abs_error"][name], rel=0.02)


CHUNKS = json.loads((DATA / "chunks_and_paths.json").read_text())


@pytest.mark.parametrize("case", CHUNKS["chunks"], ids=lambda c: f"{c['n_items']}/{c['n_chunk']}")
def test_released_chunks(case):
    items = list(range(case["n_items"]))
    for k, expected in enumerate(case["ranges_start_stop"], start=1):
        wanted = [] if expected == "empty" else items[slice(*expected)]
        assert floor_chunk(items, case["n_chunk"], k) == wanted


def test_released_output_paths():
    """Ordinary names are as released; a folder that is called ".ckpt" keeps its name here, and a
    suffix is cut as a suffix (released: "model.pth" becomes the folder "mode-e=...", in a folder
    that has the checkpoint's own name).
    """
    for case in CHUNKS["output_paths"]:
        scales = case["scale_img"], 7.5
        folder = generate.run_folder(case["checkpoint"], case["seed"], case["steps"], *scales)
        tail = "/".join(case["image_1_path"].split("/")[-3:])
        expected = case["written_to"]
        if ".ckpt.d" in case["checkpoint"]:
            expected = expected.replace("weights.d", "weights.ckpt.d")
        if case["checkpoint"].endswith(".pth"):
            expected = "logs/model/model-e=0-s=100-si=1.5/images/" + tail
        assert str(folder / "images" / tail) == expected
