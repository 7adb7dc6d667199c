"""`LegoPipeline` used as pipelines of diffusers are: schedulers, offloading, folders, threads."""

import inspect
import re
from concurrent.futures import ThreadPoolExecutor

import accelerate
import diffusers
import numpy as np
import peft
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from small_model import RESOLUTION
from small_pipeline import one_input, small_pipe, two_inputs
from torch.utils.flop_counter import FlopCounterMode

from egogen import EgoGenError
from ldm.denoiser import is_compiled
from ldm.pipeline import LegoPipeline
from ldm.sampling import SAMPLERS, sampler_of, scheduler_for
from ldm.schedule import NoiseSchedule
from ldm.schema import ModelParams

NEAR = dict(atol=1e-4, rtol=1e-4)  # other attention kernels and batch sizes round differently


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def pipe(root):
    """Shared by tests that leave it as it was."""
    return small_pipe(root)


@pytest.fixture(scope="module")
def usual(pipe):
    return pipe(**one_input()).images


@pytest.fixture
def own(root):
    return small_pipe(root)


# ---- whose contexts, whose processors ----------------------------------------------------------


def test_threads_on_one_pipeline_and_on_shared_networks_make_their_own_frames(pipe):
    other = LegoPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    calls = [(pipe, 0), (pipe, 1), (other, 2), (other, 3)]
    alone = [p(**one_input(i)).images for p, i in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            together = list(pool.map(lambda call: call[0](**one_input(call[1])).images, calls))
            assert all(map(torch.equal, together, alone))


def test_sampling_puts_nothing_into_the_unet(own, usual):
    """Nor does another pipeline of diffusers, or a call of the unet, notice anything."""
    before = dict(vars(own.unet)), own.unet.attn_processors
    x, t, context = torch.randn(1, 8, 8, 8), torch.tensor([5]), torch.randn(1, 7, 64)
    plain = own.unet(x, t, context).sample
    own(**one_input())
    assert (dict(vars(own.unet)), own.unet.attn_processors) == before
    assert all(type(p) is AttnProcessor2_0 for p in own.unet.attn_processors.values())
    assert torch.equal(own.unet(x, t, context).sample, plain)


class Doubled(AttnProcessor2_0):
    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *rest, **options):
        made = super().__call__(attn, hidden_states, encoder_hidden_states, *rest, **options)
        return made if encoder_hidden_states is None else 2 * made


def test_processors_that_somebody_sets_are_used_and_stay(own, usual):
    with torch.no_grad():
        for name, layer in own.unet.named_modules():
            if name.endswith("attn2.to_out.0"):
                layer.weight *= 2
                layer.bias *= 2
    wanted = own(**one_input()).images
    assert not torch.allclose(wanted, usual, **NEAR)
    with torch.no_grad():
        for name, layer in own.unet.named_modules():
            if name.endswith("attn2.to_out.0"):
                layer.weight /= 2
                layer.bias /= 2
    for setting in (
        lambda unet: unet.set_attn_processor(Doubled()),
        lambda unet: unet.set_attn_processor(
            {n: Doubled() if "attn2" in n else AttnProcessor() for n in unet.attn_processors}
        ),
    ):
        setting(own.unet)
        mine = own.unet.attn_processors
        torch.testing.assert_close(own(**one_input()).images, wanted, **NEAR)
        assert own.unet.attn_processors == mine
    own.unet.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(own(**one_input()).images, usual)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.unet.set_default_attn_processor(),
        lambda pipe: pipe.unet.fuse_qkv_projections(),
        lambda pipe: (pipe.unet.fuse_qkv_projections(), pipe.unet.unfuse_qkv_projections()),
        lambda pipe: pipe.enable_attention_slicing(),
        lambda pipe: (pipe.enable_attention_slicing(), pipe.disable_attention_slicing()),
        lambda pipe: pipe.vae.enable_slicing(),
        lambda pipe: pipe.vae.enable_tiling(),
        lambda pipe: pipe.unet.requires_grad_(False).enable_gradient_checkpointing(),
        lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    ],
)
def test_what_changes_the_computation_alone_gives_the_same_frame(own, usual, change):
    own(**one_input())  # after a call, too
    change(own)
    torch.testing.assert_close(own(**one_input()).images, usual, **NEAR)


def test_lora_layers_on_keys_and_values_count(own, usual):
    config = peft.LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
    torch.manual_seed(1)
    own.unet.add_adapter(config)
    adapted = own(**one_input()).images
    assert not torch.allclose(adapted, usual, **NEAR)
    own.unet.disable_adapters()
    torch.testing.assert_close(own(**one_input()).images, usual, **NEAR)
    own.unet.enable_adapters()
    own.unet.fuse_lora()
    torch.testing.assert_close(own(**one_input()).images, adapted, **NEAR)


def test_keys_and_values_are_computed_once(pipe):
    """Of each of the contexts, in the first call; the next ones are cheaper by just that."""
    width, layers = pipe.unet.config.cross_attention_dim, 0
    for name, layer in pipe.unet.named_modules():
        if re.search(r"attn2.to_[kv]$", name):
            layers += 2 * 2 * 7 * width * layer.out_features  # two contexts of seven rows
    predict = pipe.model.denoiser.hold(torch.randn(2, 7, width), torch.tensor([0, 1, 1]))
    flops = []
    for _ in range(3):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            predict(torch.randn(3, 8, 8, 8), torch.tensor([5, 5, 5]))
        flops.append(counter.get_total_flops())
    assert flops[0] - flops[1] == flops[0] - flops[2] == layers


def test_compiled_networks_get_plain_tensors(own):
    x, t, context = torch.randn(1, 8, 8, 8), torch.tensor([5]), torch.randn(1, 7, 64)

    @torch.no_grad()
    def predicted():
        return own.model.denoiser.hold(context, torch.tensor([0]))(x, t)

    wanted = predicted()
    assert not is_compiled(own.unet) and is_compiled(torch.compile(own.unet))
    own.unet.mid_block.compile(backend="aot_eager")  # fails on other kinds of tensors
    assert is_compiled(own.unet)
    torch.testing.assert_close(predicted(), wanted, **NEAR)
    layer = torch.nn.Linear(1, 1)
    layer.forward = torch.compile(layer.forward)
    assert is_compiled(layer)


# ---- the scheduler decides ---------------------------------------------------------------------


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


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_diffusers_itself_samples_with_the_scheduler_of_a_folder(root, tmp_path, prediction):
    """Its loop over scale_model_input and step, without a conditioner, from the same noise."""
    place = f"model.params.parameterization={prediction}"
    own = small_pipe(root, place, variant="none")
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
    assert (x - wanted).abs().max() < (0.002 if prediction == "eps" else 0.02)


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
    "prediction_type='v_prediction'": ("DDIMScheduler", {"prediction_type": "v_prediction"}),
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


# ---- folders -----------------------------------------------------------------------------------


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
            assert isinstance(loaded, LegoPipeline)
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


def test_a_card_names_the_features_that_are_used(root, tmp_path):
    for variant, named in ("none", set()), ("text", {"text_features"}):
        small_pipe(root, variant=variant).save_pretrained(tmp_path / variant)
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


# ---- where and how it is computed --------------------------------------------------------------


def offload(pipe, way):
    """With the CPU as the device of execution; hooks are the libraries' own."""
    cpu = torch.device("cpu")
    if way == "model":
        pipe.enable_model_cpu_offload(device=cpu)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and name not in pipe._exclude_from_cpu_offload:
            if way == "sequential":  # as diffusers does it on other devices
                accelerate.cpu_offload(part, cpu)
            if way == "group":
                apply_group_offloading(part, cpu, offload_type="leaf_level")


@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_offloaded_networks_give_the_same_frame(own, usual, way):
    offload(own, way)
    for _ in range(2):
        assert torch.equal(own(**one_input()).images, usual)
    assert (own.unet.conv_in.weight.device.type == "meta") == (way == "sequential")


def test_sampling_leaves_the_networks_as_they_were(own, usual):
    own.unet.train()
    own.conditioner.train()
    own.vae.decoder.train()
    own.text_encoder.requires_grad_(True)
    own.vae.requires_grad_(True)
    parts = (own.unet, own.vae, own.text_encoder, own.conditioner)

    def state():
        modes = [m.training for part in parts for m in part.modules()]
        return modes, [p.requires_grad for part in parts for p in part.parameters()]

    before = state()
    assert torch.equal(own(**one_input()).images, usual)  # dropout of the conditioner is off
    assert state() == before and torch.is_grad_enabled()
    own.model  # noqa: B018
    assert state() == before

    def fail(*_):
        raise RuntimeError("in the middle")

    hook = own.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        own(**one_input())
    hook.remove()
    assert state() == before and torch.is_grad_enabled()


# ---- what goes in and comes out ----------------------------------------------------------------


def test_arrays_and_tensors_are_photographs_too(pipe, usual):
    photo = one_input()["image"]
    array = np.asarray(photo)
    floats = array.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    same = [array, array[None], floats, floats.astype(np.float64)[None], tensor, tensor[None]]
    same += [tensor.double(), torch.from_numpy(array).permute(2, 0, 1), [array], [tensor[None]]]
    same += [tensor.clone().requires_grad_(), (photo,)]
    for given in same:
        assert torch.equal(pipe(**one_input(image=given)).images, usual)
    both = two_inputs()
    wanted = pipe(**both).images
    arrays = np.stack([np.asarray(item) for item in both["image"]])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255
    for given in (arrays, tensors, [arrays[0], tensors[1]], list(tensors)):
        assert torch.equal(pipe(**two_inputs(image=given)).images, wanted)
    grey = array.mean(axis=2).round().astype(np.uint8)
    forms = [grey, grey[..., None], torch.from_numpy(grey)[None] / 255, Image.fromarray(grey)]
    first, *others = [pipe(**one_input(image=form)).images for form in forms]
    assert all(torch.equal(first, other) for other in others)


SOME = np.full((6, 5, 3), 0.5, np.float32)
WRONG = {
    r"image: ndarray \(3, 6, 5\), expected \(H, W, 3\)": {"image": SOME.transpose(2, 0, 1)},
    r"image: Tensor \(6, 5, 3\), expected \(3, H, W\)": {"image": torch.from_numpy(SOME)},
    "image: values from -1.0 to 1.0, expected 0 to 1": {
        "image": np.linspace(-1, 1, 60).reshape(4, 5, 3)
    },
    "image: values from nan": {"image": SOME * np.nan},
    "image: values of type int64": {"image": np.zeros((4, 5, 3), np.int64)},
    "image: empty": {"image": []},
    "image: empty, expected": {"image": SOME[:0]},
    "image: NoneType, expected a PIL image": {"image": None},
    "image: int, expected": {"image": 3},
    "description: int, expected a text": {"description": 3},
    "num_inference_steps=0: expected at least 1": {"num_inference_steps": 0},
    "num_inference_steps=-1: expected at least 1": {"num_inference_steps": -1},
    "num_inference_steps=2.0: expected at least 1, an int": {"num_inference_steps": 2.0},
    "num_inference_steps='2': expected": {"num_inference_steps": "2"},
    "num_inference_steps=True: expected": {"num_inference_steps": True},
    "num_inference_steps=1001: expected at most 1000": {"num_inference_steps": 1001},
    "guidance_scale=nan: expected a finite number": {"guidance_scale": float("nan")},
    "guidance_scale='7.5': expected a finite number": {"guidance_scale": "7.5"},
    "image_guidance_scale=inf: expected": {"image_guidance_scale": float("inf")},
    "image_guidance_scale=None: expected": {"image_guidance_scale": None},
    "height=0: expected at least 1": {"height": 0},
    "seed=0.5: expected an integer": {"seed": 0.5},
    "seed='a': expected an integer": {"seed": "a"},
    "seed: 3 for 1 pictures": {"seed": [1, 2, 3]},
    "generator: expected a torch.Generator": {"generator": 3},
    r"latents: \(4, 8, 8\), expected a tensor \(1, 4, 8, 8\)": {"latents": torch.zeros(4, 8, 8)},
    "latents: ndarray|latents: .*expected a tensor": {"latents": np.zeros((1, 4, 8, 8))},
    "latents: hold NaN": {"latents": torch.full((1, 4, 8, 8), torch.nan)},
    "features: pose, expected one of image, text": {"features": {"pose": SOME[0]}},
}


@pytest.mark.parametrize("told", WRONG)
def test_wrong_arguments_are_named(pipe, told):
    with pytest.raises(EgoGenError, match=told):
        pipe(**one_input(**WRONG[told]))


def test_numbers_of_numpy_are_numbers(pipe, usual):
    same = dict(num_inference_steps=np.int64(2), guidance_scale=np.float64(7.5), seed=np.int32(0))
    assert torch.equal(pipe(**one_input(**same)).images, usual)


def test_output_of_every_kind_is_the_same_picture(pipe, usual):
    assert usual.shape == (1, 3, RESOLUTION, RESOLUTION)
    assert usual.min() >= 0 and usual.max() <= 1 and usual.max() - usual.min() > 0.3
    array = pipe(**one_input(output_type="np")).images
    assert np.array_equal(array, usual.permute(0, 2, 3, 1).numpy())
    latents = pipe(**one_input(output_type="latent")).images
    assert latents.shape == (1, 4, 8, 8)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    assert torch.equal((decoded.clamp(-1, 1) + 1) / 2, usual)


def test_noise_may_be_given(pipe):
    """As with diffusers: `latents` are the first draw, one generator draws for all in order."""

    def one(seed):
        return torch.Generator().manual_seed(seed)

    alone = pipe(**two_inputs(generator=one(3))).images
    assert torch.equal(pipe(**two_inputs(generator=one(3))).images, alone)
    generator = one(3)
    start = torch.randn(2, 4, 8, 8, generator=generator)
    assert torch.equal(pipe(**two_inputs(latents=start, generator=generator)).images, alone)
    assert not torch.equal(alone[0], pipe(**two_inputs(generator=one(4))).images[0])
    each = pipe(**two_inputs(generator=(one(3), one(4)))).images
    first = pipe(**one_input(generator=one(3))).images
    torch.testing.assert_close(each[:1], first, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "unet", "scheduler"])
def test_a_missing_part_is_named(pipe, part, tmp_path):
    with pytest.raises(EgoGenError, match=f"pipeline: {part} is missing"):
        LegoPipeline(**pipe.components | {part: None})(**one_input())


def test_features_without_a_conditioner_are_named(root):
    bare = small_pipe(root, variant="none")
    with pytest.raises(EgoGenError, match="image_features: given, but the conditioner is missing"):
        bare(**one_input())
    with pytest.raises(TypeError, match="negative_prompt"):
        bare(**one_input(negative_prompt="blurred"))
