"""Checkpoints: saved, converted both ways, quantized, and placed by device maps."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from recipe import tensor
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration
from vllm_layouts import (
    CASE,
    assert_same,
    bin_shards,
    change,
    golden_image,
    outcome,
    write_two_layers,
)
from vllm_tiny import read, released_state, write_released

from egogen.atomic import write_json
from egogen.errors import EgoGenError
from llava.checkpoints import load as checkpoint
from llava.checkpoints.config import read_config
from llava.checkpoints.convert import convert
from llava.checkpoints.files import read_weights
from llava.checkpoints.load import load, load_model, quantization_of, read_state
from llava.describing.llava_describer import model_info
from llava.eval.arguments import describer_asked
from llava.eval.run_llava_in_loop import parse
from llava.tokens import IMAGE_ID

bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def reference(released):
    return load(released, device="cpu")


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    return write_two_layers(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def hub(released, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub")
    convert(released, out, "hub")
    return out


# Saving


def test_tuned_models_load_in_transformers(reference, tmp_path):
    """A folder as tuning leaves it: here as it was, there with every weight."""
    reference.model.save_pretrained(tmp_path)
    reference.save_tools(tmp_path)
    assert_same(load(tmp_path, device="cpu"), reference)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[kind] for kind in report), report
    pixels = reference.image_processor.batch([golden_image()])
    with torch.no_grad():
        features = theirs.get_image_features(pixels).pooler_output[0]
        torch.testing.assert_close(features, reference.model.image_features(pixels)[0])
    reference.model.load_state_dict(load_file(tmp_path / "model.safetensors"))  # a resumed run


def test_saving_over_what_is_mapped_is_refused(released):
    model = load_model(released)
    with pytest.raises(EgoGenError, match="was read from here"):
        model.save_pretrained(released)
    assert load_file(released / "model.safetensors")


# Converting


def test_transformers_gives_the_golden_answer(hub, reference):
    """Its own processor and generation on the converted folder: the released ids."""
    processor = AutoProcessor.from_pretrained(hub)
    model = LlavaForConditionalGeneration.from_pretrained(hub).eval()
    ours = [IMAGE_ID if i == 600 else i for i in processor.tokenizer(CASE["prompt"]).input_ids]
    assert ours == CASE["input_ids"]
    inputs = processor(images=golden_image(), text=CASE["prompt"], return_tensors="pt")
    pixels = reference.image_processor.batch([golden_image()])
    assert inputs["pixel_values"].shape == pixels.shape
    inputs["pixel_values"] = pixels  # the two libraries resize a little differently
    with torch.no_grad():
        ids = model.generate(
            **inputs, do_sample=False, max_new_tokens=len(CASE["new_ids"]), pad_token_id=0
        )
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == CASE["new_ids"]


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_of_the_converted_tokenizer(released, tmp_path, legacy):
    folder = shutil.copytree(released, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "legacy": legacy}))
    convert(folder, tmp_path / "hub", "hub")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "hub").tokenizer
    for case in read("tokens.json")["tokenizer_image_token"][f"legacy_{legacy}"]:
        ids = [IMAGE_ID if i == 600 else i for i in tokenizer(case["text"]).input_ids]
        if legacy or "<s>" not in case["text"] and "</s>" not in case["text"]:
            assert ids == case["ids"], case["text"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_released_to_hub_and_back(released, tmp_path, dtype):
    source = shutil.copytree(released, tmp_path / "source")
    state = {name: value.to(dtype) for name, value in released_state().items()}
    save_file(state, source / "model.safetensors")
    change(source, torch_dtype=str(dtype).removeprefix("torch."))
    convert(source, tmp_path / "hub", "hub")
    convert(tmp_path / "hub", tmp_path / "back", "llava")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == dtype and torch.equal(back[name], value), name
    config = [json.loads((tmp_path / k / "config.json").read_text()) for k in ("source", "back")]
    assert config[0] == config[1]
    assert_same(load(tmp_path / "hub", device="cpu"), load(source, device="cpu"))
    assert_same(load(tmp_path / "back", device="cpu"), load(source, device="cpu"))


def test_hub_to_released_and_back(two_layers, tmp_path):
    """What was tuned here, through the layout of LLaVA-1.5."""
    loaded = load(two_layers, device="cpu")
    loaded.model.config.conversation_template = "llama_2_short"
    loaded.model.save_pretrained(tmp_path / "tuned")
    loaded.save_tools(tmp_path / "tuned")
    convert(tmp_path / "tuned", tmp_path / "llava", "llava")
    assert "model.mm_projector.2.weight" in load_file(tmp_path / "llava" / "model.safetensors")
    again = load(tmp_path / "llava", device="cpu")
    assert again.model.config.conversation_template == "llama_2_short"
    convert(tmp_path / "llava", tmp_path / "hub", "hub")
    for name in ("llava", "hub"):
        assert read_config(tmp_path / name).conversation_template == "llama_2_short"
        state = read_state(tmp_path / name, read_config(tmp_path / name))
        for key, value in loaded.model.state_dict().items():
            assert torch.equal(state[key], value), key


def test_shards_of_a_large_checkpoint(released, reference, tmp_path, monkeypatch):
    monkeypatch.setattr("llava.checkpoints.files.SHARD_SIZE", "100KB")
    bits = shutil.copytree(released, tmp_path / "bits")
    bin_shards(released_state(), bits)
    files = convert(bits, tmp_path / "hub", "hub")
    assert len(files) > 3
    assert json.loads((tmp_path / "hub" / "model.safetensors.index.json").read_text())
    assert_same(load(tmp_path / "hub", device="cpu"), reference)


def test_converting_twice_and_over_something_else(released, hub, two_layers):
    assert convert(released, hub, "hub") is None
    with pytest.raises(EgoGenError, match="holds another checkpoint"):
        convert(two_layers, hub, "hub")
    with pytest.raises(EgoGenError, match="holds another checkpoint"):
        convert(released, released, "hub")


def test_killed_conversion_is_no_checkpoint(released, reference, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llava.checkpoints.convert._write_processor", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(released, tmp_path, "hub")
    with pytest.raises(EgoGenError, match="config.json: no such file"):
        load(tmp_path, device="cpu")
    convert(released, tmp_path, "hub")
    assert_same(load(tmp_path, device="cpu"), reference)


def test_conversion_killed_behind_its_config_is_done(released, tmp_path, monkeypatch):
    def killed(path, *arguments, **options):
        write_json(path, *arguments, **options)
        if path == tmp_path / "config.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llava.checkpoints.convert.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(released, tmp_path, "hub")
    assert convert(released, tmp_path, "hub") is None


# Placing


def test_dtypes(released):
    for name in ("float16", "bfloat16"):
        model = load(released, device="cpu", dtype=name).model
        assert {value.dtype for value in model.parameters()} == {getattr(torch, name)}


def test_missing_attention_kernel(released):
    if find_spec("flash_attn") is None:
        with pytest.raises(EgoGenError, match="FlashAttention2"):
            load_model(released, attn="flash_attention_2")


SPLIT = {
    "model.vision_tower": "disk",
    "model.multi_modal_projector": "cpu",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.layers.0": "disk",
    "model.language_model.layers.1": "cpu",
    "model.language_model.norm": "disk",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.mark.parametrize("device_map", [SPLIT, "auto"])
def test_device_map(released, reference, tmp_path, device_map):
    """Two places that there are on any machine; "auto" fills memory, then the disk."""
    memory = {"cpu": 500_000} if device_map == "auto" else None
    model = load_model(
        released, device_map=device_map, max_memory=memory, offload_folder=tmp_path / "disk"
    )
    assert {str(place) for place in model.hf_device_map.values()} == {"cpu", "disk"}
    assert any(value.device.type == "meta" for value in model.parameters())
    loaded = checkpoint.with_tools(model, released)
    assert_same(loaded, reference, atol=1e-6)
    assert model_info(loaded) == model_info(reference)  # features of both may be mixed


@bitsandbytes
@pytest.mark.parametrize("bits, most", [("8bit", 0.03), ("4bit", 0.15)])
def test_quantized(released, reference, bits, most):
    """Only the language model's layers lose bits: each layer's output is off by at most `most`."""
    flags = f"--model-path {released} --image-dir x --action-label x --save-path x --device cpu"
    loaded = describer_asked(parse([*flags.split(), f"--load-{bits}"])).loaded
    assert quantization_of(loaded.model) == model_info(loaded)["quantization"] == bits
    assert model_info(loaded) != model_info(reference)
    pixels = loaded.image_processor.batch([golden_image()])
    with torch.no_grad():
        features = loaded.model.image_features(pixels)
        assert torch.equal(features, reference.model.image_features(pixels))
    quantized = [
        name for name, value in loaded.model.named_parameters() if value.dtype != torch.float32
    ]
    assert len(quantized) == 2 * 7 and all("language_model.layers" in name for name in quantized)
    rows = torch.from_numpy(tensor("rows", (50, 64)))
    for number in range(2):
        found, expected = (
            one.model.model.language_model.layers[number].self_attn.v_proj(rows).detach()
            for one in (loaded, reference)
        )
        assert 1e-4 < (found - expected).norm() / expected.norm() < most
    assert len(outcome(loaded)[0]) == 6


def test_quantized_without_the_library(released, monkeypatch):
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(EgoGenError, match="--load-4bit: bitsandbytes is not installed"):
        load(released, device="cpu", quantization="4bit")


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_are_maps_of_the_files(tmp_path, kind):
    """Nothing is copied, not even when it is used, so that shards need no memory of their own."""
    state = {f"a{number}": torch.ones(1 << 22) for number in range(8)}  # 128 MiB
    if kind == "safetensors":
        save_file(state, tmp_path / "model.safetensors")
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    del state
    before = anonymous()
    state = read_weights(tmp_path)
    assert sum(float(value.sum()) for value in state.values()) == 8 << 22
    assert anonymous() - before < 32 << 20
