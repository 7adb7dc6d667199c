"""Pushing and pulling, against a server on this machine that speaks the hub's interface."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import model_families
import numpy as np
import pytest
import torch
import yaml
from hub_commands import errors, hub, local_hub, run  # noqa: F401
from safetensors.torch import save_file
from small_dataset import picture, write_dataset
from small_model import params_of, random_weights, write_config
from test_full_disk import small_disk  # noqa: F401
from vllm_tiny import write_released

import lego.hub
from egogen.actions import read_actions
from egogen.download.hub import is_hub_name, local_path, snapshot
from egogen.errors import EgoGenError
from egogen.features.store import write_feature
from ldm.checkpoints.convert import convert
from ldm.checkpoints.layouts import to_own
from ldm.checkpoints.lora import write_lora
from lego.frame import main as frame
from metrics import inference

ROOT = Path(__file__).parents[1]
WIDE = [f"model.params.conditioner.{k}" for k in ("feature_dim=64", "image_rows=256")]
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
METRIC = {"samples": 150, "psnr": 22.97, "psnr_ci95": [22.69, 23.27], "fid": 9.0, "fid_ci95": None}
MIT = ["--license", "mit"]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A folder of each kind, by the kind's name; "qwen" is a second one of stage 1."""
    root = tmp_path_factory.mktemp("things")
    write_released(root / "vllm")
    model_families.write("qwen2_5_vl", root / "qwen")
    config = write_config(root)
    params = params_of(config, *WIDE)
    weights = random_weights(params, ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights), "ema_updates": 17}, root / "frame.ckpt")
    convert(root / "frame.ckpt", root / "ldm", "diffusers", params)
    write_adapter(root / "vllm_lora", base="/home/me/base")
    pair = {f"unet.{LAYER}.lora_A.weight": torch.ones(2, 64)}
    pair[f"unet.{LAYER}.lora_B.weight"] = torch.ones(64, 2)
    (root / "ldm_lora").mkdir()
    write_lora(root / "ldm_lora" / "pytorch_lora_weights.safetensors", pair, 2.0)
    write_dataset(root / "dataset")
    picture(3, (90, 60)).save(root / "photo.jpg")
    (root / "metric.json").write_text(json.dumps(METRIC))
    return root


def write_adapter(folder: Path, base: str) -> None:
    """What tuning stage 1 with LoRA leaves in `adapter`, for the tiny released model."""
    folder.mkdir()
    layer = "model.language_model.layers.1.mlp.down_proj"
    wide = {"A": torch.ones(2, 128), "B": torch.ones(64, 2)}
    state = {f"base_model.model.{layer}.lora_{end}.weight": x for end, x in wide.items()}
    save_file(state, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"]}
    config |= {"base_model_name_or_path": base, "layers_to_transform": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    origin = {"base": base, "vision_tower": "/home/me/tower", "config": {}}
    (folder / "origin.json").write_text(json.dumps(origin))


def command(capfd, *words) -> tuple[int, str]:
    return run([str(word) for word in words], capfd, lego.hub.main)


def push(capfd, folder: Path, name: str, *more) -> str:
    code, text = command(capfd, "push", folder, name, *MIT, *more)
    assert code == 0, text
    return text


def contents(folder: Path) -> dict[str, bytes]:
    """Path -> bytes, without what the client notes about a download."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {n: x.read_bytes() for n, x in found.items() if x.is_file() and ".cache" not in n}


KINDS = {
    "vllm": ("vllm", [], ""),
    "qwen": ("vllm", [], ""),
    "ldm": ("ldm", [], ""),
    "vllm_lora": ("vllm_lora", ["--base-model", "me/base"], ""),
    "ldm_lora": ("ldm_lora", ["--base-model", "me/base"], ""),
    "dataset": ("dataset", [], "datasets/"),
}
CHANGED = {"README.md", "origin.json", "adapter_config.json"}


@pytest.mark.parametrize("thing", KINDS)
def test_what_is_pushed_comes_back_bit_for_bit(thing, things, hub, tmp_path, capfd):  # noqa: F811
    kind, more, prefix = KINDS[thing]
    text = push(capfd, things / thing, "me/it", *more)
    assert f"{kind}: {hub.address}/{prefix}me/it" in text.splitlines()
    out = tmp_path / "out"
    asked = ["--type", "dataset"] if prefix else []
    code, text = command(capfd, "pull", "me/it", "--out", out, *asked)
    assert code == 0 and str(out) in text.splitlines(), text
    sent, found = contents(things / thing), contents(out)
    assert found.keys() == sent.keys() | {"README.md"}
    assert {n for n in sent if found[n] != sent[n]} <= CHANGED
    assert found == hub.repos[f"{prefix}me/it"]


def test_only_what_belongs_to_a_model_is_sent(things, hub, tmp_path, capfd):  # noqa: F811
    folder = write_released(tmp_path / "vllm")
    known = contents(folder).keys() | {"README.md"}
    junk = ["checkpoint-3/model.safetensors", "runs/events.1", "training_args.bin", "optimizer.pt"]
    junk += [".env", ".half/model.safetensors", ".1-a.tmp.safetensors", "trainer_state.json"]
    junk += ["tuning_settings.json", "finished.json", "notes.txt", "adapter/origin.json"]
    for name in junk:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("/home/me/secret")
    push(capfd, folder, "me/vllm")
    assert hub.repos["me/vllm"].keys() == known
    assert not any(b"/home/me" in content for content in hub.repos["me/vllm"].values())
    assert not any(b"/home/me" in content for content in hub.stored.values())


def test_places_on_this_machine_stay_here(things, hub, tmp_path, capfd):  # noqa: F811
    push(capfd, things / "vllm_lora", "me/lora", "--base-model", "me/base")
    files = hub.repos["me/lora"]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    origin = {"base": "me/base", "vision_tower": None, "config": {}}
    assert json.loads(files["origin.json"]) == origin
    folder = write_released(tmp_path / "vllm")
    config = json.loads((folder / "config.json").read_text())
    named = config | {"_name_or_path": "/home/me/base"}
    (folder / "config.json").write_text(json.dumps(named))
    push(capfd, folder, "me/vllm")
    assert json.loads(hub.repos["me/vllm"]["config.json"]) == named | {"_name_or_path": None}
    assert json.loads((folder / "config.json").read_text()) == named
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": "/data/my/clip"}))
    code, text = command(capfd, "push", folder, "me/other", *MIT)
    (line,) = errors(text)
    assert code == 2 and "config.json: /data/my/clip: a place on this machine" in line
    assert "me/other" not in hub.repos


def test_a_card_says_what_is_known(things, hub, capfd):  # noqa: F811
    words = ["--language", "en", "--tag", "kitchen", "--base-model", "runwayml/sd", "--datasets"]
    words += ["me/data", "--metric", things / "metric.json", "--config", things / "config.yaml"]
    text = (things / "config.yaml").read_text()
    code, said = command(capfd, "push", things / "ldm", "me/ldm", *MIT, *words)
    assert code == 2 and "config.yaml" in said and "a place on this machine" in said
    (things / "clean.yaml").write_text(text.replace(f"{things}/text", "me/text"))
    push(capfd, things / "ldm", "me/ldm", *words[:-1], things / "clean.yaml")
    card = hub.repos["me/ldm"]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1]) == {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "license": "mit",
        "language": ["en"],
        "base_model": "runwayml/sd",
        "datasets": ["me/data"],
        "tags": ["lego", "kitchen"],
    }
    assert "Figures of 150 frames" in card and "| psnr | 22.97 | 22.69 | 23.27 |" in card
    assert "| fid | 9 |" in card and "samples |" not in card
    assert hub.repos["me/ldm"]["generate.yaml"] == (things / "clean.yaml").read_bytes()


def test_pushed_again_nothing_is_sent(things, hub, capfd):  # noqa: F811
    push(capfd, things / "ldm", "me/ldm")
    sent = len(hub.asked("lfs/", "PUT"))
    push(capfd, things / "ldm", "me/ldm")
    assert hub.commits == 1 and len(hub.asked("lfs/", "PUT")) == sent > 3


def test_an_interrupted_push_goes_on(things, hub, capfd):  # noqa: F811
    hub.hang_ups["commit"] = 20
    code, text = command(capfd, "push", things / "ldm", "me/ldm", *MIT)
    assert code == 2 and len(errors(text)) == 1 and "run it again to go on" in text
    sent = len(hub.asked("lfs/", "PUT"))
    assert not hub.repos["me/ldm"] and sent
    hub.hang_ups.clear()
    push(capfd, things / "ldm", "me/ldm")
    assert len(hub.asked("lfs/", "PUT")) == sent and "model_index.json" in hub.repos["me/ldm"]


def test_a_branch_and_a_revision(things, hub, tmp_path, capfd):  # noqa: F811
    push(capfd, things / "vllm", "me/vllm")
    push(capfd, things / "qwen", "me/vllm", "--revision", "try/two")
    assert "tokenizer.json" in hub.branches["me/vllm", "try/two"]
    assert "tokenizer.json" not in hub.repos["me/vllm"]
    for number, words in enumerate((["me/vllm@try/two"], ["me/vllm", "--revision", "try/two"])):
        out = tmp_path / str(number)
        assert command(capfd, "pull", *words, "--out", out)[0] == 0
        assert (out / "tokenizer.json").read_bytes() == (
            things / "qwen/tokenizer.json"
        ).read_bytes()
    code, text = command(capfd, "pull", "me/vllm@none")
    assert code == 2 and "me/vllm@none" in text and "404" in text


# --- what the hub refuses


def test_refusals_of_the_hub_are_one_line(things, hub, monkeypatch, capfd):  # noqa: F811
    """Wrong token, no rights, not there, a card it does not take; the token is told to nobody."""
    push(capfd, things / "vllm", "me/vllm")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.token = "hf_right"
    for words in (["push", things / "vllm", "me/vllm", *MIT], ["pull", "me/vllm"]):
        code, text = command(capfd, *words)
        assert code == 2 and len(errors(text)) == 1, text
        assert "401" in text and "HF_TOKEN" in text and "hf_secret" not in text
    hub.token, hub.read_only = "hf_secret", True
    for name in ("me/vllm", "me/new"):
        code, text = command(capfd, "push", things / "vllm", name, *MIT)
        assert code == 2 and "403" in text and len(errors(text)) == 1 and "hf_secret" not in text
    hub.read_only = False
    code, text = command(capfd, "pull", "me/none")
    assert code == 2 and "me/none" in text and "404" in text and len(errors(text)) == 1
    hub.card_errors = ['"license" must be one of mit, other']
    code, text = command(capfd, "push", things / "vllm", "me/vllm", *MIT, "--tag", "new")
    assert code == 2 and '"license" must be one of' in text and len(errors(text)) == 1
    assert "hf_secret" not in text


def test_private_stays_private(things, hub, monkeypatch, capfd):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    push(capfd, things / "vllm", "me/mine", "--private")
    assert hub.private == {"me/mine"}
    push(capfd, things / "vllm", "me/mine", "--private")
    monkeypatch.delenv("HF_TOKEN")
    code, text = command(capfd, "pull", "me/mine")
    assert code == 2 and "HF_TOKEN" in text and len(errors(text)) == 1
    push(capfd, things / "vllm", "me/public")
    before = dict(hub.repos["me/public"])
    code, text = command(capfd, "push", things / "qwen", "me/public", *MIT, "--private")
    assert code == 2 and "is public, expected a private one" in text
    assert hub.repos["me/public"] == before


def test_a_broken_connection_and_a_full_disk(things, hub, small_disk, tmp_path, capfd):  # noqa: F811
    push(capfd, things / "vllm", "me/vllm")
    out = tmp_path / "out"
    hub.cuts["cdn/"] = [1000] * 20
    code, text = command(capfd, "pull", "me/vllm", "--out", out)
    assert code == 2 and len(errors(text)) == 1 and not (out / "model.safetensors").exists()
    hub.cuts.clear()
    assert command(capfd, "pull", "me/vllm", "--out", out)[0] == 0
    disk = small_disk(300)
    code, text = command(capfd, "pull", "me/vllm", "--out", disk / "out")
    assert code == 2 and len(errors(text)) == 1 and "No space left" in text
    small_disk(9000)
    assert command(capfd, "pull", "me/vllm", "--out", disk / "out")[0] == 0
    assert contents(disk / "out") == contents(out) == hub.repos["me/vllm"]


def test_wrong_bytes_are_found_and_come_anew(things, hub, tmp_path, capfd):  # noqa: F811
    push(capfd, things / "vllm", "me/vllm")
    right = (things / "vllm" / "model.safetensors").read_bytes()
    hub.lies["model.safetensors"] = right[:-1] + b"x"
    for words in (["--out", tmp_path / "out"], []):
        code, text = command(capfd, "pull", "me/vllm", *words)
        assert code == 2 and "model.safetensors: removed, not the hub's bytes" in text, text
    assert not (tmp_path / "out" / "model.safetensors").exists()
    hub.lies.clear()
    for words in (["--out", tmp_path / "out"], []):
        snapshot.cache_clear()  # as in a new process
        code, text = command(capfd, "pull", "me/vllm", *words)
        assert code == 0, text
        folder = next(line for line in text.splitlines() if line.startswith("/"))
        assert (Path(folder) / "model.safetensors").read_bytes() == right


def test_the_hub_may_be_named_by_an_address(things, hub, monkeypatch, tmp_path, capfd):  # noqa: F811
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, text = command(capfd, "push", things / "vllm", "me/vllm", *MIT)
    assert code == 2 and "no connection" in text and not hub.repos.get("me/vllm")
    push(capfd, things / "vllm", "me/vllm", "--endpoint", hub.address + "/")
    out = tmp_path / "out"
    assert command(capfd, "pull", "me/vllm", "--out", out, "--endpoint", hub.address)[0] == 0


# --- names


def test_a_path_that_is_there_is_no_name(hub, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "it").mkdir(parents=True)
    assert local_path("me/it") == "me/it" and not hub.seen
    with pytest.raises(EgoGenError, match="me/other: no path here.*404"):
        local_path("me/other")
    names = ("me/a", "me/a@main", "a-b/c.d_e@refs/pr/1", "meta-llama/Llama-2-7b", "a1/b")
    assert all(map(is_hub_name, names))
    paths = "logs/last.ckpt a/b/c /a/b ./a ../a a ~/a me/a..b me/-a a/b@ a/b--c configs/x.yaml"
    assert not [path for path in paths.split() if is_hub_name(path)]


def make_frame(things: Path, out: Path, vllm, ldm) -> bytes:
    words = ["--vllm", vllm, "--ldm", ldm, "--config", things / "config.yaml"]
    words += ["--image", things / "photo.jpg", "--action", "pick up the mug", "--device", "cpu"]
    words += ["--max-new-tokens", 4, "--seed", 7, "--out", out, "data.params.res=32", *WIDE]
    assert frame([str(word) for word in words]) == 0
    return out.read_bytes()


def test_a_frame_by_names_is_that_by_paths(things, hub, tmp_path, capfd):  # noqa: F811
    expected = make_frame(things, tmp_path / "a.png", things / "vllm", things / "frame.ckpt")
    assert make_frame(things, tmp_path / "b.png", things / "vllm", things / "ldm") == expected
    push(capfd, things / "vllm", "me/vllm")
    push(capfd, things / "ldm", "me/ldm", "--revision", "two")
    assert make_frame(things, tmp_path / "c.png", "me/vllm", "me/ldm@two") == expected
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["vllm"] == "me/vllm" and record["ldm"] == "me/ldm@two"
    seen = len(hub.seen)
    assert make_frame(things, tmp_path / "d.png", "me/vllm", "me/ldm@two") == expected
    assert not any("resolve" in row[1] for row in hub.seen[seen:])


@pytest.mark.parametrize(
    "override, said",
    [
        ("parameterization=x0", "prediction_type epsilon, but the config's is sample"),
        ("scale_factor=0.5", "vae.*scaling_factor 0.18215, but the config's is 0.5"),
    ],
)
def test_a_config_of_another_schedule_is_refused(override, said, things, tmp_path):
    params = params_of(things / "config.yaml", *WIDE, f"model.params.{override}")
    with pytest.raises(EgoGenError, match=said):
        convert(things / "ldm", tmp_path / "a.ckpt", "own", params)


def test_frames_of_a_split_by_a_folder_and_by_a_name(things, hub, tmp_path, monkeypatch, capfd):  # noqa: F811
    data = write_dataset(tmp_path / "data", splits=("val",))
    for number, entry in enumerate(read_actions(data / "ego4d_val.json")):
        for kind, rows in (("image", 256), ("text", 5)):
            write_feature(data / kind, entry.image_0, np.full((rows, 64), number, np.float16))
    config = tmp_path / "generate.yaml"
    config.write_text(
        f"""{(things / "config.yaml").read_text()}
data:
  metadata_path: {data}/ego4d_metadata.json
  params: {{data_path: {data}/EgoGen/ego4d.fho/val, edit_path: {data}/ego4d_val.json, res: 32,
    additional_cond_path: {{llava_image: {data}/image, llava_text: {data}/text}}}}
"""
    )
    push(capfd, things / "ldm", "me/named")
    (tmp_path / "file.ckpt").write_bytes((things / "frame.ckpt").read_bytes())
    shutil.copytree(things / "ldm", tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    found = {}
    for ckpt in ("file.ckpt", "folder", "me/named", "me/named"):
        words = ["--config", config, "--ckpt", ckpt, "--device", "cpu", *WIDE]
        assert inference.main([*map(str, words), "inference.steps=2"]) == 0
        (images,) = tmp_path.glob(f"{Path(ckpt).stem}/*/images")
        found[ckpt] = {x.relative_to(images): x.read_bytes() for x in images.rglob("*.jpg")}
    assert len(found["folder"]) == 4
    assert found["folder"] == found["file.ckpt"] == found["me/named"]
    assert not [*(tmp_path / "cache").rglob("images")]
