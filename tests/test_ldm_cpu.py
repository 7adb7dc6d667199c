"""Layers for CPUs give what torch gives, hold one form of each weight, and keep their place."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_model import params_of, random_model, write_config
from test_ldm_denoiser import tiny_unet
from torch import nn
from torch.nn import functional

from ldm.denoiser import UNetDenoiser
from ldm.generate import prepare
from ldm.networks import cpu
from ldm.schema import InferenceConfig

pytestmark = pytest.mark.skipif(not cpu.REORDERED, reason="torch is built without oneDNN")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "size", "options"),
    [
        ((64, 96), (16, 16), {"padding": 1}),  # filtered, as all of
        ((64, 64), (17, 19), {"padding": 1}),  # odd sizes
        ((96, 64), (4, 70), {"padding": 1}),  # narrow
        ((64, 64), (40, 40), {"padding": 1}),  # an image at a time
        ((64, 64), (8, 8), {"padding": 1}),  # reordered, as all that follow
        ((8, 64), (16, 16), {"padding": 1}),
        ((64, 64), (17, 16), {"padding": 1, "stride": 2}),
        ((64, 64), (16, 16), {"stride": 2}),
        ((64, 64), (20, 20), {"padding": 2, "dilation": 2}),
        ((64, 64), (20, 20), {"padding": 1, "groups": 4}),
    ],
)
@torch.no_grad()
def test_convolutions_are_torchs(channels, size, options, bias):
    layer = nn.Conv2d(*channels, 3, bias=bias, **options)
    x = torch.randn(3, channels[0], *size)
    plain = copy.deepcopy(layer).double()
    wanted = plain(x.double())
    cpu.exchange(layer, cpu.REORDERED)
    for given in (x, x.to(memory_format=torch.channels_last), x):
        found = layer(given)
        assert found.shape == wanted.shape and found.dtype == torch.float32
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert found.permute(0, 2, 3, 1).stride()[-1] == 1  # channels last
    filtered = options == {"padding": 1} and min(channels) >= 64 and size[0] * size[1] >= 256
    assert (layer.weight.ndim == 3) is filtered
    other = torch.randn(1, channels[0], 24, 12)  # a size that the weight was not laid out for
    torch.testing.assert_close(layer(other).double(), plain(other.double()), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_linear_layers_are_torchs_for_any_rows():
    layer = nn.Linear(48, 80)
    wanted = copy.deepcopy(layer).double()
    cpu.exchange(layer, cpu.REORDERED)
    for shape in ((3, 5, 48), (1, 48), (48,), (2, 3, 7, 48)):
        x = torch.randn(shape)
        torch.testing.assert_close(layer(x).double(), wanted(x.double()), atol=1e-5, rtol=1e-5)
    assert layer.weight.is_mkldnn


def test_other_layers_stay():
    class Other(nn.Linear):
        pass

    layers = nn.Sequential(
        nn.Linear(4, 4).half(), Other(4, 4), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    )
    kinds = [type(layer) for layer in layers]
    cpu.exchange(layers, cpu.REORDERED)
    assert [type(layer) for layer in layers] == kinds


def sized_unet():
    """With maps and channels that are filtered, and such that are not."""
    network = tiny_unet()
    network.conv_out = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 4, 1))
    network.conv_out.insert(1, nn.Conv2d(64, 64, 3, padding=1))
    return network.eval()


@torch.no_grad()
def test_a_network_keeps_one_form_of_each_weight_and_its_result():
    network = sized_unet()
    x, t, context = torch.randn(2, 8, 16, 16), torch.tensor([5, 900]), torch.randn(1, 7, 16)
    rows = torch.tensor([0, 0])
    wanted = UNetDenoiser(network).hold(context, rows)(x, t)
    before = {name: value.numel() for name, value in network.named_parameters()}
    cpu.exchange(network, cpu.REORDERED)
    predict = UNetDenoiser(network).hold(context, rows)
    for _ in range(2):
        found = predict(x, t)
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    forms = {"opaque": 0, "filtered": 0, "plain": []}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert len(list(layer.parameters())) == 1 + (layer.bias is not None)
            assert not [key for key in vars(layer) if isinstance(vars(layer)[key], torch.Tensor)]
            if layer.weight.is_mkldnn:
                forms["opaque"] += 1
            elif layer.weight.ndim == 3:
                forms["filtered"] += 1
                assert layer.weight.numel() * 9 == before[f"{name}.weight"] * 16
            else:
                forms["plain"].append(name)
    assert forms["opaque"] > 20 and forms["filtered"] == 2  # of `sized_unet` and of an upsampler
    # What makes keys and values of a held context is called once an image, and stays.
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in forms["plain"])
    assert len(forms["plain"]) == 2 * sum("attn2.to_q" in name for name in before)


@torch.no_grad()
def test_a_held_context_is_computed_once():
    network = tiny_unet()
    cpu.exchange(network, cpu.REORDERED)
    x, t, rows = torch.randn(2, 8, 8, 8), torch.tensor([5, 900]), torch.tensor([0, 0])
    context = torch.randn(1, 7, 16)
    predict = UNetDenoiser(network).hold(context, rows)
    first = predict(x, t)
    network.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight.zero_()
    assert torch.equal(predict(x, t), first)  # what it gave is kept
    assert not torch.allclose(UNetDenoiser(network).hold(context, rows)(x, t), first)


@torch.no_grad()
def test_a_plain_context_before_a_held_one():
    network = tiny_unet()
    x, t, context = torch.randn(2, 8, 8, 8), torch.tensor([5, 900]), torch.randn(1, 7, 16)
    wanted = network(x, t, context.expand(2, -1, -1)).sample
    cpu.exchange(network, cpu.REORDERED)
    for found in (
        network(x, t, context.expand(2, -1, -1)).sample,  # lays out all layers
        UNetDenoiser(network).hold(context, torch.tensor([0, 0]))(x, t),
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_threads_may_share_a_network_from_the_first_call():
    x, t, context = torch.randn(2, 8, 16, 16), torch.tensor([5, 900]), torch.randn(2, 7, 16)
    wanted = sized_unet()
    shared = copy.deepcopy(wanted)
    cpu.exchange(shared, cpu.REORDERED)

    @torch.no_grad()  # which holds for a thread
    def call(_):
        return shared(x, t, context).sample

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(call, range(8)))
    for one in found:
        torch.testing.assert_close(one, wanted(x, t, context).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("count", [3, 9])  # at 16x16 four fit into the cache: 3 and 3 at a time
def test_rounding_does_not_depend_on_the_place_in_a_batch(count):
    network = sized_unet()
    cpu.exchange(network, cpu.REORDERED)
    x, context = torch.randn(count, 8, 16, 16), torch.randn(count, 7, 16)
    t = torch.full((count,), 7)
    found = network(x, t, context).sample
    for places in (torch.arange(count).flip(0), torch.randperm(count)):
        other = network(x[places], t, context[places]).sample
        assert torch.equal(found[places], other)


@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("auto", False), ("fp32", False), ("bf16", False), ("fp32", True)],
)
def test_generation_prepares_float32_on_a_cpu(tmp_path, precision, compiled):
    model = random_model(params_of(write_config(tmp_path)))
    prepare(model, InferenceConfig(precision=precision, compile=compiled))
    plain = compiled or precision == "bf16"
    kinds = {type(m) for m in model.unet.modules()}
    reordered = {cpu.ReorderedConv, cpu.ReorderedLinear}
    assert (kinds & reordered) == (set() if plain else reordered)
    assert (nn.Conv2d in kinds) is plain
    others = {type(m) for part in (model.vae, model.conditioner) for m in part.modules()}
    assert not others & reordered


@pytest.mark.parametrize(("count", "size"), [(1, 4), (2, 8), (1, 16)])
def test_training_multiplies_matrices_on_small_maps(monkeypatch, count, size):
    monkeypatch.setattr(cpu, "LARGE_WEIGHT", 100)
    plain = nn.Conv2d(8, 12, 3, padding=1)
    layer = copy.deepcopy(plain)
    cpu.exchange(layer, cpu.TRAINED)
    x = torch.randn(count, 8, size, size)
    calls, usual = [], functional.unfold

    def counted(*arguments, **options):
        calls.append(1)
        return usual(*arguments, **options)

    monkeypatch.setattr(functional, "unfold", counted)
    for one in (plain, layer):
        given = x.clone().requires_grad_()
        made = one(given)
        (made * torch.linspace(-1, 1, made.numel()).view(made.shape)).sum().backward()
        one.made, one.given = made.detach(), given.grad
    assert len(calls) == (size <= 8)
    for name in ("made", "given"):
        torch.testing.assert_close(getattr(layer, name), getattr(plain, name), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad, atol=1e-4, rtol=1e-5)
    assert layer.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    "options", [{"padding": 1, "stride": 2}, {"padding": 1, "bias": False}, {"padding": 2}]
)
def test_training_leaves_other_convolutions_to_torch(monkeypatch, options):
    monkeypatch.setattr(cpu, "LARGE_WEIGHT", 1)
    plain = nn.Conv2d(8, 12, 3, **options)
    layer = copy.deepcopy(plain)
    cpu.exchange(layer, cpu.TRAINED)
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(layer(x), plain(x))
