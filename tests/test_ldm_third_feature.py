"""A feature that this project has never heard of, and what was saved before features had names."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_model import params_of, random_model, write_config
from small_training import CONFIG, losses, train_run, write_run

from egogen import EgoGenError
from egogen.actions import read_actions
from egogen.atomic import write_json
from egogen.features.projector import Projector, keep_projector
from egogen.features.store import INFO_FILE, FeatureWriter, write_feature
from ldm.checkpoints.load import read_weights
from ldm.config import GenerateConfig, TrainConfig, load_config, load_model_params, to_yaml
from ldm.data import collate, read_features
from ldm.pipeline import LegoPipeline
from ldm.released_config import released_features
from ldm.schema import ConditionerParams, FeatureParams
from ldm.split import Located, check_stores
from metrics.inference import main as inference

POSE = {"width": 34, "rows": 12}
TABLE = "model.params.conditioner.features"
CONDITIONER = "model.params.conditioner"


def write_poses(root: Path, split: str) -> Path:
    draw = np.random.default_rng(0).standard_normal
    for entry in read_actions(root / f"ego4d_{split}.json"):
        write_feature(root / "pose" / split, entry.image_0, draw((12, 34)))
    return root / "pose" / split


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("pose")


@pytest.fixture(scope="module")
def overrides(root):
    return [*write_run(root), "lightning.trainer.max_steps=2"]


@pytest.fixture(scope="module")
def poses(root, overrides):
    """A YAML that is laid over the usual one: all that a third feature takes beside its store."""
    data = {}
    for part, split in (("train", "train"), ("validation", "val")):
        data[part] = {"params": {"feature_path": {"pose": str(write_poses(root, split))}}}
    path = root / "pose.yaml"
    model = {"params": {"conditioner": {"features": {"pose": POSE}}}}
    path.write_text(yaml.safe_dump({"model": model, "data": {"params": data}}))
    return path


def test_trained_on_and_generated_from(root, overrides, poses):
    """Two steps of training, its checkpoint, and the frames of `metrics/inference.py`."""
    folder = train_run(overrides, root / "logs", "pose", "--base", str(CONFIG), str(poses))
    assert len(losses(folder)) >= 2
    path = folder / "checkpoints" / "last.ckpt"
    state = read_weights(path)
    live, ema = (f"{start}conditioner.encoders.pose.projection." for start in ("model.", "ema."))
    assert state[live + "weight"].shape == (64, 34)
    assert not torch.equal(state[live + "weight"], state[ema + "weight"])  # trained
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    table = saved["model"]["params"]["conditioner"]["features"]
    assert list(table) == ["image", "text", "pose"]
    assert table["pose"] == POSE | {"encoder": "linear", "padded": False}

    config = root / "generate.yaml"
    part = saved["data"]["params"]["validation"]["params"]
    part = {key: value for key, value in part.items() if key != "flip_prob"}
    data = {"metadata_path": f"{root}/ego4d_metadata.json", "params": part}
    config.write_text(yaml.safe_dump({"model": saved["model"], "data": data}))
    assert inference(["--config", str(config), "--ckpt", str(path), "inference.steps=2"]) == 0
    frames = {p.name: p.read_bytes() for p in path.with_suffix("").rglob("*.jpg")}
    others = ["inference.steps=2", "inference.seed=0", f"data.params.feature_path.pose={root}/no"]
    assert len(list(path.with_suffix("").rglob("*.jpg"))) == 4 and frames
    with pytest.raises(EgoGenError, match=r"data\.params\.feature_path\.pose=.*/no"):
        from ldm.generate import generate_chunk

        loaded = load_config(GenerateConfig, [str(config)], others)
        generate_chunk(loaded, str(path), 1, 1, torch.device("cpu"))


def test_the_order_of_the_context_is_the_tables(tmp_path):
    override = [f"{TABLE}.{name}={value}" for name, value in (("text", "null"), ("pose", POSE))]
    override = [word.replace("'", "") for word in override]
    params = params_of(write_config(tmp_path), *override)
    model = random_model(params)
    rows = model.conditioner({"pose": torch.randn(1, 12, 34), "image": torch.randn(1, 4, 8)})
    assert list(rows) == ["image", "pose"] and rows["pose"].shape == (1, 12, 64)
    empty = torch.zeros(1, 77, 64)
    assert model.uncond_context(empty).shape == (1, 77 + 4 + 12, 64)
    pipe = LegoPipeline.from_model(model)
    pipe.save_pretrained(tmp_path / "saved")  # files keep the order too
    loaded = LegoPipeline.from_pretrained(tmp_path / "saved")
    assert list(loaded.conditioner.features) == ["image", "pose"]
    pipe = loaded
    pipe.set_progress_bar_config(disable=True)
    photo, text = np.zeros((32, 32, 3), np.uint8), "a"
    given = {"image_features": np.ones((4, 8), np.float32)}
    from PIL import Image

    shown = [
        pipe(
            Image.fromarray(photo),
            text,
            **given,
            features={"pose": np.full((12, 34), value, np.float32)},
            num_inference_steps=2,
            output_type="np",
        ).images
        for value in (0.0, 1.0)
    ]
    assert not np.array_equal(*shown)
    with pytest.raises(EgoGenError, match="pose_features: missing"):
        pipe(Image.fromarray(photo), text, **given)


@pytest.mark.parametrize("padded", [False, True])
def test_any_store_may_have_a_projector(tmp_path, padded):
    """Narrow rows are stored; padding stays zero behind the projector's bias."""
    generator = torch.Generator().manual_seed(0)
    projector = Projector(
        {
            "linear_1.weight": torch.randn(34, 5, generator=generator),
            "linear_1.bias": torch.ones(34),
        },
        "test",
    )
    keep_projector(tmp_path, projector)
    write_json(
        tmp_path / INFO_FILE,
        {
            "kind": "pose",
            "layout": "compact",
            "projector": True,
            "width": 34,
            "vision_width": 5,
        },
    )
    stored = np.random.default_rng(0).standard_normal((7 if padded else 12, 5)).astype(np.float16)
    writer = FeatureWriter(tmp_path, "pose", "compact", "1-of-1")
    writer.write({"clip/0/a.jpg": stored})
    writer.close()
    features = {"pose": FeatureParams(**POSE, padded=padded)}
    entry = type("Entry", (), {"image_0": "clip/0/a.jpg"})
    item = Located(entry, "", {"pose": str(tmp_path)})
    check_stores([item], features)
    sample = {"pixels": torch.zeros(3, 2, 2), "prompt": "", **read_features(item, features)}
    rows = collate([sample, sample], features, torch.device("cpu"))["features"]["pose"]
    assert rows.shape == (2, 12, 34) and rows.dtype == torch.float32
    expected = projector(torch.from_numpy(stored))
    torch.testing.assert_close(rows[1, : len(expected)], expected)
    assert not rows[:, len(expected) :].any()


def as_before(config: dict) -> dict:
    """A training run's config.yaml as it was written before features had names."""
    params = config["model"]["params"]
    table = params["conditioner"].pop("features")
    used = [name for name in ("image", "text") if table[name]]
    params["conditioner"] |= {
        "variant": "both" if len(used) == 2 else used[0],
        "feature_dim": table[used[0]]["width"],
        "image_rows": 256,
        "text_rows": 77,
    }
    params["dropout_share"] = params.pop("cond_drop_prob")
    for part in ("train", "validation"):
        assert config["data"]["params"][part]["params"].pop("feature_path") == {}
    return config


@pytest.mark.parametrize("variant", ["both", "text"])
def test_a_run_begun_before_is_continued(overrides, tmp_path, variant):
    """Its config.yaml is of the same values, and its checkpoint has the same names."""
    words = [f"{CONDITIONER}.variant={variant}"]
    folder = train_run(overrides, tmp_path, "a", *words)
    names = set(read_weights(folder / "checkpoints" / "last.ckpt"))
    for kind in ("model", "ema"):
        assert f"{kind}.conditioner.projection_txt.weight" in names
        assert f"{kind}.conditioner.self_attn_mix.layers.0.linear1.weight" in names
        assert (f"{kind}.conditioner.projection_img.bias" in names) == (variant == "both")
    assert not any("encoders." in name for name in names)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(as_before(yaml.safe_load(path.read_text()))))
    train_run(overrides, tmp_path, "a", *words, "lightning.trainer.max_steps=3")
    assert max(step for step, _ in losses(folder)) == 3
    assert "variant" not in yaml.safe_load(path.read_text())["model"]["params"]["conditioner"]
    path.write_text(yaml.safe_dump(as_before(yaml.safe_load(path.read_text()))))
    wrong = f"{CONDITIONER}.text_rows=70"
    with pytest.raises(EgoGenError, match=f"begun with other values of {TABLE}.text.rows"):
        train_run(overrides, tmp_path, "a", *words, wrong)


@pytest.mark.parametrize("schema", [TrainConfig, GenerateConfig])
def test_old_keys_are_the_table(schema, tmp_path):
    def table(*words):
        config = load_config(schema, [], [f"{CONDITIONER}.{word}" for word in words])
        path = tmp_path / "printed.yaml"
        path.write_text(to_yaml(config))
        assert load_config(schema, [str(path)]) == config  # what is printed says it all
        return config.model.conditioner.features

    assert table() == ConditionerParams().features == released_features({})
    assert table("variant=none") == {} == table("features.image=null", "features.text=null")
    assert table("variant=image") == table("features.text=null")
    assert table("feature_dim=9", "variant=text", "text_rows=5") == {
        "text": FeatureParams(9, 5, "self_attention", padded=True)
    }
    pose = "features.pose={width: 34, rows: 12}"
    assert list(table("variant=text", "feature_dim=9", pose)) == ["text", "pose"]
    assert table("feature_dim=9", "features.image.width=7")["image"].width == 7
    two = table(pose, "features.pose.encoder=self_attention", "features.pose.padded=true")
    assert two["pose"] == FeatureParams(34, 12, "self_attention", padded=True)
    assert table("features.gaze_path={width: 2, rows: 3}")["gaze_path"] == FeatureParams(2, 3)


REFUSED = {
    "features.pose.width=3": f"{TABLE}.pose.rows: no value",
    "features.pose={width: 3, row: 2}": f"did you mean '{TABLE}.pose.rows'",
    "features.pose={width: 3, rows: 2, encoder: mlp}": "expected one of linear, self_attention",
    "features.pose={width: 3, rows: 0}": "expected at least 1",
    "features.keys={width: 3, rows: 2}": "expected another name",
    "variant=all": f"{CONDITIONER}.variant='all': expected one of none, image, text, both",
    "feature_dim=wide": f"{CONDITIONER}.feature_dim: Value 'wide'",
    "featur_dim=3": f"did you mean '{CONDITIONER}.feature_dim'",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_table_that_cannot_be_is_refused(word):
    with pytest.raises(EgoGenError, match=REFUSED[word].replace("[", r"\[")):
        load_config(TrainConfig, [], [f"{CONDITIONER}.{word}"])


def test_what_would_be_overruled_silently_is_refused():
    words = [f"{TABLE}.image.width=7", f"{CONDITIONER}.feature_dim=9"]
    with pytest.raises(EgoGenError, match="feature_dim comes after .*image.width=7"):
        load_config(TrainConfig, [], words)
    folder = "data.params.train.params.feature_path"
    with pytest.raises(EgoGenError, match="feature_path.pse: no such feature"):
        load_config(TrainConfig, [], [f"{folder}.pse=x", f"{TABLE}.pose={{width: 3, rows: 2}}"])
    off = [f"{folder}.pose=x", f"{TABLE}.pose={{width: 3, rows: 2}}", f"{TABLE}.pose=null"]
    assert "pose" not in load_config(TrainConfig, [], off).model.conditioner.features


def test_the_share_of_dropout_under_either_name():
    for name in ("cond_drop_prob", "dropout_share"):
        config = load_config(TrainConfig, [], [f"model.params.{name}=0.25"])
        assert config.model.cond_drop_prob == 0.25
    assert load_model_params(str(CONFIG)).cond_drop_prob == 0.05
