"""`LegoPipeline.scheduler` decides the sampler, and folders that diffusers alone loads."""

import inspect
import json
import re
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_loading_utils import _get_custom_components_and_folders
from PIL import Image
from small_model import RESOLUTION
from small_pipeline import one_input, small_pipe

from egogen import EgoGenError
from ldm.pipeline import LegoPipeline
from ldm.sampling import SAMPLERS, sampler_of, scheduler_for
from ldm.schedule import NoiseSchedule
from ldm.schema import ModelParams

NEAR = dict(atol=1e-4, rtol=1e-4)  # other attention kernels and batch sizes round differently


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_class_of_the_scheduler_chooses_the_sampler(own, name):
    kind = SAMPLERS[name].scheduler
    own.scheduler = kind.from_config(own.scheduler.config)
    call = one_input(num_inference_steps=4)
    chosen = own(**call).images
    assert torch.equal(chosen, own(**call, sampler=name).images)
    for other in set(SAMPLERS) - {name}:
        assert not torch.equal(chosen, own(**call, sampler=other).images)


@pytest.mark.parametrize("steps", [4, 10, 100])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_scheduler_of_a_row_goes_along_its_sigmas(name, steps):
    schedule, recorded = NoiseSchedule(), scheduler_for(ModelParams())
    row, config = SAMPLERS[name], recorded.config
    theirs = row.scheduler.from_config(config, **row.settings)
    theirs.set_timesteps(steps)
    sigmas = row.sigmas(schedule, steps)
    assert sampler_of(theirs) == name and len(theirs.timesteps) == steps
    t = schedule.timestep(sigmas[:-1])
    assert (t - theirs.timesteps).abs().max() < 0.51  # which diffusers rounds
    if hasattr(theirs, "sigmas"):
        torch.testing.assert_close(sigmas, theirs.sigmas, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_diffusers_itself_samples_with_the_scheduler_of_a_folder(tmp_path, prediction):
    """Its loop over scale_model_input and step, without a conditioner, from the same noise."""
    place = f"model.params.parameterization={prediction}"
    own = small_pipe(tmp_path, place, variant="none")
    own.save_pretrained(tmp_path / "saved")
    kind = diffusers.DiffusionPipeline.load_config(tmp_path / "saved")["scheduler"][1]
    scheduler = getattr(diffusers, kind).from_pretrained(tmp_path / "saved", subfolder="scheduler")
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    call = one_input(image_features=None, text_features=None, output_type="latent")
    call |= {"guidance_scale": 1.0, "image_guidance_scale": 1.0, "num_inference_steps": 4}
    wanted = own(**call, latents=start, generator=torch.Generator().manual_seed(8)).images
    model, generator = own.model, torch.Generator().manual_seed(8)
    pixels = torch.from_numpy(np.asarray(call["image"].resize((RESOLUTION,) * 2, 1))).permute(
        2, 0, 1
    )
    scheduler.set_timesteps(4)
    x = start * scheduler.init_noise_sigma
    with torch.no_grad():
        image = model.image_latents(model.encode_moments(pixels[None] / 127.5 - 1))
        context = model.encode_text([call["description"]])
        for t in scheduler.timesteps:
            x_in = torch.cat([scheduler.scale_model_input(x, t), image], dim=1)
            predicted = own.unet(x_in, t, context).sample
            options = (
                {"generator": generator}
                if "generator" in inspect.signature(scheduler.step).parameters
                else {}
            )
            x = scheduler.step(predicted, t, x, **options).prev_sample
    # Sigmas between two timesteps: diffusers interpolates, or rounds to a timestep, otherwise.
    assert (x - wanted).abs().max() < (0.02 if prediction == "x0" else 0.002)


REFUSED = {
    "EulerDiscreteScheduler, expected one of EulerAncestral": ("EulerDiscreteScheduler", {}),
    "LCMScheduler": ("LCMScheduler", {}),
    "FlowMatchEulerDiscreteScheduler": ("FlowMatchEulerDiscreteScheduler", {}),
    "beta_schedule='linear'": ("EulerAncestralDiscreteScheduler", {"beta_schedule": "linear"}),
    "rescale_betas_zero_snr=True": ("DDIMScheduler", {"rescale_betas_zero_snr": True}),
    "timestep_spacing='leading'": (
        "EulerAncestralDiscreteScheduler",
        {"timestep_spacing": "leading"},
    ),
    "timestep_spacing='trailing'": (
        "EulerAncestralDiscreteScheduler",
        {"timestep_spacing": "trailing"},
    ),
    "prediction_type='flow_prediction'": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction"},
    ),
    "trained_betas": ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}),
    "use_karras_sigmas=False": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
    "solver_order=3": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "algorithm_type='sde-dpmsolver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "clip_sample=True": ("DDIMScheduler", {"clip_sample": True}),
}


@pytest.mark.parametrize("told", REFUSED)
def test_a_scheduler_that_would_not_be_honoured_is_refused_by_name(own, told):
    name, settings = REFUSED[told]
    config = own.scheduler.config
    own.scheduler = getattr(diffusers, name).from_config(config, **settings)
    with pytest.raises(EgoGenError, match=f"^scheduler: .*{told}"):
        own(**one_input())


def test_sampler_overrides_the_class_but_not_the_schedule(own, usual):
    config = own.scheduler.config
    own.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    assert torch.equal(own(**one_input(sampler="euler_ancestral")).images, usual)
    own.scheduler = diffusers.DDIMScheduler.from_config(config, beta_schedule="linear")
    with pytest.raises(EgoGenError, match="beta_schedule='linear'"):
        own(**one_input(sampler="euler_ancestral"))
    own.scheduler = diffusers.DDIMScheduler.from_config(config, beta_end=0.02)
    changed = own(**one_input(sampler="euler_ancestral")).images
    assert not torch.allclose(changed, usual, **NEAR)  # its numbers are used


def test_the_scheduler_is_kept_with_the_folder(own, usual, tmp_path):
    own.scheduler = diffusers.UniPCMultistepScheduler.from_config(own.scheduler.config)
    chosen = own(**one_input()).images
    own.save_pretrained(tmp_path / "saved")
    loaded = LegoPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(**one_input()).images, chosen)
    loaded.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(
        loaded.scheduler.config
    )
    assert torch.equal(loaded(**one_input()).images, usual)


def test_diffusers_alone_loads_a_folder_as_its_card_says(own, usual, tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    own.save_pretrained(folder)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        diffusers.DiffusionPipeline.from_pretrained(folder)
    again = tmp_path / "again"
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    loaded.save_pretrained(again)
    for path in (folder, again):
        for kind, options in (
            (LegoPipeline, {}),
            (
                diffusers.DiffusionPipeline,
                {"trust_remote_code": True},
            ),
        ):
            loaded = kind.from_pretrained(path, **options)
            assert type(loaded).__name__ == "LegoPipeline"
            assert torch.equal(loaded(**one_input()).images, usual)
    card = (again / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    call = one_input()
    monkeypatch.chdir(again)
    call["image"].save("photo.jpg")
    for name in ("image", "text"):
        np.save(f"{name}.npy", call[f"{name}_features"])
    exec(code.replace(").images", ", num_inference_steps=2, height=48).images"), {})
    assert Image.open("frame.jpg").size == (64, 48)


def test_a_folder_at_the_hub_has_what_diffusers_looks_for(pipe, monkeypatch, tmp_path):
    """All of the library's own code but what talks to the network."""

    class Generated:
        repo_id = "me/lego"

        def save(self, path):
            Path(path).write_text("This model card has been automatically generated.")

    def upload(*, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / "hub")

    for name in ("create_repo", "load_or_create_model_card", "populate_model_card"):
        monkeypatch.setattr(f"diffusers.utils.hub_utils.{name}", lambda *_, **__: Generated())
    monkeypatch.setattr("diffusers.utils.hub_utils.upload_folder", upload)
    pipe.push_to_hub("me/lego")
    assert '"me/lego", trust_remote_code=True' in (tmp_path / "hub" / "README.md").read_text()
    index = json.loads((tmp_path / "hub" / "model_index.json").read_text())
    files = {str(p.relative_to(tmp_path / "hub")) for p in (tmp_path / "hub").rglob("*.*")}
    assert f"{index['_class_name'][0]}.py" in files
    found, folders = _get_custom_components_and_folders("me/lego", index, files)
    assert found == {"conditioner": "ldm.conditioning"} and "unet" in folders


def test_a_card_names_the_features_that_are_used(tmp_path):
    for variant, named in ("none", set()), ("text", {"text_features"}):
        small_pipe(tmp_path, variant=variant).save_pretrained(tmp_path / variant)
        card = (tmp_path / variant / "README.md").read_text()
        assert set(re.findall(r"\w+_features", card)) == named


def test_a_folder_of_before_still_loads_and_samples(own, usual, tmp_path):
    """Its index names the class alone, and its scheduler only what Euler ancestral has."""
    folder = tmp_path / "saved"
    own.save_pretrained(folder)
    index = folder / "model_index.json"
    text, count = re.subn(
        r'"_class_name": \[.*?\]',
        '"_class_name": "LegoPipeline"',
        index.read_text(),
        flags=re.DOTALL,
    )
    assert count == 1
    index.write_text(text)
    (folder / "lego_pipeline.py").unlink()
    (folder / "conditioner" / "ldm.conditioning.py").unlink()
    (folder / "README.md").unlink()
    old = diffusers.EulerAncestralDiscreteScheduler(
        1000, 0.00085, 0.012, "scaled_linear", timestep_spacing="linspace"
    )
    old.save_pretrained(folder / "scheduler")
    loaded = LegoPipeline.from_pretrained(folder)
    assert torch.equal(loaded(**one_input()).images, usual)
    loaded.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(loaded.scheduler.config)
    wanted = own(**one_input(sampler="dpmpp_2m")).images
    assert torch.equal(loaded(**one_input()).images, wanted)


def test_ways_to_load_and_to_share(own, usual, tmp_path):
    own.save_pretrained(tmp_path / "saved", variant="fp16")
    for options in (
        {"variant": "fp16"},
        {"variant": "fp16", "use_safetensors": True, "low_cpu_mem_usage": False},
        {"variant": "fp16", "device_map": "balanced", "max_memory": {"cpu": "4GB"}},
    ):
        loaded = LegoPipeline.from_pretrained(tmp_path / "saved", **options)
        assert torch.equal(loaded(**one_input()).images, usual)
    for made in (LegoPipeline.from_pipe(own), LegoPipeline(**own.components)):
        assert made.unet is own.unet and torch.equal(made(**one_input()).images, usual)
    half = own.to(torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    assert (half(**one_input()).images - usual).abs().mean() < 0.1 * usual.std()
    mixed = {"vae": torch.float32, "default": torch.bfloat16}
    loaded = LegoPipeline.from_pretrained(tmp_path / "saved", variant="fp16", torch_dtype=mixed)
    assert (loaded(**one_input()).images - usual).abs().mean() < 0.1 * usual.std()
