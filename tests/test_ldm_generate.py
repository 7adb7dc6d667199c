"""Picture encoding against the released pictures, and generation through the command."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTokenizer

from egogen import EgoGenError
from egogen.features.store import write_feature
from ldm.generate import run_folder
from ldm.images import to_image
from metrics.inference import main

DATA = Path(__file__).parent / "data" / "ldm"


@pytest.mark.parametrize(
    "path", sorted((DATA / "pictures").glob("picture_*.png")), ids=lambda p: p.stem
)
def test_released_picture_encoding(path):
    _, index, size = path.stem.split("_")
    k = int(index)
    pixels = image(f"picture.{k}", 256, 256).astype(np.float32) * 2 / 255 - 1
    x = torch.from_numpy(0.8 * pixels + 0.1 * (k - 1)).permute(2, 0, 1)
    picture = to_image(x, tuple(map(int, size.split("x"))), 256, "minmax")
    expected = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    difference = np.abs(np.asarray(picture, dtype=int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_a_very_narrow_frame_is_a_pixel_wide():
    assert to_image(torch.zeros(3, 8, 8), (1, 1000), 256, "clamp").size == (1, 256)


def test_released_output_folder():
    expected = "logs/X/X-e=0-s=100-si=1.5"
    assert str(run_folder("logs/X.ckpt", 0, 100, 1.5, 7.5)) == expected
    assert run_folder("logs/X.ckpt", 0, 100, 1.5, 5.0) != Path(expected)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny model in the released layout, four entries with features, and their config."""
    root = tmp_path_factory.mktemp("generate")
    text = root / "text"
    CLIPTextConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=8,
    ).save_pretrained(text)
    words = ["<|startoftext|>", "<|endoftext|>", "a", "b", "a</w>", "b</w>"]
    (text / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (text / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(text).save_pretrained(text)
    actions = {}
    generator = np.random.RandomState(0)
    for i in range(4):
        name = f"clip_{i // 2}/{i % 2}/frame_1.jpg"
        path = root / "frames" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(image(name, 48, 64)).save(path)
        for kind, rows in (("image", 4), ("text", 3)):
            write_feature(root / kind, name, generator.standard_normal((rows, 8)))
        entry = {"image_0": name, "image_1": name.replace("_1.", "_2."), "action": "a b"}
        actions.setdefault(f"clip_{i // 2}", {})[str(i % 2)] = entry
    (root / "edits.json").write_text(json.dumps(actions))
    sizes = {clip: {"width": 640, "height": 480} for clip in actions}
    (root / "metadata.json").write_text(json.dumps(sizes))
    (root / "config.yaml").write_text(f"""
model:
  params:
    load_ema: false
    unet_config: {{params: {{model_channels: 32, channel_mult: [1, 2], attention_resolutions: [2],
      num_res_blocks: 1, num_heads: 2, context_dim: 64}}}}
    first_stage_config: {{params: {{ddconfig: {{ch: 32, ch_mult: [1, 1, 1], num_res_blocks: 1}}}}}}
    cond_stage_config: {{params: {{version: {text}}}}}
    conditioner: {{feature_dim: 8, image_rows: 4, num_heads: 2, feedforward_dim: 32}}
data:
  metadata_path: {root}/metadata.json
  params: {{data_path: {root}/frames, edit_path: {root}/edits.json, res: 32,
    text_prompt_key: action,
    additional_cond_path: {{llava_image: {root}/image, llava_text: {root}/text}}}}
inference: {{steps: 3, height: 48}}
""")
    return root


def run(small, monkeypatch, out, *arguments):
    """Generate into `out` with weights that depend on the seed 0 alone."""
    from ldm import generate

    def load(params, ckpt, device, loras):
        torch.manual_seed(0)
        return generate.LegoModel(params).to(device).eval()

    monkeypatch.setattr(generate, "load_model", load)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "X.ckpt").exists():
        (out / "X.ckpt").write_bytes(b"stands for weights")
    code = main(["--config", str(small / "config.yaml"), "--ckpt", str(out / "X.ckpt"), *arguments])
    images = out / "X" / "X-e=0-s=3-si=1.5" / "images"
    return code, {str(p.relative_to(images)): p.read_bytes() for p in sorted(images.rglob("*.jpg"))}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_chunks_and_restarts_give_the_same_bytes(small, monkeypatch, tmp_path, batch_size):
    size = f"inference.batch_size={batch_size}"
    code, whole = run(small, monkeypatch, tmp_path / "a", size)
    assert code == 0 and len(whole) == 4
    for k in "123":
        chunk = ("--n_chunk", "3", "--chunk_idx", k, size)
        _, chunked = run(small, monkeypatch, tmp_path / "b", *chunk)
    assert chunked == whole
    lost = next((tmp_path / "a").rglob("*.jpg"))
    lost.write_bytes(lost.read_bytes()[:200])  # half-written by a run that did not know better
    assert run(small, monkeypatch, tmp_path / "a", size)[1] == whole
    assert Image.open(lost).size == (64, 48)


def test_batches_change_at_most_a_grey_level_of_few_pixels(small, monkeypatch, tmp_path):
    pictures = []
    for batch_size in (1, 8):
        folder = tmp_path / str(batch_size)
        run(small, monkeypatch, folder, f"inference.batch_size={batch_size}")
        pictures.append([Image.open(path) for path in sorted(folder.rglob("*.jpg"))])
    for one, eight in zip(*pictures, strict=True):
        difference = np.abs(np.asarray(one, dtype=int) - np.asarray(eight, dtype=int))
        assert difference.max() <= 2 and (difference > 0).mean() < 0.05  # JPEG may double one level


def test_released_order_of_noise_over_a_restart(small, monkeypatch, tmp_path):
    """Frames that are made again get the noise of their place in the process."""
    options = ("inference.noise=process", "inference.batch_size=2")
    _, whole = run(small, monkeypatch, tmp_path / "a", *options)
    for name in list(whole)[1::2]:
        next((tmp_path / "a").rglob(name)).unlink()
    assert run(small, monkeypatch, tmp_path / "a", *options)[1] == whole
    _, own = run(small, monkeypatch, tmp_path / "b", "inference.batch_size=2")
    assert all(own[name] != whole[name] for name in whole)
    with pytest.raises(EgoGenError, match="made with n_chunk 1, expected 2"):
        run(small, monkeypatch, tmp_path / "a", *options, "--n_chunk", "2")


def test_sweeps_and_samplers_write_to_folders_of_their_own(small, monkeypatch, tmp_path):
    run(
        small, monkeypatch, tmp_path, "inference.scales_img=[1.5,2]", "inference.scales_txt=[5,7.5]"
    )
    run(small, monkeypatch, tmp_path, "inference.sampler=unipc")
    within = "inference.guidance_interval=[0.3,5]"
    run(small, monkeypatch, tmp_path, within)
    found = {folder.name: list(folder.rglob("*.jpg")) for folder in (tmp_path / "X").iterdir()}
    base = "X-e=0-s=3-si="
    assert set(found) == {
        base + rest for rest in ("1.5", "2", "1.5-st=5", "2-st=5", "1.5-unipc", "1.5-gi=0.3-5.0")
    }
    assert all(len(files) == 4 for files in found.values())
    first = {sorted(files)[0].read_bytes() for files in found.values()}
    assert len(first) == len(found)
    record = tmp_path / "X" / f"{base}1.5-gi=0.3-5.0" / "made_by.json"
    content = json.loads(record.read_text())
    assert content.pop("guidance_interval") == [0.3, 5.0]
    record.write_text(json.dumps(content | {"guidance_interval": [0.3, 4.0]}))
    with pytest.raises(EgoGenError, match="guidance_interval"):
        run(small, monkeypatch, tmp_path, within)


UNUSED = {"none": ("llava_image", "llava_text"), "image": ("llava_text",), "text": ("llava_image",)}


@pytest.mark.parametrize("variant", UNUSED)
def test_variants_need_only_the_features_that_they_use(small, monkeypatch, tmp_path, variant):
    overrides = [f"data.params.additional_cond_path.{name}=''" for name in UNUSED[variant]]
    overrides.append(f"model.params.conditioner.variant={variant}")
    code, done = run(small, monkeypatch, tmp_path, *overrides)
    assert code == 0 and len(done) == 4


def test_an_unreadable_feature_is_reported_and_the_rest_done(small, monkeypatch, tmp_path, capsys):
    broken = small / "text" / "clip_1" / "0" / "frame_1.npy"
    content = broken.read_bytes()
    broken.write_bytes(content[:20])
    try:
        code, done = run(small, monkeypatch, tmp_path, "inference.batch_size=4")
    finally:
        broken.write_bytes(content)
    assert code == 1 and len(done) == 3
    assert "clip_1/0" in capsys.readouterr().err


def test_frames_of_another_checkpoint_are_not_taken_for_finished(small, monkeypatch, tmp_path):
    run(small, monkeypatch, tmp_path)
    (tmp_path / "X.ckpt").write_bytes(b"stands for weights of more training")
    with pytest.raises(EgoGenError, match="made with checkpoint"):
        run(small, monkeypatch, tmp_path)


def test_missing_checkpoint(small, tmp_path):
    with pytest.raises(EgoGenError, match="no such file or folder: ckpt=.*none.ckpt"):
        main(["--config", str(small / "config.yaml"), "--ckpt", str(tmp_path / "none.ckpt")])


def edited(small, tmp_path, change):
    """A copy of the action file after `change` of its content, as an override."""
    content = json.loads((small / "edits.json").read_text())
    content = change(content) or content
    (tmp_path / "edits.json").write_text(json.dumps(content))
    return f"data.params.edit_path={tmp_path}/edits.json"


BAD_FILES = {
    "holds no entries": lambda content: content.clear(),
    "entry clip_0/0: field 'image_1' is missing": lambda c: c["clip_0"]["0"].pop("image_1"),
    "leaves the dataset root": lambda c: c["clip_0"]["0"].update(image_0="../x.jpg"),
    "clip 'other' is missing": lambda c: {"other": c["clip_0"]},
}


@pytest.mark.parametrize("expected", BAD_FILES)
def test_bad_action_files(small, monkeypatch, tmp_path, expected):
    def change(content):
        result = BAD_FILES[expected](content)
        return result if expected.startswith("clip") else content

    with pytest.raises(EgoGenError, match=expected):
        run(small, monkeypatch, tmp_path, edited(small, tmp_path, change))
    assert not list(tmp_path.rglob("*.jpg"))


@pytest.mark.parametrize("kind", ["nan", "shape", "frame"])
def test_bad_features_and_frames_are_named(small, monkeypatch, tmp_path, capsys, kind):
    path = small / "image" / "clip_0" / "1" / "frame_1.npy"
    if kind == "frame":
        path = small / "frames" / "clip_0" / "1" / "frame_1.jpg"
    content = path.read_bytes()
    if kind == "frame":
        path.write_bytes(content[:150])
    else:
        np.save(path, np.full((4, 8) if kind == "nan" else (4, 7), np.nan, np.float16))
    try:
        code, done = run(small, monkeypatch, tmp_path)
    finally:
        path.write_bytes(content)
    assert code == 1 and len(done) == 3
    error = capsys.readouterr().err
    wanted = {"nan": "NaN", "shape": "expected (4, 8)", "frame": "unreadable image"}[kind]
    assert "clip_0/1" in error and wanted in error and str(path) in error


def test_a_checkpoint_of_stage_1_is_refused(small, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"model.language_model.norm.weight": torch.ones(2)}, path)
    with pytest.raises(EgoGenError, match="expected a released one"):
        main(["--config", str(small / "config.yaml"), "--ckpt", str(path)])
    (tmp_path / "code.ckpt").write_bytes(pickle.dumps({"state_dict": Path("x")}))
    with pytest.raises(EgoGenError, match="code.ckpt: not a readable weight file "):
        main(["--config", str(small / "config.yaml"), "--ckpt", str(tmp_path / "code.ckpt")])
