"""This project's own defaults, which no released number guards: through the command, on real files.

Noise, provenance, the bytes of a picture and its size.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import image
from small_model import (
    FEATURE_DIM,
    IMAGE_ROWS,
    params_of,
    random_model,
    random_weights,
    write_config,
)

from egogen import EgoGenError
from egogen.features.store import write_feature
from ldm.checkpoints.layouts import to_own
from ldm.generate import fingerprint
from ldm.images import to_image, write_image
from ldm.networks.architecture import build_conditioner
from ldm.released_config import released_features
from ldm.schema import ConditionerParams, InferenceConfig, default_features
from metrics.inference import main

SIZES = {"one": (640, 360), "two": (640, 360), "tall": (360, 640)}  # width, height
HEIGHT = 48


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three clips of two actions each that differ in nothing but their ids and the clips' sizes."""
    root = tmp_path_factory.mktemp("own")
    config = write_config(root)
    draw = np.random.RandomState(0).standard_normal
    rows = {kind: draw((n, FEATURE_DIM)) for kind, n in (("image", IMAGE_ROWS), ("text", 3))}
    actions: dict[str, dict] = {}
    for clip in SIZES:
        for action in ("0", "1"):
            name = f"{clip}/{action}/frame_1.png"
            path = root / "frames" / name
            path.parent.mkdir(parents=True)
            Image.fromarray(image("source", 40, 60)).save(path)
            for kind, values in rows.items():
                write_feature(root / f"{kind}_features", name, values)
            texts = {"action": "a b", "llava_forecast_finetune": "a b"}
            entry = {"image_0": name, "image_1": name.replace("_1.png", "_2.jpg"), **texts}
            actions.setdefault(clip, {})[action] = entry
    (root / "edits.json").write_text(json.dumps(actions))
    sizes = {clip: {"width": width, "height": height} for clip, (width, height) in SIZES.items()}
    (root / "metadata.json").write_text(json.dumps(sizes))
    text = config.read_text()
    config.write_text(f"""{text}
data:
  metadata_path: {root}/metadata.json
  params: {{data_path: {root}/frames, edit_path: {root}/edits.json, res: 32,
    additional_cond_path: {{llava_image: {root}/image_features, llava_text: {root}/text_features}}}}
""")
    state = to_own(random_weights(params_of(config), ("unet", "conditioner")))
    torch.save({"state_dict": state, "ema_updates": 1}, root / "weights.ckpt")
    return root


def generate(world, out, *overrides) -> dict[str, Path]:
    """{"clip/action": its frame} of the whole action file."""
    out.mkdir(exist_ok=True)
    if not (out / "X.ckpt").exists():
        (out / "X.ckpt").symlink_to(world / "weights.ckpt")
    assert main(["--config", f"{world}/config.yaml", "--ckpt", f"{out}/X.ckpt", *overrides]) == 0
    return {"/".join(path.parts[-3:-1]): path for path in sorted(out.rglob("*.jpg"))}


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    return generate(world, tmp_path_factory.mktemp("made") / "out")


def test_noise_belongs_to_clip_and_action(world, made, tmp_path):
    """Equal input, so that frames differ by their noise alone."""
    pictures = {key: path.read_bytes() for key, path in made.items()}
    same_size = [pictures[key] for key in ("one/0", "one/1", "two/0", "two/1")]
    assert len(pictures) == 6 and len(set(same_size)) == 4
    again = generate(world, tmp_path / "again", "inference.batch_size=5")
    assert again.keys() == made.keys()
    for key, path in again.items():
        gap = np.asarray(Image.open(path), int) - np.asarray(Image.open(made[key]), int)
        assert np.abs(gap).mean() < 1, key  # other batches round differently
    other = generate(world, tmp_path / "other", "inference.seed=1")
    assert not set(same_size) & {path.read_bytes() for path in other.values()}


def test_a_frame_has_the_shape_of_its_own_clip(made):
    """Not of the source, which is 60 by 40 everywhere."""
    for key, path in made.items():
        width, height = SIZES[key.split("/")[0]]
        assert Image.open(path).size == (round(width / height * HEIGHT), HEIGHT), key


def content(world, change) -> str:
    """The action file after `change` of its first entry."""
    actions = json.loads((world / "edits.json").read_text())
    change(actions["one"]["0"])
    return json.dumps(actions)


@pytest.mark.parametrize(
    "named, overrides",
    [
        ("text_prompt_key", ["data.params.text_prompt_key=action"]),
        ("picture", ["inference.picture=minmax"]),
        ("jpeg_quality", ["inference.jpeg_quality=94"]),
        ("height", ["inference.height=49"]),
        ("noise", ["inference.noise=process"]),
        ("precision", ["inference.precision=bf16"]),
        ("mask_text_padding", ["model.params.conditioner.mask_text_padding=true"]),
        ("load_ema", ["model.params.load_ema=false"]),
        ("res", ["data.params.res=64"]),
        ("parameterization", ["model.params.parameterization=x0"]),
        ("scale_factor", ["model.params.scale_factor=1.0"]),
    ],
)
def test_frames_of_other_settings_are_not_taken_for_finished(world, made, named, overrides):
    kept = {key: path.read_bytes() for key, path in made.items()}
    out = made["one/0"].parents[5]
    with pytest.raises(EgoGenError, match=f"made with {named} .*, expected "):
        generate(world, out, *overrides)
    assert {key: path.read_bytes() for key, path in made.items()} == kept


@pytest.mark.parametrize("key", ["llava_forecast_finetune", "action"])
def test_frames_of_another_description_are_not_taken_for_finished(world, made, tmp_path, key):
    (tmp_path / "edits.json").write_text(content(world, lambda entry: entry.update({key: "b a"})))
    out = made["one/0"].parents[5]
    with pytest.raises(EgoGenError, match="made with edit_file "):
        generate(world, out, f"data.params.edit_path={tmp_path}/edits.json")
    # The same content in another place is the same.
    (tmp_path / "edits.json").write_bytes((world / "edits.json").read_bytes())
    assert generate(world, out, f"data.params.edit_path={tmp_path}/edits.json") == made


def test_frames_of_other_sizes_and_features_are_not_taken_for_finished(world, tmp_path):
    """By what is in the files; frames of records that do not tell yet are continued."""
    out, sizes, store = tmp_path / "out", tmp_path / "sizes.json", tmp_path / "store"
    shutil.copytree(world / "image_features", store)
    sizes.write_bytes((world / "metadata.json").read_bytes())
    paths = [
        f"data.metadata_path={sizes}",
        f"data.params.additional_cond_path.llava_image={store}",
    ]
    made = generate(world, out)
    assert generate(world, out, *paths) == made
    sizes.write_text(sizes.read_text().replace("640", "641"))
    with pytest.raises(EgoGenError, match="made with metadata "):
        generate(world, out, *paths)
    (store / "feature_info.json").write_text('{"model": "another"}')
    with pytest.raises(EgoGenError, match="made with features "):
        generate(world, out, *paths[1:])


def test_half_precision_weights_are_another_origin(world, tmp_path):
    out = tmp_path / "out"
    generate(world, out, "inference.precision=bf16")
    with pytest.raises(EgoGenError, match="made with half_weights False, expected True"):
        generate(world, out, "inference.precision=bf16", "inference.half_weights=true")


def test_values_of_the_default_picture():
    """Cut at the ends of [-1, 1] and rounded, half to even; one grey level is 2 / 255."""
    level = 2 / 255
    wanted = {
        -3.0: 0,
        -1.0: 0,
        -1 + 0.4 * level: 0,
        -1 + 0.6 * level: 1,
        -1 + 10.4 * level: 10,
        -1 + 10.6 * level: 11,
        0.0: 128,
        -1 + 254.4 * level: 254,
        1.0: 255,
        1.7: 255,
    }
    x = torch.tensor(list(wanted)).repeat(3, 4, 1)  # (3, 4, 10): its own size, nothing is resized
    picture = to_image(x, (10, 4), 4, InferenceConfig().picture)
    assert (picture.size, picture.mode) == ((10, 4), "RGB")
    assert np.array_equal(
        np.asarray(picture), np.tile(list(wanted.values()), (3, 4, 1)).T.swapaxes(0, 1)
    )


def encoded(picture: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def test_jpeg_quality_of_frames(world, made, tmp_path):
    """95 unless asked otherwise; the quality counts for JPEG alone."""
    picture = Image.fromarray(image("quality", 24, 40))
    tables = {
        quality: Image.open(io.BytesIO(encoded(picture, format="JPEG", quality=quality)))
        for quality in (95, 60)
    }
    assert Image.open(made["one/0"]).quantization == tables[95].quantization
    low = generate(world, tmp_path / "low", "inference.jpeg_quality=60")
    assert Image.open(low["one/0"]).quantization == tables[60].quantization
    for name, options in (
        ("a.jpg", {"format": "JPEG", "quality": 60}),
        ("a.png", {"format": "PNG"}),
    ):
        write_image(tmp_path / name, picture, 60)
        assert (tmp_path / name).read_bytes() == encoded(picture, **options)


def test_the_picture_rule_of_the_config_is_used(world, made, tmp_path):
    """What the rules do stands above and in the golden pictures."""
    for key, path in generate(world, tmp_path / "out", "inference.picture=minmax").items():
        one, other = (np.asarray(Image.open(x), float).ravel() for x in (path, made[key]))
        assert not np.array_equal(one, other) and np.corrcoef(one, other)[0, 1] > 0.99, key


def test_released_noise_over_a_sweep_and_a_restart(world, tmp_path):
    """A frame's noise is that of its place in the process, the pairs of scales counted on."""
    options = ["inference.noise=process", "inference.scales_img=[1.5,2.0]"]
    whole = {path: path.read_bytes() for path in sweep(world, tmp_path, *options)}
    lost = [path for path in whole if "-si=2.0" in str(path)][2:4]
    for path in lost:
        path.unlink()
    assert {path: path.read_bytes() for path in sweep(world, tmp_path, *options)} == whole
    assert len(whole) == 12 and len(lost) == 2


def sweep(world, out, *options) -> list[Path]:
    generate(world, out, *options)
    return sorted(out.rglob("*.jpg"))


def test_fingerprint_of_a_checkpoint(tmp_path):
    """Its size, and its first and last MiB: where a .ckpt has its names, and all checksums."""
    content = bytearray(3 * 2**20)
    seen = set()
    for place in (None, 5, -5):
        changed = bytearray(content)
        if place is not None:
            changed[place] = 1
        (tmp_path / "X.ckpt").write_bytes(changed)
        seen.add(fingerprint(str(tmp_path / "X.ckpt")))
    (tmp_path / "X.ckpt").write_bytes(content + b"\0")
    seen.add(fingerprint(str(tmp_path / "X.ckpt")))
    assert len(seen) == 4 and all(len(found) == 16 for found in seen)


def test_frozen_parts_stay_in_evaluation_mode(world):
    model = random_model(params_of(world / "config.yaml")).train()
    assert model.unet.training and model.conditioner.training
    frozen = [*model.vae.modules(), *model.text_encoder.modules()]
    assert not any(module.training for module in frozen)
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {"unet", "conditioner"}


def test_a_masked_row_is_zero_in_all_places():
    """A single zero is a number like others."""
    table = released_features({"variant": "text", "feature_dim": 8, "text_rows": 4})
    torch.manual_seed(0)
    params = ConditionerParams(table, num_heads=2, feedforward_dim=32, mask_text_padding=True)
    conditioner = build_conditioner(params, 16).eval()
    rows = torch.randn(1, 4, 8)
    rows[0, 1, 2] = 0
    rows[0, 3] = 0
    with torch.no_grad():
        found = conditioner({"text": rows})["text"][0]
        shorter = conditioner({"text": rows[:, :3]})["text"][0]
    assert not found[3].any() and found[:3].abs().amax(dim=1).min() > 0.01
    torch.testing.assert_close(found[:3], shorter)  # padding is not attended to


def test_how_loudly_features_begin_where_they_are_trained():
    """Image rows at a tenth of torch's initial size, text rows at twice it; the released code, that
    trains neither, has torch's own of both.
    """
    features = default_features()
    rows = {n: torch.randn(2, spec.rows, spec.width) for n, spec in features.items()}
    size = {}
    for trained in (True, False):
        torch.manual_seed(0)
        made = build_conditioner(ConditionerParams(features=features, trained=trained), 768).eval()
        with torch.no_grad():
            size[trained] = {n: x.square().mean().sqrt().item() for n, x in made(rows).items()}
    gains = {name: size[True][name] / size[False][name] for name in features}
    assert gains == pytest.approx({"image": 0.1, "text": 2}, rel=0.01)
