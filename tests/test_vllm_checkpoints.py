"""Checkpoint folders of every layout: read, refused, saved, converted both ways, and placed."""

import functools
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import image, tensor
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration
from vllm_tiny import DATA, read, released_state, write_released

from egogen.errors import EgoGenError
from llava import checkpoint, checkpoint_config
from llava.checkpoint import load, load_model, quantization_of, read_state, save_tools
from llava.checkpoint_config import KNOWN_TOWERS, read_config
from llava.checkpoint_files import (
    COMPUTED,
    HUB_NAMES,
    MODEL_NAMES,
    RELEASED_NAMES,
    check_weights,
    read_weights,
    rename,
)
from llava.convert import convert
from llava.decoding import Decoding
from llava.describe import describe_frames, prompt_ids
from llava.model import Llava
from llava.tokens import IMAGE_ID, expand

GENERATION = read("generation.json")
CASE = GENERATION["cases"][0]
TOWER = "model.vision_tower.vision_tower.vision_model."
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
def hub(released, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub")
    convert(released, out, "hub")
    return out


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    """LLaVA-1.5: two projector layers, in the layout of its authors."""
    folder = write_released(tmp_path_factory.mktemp("two"))
    state = {k: v for k, v in released_state().items() if "mm_projector" not in k}
    for layer, width in ((0, 32), (2, 64)):
        for kind, shape in (("weight", [64, width]), ("bias", [64])):
            name = f"model.mm_projector.{layer}.{kind}"
            state[name] = torch.from_numpy(tensor(name, shape))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder, mm_projector_type="mlp2x_gelu")
    return folder


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def picture() -> Image.Image:
    return Image.fromarray(image(CASE["image"], CASE["height"], CASE["width"], CASE["seed"]))


def outcome(loaded) -> tuple[list[int], np.ndarray]:
    """Greedy ids and the last logits about one picture."""
    pixels = loaded.image_processor.batch([picture()])
    ids = torch.tensor([expand(prompt_ids(loaded, CASE["cleaned"]), loaded.model.patches)])
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, pixel_values=pixels).logits[0, -1]
    settings = Decoding(temperature=0, max_new_tokens=6)
    (described,) = describe_frames(loaded, [picture()], [CASE["cleaned"]], settings=settings)
    return described.ids, logits[: len(loaded.tokenizer)].float().numpy()


def assert_same(loaded, reference, atol=0.0):
    (ids, logits), (other_ids, other_logits) = outcome(loaded), outcome(reference)
    assert ids == other_ids
    np.testing.assert_allclose(logits, other_logits, atol=atol, rtol=0)


def bin_shards(state, folder, shards=3):
    """`pytorch_model-*.bin` with their index, as large checkpoints are released."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, places = sorted(state), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = {name: state[name] for name in names[number::shards]}
        places |= dict.fromkeys(part, file)
        torch.save(part, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


# Names and shapes


def test_full_size_names_and_shapes():
    """13,324,292,096 parameters of the released model find their place, and nothing else does."""
    shapes = read("manifest_full.json")
    fields = read("configs.json")["full_size_assumed"]["llava"]
    vision = checkpoint_config.CLIPVisionConfig(**KNOWN_TOWERS[fields["mm_vision_tower"]])
    config = checkpoint_config._released_config(fields, DATA / "config.json", vision)
    with torch.device("meta"):
        model = Llava(config)
    assert sum(value.numel() for value in model.parameters()) == 13_324_292_096
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = {name: tuple(s) for name, s in shapes.items() if not name.endswith(COMPUTED)}
    found = {rename(name, MODEL_NAMES): shape for name, shape in weights.items()}
    assert len(found) == len(weights) == 756
    check_weights(found, expected, "the released model")
    assert model.patches == 256
    for names in (*RELEASED_NAMES.values(), HUB_NAMES):
        assert all(rename(rename(name, names), MODEL_NAMES) == name for name in expected)
    assert {rename(name, RELEASED_NAMES[1]) for name in expected} == set(weights)


def test_one_error_lists_everything(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "wrong")
    state = released_state()
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        del state[name]
    state["model.extra.weight"] = torch.zeros(1)
    state["lm_head.weight"] = torch.zeros(600, 32)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(EgoGenError) as error:
        load(folder, device="cpu")
    text = str(error.value)
    assert "lacks 2 (model.language_model.layers.0.mlp.up_proj.weight" in text
    assert "model.language_model.norm.weight)" in text
    assert "holds unknown 1 (model.extra.weight)" in text
    assert "has another shape for 1 (lm_head.weight (600, 32) for (600, 64))" in text
    assert str(folder) in text


# Layouts


@pytest.mark.parametrize("name", ["mpt-prompt", "no-family", "checkpoint-5"])
def test_config_decides_whatever_the_folder_is_called(released, reference, tmp_path, name):
    folder = shutil.copytree(released, tmp_path / name)
    loaded = load(folder, device="cpu")
    assert loaded.template == reference.template
    assert loaded.model.config.projector_layers == 1
    assert_same(loaded, reference)


@pytest.mark.parametrize("legacy", [False, True])
def test_bin_shards(released, reference, tmp_path, legacy):
    """`legacy` is torch's format before 2020, which cannot be mapped."""
    folder = shutil.copytree(released, tmp_path / "bin")
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        f"{TOWER}embeddings.position_ids": torch.arange(257)[None],
    }
    if legacy:
        (folder / "model.safetensors").unlink()
        torch.save(
            released_state() | buffers,
            folder / "pytorch_model.bin",
            _use_new_zipfile_serialization=False,
        )
    else:
        bin_shards(released_state() | buffers, folder)
    torch.save({"optimizer": 1}, folder / "training_args.bin")  # beside it, and none of the weights
    assert_same(load(folder, device="cpu"), reference)


class Executed:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_code_is_not_executed(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "bad")
    (folder / "model.safetensors").unlink()
    proof = tmp_path / "executed"
    torch.save({**released_state(), "more": Executed(proof)}, folder / "pytorch_model.bin")
    with pytest.raises(EgoGenError, match="pytorch_model.bin"):
        load(folder, device="cpu")
    assert not proof.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_file_that_is_cut_short(released, tmp_path, suffix):
    folder = shutil.copytree(released, tmp_path / "cut")
    path = folder / "model.safetensors"
    if suffix == "bin":
        path.unlink()
        path = folder / "pytorch_model.bin"
        torch.save(released_state(), path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(EgoGenError, match=f"{path.name}: not a readable file of weights"):
        load(folder, device="cpu")


def test_missing_shards_are_listed(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "shards")
    bin_shards(released_state(), folder)
    for number in (1, 3):
        (folder / f"pytorch_model-{number:05}-of-00003.bin").unlink()
    with pytest.raises(EgoGenError, match="2 shards are missing: .*00001-of.*, .*00003-of"):
        load(folder, device="cpu")


def test_index_that_leaves_the_folder(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "away")
    bin_shards(released_state(), folder)
    index = {"weight_map": {"lm_head.weight": "../released/model.safetensors"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(EgoGenError, match="expected a 'weight_map' from weights to files beside"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"mm_projector_type": "resampler"}, "projector 'resampler'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_what_config_may_not_say(released, tmp_path, fields, words):
    folder = shutil.copytree(released, tmp_path / "config")
    change(folder, **fields)
    with pytest.raises(EgoGenError, match=words) as error:
        load(folder, device="cpu")
    assert "config.json" in str(error.value)


def without_tower(released, folder):
    """A checkpoint without vision tower, and the tower's weights as its authors publish it."""
    shutil.copytree(released, folder)
    shutil.rmtree(folder / "vision_tower")
    state = released_state()
    rest = {name: value for name, value in state.items() if not name.startswith(TOWER)}
    save_file(rest, folder / "model.safetensors")
    tower = {f"vision_model.{k.removeprefix(TOWER)}": state[k] for k in state.keys() - rest.keys()}
    return {
        **tower,
        "text_model.final_layer_norm.weight": torch.ones(3),
        "logit_scale": torch.ones(1),
    }


def write_tower(folder, tower, kind="safetensors"):
    folder.mkdir(parents=True)
    vision = read("configs.json")["clip_vision"]
    (folder / "config.json").write_text(json.dumps({"vision_config": vision}))
    if kind == "bin":
        torch.save(tower, folder / "pytorch_model.bin")
    else:
        save_file(tower, folder / "model.safetensors")


@pytest.mark.parametrize("where", ["absolute", "beside", "argument", "default", "hub"])
def test_vision_tower_from_elsewhere(released, reference, tmp_path, monkeypatch, where):
    folder, given = tmp_path / "model", None
    tower = without_tower(released, folder)
    if where == "absolute":
        write_tower(tmp_path / "clip", tower)
        change(folder, mm_vision_tower=str(tmp_path / "clip"))
    elif where == "beside":
        write_tower(folder / "towers" / "clip", tower, "bin")
        change(folder, mm_vision_tower="towers/clip")
    elif where == "argument":
        write_tower(tmp_path / "clip", tower)
        given = str(tmp_path / "clip")
    elif where == "default":
        write_tower(folder / "vision_tower", tower)
    else:
        cached = tmp_path / "cache" / "models--openai--clip-tiny"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("abc")
        write_tower(cached / "snapshots" / "abc", tower)
        look_up = functools.partial(
            checkpoint_config.cached_file, cache_dir=tmp_path / "cache", local_files_only=True
        )
        monkeypatch.setattr(checkpoint_config, "cached_file", look_up)
    assert_same(load(folder, device="cpu", vision_tower=given), reference)


def test_no_vision_tower_anywhere(released, tmp_path, monkeypatch):
    def offline(*_):
        raise OSError

    monkeypatch.setattr(checkpoint_config, "cached_file", offline)
    without_tower(released, tmp_path / "model")
    with pytest.raises(EgoGenError, match="'openai/clip-tiny' is neither a folder nor a name"):
        load(tmp_path / "model", device="cpu")
    change(tmp_path / "model", mm_vision_tower="openai/clip-vit-large-patch14", mm_hidden_size=1024)
    with pytest.raises(EgoGenError, match="holds no vision tower"):
        load(tmp_path / "model", device="cpu")


def test_the_tower_inside_is_used(released, reference, tmp_path):
    """The released code reloads the tower by its name and ignores the weights of the checkpoint."""
    other = {name: value + 1 for name, value in without_tower(released, tmp_path / "x").items()}
    write_tower(tmp_path / "clip", other)
    assert_same(load(released, device="cpu", vision_tower=str(tmp_path / "clip")), reference)


def test_two_projector_layers(two_layers, tmp_path):
    loaded = load(two_layers, device="cpu")
    assert loaded.model.config.conversation_template == "vicuna_v1"
    state = load_file(two_layers / "model.safetensors")
    pixels = loaded.image_processor.batch([picture()])
    with torch.no_grad():
        rows = loaded.model.vision_features(pixels)
        for layer in (0, 2):
            weight, bias = (state[f"model.mm_projector.{layer}.{k}"] for k in ("weight", "bias"))
            rows = torch.nn.functional.linear(rows, weight, bias)
            rows = torch.nn.functional.gelu(rows) if layer == 0 else rows
        torch.testing.assert_close(loaded.model.image_features(pixels), rows)


@pytest.mark.parametrize("names", ["current", "classic"])
def test_folder_that_transformers_wrote(two_layers, tmp_path, names):
    """`classic` names are those of the llava-hf folders on the hub."""
    model = load_model(two_layers)
    theirs = LlavaForConditionalGeneration(model.config)
    theirs.load_state_dict(model.state_dict())
    theirs.save_pretrained(tmp_path)
    if names == "classic":
        state = {rename(name, HUB_NAMES): value for name, value in model.state_dict().items()}
        assert "language_model.model.layers.0.mlp.up_proj.weight" in state
        assert "vision_tower.vision_model.pre_layrnorm.weight" in state
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = load_model(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


# Saving


def test_tuned_models_load_in_transformers(reference, tmp_path):
    """A folder as tuning leaves it: here as it was, there with every weight."""
    reference.model.save_pretrained(tmp_path)
    save_tools(reference, tmp_path)
    assert_same(load(tmp_path, device="cpu"), reference)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[kind] for kind in report), report
    pixels = reference.image_processor.batch([picture()])
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
    inputs = processor(images=picture(), text=CASE["prompt"], return_tensors="pt")
    pixels = reference.image_processor.batch([picture()])
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
    save_tools(loaded, tmp_path / "tuned")
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
    monkeypatch.setattr("llava.checkpoint_files.SHARD_SIZE", "100KB")
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
        patch.setattr("llava.convert._write_processor", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(released, tmp_path, "hub")
    with pytest.raises(EgoGenError, match="config.json: no such file"):
        load(tmp_path, device="cpu")
    convert(released, tmp_path, "hub")
    assert_same(load(tmp_path, device="cpu"), reference)


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


@bitsandbytes
@pytest.mark.parametrize("bits, most", [("8bit", 0.03), ("4bit", 0.15)])
def test_quantized(released, reference, bits, most):
    """Only the language model's layers lose bits: each layer's output is off by at most `most`."""
    loaded = load(released, device="cpu", dtype="float32", quantization=bits)
    assert quantization_of(loaded.model) == bits
    pixels = loaded.image_processor.batch([picture()])
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
