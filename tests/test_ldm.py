"""Stage 2 against the released numbers: schedule, dropout table and step sizes; and its config."""

from pathlib import Path

import numpy as np
import pytest
import torch

from egogen import EgoGenError
from ldm.conditioning import dropout_masks, join_context, pad_rows
from ldm.config import TrainConfig, load_config
from ldm.networks.architecture import build_conditioner
from ldm.released_config import released_features
from ldm.sampling import (
    Conditioning,
    guidance_branches,
    guided_denoiser,
    sample_euler_ancestral,
    sample_noise,
)
from ldm.schedule import NoiseSchedule
from ldm.schema import ConditionerParams

GOLDEN = np.load(Path(__file__).parent / "data" / "ldm" / "sampling.npz")


@pytest.mark.parametrize("steps", [int(k.split("/")[1]) for k in GOLDEN if k.startswith("sigmas/")])
def test_sampling_sigmas_are_the_released_ones(steps):
    sigmas = NoiseSchedule().sampling_sigmas(steps).numpy()
    np.testing.assert_allclose(sigmas, GOLDEN[f"sigmas/{steps}"], rtol=1e-5)


def test_timestep_inverts_sigma():
    schedule = NoiseSchedule()
    t = torch.tensor([0.0, 1.0, 37.0, 981.0, 999.0])
    np.testing.assert_allclose(schedule.timestep(schedule.sigmas[t.long()]), t, atol=1e-2)


def test_dropout_table():
    draws = torch.tensor([0.02, 0.07, 0.12, 0.5])
    prompt, image = dropout_masks(draws, 0.05)
    assert prompt.tolist() == [True, True, False, False]
    assert image.tolist() == [False, True, True, False]


def test_conditioner_variants_have_no_unused_parameters():
    text = pad_rows(torch.randn(3, 8), 5).expand(2, -1, -1)
    features = {"image": torch.randn(2, 6, 8), "text": text}
    for variant, rows in {"none": 4, "image": 10, "text": 9, "both": 15}.items():
        table = released_features({"variant": variant, "feature_dim": 8, "image_rows": 6})
        params = ConditionerParams(table, num_heads=2, feedforward_dim=32)
        conditioner = build_conditioner(params, 16)
        context = join_context(torch.randn(2, 4, 16), conditioner(features).values())
        assert context.shape == (2, rows, 16)
        if variant != "none":
            context.sum().backward()
        assert all(p.grad is not None for p in conditioner.parameters())


def test_sampling_does_not_depend_on_the_batch():
    schedule = NoiseSchedule()
    sigmas = schedule.sampling_sigmas(5)

    def unet(x, t, context):
        return torch.tanh(x[:, :4] + x[:, 4:] + context.mean(dim=(1, 2)).view(-1, 1, 1, 1))

    def run(names, context, image):
        guidance = guidance_branches(Conditioning(context, torch.zeros(1, 3, 2), image), 7.5, 1.5)
        contexts = guidance.contexts[guidance.rows]
        noise = sample_noise(0, names, (4, 4, 4), torch.device("cpu"))
        denoise = guided_denoiser(lambda x, t: unet(x, t, contexts), schedule, guidance)
        return sample_euler_ancestral(denoise, noise(0), sigmas, noise)

    names = [("clip", "0"), ("clip", "1")]
    context, image = torch.randn(2, 3, 2), torch.randn(2, 4, 4, 4)
    both = run(names, context, image)
    alone = run(names[1:], context[1:], image[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1])


def test_misspelt_config_key_names_the_nearest():
    with pytest.raises(EgoGenError, match="base_learning_rate"):
        load_config(TrainConfig, [], ["model.base_lerning_rate=1e-3"])
    with pytest.raises(EgoGenError, match="expected one of none, image, text, both"):
        load_config(TrainConfig, [], ["model.params.conditioner.variant=all"])


def test_missing_and_foreign_config_files(tmp_path):
    with pytest.raises(EgoGenError, match="no such config file"):
        load_config(TrainConfig, [str(tmp_path / "none.yaml")])
    path = tmp_path / "other.yaml"
    path.write_text("model:\n  target: somewhere.Else\n")
    with pytest.raises(EgoGenError, match="somewhere.Else"):
        load_config(TrainConfig, [str(path)])
