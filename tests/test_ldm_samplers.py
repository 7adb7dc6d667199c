"""Samplers against an exact solution, sources of noise, and the switches of generation."""

from dataclasses import asdict

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.models.attention_processor import Attention
from torch._dynamo.utils import counters

from egogen import EgoGenError
from ldm.config import GenerateConfig, TrainConfig, load_config
from ldm.generate import generate_batch, prepare
from ldm.model import LegoModel
from ldm.sampling import SAMPLERS, Guidance, ProcessNoise, guided_denoiser, sample_noise
from ldm.schedule import NoiseSchedule
from ldm.schema import SAMPLER_NAMES, ModelParams
from ldm.training.module import bound_weights

SCHEDULE = NoiseSchedule()
COMPILED = pytest.mark.slow("stage 2, compiled sampling")
MEAN, SPREAD = 0.7, 0.5


def gaussian(x, sigma):
    """The exact denoiser of data that is normal with MEAN and SPREAD."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def standard_normal(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda _: torch.randn(shape, generator=generator)


def sample(name, denoise, steps, noise):
    """A sampler of the table over SCHEDULE."""
    sampler = SAMPLERS[name]
    return sampler.run(denoise, noise(0), sampler.sigmas(SCHEDULE, steps), noise)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_solvers_of_order_two_reach_the_exact_solution(name):
    """The flow from noise to data keeps (x - mean) / sqrt(spread^2 + sigma^2) constant."""
    start, sigma = standard_normal((4, 4, 8, 8))(0), SCHEDULE.sigmas[-1]
    begin = start * (1 + sigma**2) ** 0.5
    exact = MEAN + (begin - MEAN) * SPREAD / (SPREAD**2 + sigma**2) ** 0.5

    def distance(count):
        found = sample(name, gaussian, count, lambda _: start)
        return (found - exact).abs().max().item()

    assert distance(20) < 0.03 and distance(40) < 0.005


def test_ddim_is_the_librarys_where_that_one_is_defined():
    """diffusers' DDIM of 50 steps (a divisor of 1000), its noise prediction from the same model."""
    start = standard_normal((2, 4, 8, 8))(0)
    scheduler = DDIMScheduler(
        trained_betas=SCHEDULE.betas.numpy(), clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(50)
    x = start
    for t in scheduler.timesteps:
        sigma = SCHEDULE.sigmas[t]
        scaled = x * (1 + sigma**2) ** 0.5
        eps = (scaled - gaussian(scaled, sigma)) / sigma
        x = scheduler.step(eps, t, x).prev_sample
    found = sample("ddim", gaussian, 50, lambda _: start)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_euler_ancestral_draws_from_the_data():
    found = sample("euler_ancestral", gaussian, 100, standard_normal((64, 4, 8, 8)))
    assert abs(found.mean() - MEAN) < 0.02 and abs(found.std() - SPREAD) < 0.03


def test_the_config_knows_every_sampler():
    assert tuple(SAMPLERS) == SAMPLER_NAMES


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_few_steps_and_number_of_draws(name, steps):
    asked = []

    def noise(index):
        asked.append(index)
        return torch.ones(1, 4, 2, 2)

    assert torch.isfinite(sample(name, gaussian, steps, noise)).all()
    assert asked == list(range(SAMPLERS[name].draws(steps)))


def test_process_noise_is_one_stream_in_the_released_order():
    torch.manual_seed(5)
    released = [[torch.randn(1, 4, 2, 2) for _ in range(3)] for _ in range(4)]
    stream = ProcessNoise(5, (4, 2, 2), 3, torch.device("cpu"))
    first, later = stream.of([0, 1]), stream.of([3])  # the third one is there already
    for k in range(3):
        assert torch.equal(first(k), torch.cat([released[0][k], released[1][k]]))
        assert torch.equal(later(k), released[3][k])


def test_sample_noise_depends_on_seed_and_names_alone():
    def draws(seed, *names):
        names, device = [(name, "0") for name in names], torch.device("cpu")
        noise = sample_noise(seed, names, (4, 2, 2), device)
        return [noise(k) for k in range(2)]

    both, alone, other = draws(0, "a", "b"), draws(0, "b"), draws(1, "b")
    for k in range(2):
        assert torch.equal(both[k][1:], alone[k]) and not torch.equal(alone[k], other[k])


SMALL = (
    "model.params.unet_config.params.model_channels=32",
    "model.params.unet_config.params.channel_mult=[1,2]",
    "model.params.unet_config.params.attention_resolutions=[2]",
    "model.params.unet_config.params.num_res_blocks=1",
    "model.params.unet_config.params.num_heads=2",
    "model.params.first_stage_config.params.ddconfig.ch=32",
    "model.params.first_stage_config.params.ddconfig.ch_mult=[1,1,1]",
    "model.params.first_stage_config.params.ddconfig.num_res_blocks=1",
    "model.params.conditioner.feature_dim=8",
    "model.params.conditioner.image_rows=4",
    "inference.steps=3",
)


def some_samples():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixels": torch.rand(3, 32, 32, generator=generator) * 2 - 1,
            "prompt": prompt,
            "features": {
                "image": torch.randn(4, 8, generator=generator),
                "text": torch.randn(77, 8, generator=generator),
            },
        }
        for prompt in "ab"
    ]


def made(monkeypatch, *overrides):
    """Two decoded pictures of a small random model, and the model."""
    config = load_config(GenerateConfig, [], [*SMALL, *overrides])
    width = config.model.unet.context_dim

    class NoText(torch.nn.Module):  # embeddings of known prompts stand for the text tower
        config = type("Config", (), {"hidden_size": width})

    monkeypatch.setattr("ldm.networks.architecture.build_text_encoder", lambda _: NoText())
    torch.manual_seed(0)
    model = LegoModel(config.model).eval()
    text = {prompt: torch.randn(77, width) for prompt in ("", "a", "b")}
    model.encode_text = lambda prompts: torch.stack([text[prompt] for prompt in prompts])
    prepare(model, config.inference)
    before = processors(model)
    names = [("a",), ("b",)]
    found = generate_batch(model, some_samples(), names, config.inference, 1.5, 7.5)
    assert processors(model) == before  # sampling leaves nothing behind in the network
    return found, model


def processors(model):
    return [m.processor for m in model.denoiser.network.modules() if isinstance(m, Attention)]


def test_one_compiled_graph_serves_all_steps_and_batches(monkeypatch):
    monkeypatch.setattr("ldm.networks.cpu.REORDERED", {})  # as where compilation is asked for
    usual, model = made(monkeypatch)
    counters.clear()
    model.denoiser.network.compile(
        backend="eager"
    )  # traced as with the default backend, not translated
    inference = load_config(GenerateConfig, [], SMALL).inference
    for _ in range(2):
        found = generate_batch(model, some_samples(), [("a",), ("b",)], inference, 1.5, 7.5)
        torch.testing.assert_close(found, usual, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.parametrize(
    "override, tolerance",
    [
        ("inference.channels_last=true", 1e-4),
        pytest.param("inference.compile=true", 1e-3, marks=COMPILED),  # minutes of C++
        ("inference.precision=bf16", 0.3),
        ("inference.precision=bf16 inference.half_weights=true", 0.3),
    ],
)
def test_ways_to_compute_change_rounding_alone(monkeypatch, override, tolerance):
    usual, _ = made(monkeypatch)
    found, model = made(monkeypatch, *override.split())
    assert torch.isfinite(found).all()
    difference = (found.float() - usual).abs().max() / usual.abs().max()
    assert difference < tolerance
    half = "half_weights" in override
    assert model.denoiser.dtype == (torch.bfloat16 if half else torch.float32)


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_networks_of_all_parameterizations_with_all_samplers(monkeypatch, name, parameterization):
    found, model = made(
        monkeypatch,
        f"inference.sampler={name}",
        f"model.params.parameterization={parameterization}",
    )
    assert found.shape == (2, 3, 32, 32) and torch.isfinite(found).all()


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_a_perfect_network_is_denoised_to_the_truth(monkeypatch, parameterization):
    """And has no loss; the velocity is that of diffusers."""
    _, model = made(monkeypatch, f"model.params.parameterization={parameterization}")
    draw = standard_normal((2, 4, 8, 8))
    noise, moments, t = draw(0), torch.cat([draw(0), draw(0) - 30], dim=1), torch.tensor([3, 700])
    clean = model.scale_factor * moments[:, :4]
    noisy = SCHEDULE.add_noise(clean, noise, t)
    velocity = DDPMScheduler(trained_betas=SCHEDULE.betas.numpy()).get_velocity(clean, noise, t)
    torch.testing.assert_close(SCHEDULE.velocity(clean, noise, t), velocity)
    truth = {"eps": noise, "x0": clean, "v": velocity}[parameterization]
    for i in range(2):
        sigma = SCHEDULE.sigmas[t[i]]
        alone = Guidance([1.0], torch.zeros(2, 1, 2), torch.zeros(1).long(), draw(0)[:1])
        said = truth[i : i + 1]
        denoise = guided_denoiser(lambda *_, x=said: x, SCHEDULE, alone, parameterization)
        found = denoise(noisy[i : i + 1] * (sigma**2 + 1) ** 0.5, sigma)
        torch.testing.assert_close(found, clean[i : i + 1], atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(type(model.denoiser), "forward", lambda *_, **__: truth + 0.5)
    features = {"image": torch.zeros(2, 4, 8), "text": torch.zeros(2, 77, 8)}
    batch = {"draw": torch.ones(2), "edited_moments": moments, "source_moments": moments, "t": t}
    batch |= {"posterior_noise": draw(0), "noise": noise, "features": features}
    empty = model.encode_text([""])
    batch["prompt"] = empty.expand(2, -1, -1)
    torch.testing.assert_close(model.training_loss(batch, empty), torch.full((2,), 0.25))


def test_the_bound_of_a_velocity_is_that_of_its_noise():
    weights = [bound_weights(ModelParams(parameterization=name)) for name in ("eps", "v")]
    share = SCHEDULE.vectors["alphas_cumprod"]  # error of the noise over that of the velocity
    torch.testing.assert_close(weights[1], weights[0] * share)


def test_half_weights_in_float32_are_refused(monkeypatch):
    with pytest.raises(EgoGenError, match="half_weights: needs inference.precision"):
        made(monkeypatch, "inference.half_weights=true", "inference.precision=fp32")


def test_as_released_flips_the_switches_and_each_can_be_set_alone():
    usual = asdict(load_config(GenerateConfig, []).inference)
    preset = asdict(load_config(GenerateConfig, [], ["as_released=true"]).inference)
    changed = {key: preset[key] for key in preset if preset[key] != usual[key]}
    assert changed == {"picture": "minmax", "jpeg_quality": 75, "noise": "process"}
    own = ["inference.picture=clamp", "as_released=true"]
    assert load_config(GenerateConfig, [], own).inference.picture == "clamp"


@pytest.mark.parametrize("value", ["[]", "[x]", "[true]", "[1.5,null]"])
def test_scales_are_numbers(value):
    for schema in (GenerateConfig, TrainConfig):  # training makes sample images
        with pytest.raises(EgoGenError, match="config: inference.scales_txt"):
            load_config(schema, [], [f"inference.scales_txt={value}"])
