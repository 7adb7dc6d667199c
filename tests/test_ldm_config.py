"""Config files of the released code, and those of this project, build what they say."""

import importlib
import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml

from egogen import EgoGenError
from ldm.checkpoints.convert import bare_model
from ldm.config import GenerateConfig, TrainConfig, load_config, load_model_params
from ldm.file_layout import file_values
from ldm.released_config import CLASSES, WITHOUT_EFFECT, generic_key, translate
from ldm.schema import default_features

CONFIGS = Path(__file__).parents[1] / "configs"
DATA = Path(__file__).parent / "data" / "ldm"
RELEASED = json.loads((DATA / "released_configs.json").read_text())


def schema_of(name):
    return TrainConfig if name.startswith("train") else GenerateConfig


def written(content, path):
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


@pytest.fixture(params=sorted(RELEASED))
def released(request, tmp_path):
    """Name, schema and file of a released config, as YAML."""
    path = written(RELEASED[request.param], tmp_path / f"{request.param}.yaml")
    return request.param, schema_of(request.param), path


def test_released_files_build_the_released_networks(released):
    _, schema, path = released
    model = bare_model(load_config(schema, [path]).model)
    names = json.loads((DATA / "manifest_full.json").read_text())["state_dict"]
    sizes = {}
    for name, (shape, _) in names.items():
        part = "model" if name.startswith("model.") else name.split(".")[0]
        sizes[part] = sizes.get(part, 0) + torch.Size(shape).numel()
    count = {part: sum(p.numel() for p in net.parameters()) for part, net in model.named_children()}
    assert count["unet"] == sizes["model"] == 859_532_484
    assert count["vae"] == sizes["first_stage_model"] == 83_653_863
    assert count["text_encoder"] == sizes["cond_stage_model"] - 77  # position ids
    conditioner = [sizes[n] for n in ("projection_img", "projection_txt", "self_attn_mix")]
    assert count["conditioner"] == sum(conditioner) == 2 * 3_932_928 + 11_027_968


def test_released_files_and_ours_say_the_same(released, monkeypatch):
    for place in ("dataset", "features", "weights"):
        folder = {"features": "vllm_features", "weights": "checkpoints"}.get(place, place)
        monkeypatch.setenv(f"LEGO_{place.upper()}", f"DATA/{folder}")
    name, schema, path = released
    assert load_config(schema, [path]) == load_config(schema, [str(CONFIGS / f"{name}.yaml")])


def leaves(node, prefix=""):
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {k: v for key in node for k, v in leaves(node[key], f"{prefix}{key}.").items()}


def test_every_released_value_has_its_effect_or_a_reason(released):
    """It is in the config that everything is built from, or in the table of what does nothing."""
    name, schema, path = released
    ours = file_values(load_config(schema, [path]))
    for key, value in leaves(RELEASED[name]).items():
        if key.endswith((".target", "min_resize_res", "max_resize_res", "crop_res")):
            continue
        kept, _ = translate(nested(key, value), "file")
        found = leaves(kept) if kept else {}
        if key in found:
            assert ours[key] == value
        elif not key.endswith("additional_cross_attn"):
            assert generic_key(key) in WITHOUT_EFFECT
    sizes = [d for d in ours if d.endswith("params.res")]
    assert sizes and all(ours[name] == 256 for name in sizes)


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def test_what_a_user_may_count_on_is_told(released, capsys):
    name, schema, path = released
    load_config(schema, [path])
    told = capsys.readouterr().err
    assert f"note: {path}: model.params.monitor has no effect" in told
    assert ("inference.output_path has no effect" in told) == name.startswith("generate")
    assert len(told.splitlines()) == 1 + name.startswith("generate")


@pytest.mark.parametrize(
    "place, released_class, ours",
    [(place, *pair) for place, classes in CLASSES.items() for pair in classes.items()],
)
def test_what_stands_in_for_a_released_class_is_there(place, released_class, ours):
    module, name = ours.rsplit(".", 1)
    assert getattr(importlib.import_module(module), name)
    wrong = released_class.replace("egogen", "edit").replace("Model", "Net") + "2"
    with pytest.raises(EgoGenError) as caught:
        translate(nested(f"{place}.target", wrong), "a.yaml")
    assert f"a.yaml: {place}.target is {wrong!r}" in str(caught.value)
    assert any(repr(name) in str(caught.value) for name in CLASSES[place])


UNKNOWN = {
    "model.params.unet_config.params.num_head": ("num_heads", 8),
    "model.params.unet_config.params.use_spatial_tranformer": ("use_spatial_transformer", True),
    "model.params.first_stage_config.params.ddconfig.ch_multi": ("ch_mult", [1, 2]),
    "model.params.moniter": ("monitor", "x"),
    "data.params.train.params.crop_size": ("crop_res", 256),
    "data.params.train.params.additional_cross_att": ("additional_cross_attn", True),
    "model.parms": ("params", {}),
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_unknown_parameters_name_the_nearest(key, tmp_path):
    nearest, value = UNKNOWN[key]
    content = deepcopy(RELEASED["train_ego4d"])
    node, (*path, last) = content, key.split(".")
    for part in path:
        node = node[part]
    node[last] = value
    file = written(content, tmp_path / "a.yaml")
    with pytest.raises(EgoGenError) as caught:
        load_config(TrainConfig, [file])
    right = ".".join([*path, nearest])
    assert str(caught.value) == f"{file}: unknown key {key!r}; did you mean {right!r}?"


REFUSED = {
    "model.params.conditioning_key=concat": "expected 'hybrid'",
    "model.params.cond_stage_trainable=true": "the text tower is frozen",
    "model.params.unet_config.params.legacy=true": "expected False",
    "model.params.num_timesteps_cond=2": "the condition is never noised",
    "model.params.first_stage_config.params.ddconfig.attn_resolutions=[16]": "in the middle alone",
    "data.params.train.params.aspect_ratio=1.3": "a width of n [*] 8, not 332",
    "model.params.scheduler_config.params.f_max=[1.0,0.5]": "expected one value",
    "lightning.callbacks.image_logger.params.increase_log_steps=true": "every batch_frequency",
    "lightning.callbacks.image_logger.params.batch_frequency=0": "expected at least 1",
    "lightning.callbacks.image_logger.params.max_images=-1": "expected at least 0",
    "lightning.keep_at_most=-1": "expected at least 0",
    "lightning.keep_every=-1": "expected at least 0",
    "data.params.num_workers=-1": "expected at least 0",
    "model.params.unet_config.params.num_heads=0": "expected at least 1",
    "model.params.first_stage_config.params.ddconfig.ch=0": "expected at least 1",
    "model.params.conditioner.num_layers=0": "expected at least 1",
    "model.params.timesteps=1": "expected at least 2",
    "model.params.conditioner.dropout=2": "from 0 to 1",
    "model.params.ema_decay=1.5": "from 0 to 1",
    "model.base_learning_rate=-1e-4": "from 0 to 1",
    "inference.jpeg_quality=-1": "expected at least 1",
    "model.params.cond_drop_prob=.nan": "from 0 to 1",
    "data.params.validation.params.flip_prob=-0.1": "from 0 to 1",
    "data.params.train.params.crop_res=[1]": "expected one number of pixels",
    "data.params.train.params=3": r"data.params.train.params: expected keys below it$",
    "lightning.trainer=null": r"lightning.trainer: expected keys below it$",
    "model.params.conditioner.features.image=3": r"features.image: expected keys below it$",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_had_is_refused(override):
    with pytest.raises(EgoGenError, match=REFUSED[override]) as caught:
        load_config(TrainConfig, [], [override])
    assert override.split("=")[0] in str(caught.value)


def test_a_section_may_refer_to_another():
    words = ["data.params.train.params.res=64", "data.params.validation=${data.params.train}"]
    data = load_config(TrainConfig, [], words).data
    assert data.validation == data.train and data.train.res == 64
    with pytest.raises(EgoGenError, match=r"Interpolation key 'data.params.nope' not found$"):
        load_config(TrainConfig, [], ["data.params.validation=${data.params.nope}"])


def test_the_three_sizes_of_frames_are_one():
    place = "data.params.train.params"
    dataset = {"min_resize_res": 128, "max_resize_res": 128, "crop_res": 128}
    assert translate(nested(place, dataset), "a")[0] == nested(place, {"res": 128})
    with pytest.raises(EgoGenError, match="max_resize_res=256, .*expected equal values"):
        translate(nested(place, dataset | {"max_resize_res": 256}), "a")
    with pytest.raises(EgoGenError, match="crop_res=128, res=64: expected equal values"):
        translate(nested(place, dataset | {"res": 64}), "a")


@pytest.mark.parametrize("name", ["train_ego4d", "generate_ego4d"])
def test_a_released_file_without_features_has_no_conditioner(name, tmp_path):
    content = deepcopy(RELEASED[name])
    params = content["data"]["params"]
    for dataset in (
        params.get("train", {}).get("params"),
        params.get("validation", {}).get("params"),
        params,
    ):
        if dataset and "additional_cross_attn" in dataset:
            dataset["additional_cross_attn"] = False
    config = load_config(schema_of(name), [written(content, tmp_path / "a.yaml")])
    assert config.model.conditioner.features == {}
    assert not list(bare_model(config.model).conditioner.parameters())


@pytest.mark.parametrize(
    "override, told",
    [
        ("model.params.unet_config.params.in_channels=4", "in_channels=4: expected 8"),
        ("model.params.first_stage_config.params.embed_dim=8", "embed_dim=8: expected 4"),
        ("model.params.conditioner.num_heads=7", "num_heads=7: expected a divisor"),
        (
            "model.params.unet_config.params.context_dim=512",
            "768 wide, expected unet context_dim=512",
        ),
    ],
)
def test_sizes_that_do_not_fit(override, told):
    with pytest.raises(EgoGenError, match=told):
        bare_model(load_config(TrainConfig, [], [override]).model)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_our_configs_are_read_and_build(path, capsys):
    config = load_config(schema_of(path.stem), [str(path)])
    assert not capsys.readouterr().err
    model = bare_model(config.model)
    assert model.unet.config.in_channels == 2 * config.model.channels
    assert config.model.channels == (8 if "mini" in path.stem else 4)
    if "mini" not in path.stem:
        assert config.model.conditioner.features == default_features()


def test_the_model_of_a_config_of_either_kind():
    params = [
        load_model_params(str(CONFIGS / f"{name}_mini.yaml"), ["model.params.ckpt_path=null"])
        for name in ("train", "generate")
    ]
    assert params[0].unet == params[1].unet and params[0].ckpt_path is None
    assert params[0].unet.model_channels != 320
    with pytest.raises(EgoGenError, match="did you mean 'model.params.channels'"):
        load_model_params(str(CONFIGS / "train_mini.yaml"), ["model.params.chanels=4"])
