"""What diffusers' users expect of a pipeline, habit by habit: done, or refused in one line.

Restated from the tests that diffusers runs over its own pipelines; what stands in the other
`test_ldm_pipeline*.py` (saving, dtypes, offloading, batches, schedulers) is not repeated here.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderTiny,
    StableDiffusionInstructPix2PixPipeline,
)
from diffusers.callbacks import PipelineCallback
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from small_model import RESOLUTION
from small_pipeline import one_input, two_inputs

from egogen import EgoGenError
from ldm.pipeline import REFUSED, LegoPipeline
from ldm.sampling import SAMPLERS

NEAR = dict(atol=2e-4, rtol=1e-3)  # other batch sizes and kernels round differently


# Images a prompt, and the prompt that is not wanted.


def test_several_images_of_each_prompt(pipe, usual):
    both = pipe(**two_inputs(num_images_per_prompt=3)).images
    assert both.shape == (6, 3, RESOLUTION, RESOLUTION)
    torch.testing.assert_close(both[:1], usual, **NEAR)
    torch.testing.assert_close(both[[0, 3]], pipe(**two_inputs()).images, **NEAR)
    differences = [(a - b).abs().mean() for i, a in enumerate(both) for b in both[:i]]
    assert min(differences) > 0.01
    pil = pipe(**two_inputs(num_images_per_prompt=2, output_type="pil", height=40)).images
    assert [picture.height for picture in pil] == [40] * 4


def test_noise_of_several_images_may_be_given(pipe, usual):
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    call = one_input(num_images_per_prompt=2, sampler="ddim")
    both = pipe(**call, latents=start).images
    for i in range(2):
        alone = pipe(**one_input(sampler="ddim"), latents=start[i : i + 1]).images
        torch.testing.assert_close(both[i : i + 1], alone, **NEAR)
    drawn = [torch.Generator().manual_seed(k) for k in (5, 6)]
    each = pipe(**one_input(num_images_per_prompt=2, generator=drawn)).images
    second = pipe(**one_input(generator=torch.Generator().manual_seed(6))).images
    torch.testing.assert_close(each[1:], second, **NEAR)


def test_a_negative_prompt_stands_in_the_branches_without_the_description(pipe, usual):
    assert torch.equal(pipe(**one_input(negative_prompt="")).images, usual)
    other = pipe(**one_input(negative_prompt="a a b")).images
    assert not torch.allclose(other, usual, **NEAR)
    same = one_input(guidance_scale=1.0, image_guidance_scale=1.0)  # no such branch
    assert torch.equal(pipe(**same, negative_prompt="a a b").images, pipe(**same).images)
    # The description itself, without features in either: guidance by the text changes nothing.
    bare = LegoPipeline(**pipe.components | {"conditioner": None})
    bare.set_progress_bar_config(disable=True)
    call = one_input(image_features=None, text_features=None, negative_prompt="a b")
    strong, weak = (bare(**call, guidance_scale=scale).images for scale in (9.0, 2.0))
    torch.testing.assert_close(strong, weak, **NEAR)
    each = pipe(**two_inputs(negative_prompt=["a a b", ""])).images
    torch.testing.assert_close(each[:1], other, **NEAR)
    torch.testing.assert_close(each[1:], pipe(**one_input(1)).images, **NEAR)
    shared = pipe(**two_inputs(negative_prompt="a a b")).images
    torch.testing.assert_close(shared[:1], other, **NEAR)


@pytest.mark.parametrize("scales, branches", [((1, 1), 1), ((2, 1), 2), ((2, 2), 2), ((3, 2), 3)])
def test_a_branch_that_weighs_nothing_is_not_computed(pipe, scales, branches):
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    text, image = scales
    pipe(**one_input(guidance_scale=text, image_guidance_scale=image))
    hook.remove()
    assert seen == [branches] * 2  # steps


# Callbacks.


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_callback_sees_every_step_and_may_change_the_latents(pipe, sampler):
    seen = []

    def watch(given, step, t, values):
        assert given is pipe and set(values) == {"latents"}
        seen.append((step, float(t), values["latents"].clone()))
        return values

    call = one_input(num_inference_steps=3, output_type="latent", sampler=sampler)
    plain = pipe(**call).images
    assert torch.equal(pipe(**call, callback_on_step_end=watch).images, plain)
    assert [step for step, *_ in seen] == [0, 1, 2] and pipe.num_timesteps == 3
    times = [t for _, t, _ in seen]
    assert times == sorted(times, reverse=True) and 998 <= times[0] <= 999
    assert torch.equal(seen[-1][2], plain)

    def zero_last(given, step, t, values):
        return {"latents": torch.zeros_like(values["latents"])} if step == 2 else None

    assert pipe(**call, callback_on_step_end=zero_last).images.abs().max() == 0

    def nudge_first(given, step, t, values):
        return {"latents": values["latents"] * 1.5} if step == 0 else {}

    assert not torch.allclose(pipe(**call, callback_on_step_end=nudge_first).images, plain, **NEAR)


def test_a_callback_interrupts(pipe, usual):
    seen = []

    def stop(given, step, t, values):
        seen.append(values["latents"])
        given._interrupt = step == 1
        return values

    call = one_input(num_inference_steps=5, output_type="latent")
    found = pipe(**call, callback_on_step_end=stop).images
    assert len(seen) == 2 and pipe.interrupt and torch.equal(found, seen[-1])
    assert torch.equal(pipe(**one_input()).images, usual) and not pipe.interrupt


class Cutoff(PipelineCallback):
    tensor_inputs = ["prompt_embeds"]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        return callback_kwargs


def test_callbacks_that_ask_for_other_tensors_are_refused(pipe):
    told = "callback_on_step_end_tensor_inputs='prompt_embeds': expected one of latents"
    asked = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    for more in (asked, {"callback_on_step_end": Cutoff(cutoff_step_ratio=0.5)}):
        with pytest.raises(EgoGenError, match=told):
            pipe(**one_input(**more))
    wrong = {"callback_on_step_end": lambda *_: {"latents": torch.zeros(1, 2)}}
    with pytest.raises(EgoGenError, match=r"latents: \(1, 2\), expected a tensor \(1, 4, 8, 8\)"):
        pipe(**one_input(**wrong))


# What is refused.


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_with_a_reason(pipe, usual, name):
    with pytest.raises(EgoGenError, match=f"^{name}: (expected|not to be chosen)"):
        pipe(**one_input(**{name: torch.ones(2)}))
    assert torch.equal(pipe(**one_input(**{name: None})).images, usual)  # asks for nothing


BAD = {
    "num_images_per_prompt=0: expected at least 1": {"num_images_per_prompt": 0},
    "num_images_per_prompt=1.5: expected": {"num_images_per_prompt": 1.5},
    "negative_prompt: int, expected a text": {"negative_prompt": 3},
    "negative_prompt: 2 for 1 pictures": {"negative_prompt": ["a", "b"]},
    "seed: 2 for 1 pictures": {"seed": [1, 2], "num_images_per_prompt": 2},
    "generator: 1 for 2 pictures": {
        "generator": [torch.Generator()],
        "num_images_per_prompt": 2,
    },
    r"expected a tensor \(2, 4, 8, 8\)": {
        "latents": torch.zeros(1, 4, 8, 8),
        "num_images_per_prompt": 2,
    },
}


@pytest.mark.parametrize("told", BAD)
def test_wrong_arguments_are_named(pipe, told):
    with pytest.raises(EgoGenError, match=told):
        pipe(**one_input(**BAD[told]))


def test_unknown_arguments_are_a_type_error(pipe):
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_images'"):
        pipe(**one_input(num_images=2))


# Components and shortcuts.


def test_the_shortcuts_of_stable_diffusion_work(own, usual):
    assert isinstance(own, StableDiffusionMixin)
    for shortcut in ("vae_slicing", "vae_tiling", "attention_slicing"):
        for switch in ("enable", "disable"):
            getattr(own, f"{switch}_{shortcut}")()
            if "vae" in shortcut:
                flag = getattr(own.vae, f"use_{shortcut.removeprefix('vae_')}")
                assert flag == (switch == "enable")
            torch.testing.assert_close(own(**one_input()).images, usual, **NEAR)
    own.vae.tile_latent_min_size, own.vae.tile_sample_min_size = 4, 16
    own.enable_vae_tiling()
    tiled = own(**one_input()).images  # tiles are blended: near, not the same
    assert tiled.shape == usual.shape and not torch.equal(tiled, usual)
    own.disable_vae_tiling()
    own.fuse_qkv_projections()
    torch.testing.assert_close(own(**one_input()).images, usual, **NEAR)
    own.unfuse_qkv_projections()
    own.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert own(**one_input()).images.isfinite().all()
    own.disable_freeu()
    assert torch.equal(own(**one_input()).images, usual)


def test_from_pipe_and_back_again(pipe, usual):
    """Through a pipeline of diffusers with the same networks, whose parts are shared."""
    other = StableDiffusionInstructPix2PixPipeline.from_pipe(
        pipe, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    assert other.unet is pipe.unet
    back = LegoPipeline.from_pipe(other, conditioner=pipe.conditioner)
    back.set_progress_bar_config(disable=True)
    assert torch.equal(back(**one_input()).images, usual)
    again = LegoPipeline.from_pipe(pipe)
    assert again.config["ema_updates"] == pipe.config["ema_updates"]
    again.enable_model_cpu_offload(device="cpu")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(**one_input()).images, usual)
    again.remove_all_hooks()


def test_an_optional_component_that_is_missing_stays_so(pipe, tmp_path):
    bare = LegoPipeline(**pipe.components | {"conditioner": None})
    bare.save_pretrained(tmp_path / "saved")
    loaded = LegoPipeline.from_pretrained(tmp_path / "saved")
    call = one_input(image_features=None, text_features=None)
    assert loaded.conditioner is None
    assert torch.equal(loaded(**call).images, bare(**call).images)


def test_saved_in_shards_or_the_old_way(pipe, usual, tmp_path):
    for options in ({"max_shard_size": "100KB"}, {"safe_serialization": False}):
        folder = tmp_path / next(iter(options))
        pipe.save_pretrained(folder, **options)
        loaded = LegoPipeline.from_pretrained(folder)
        assert torch.equal(loaded(**one_input()).images, usual)
    assert len(list((tmp_path / "max_shard_size" / "unet").glob("*.safetensors"))) > 1
    with pytest.raises((ValueError, OSError), match="variant"):
        LegoPipeline.from_pretrained(tmp_path / "max_shard_size", variant="fp16")


def test_components_and_signature(pipe):
    parameters = set(inspect.signature(LegoPipeline.__init__).parameters)
    assert set(pipe.components) == parameters - {"self", "ema_updates", "resolution", "distill"}
    asked = set(inspect.signature(pipe.__call__).parameters)
    assert {"num_images_per_prompt", "negative_prompt", "callback_on_step_end"} <= asked
    assert pipe.num_timesteps >= 0 and pipe.device.type == "cpu" and pipe.dtype == torch.float32


def test_half_precision_saved_and_loaded_and_never_nan(own, usual, tmp_path):
    own.to(torch.bfloat16)
    first = own(**one_input()).images
    assert first.isfinite().all() and first.dtype == torch.float32
    own.save_pretrained(tmp_path / "half")
    loaded = LegoPipeline.from_pretrained(tmp_path / "half", torch_dtype=torch.bfloat16)
    for part in ("unet", "vae", "text_encoder", "conditioner"):
        assert getattr(loaded, part).dtype == torch.bfloat16
    assert torch.equal(loaded(**one_input()).images, first)


def tiny_autoencoder() -> AutoencoderTiny:
    torch.manual_seed(3)
    widths = {f"{way}_block_out_channels": (32, 32, 32) for way in ("encoder", "decoder")}
    blocks = {f"num_{way}_blocks": (1, 1, 1) for way in ("encoder", "decoder")}
    return AutoencoderTiny(**widths, **blocks, latent_channels=4).eval()


def test_an_autoencoder_for_previews_encodes_and_decodes(own, usual, monkeypatch):
    """Its latents are the scaled ones; the denoiser is told the source's without that scale."""
    call = one_input(output_type="latent")
    monkeypatch.setattr("ldm.pipeline.SIZE", RESOLUTION)
    own.vae = tiny = tiny_autoencoder()
    latents = own(**call).images
    pixels = own(**one_input()).images
    with torch.no_grad():
        wanted = tiny.decode(latents).sample
    assert torch.equal(pixels, (wanted.clamp(-1, 1) + 1) / 2)
    image = torch.rand(1, 3, RESOLUTION, RESOLUTION) * 2 - 1
    model = own.model
    with torch.no_grad():
        source, scaled = model.image_latents(model.encode_moments(image)), tiny.encode(image)
    torch.testing.assert_close(source * 0.18215, scaled.latents)
    previews = []

    def preview(given, step, t, values):
        with torch.no_grad():
            previews.append(tiny.decode(values["latents"]).sample)

    own(**call, callback_on_step_end=preview)
    assert len(previews) == 2 and np.isfinite(previews[-1].numpy()).all()


def test_an_asymmetric_autoencoder_decodes(own):
    down = {"down_block_types": ("DownEncoderBlock2D",) * 3, "down_block_out_channels": (32,) * 3}
    up = {"up_block_types": ("UpDecoderBlock2D",) * 3, "up_block_out_channels": (32,) * 3}
    own.vae = AsymmetricAutoencoderKL(**down, **up, sample_size=RESOLUTION, latent_channels=4)
    assert own(**one_input()).images.shape == (1, 3, RESOLUTION, RESOLUTION)


def test_memory_helpers_of_newer_diffusers(own, usual):
    own.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(own(**one_input()).images, usual)
    hooked = {
        name for name in ("unet", "vae", "text_encoder", "conditioner") if has_hooks(own, name)
    }
    assert hooked == {"unet", "vae", "text_encoder"}


def has_hooks(pipe, name):
    return any(hasattr(part, "_diffusers_hook") for part in getattr(pipe, name).modules())


def test_weights_kept_in_eight_bits_are_computed_in_the_asked_precision(own, usual):
    for part in (own.unet, own.conditioner):
        part.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert own.unet.conv_in.weight.dtype == torch.float8_e4m3fn
    pictures = own(**one_input()).images
    assert (pictures - usual).abs().mean() < 0.3 * usual.std()


def test_quantised_by_the_config_of_diffusers(pipe, usual, tmp_path, monkeypatch):
    """bitsandbytes computes 4 bits on CPUs too; diffusers' check for a GPU is set aside here."""
    pytest.importorskip("bitsandbytes")
    from diffusers.quantizers import PipelineQuantizationConfig
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer

    if not torch.cuda.is_available():
        monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda *_, **__: 0)
        monkeypatch.setattr(BnB4BitDiffusersQuantizer, "update_device_map", lambda _, given: given)
    pipe.save_pretrained(tmp_path / "saved")
    bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    bits["bnb_4bit_compute_dtype"] = torch.float32
    config = PipelineQuantizationConfig("bitsandbytes_4bit", bits, ["unet"])
    loaded = LegoPipeline.from_pretrained(tmp_path / "saved", quantization_config=config)
    kinds = {type(layer).__name__ for layer in loaded.unet.modules()}
    assert "Linear4bit" in kinds
    found = loaded(**one_input()).images.cpu()
    assert not torch.equal(found, usual) and (found - usual).abs().mean() < 0.3 * usual.std()
