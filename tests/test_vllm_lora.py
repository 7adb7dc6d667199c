"""Adapters: what learns, what is written, and that the describing command loads it."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_tuning import flags, write_inputs
from transformers import LlavaForConditionalGeneration
from vllm_layouts import golden_image, write_two_layers

from egogen.errors import EgoGenError, run_command
from llava.checkpoints.convert import convert
from llava.checkpoints.load import load, load_model
from llava.describing.llava_describer import prompt_ids
from llava.tokens import IMAGE_ID, expand
from llava.train import merge_lora
from llava.train.train import main

ADAPTERS = ["--lora_enable", "True", "--lora_r", "4", "--lora_alpha", "8"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def command(paths, output, *more):
    named = [str(part) for name, path in paths.items() for part in (f"--{name}", path)]
    return [*named, "--output_dir", str(output), "--use_cpu", "True", *flags(), *ADAPTERS, *more]


@pytest.fixture(scope="module")
def tuned(paths, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned")
    main(command(paths, output))
    return output


def test_merged_folder_is_base_and_adapter(paths, tuned):
    before = load_model(paths["model_name_or_path"]).state_dict()
    after = load(tuned, device="cpu").model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    layers = {name for name in before if ".language_model.layers." in name and "_proj." in name}
    projector = {name for name in before if "multi_modal_projector.linear_1" in name}
    assert changed == layers | projector
    adapter = load_file(tuned / "adapter" / "adapter_model.safetensors")
    place = "model.language_model.layers.1.mlp.down_proj"
    down, up = (adapter[f"base_model.model.{place}.lora_{part}.weight"] for part in "AB")
    expected = before[f"{place}.weight"] + 2.0 * up @ down  # alpha / r = 2
    torch.testing.assert_close(after[f"{place}.weight"], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_plain_peft_puts_the_adapter_on_a_converted_base(paths, tuned, tmp_path, layers):
    """The logits of the folder that was merged here, to the last bits of the added products."""
    base = paths["model_name_or_path"]
    if layers == 2:
        base, tuned = write_two_layers(tmp_path / "base"), tmp_path / "tuned"
        main(command({**paths, "model_name_or_path": base}, tuned))
    convert(base, tmp_path / "hub", "hub")
    converted = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hub")
    theirs = PeftModel.from_pretrained(converted, tuned / "adapter").eval()
    ours = load(tuned, device="cpu")
    pixels = ours.image_processor.batch([golden_image()])
    prompt = expand(prompt_ids(ours, "How?"), ours.model.patches)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        expected = ours.model(input_ids=ids, pixel_values=pixels).logits
        known = ids.where(ids != IMAGE_ID, len(ours.tokenizer))
        found = theirs(input_ids=known, pixel_values=pixels).logits[..., : expected.shape[-1]]
        plain = load(base, device="cpu").model(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 1e-2


def test_adapters_of_before_are_merged(tuned, tmp_path):
    """They name the projector as a whole."""
    before = shutil.copytree(tuned / "adapter", tmp_path / "adapter")
    config = json.loads((before / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["multi_modal_projector.linear_1"]
    config["modules_to_save"] = ["multi_modal_projector"]
    (before / "adapter_config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    merge_lora.main(["--adapter", str(before), "--out", str(out), "--dtype", "float32"])
    first, second = (load_file(folder / "model.safetensors") for folder in (tuned, out))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_merging_again_gives_the_same(tuned, tmp_path):
    merge_lora.main(
        ["--adapter", str(tuned / "adapter"), "--out", str(tmp_path), "--dtype", "float32"]
    )
    first, second = (load_file(folder / "model.safetensors") for folder in (tuned, tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_stopped_run_goes_on(paths, tuned, tmp_path):
    output = shutil.copytree(tuned, tmp_path / "out")
    for name in ("finished.json", "model.safetensors", "checkpoint-4/whole.json"):
        (output / name).unlink()
    main(command(paths, output))
    first, second = (load_file(folder / "model.safetensors") for folder in (tuned, output))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-7, rtol=1e-6, msg=name)


def error_line(capsys, work, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        run_command(work, argv)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.parametrize(
    "missing, more, words",
    [
        ("peft", [], "--lora_enable: the package is not installed, expected: pip install peft"),
        ("bitsandbytes", ["--bits", "4"], "--bits 4: the package is not installed"),
        ("wandb", ["--report_to", "wandb"], "--report_to wandb: the package is not installed"),
    ],
)
def test_missing_packages_are_named(paths, tmp_path, capsys, monkeypatch, missing, more, words):
    monkeypatch.setattr(
        "egogen.errors.find_spec",
        lambda name: None if name == missing else find_spec(name),
    )
    assert words in error_line(capsys, main, command(paths, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_quantized_weights_need_adapters(paths, tmp_path, capsys):
    argv = command(paths, tmp_path / "out", "--lora_enable", "False", "--bits", "8")
    assert "--lora_enable True" in error_line(capsys, main, argv)


def test_misspelt_flag(paths, tmp_path, capsys):
    line = error_line(capsys, main, command(paths, tmp_path / "out", "--lerning_rate", "4"))
    assert line == "error: unknown flag --lerning_rate, expected perhaps --learning_rate"


def test_folder_without_an_adapter(tmp_path):
    with pytest.raises(EgoGenError, match="origin.json: no such file"):
        merge_lora.main(["--adapter", str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.slow("adapters on a quantized base")
def test_quantized_base(paths, tmp_path):
    output = tmp_path / "out"
    main(command(paths, output, "--bits", "4"))
    before = load_model(paths["model_name_or_path"]).state_dict()
    after = load(output, device="cpu").model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all("_proj." in name or "projector" in name for name in changed)
