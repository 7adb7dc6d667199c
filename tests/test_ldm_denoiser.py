"""The denoiser's interface: held contexts belong to a call, and any network may be one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from small_training import CONFIG, train_run, write_run

import ldm.model
from egogen import EgoGenError
from ldm.checkpoints.load import read_weights
from ldm.config import TrainConfig, load_config
from ldm.denoiser import Denoiser, UNetDenoiser
from ldm.generate import generate_batch, load_model


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    blocks = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    return UNet2DConditionModel(
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
    ).eval()


@torch.no_grad()
def test_predictors_of_one_network_do_not_exchange_their_contexts():
    """Two threads, each with a context of its own, on one UNet at the same time."""
    denoiser, x, t = UNetDenoiser(tiny_unet()), torch.randn(2, 8, 8, 8), torch.tensor([5, 900])
    rows = torch.tensor([0, 0])
    contexts = [torch.randn(1, 7, 16), torch.randn(1, 7, 16)]
    wanted = [denoiser(x, t, context.expand(2, -1, -1)) for context in contexts]
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-3)

    def many(context):
        predict = denoiser.hold(context, rows)
        return [predict(x, t) for _ in range(30)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(many, contexts))
    for here, expected in zip(found, wanted, strict=True):
        for one in here:
            torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)
    first, second = (denoiser.hold(context, rows) for context in contexts)  # in turns, too
    for predict, expected in ((second, wanted[1]), (first, wanted[0]), (second, wanted[1])):
        torch.testing.assert_close(predict(x, t), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_other_peoples_attention_processors_stay_and_are_used():
    class Doubled(AttnProcessor2_0):  # as an adapter would, changes what a layer gives
        def __call__(self, *arguments, **options):
            return 2 * super().__call__(*arguments, **options)

    network = tiny_unet()
    before = UNetDenoiser(network)
    network.set_attn_processor(Doubled())
    x, t, context = torch.randn(1, 8, 8, 8), torch.tensor([5]), torch.randn(1, 7, 16)
    for denoiser in (before, UNetDenoiser(network)):
        predict = denoiser.hold(context, torch.tensor([0]))
        torch.testing.assert_close(predict(x, t), network(x, t, context).sample)
        assert all(type(p) is Doubled for p in network.attn_processors.values())
    network.set_attn_processor(AttnProcessor2_0())  # the default again
    UNetDenoiser(network).hold(context, torch.tensor([0]))(x, t)
    assert all(type(p) is AttnProcessor2_0 for p in network.attn_processors.values())


class TransformerDenoiser(Denoiser):
    """A diffusion transformer, which ldm/ knows nothing of."""

    name = "transformer"

    def forward(self, x, t, context):
        return self.network(x, encoder_hidden_states=context, timestep=t).sample


def tiny_transformer() -> TransformerDenoiser:
    return TransformerDenoiser(
        PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=16,
            out_channels=8,
            num_layers=1,
            cross_attention_dim=16,
            caption_channels=64,
            sample_size=8,
            norm_type="ada_norm_single",
            use_additional_conditions=False,
        )
    )


def test_a_transformer_trains_and_samples(tmp_path, monkeypatch):
    """Two steps of the real command with a network of another kind, its checkpoint, a frame."""
    build = ldm.model.build_parts
    monkeypatch.setattr(
        ldm.model, "build_parts", lambda params: build(params) | {"denoiser": tiny_transformer()}
    )
    overrides = [*write_run(tmp_path), "lightning.trainer.max_steps=2"]
    folder = train_run(overrides, tmp_path / "logs", "transformer")
    path = folder / "checkpoints" / "last.ckpt"
    state = read_weights(path)
    live = {name for name in state if name.startswith("model.transformer.")}
    assert live and not any(name.startswith("model.unet.") for name in state)
    assert any(not torch.equal(state[n], state["ema" + n.removeprefix("model")]) for n in live)

    config = load_config(TrainConfig, [str(CONFIG)], overrides)
    model = load_model(config.model, str(path), torch.device("cpu"))
    features = config.model.conditioner.features
    sample = {
        "pixels": torch.zeros(3, 32, 32),
        "prompt": "the right hand",
        "features": {n: torch.randn(spec.rows, spec.width) for n, spec in features.items()},
    }
    found = [
        generate_batch(model, [sample | {"prompt": p}], [("a", "0")], config.inference, 1.0, 1.5)
        for p in ("the right hand", "thing 0")
    ]
    assert found[0].shape == (1, 3, 32, 32) and torch.isfinite(found[0]).all()
    assert not torch.equal(found[0], found[1])  # it sees its context
    with pytest.raises(EgoGenError, match="use_checkpoint"):
        model.denoiser.checkpoint_activations()
