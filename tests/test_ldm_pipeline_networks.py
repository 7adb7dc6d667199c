"""`LegoPipeline` and its networks: threads, processors, adapters, offloading, modes."""

import re
from concurrent.futures import ThreadPoolExecutor

import accelerate
import peft
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from small_pipeline import one_input
from torch.utils.flop_counter import FlopCounterMode

from ldm.denoiser import is_compiled
from ldm.pipeline import LegoPipeline

NEAR = dict(atol=1e-4, rtol=1e-4)  # other attention kernels and batch sizes round differently


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
        lambda pipe: pipe.unet.enable_layerwise_casting(torch.float64, torch.float32),
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
    layers = dict(own.unet.named_modules())
    layer = next(layer for name, layer in layers.items() if name.endswith("attn2"))
    layer.compile(backend="aot_eager")  # fails on other kinds of tensors
    assert is_compiled(own.unet)
    torch.testing.assert_close(predicted(), wanted, **NEAR)
    layer = torch.nn.Linear(1, 1)
    layer.forward = torch.compile(layer.forward)
    assert is_compiled(layer)


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
