"""Adapters (LoRA) of stage 2: trained, kept, merged, and generated with from every form."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_lora import CPU, FILE, LAST, Adapted, frame
from small_training import kill, losses, train_run
from test_ldm_training import spawn_ddp

from egogen import EgoGenError
from ldm.cache import main as write_cache
from ldm.checkpoints import FORMS
from ldm.checkpoints.convert import convert
from ldm.checkpoints.load import load_start, read_file, read_weights
from ldm.generate import load_model
from ldm.model import LegoModel
from ldm.pipeline import LegoPipeline
from metrics.inference import main as generate

NEAR = {"rtol": 0, "atol": 5e-4}
DISTANT = 2e-3  # what adapters change at least, in [0, 1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return Adapted(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def tuned(world):
    """The frame of last.ckpt, which holds the EMA of the adapters."""
    made = frame(load_model(world.params(), str(world.last), CPU))
    assert (made - frame(world.model())).abs().max() > DISTANT
    return made


def stored(path):
    """The state dict as it lies in the file."""
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_file_beside_the_base_gives_the_same_frame(world, tuned):
    made = frame(load_model(world.without_ema, str(world.base), CPU, [str(world.file)]))
    torch.testing.assert_close(made, tuned, **NEAR)
    half = [f"{world.file}:0.5"] * 2
    made = frame(load_model(world.without_ema, str(world.base), CPU, half))
    torch.testing.assert_close(made, tuned, **NEAR)
    made = frame(load_model(world.without_ema, str(world.base), CPU, [f"{world.file}:0"]))
    torch.testing.assert_close(made, frame(world.model()), **NEAR)


def test_the_pipeline_loads_the_file(world, tuned):
    pipe = LegoPipeline.from_model(world.model())
    usual = frame(pipe)
    pipe.load_lora_weights(str(world.file), adapter_name="run")
    assert pipe.get_active_adapters() == ["run"]
    assert pipe.get_list_adapters() == {"unet": ["run"], "conditioner": ["run"]}
    torch.testing.assert_close(frame(pipe), tuned, **NEAR)
    pipe.disable_lora()
    torch.testing.assert_close(frame(pipe), usual, **NEAR)
    pipe.enable_lora()
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1
    torch.testing.assert_close(frame(pipe), tuned, **NEAR)
    pipe.unfuse_lora()
    pipe.set_adapters(["run"], [0.0])
    torch.testing.assert_close(frame(pipe), usual, **NEAR)
    pipe.delete_adapters("run")
    assert pipe.get_list_adapters() == {}
    pipe.load_lora_weights(str(world.file))
    torch.testing.assert_close(frame(pipe), tuned, **NEAR)
    pipe.unload_lora_weights()
    torch.testing.assert_close(frame(pipe), usual, **NEAR)


def test_weights_of_adapters_by_dict_and_two_at_once(world, tuned):
    pipe, state = LegoPipeline.from_model(world.model()), load_file(world.file)
    pipe.load_lora_weights(str(world.file), adapter_name="one")
    scaled = {n: x * 3 if "lora_B" in n else x for n, x in state.items()}  # alpha / rank
    pipe.load_lora_weights(scaled, adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.25, 0.75])
    torch.testing.assert_close(frame(pipe), tuned, **NEAR)


def test_the_file_says_what_the_adapters_are(world):
    state = load_file(world.file)
    ends = (".lora_A.weight", ".lora_B.weight")
    assert all(n.endswith(ends) and n.startswith(("unet.", "conditioner.")) for n in state)
    assert "conditioner.encoders.image.projection.lora_A.weight" in state
    with safe_open(world.file, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["unet.r"] == settings["conditioner.r"] == 2
    assert settings["unet.lora_alpha"] == 6
    assert len(settings["unet.target_modules"]) == sum("unet" in name for name in state) // 2
    last = stored(world.last)
    names = {f"ema.{name}": name for name in state if name.startswith("unet.")}
    assert all(torch.equal(last[ours], state[name]) for ours, name in names.items())


@pytest.mark.parametrize("form", FORMS)
def test_converted_checkpoints_hold_the_adapters(world, tuned, tmp_path, form):
    """Those of last.ckpt without a word, those of a file by --lora, live weights and EMA alike."""
    for name, source, loras in (
        ("last", world.last, ()),
        ("base", world.base, [str(world.file)]),
    ):
        target = tmp_path / (name if form == "diffusers" else f"{name}.ckpt")
        convert(source, target, form, world.params(), loras)
        if form == "diffusers":
            variant = None if name == "last" else "non_ema"
            pipe = LegoPipeline.from_pretrained(target, variant=variant)
            made = frame(pipe)
        else:
            params = world.params() if name == "last" else world.without_ema
            if (form, name) == ("released", "base"):  # which has no place for a live conditioner
                continue
            made = frame(load_model(params, str(target), CPU))
        torch.testing.assert_close(made, tuned, **NEAR)


def test_conversion_adds_to_the_average_too(world, tmp_path):
    convert(world.base, tmp_path / "a.ckpt", "own", world.params(), [str(world.file)])
    made, base = read_weights(tmp_path / "a.ckpt"), read_weights(world.base)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    gaps = [made[prefix + name] - base[prefix + name] for prefix in ("model.", "ema.")]
    assert gaps[0].abs().max() > 1e-4
    torch.testing.assert_close(*gaps, rtol=0, atol=1e-6)


def test_base_weights_stay_bit_for_bit(world):
    before, after = stored(world.base), stored(world.last)
    lives = [name for name in before if name.startswith("model.")]
    assert all(torch.equal(before[name], after[name]) for name in lives)
    added = {name for name in after if name not in before}
    assert added and all(".lora_" in name for name in added)
    assert not any(name.startswith("ema.") and ".lora_" not in name for name in after)


def test_the_averages_are_of_the_adapters(world):
    state, notes = read_file(world.last)
    assert notes["ema_updates"] == 3 and notes["lora"]["rank"] == 2 and notes["lora"]["alpha"] == 6
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    base = stored(world.base)
    live, ema = (state[prefix + name] for prefix in ("model.", "ema."))
    assert len({tuple(x.flatten()[:4].tolist()) for x in (live, ema, base["model." + name])}) == 3
    other = "unet.conv_in.weight"
    assert torch.equal(state["ema." + other], base["model." + other])


def test_a_killed_run_goes_on_exactly(world, tmp_path, monkeypatch):
    kill(monkeypatch, world.overrides, tmp_path, 2)
    again = train_run(world.overrides, tmp_path, "a")
    assert losses(again) == losses(world.run)
    for name in (LAST, FILE):
        read = stored if name == LAST else load_file
        ours, theirs = read(again / name), read(world.run / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_training_starts_from_adapters_too(world):
    """Of their live weights, as of any other checkpoint."""
    model, state = LegoModel(world.params()), read_weights(world.last)
    load_start(model, str(world.last))
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(model.state_dict()[name], state["model." + name])
    assert not torch.equal(state["model." + name], stored(world.last)["model." + name])


def test_rank_0_changes_nothing(world, tmp_path):
    more = "model.params.lora.rank=0", "lightning.trainer.max_steps=1"
    run = train_run(world.overrides, tmp_path, "a", *more)
    content = torch.load(run / LAST, weights_only=True)
    assert "lora" not in content and not [n for n in content["state_dict"] if "lora" in n]
    assert not (run / FILE).exists()
    assert content["state_dict"].keys() == stored(world.base).keys()


def test_a_run_says_what_learns(world, tmp_path, capsys):
    more = ("lightning.trainer.max_steps=1", "model.params.lora.targets=[conditioner]")
    run = train_run(world.overrides, tmp_path, "a", *more)
    said = capsys.readouterr().err
    assert re.search("EMA [0-9.]+ GB .adapters of rank 2; full training [0-9.]+ GB", said)
    assert {name.split(".")[0] for name in load_file(run / FILE)} == {"conditioner"}
    convert(run / LAST, tmp_path / "a.ckpt", "released", world.params())
    ours, theirs = (
        frame(load_model(world.params(), str(p), CPU)) for p in (run / LAST, tmp_path / "a.ckpt")
    )
    torch.testing.assert_close(ours, theirs, **NEAR)


def test_a_run_keeps_its_adapters(world):
    changed = "model.params.lora.rank=3"
    with pytest.raises(EgoGenError, match="begun with other values of model.params.lora.rank"):
        train_run(world.overrides, world.run.parent, "tuned", changed)
    more = changed, "lightning.trainer.max_steps=5", "--resume"
    with pytest.raises(EgoGenError, match="has adapters .*'rank': 2.*'rank': 3"):
        train_run(world.overrides, world.run.parent, "tuned", *more)


def test_cache_and_checkpointing_change_nothing(world, tmp_path):
    """Without the encoders on the device, and with activations computed again."""
    write_cache(["--config", str(world.run / "config.yaml"), "--out", str(tmp_path / "cache")])
    more = f"data.params.cache_path={tmp_path / 'cache'}", "lightning.trainer.max_steps=1"
    checkpointing = "model.params.unet_config.params.use_checkpoint=true"
    run = train_run(world.overrides, tmp_path, "a", *more, checkpointing)
    assert losses(run)[1, "loss"] == pytest.approx(losses(world.run)[1, "loss"], rel=1e-5)
    ours, theirs = stored(run / LAST), stored(world.last)
    assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in theirs.items()}


@pytest.mark.slow("stage 2 on two processes, adapters")
def test_two_processes(world, tmp_path):
    """DDP over two processes with half the batch each: losses of one process."""
    more = ["model.params.conditioner.dropout=0", "lightning.trainer.max_steps=2"]
    alone = train_run(world.overrides, tmp_path, "one", *more)
    both = spawn_ddp(tmp_path, *world.overrides, *more)
    for place, loss in losses(both).items():
        assert loss == pytest.approx(losses(alone)[place], rel=1e-4), place
    assert load_file(both / FILE).keys() == load_file(alone / FILE).keys()


def test_frames_with_adapters_have_folders_of_their_own(world, tmp_path):
    base = tmp_path / "X.ckpt"
    base.write_bytes(world.base.read_bytes())
    line = ["--config", str(world.write_generate_config()), "--ckpt", str(base), "--device", "cpu"]
    for more in ([], ["--lora", str(world.file)], ["--lora", f"{world.file}:0.5"]):
        assert generate([*line, *more]) == 0
    frames = {folder.name: sorted(folder.rglob("*.jpg")) for folder in (tmp_path / "X").iterdir()}
    name = "X-e=0-s=1-si=1.0-st=1.5"
    assert set(frames) == {name, f"{name}-lora=tuned", f"{name}-lora=tuned@0.5"}
    assert len({tuple(path.read_bytes() for path in paths) for paths in frames.values()}) == 3
    with safe_open(world.file, "pt") as file:
        metadata = file.metadata()
    other = tmp_path / "tuned" / world.file.name
    other.parent.mkdir()
    save_file({n: x + 1 for n, x in load_file(world.file).items()}, other, metadata)
    with pytest.raises(EgoGenError, match="was made with loras"):
        generate([*line, "--lora", str(other)])


def test_adapters_with_the_names_of_older_files(world, tuned, tmp_path):
    """Of diffusers' scripts for Stable Diffusion v1, alpha equal to rank."""
    names = {"lora_A": "lora.down", "lora_B": "lora.up"}
    state = {n: x * 3 if "lora_B" in n else x for n, x in load_file(world.file).items()}
    for new, old in names.items():
        state = {n.replace(new, old): x.contiguous() for n, x in state.items()}
    save_file(state, tmp_path / "old.safetensors")
    torch.save(state, tmp_path / "old.bin")
    for path in ("old.safetensors", "old.bin"):
        made = frame(load_model(world.without_ema, str(world.base), CPU, [str(tmp_path / path)]))
        torch.testing.assert_close(made, tuned, **NEAR)
