"""Conversion between the released form, this project's and a folder of diffusers."""

import runpy
import shutil
from pathlib import Path

import pytest
import torch
from released_model import clip_tokenizer
from small_model import assert_equal_weights, write_small
from transformers import CLIPTextConfig

from egogen import EgoGenError
from ldm.checkpoints.convert import bare_model, convert, read_any
from ldm.checkpoints.layouts import Weights, to_own, to_released
from ldm.checkpoints.load import read_weights
from ldm.checkpoints.released_names import released_names
from ldm.config import GenerateConfig, load_config
from ldm.model import LegoModel
from ldm.networks.architecture import CLIP_VIT_L14_TEXT
from ldm.pipeline import LegoPipeline

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("small"))


CHAINS = [("own", "released", "own"), ("released", "own", "diffusers", "released")]


@pytest.mark.parametrize("averaged", ["none", "unet", "both"])
@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_round_trips_give_every_bit_back(chain, averaged, small, tmp_path):
    _, params, kinds = small
    weights, model = kinds[averaged], LegoModel(params)
    path = tmp_path / "0.ckpt"
    state = to_own(weights) if chain[0] == "own" else to_released(weights, model)
    torch.save({"state_dict": state, "ema_updates": weights.updates}, path)
    first = path
    for number, form in enumerate(chain[1:], 1):
        target = tmp_path / (f"{number}.ckpt" if form != "diffusers" else str(number))
        convert(path, target, form, params)
        assert_equal_weights(read_any(target, bare_model(params)), weights)
        path = target
    before, after = read_weights(first), read_weights(path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert [before[n].dtype for n in before] == [after[n].dtype for n in before]


def test_what_the_released_code_finds_generates_as_here(small):
    """Averaged UNet beside averaged conditioner, though its layout averages the UNet alone."""
    _, params, kinds = small
    weights, model = kinds["both"], LegoModel(params)
    state = to_released(weights, model)
    names = released_names(model)
    own = {o: n for o, n in names.items() if o.startswith("conditioner.")}
    assert own and all(torch.equal(state[n], weights.ema[o]) for o, n in own.items())
    assert set(state) - set(to_released(kinds["unet"], model)) == {
        f"live.{n}" for n in own.values()
    }


def test_folder_holds_averages_and_live_weights(small, tmp_path):
    _, params, kinds = small
    weights = kinds["both"]
    torch.save({"state_dict": to_own(weights)}, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "folder", "diffusers", params)
    for variant, values in ((None, weights.ema), ("non_ema", weights.live)):
        pipe = LegoPipeline.from_pretrained(tmp_path / "folder", variant=variant)
        for part in ("unet", "conditioner"):
            for name, value in getattr(pipe, part).state_dict().items():
                assert torch.equal(value, values[f"{part}.{name}"])


def test_convert_command(small, tmp_path, capsys):
    path, params, kinds = small
    torch.save({"state_dict": to_own(kinds["unet"]), "ema_updates": 17}, tmp_path / "a.ckpt")
    script = PROJECT / "scripts" / "convert_checkpoint.py"
    main = runpy.run_path(str(script))["main"]
    source, target = str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt")
    arguments = ["--config", str(path), "--to", "released", source, target]
    assert main(arguments) == 0 and "17 updates, the EMA of: unet" in capsys.readouterr().out
    assert_equal_weights(read_any(target, bare_model(params)), kinds["unet"])
    with pytest.raises(EgoGenError, match="b.ckpt: is there already"):
        main(arguments)
    with pytest.raises(EgoGenError, match="missing: model.unet.down_blocks.0.resnets.1.norm1"):
        override = "model.params.unet_config.params.num_res_blocks=2"
        main([*arguments[:-1], str(tmp_path / "c.ckpt"), override])
    with pytest.raises(
        EgoGenError, match="decay 0.9999, but the config model.params.ema_decay=0.9"
    ):
        main(
            [
                "--config",
                str(path),
                "--to",
                "own",
                target,
                str(tmp_path / "d.ckpt"),
                "model.params.ema_decay=0.9",
            ]
        )
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "what each form holds" in shown and "example:" in shown


def test_conversion_that_fails_leaves_nothing(small, tmp_path, monkeypatch):
    _, params, kinds = small
    state = to_own(kinds["unet"])
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    monkeypatch.setattr(
        LegoPipeline, "save_pretrained", lambda self, folder: (folder.mkdir(), 1 / 0)
    )
    with pytest.raises(ZeroDivisionError):
        convert(tmp_path / "a.ckpt", tmp_path / "folder", "diffusers", params)
    with pytest.raises(EgoGenError, match="ends in .ckpt"):
        convert(tmp_path / "a.ckpt", tmp_path / "b.bin", "released", params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt"]


@pytest.mark.slow("full-size checkpoint round trip")  # 24 GB of disk
def test_full_size_round_trip(tmp_path):
    """A file of all released tensors, 7.8 GB, to a folder and back."""
    text = tmp_path / "text"
    CLIPTextConfig(**CLIP_VIT_L14_TEXT).save_pretrained(text)
    clip_tokenizer().save_pretrained(text)
    override = f"model.params.cond_stage_config.params.version={text}"
    params = load_config(GenerateConfig, [], [override]).model
    model = bare_model(params)
    torch.manual_seed(0)
    live = {name: torch.rand(value.shape) for name, value in model.state_dict().items()}
    average = {name: value + 1 for name, value in live.items() if name.startswith("unet.")}
    state = to_released(Weights(live, average, updates=5), model)
    torch.save({"state_dict": state}, tmp_path / "released.ckpt")
    del live, average, state
    convert(tmp_path / "released.ckpt", tmp_path / "folder", "diffusers", params)
    convert(tmp_path / "folder", tmp_path / "again.ckpt", "released", params)
    before, again = (read_weights(tmp_path / f"{name}.ckpt") for name in ("released", "again"))
    assert len(before) == 1859 and again.keys() == before.keys()
    for name, value in before.items():
        assert value.dtype == again[name].dtype and torch.equal(value, again[name])
    shutil.rmtree(tmp_path)
