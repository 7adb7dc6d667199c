"""What a config has where no file says otherwise: results depend on every one of these values."""

from small_model import params_of, write_config

from ldm.config import AS_RELEASED, GenerateConfig, TrainConfig, load_config
from ldm.file_layout import file_values

MODEL = {
    "linear_start": 0.00085,
    "linear_end": 0.012,
    "timesteps": 1000,
    "scale_factor": 0.18215,
    "use_ema": True,
    "load_ema": True,
    "parameterization": "eps",
    "cond_drop_prob": 0.05,
    "ema_decay": 0.9999,
    "ema_every_micro_batch": False,
    "scheduler_config.params.warm_up_steps": [0],
    "scheduler_config.params.cycle_lengths": [10_000_000_000_000],
    "scheduler_config.params.f_start": [1e-6],
    "scheduler_config.params.f_max": [1.0],
    "scheduler_config.params.f_min": [1.0],
    "unet_config.params.num_heads": 8,
    "unet_config.params.use_checkpoint": True,
    "cond_stage_config.params.max_length": 77,
    "conditioner.features.image.encoder": "linear",
    "conditioner.features.image.rows": 256,
    "conditioner.features.image.padded": False,
    "conditioner.features.text.encoder": "self_attention",
    "conditioner.features.text.rows": 77,
    "conditioner.features.text.padded": True,
    "conditioner.num_heads": 8,
    "conditioner.num_layers": 2,
    "conditioner.feedforward_dim": 2048,
    "conditioner.dropout": 0.1,
    "conditioner.mask_text_padding": False,
    "conditioner.trained": True,
}
INFERENCE = {
    "steps": 100,
    "scales_img": [1.5],
    "scales_txt": [7.5],
    "seed": 0,
    "height": None,
    "picture": "clamp",
    "jpeg_quality": 95,
    "noise": "sample",
    "sampler": "euler_ancestral",
    "precision": "auto",
    "half_weights": False,
}
DATASET = {"res": 256, "flip_prob": 0.0, "text_prompt_key": "llava_forecast_finetune"}
TRAINING = {
    "model.base_learning_rate": 1e-4,
    "model.weight_decay": 0.01,
    "data.params.batch_size": 32,
    "lightning.checkpoint_every": 1000,
    "lightning.keep_every": 0,
    "lightning.keep_at_most": 3,
    "lightning.log_every": 50,
    "lightning.validation_draws": "fixed",
    "lightning.channels_last": False,
}
BOTH = {f"model.params.{name}": value for name, value in MODEL.items()}
BOTH |= {f"inference.{name}": value for name, value in INFERENCE.items()}
TRAIN = BOTH | TRAINING
for part in ("train", "validation"):
    TRAIN |= {f"data.params.{part}.params.{name}": value for name, value in DATASET.items()}
GENERATE = BOTH | {f"data.params.{name}": value for name, value in DATASET.items()}
RELEASED = {
    "model.params.conditioner.trained": False,
    "model.params.ema_every_micro_batch": True,
    "lightning.validation_draws": "random",
    "inference.picture": "minmax",
    "inference.jpeg_quality": 75,
    "inference.noise": "process",
}


def test_defaults():
    for schema, expected in ((TrainConfig, TRAIN), (GenerateConfig, GENERATE)):
        found = file_values(load_config(schema, []))
        assert {name: found.get(name) for name in expected} == expected


def test_as_released_flips_its_switches_and_nothing_else():
    assert AS_RELEASED == RELEASED
    for schema in (TrainConfig, GenerateConfig):
        own = file_values(load_config(schema, []))
        released = file_values(load_config(schema, [], ["as_released=true"]))
        changed = {name: value for name, value in released.items() if own[name] != value}
        expected = {name: value for name, value in RELEASED.items() if name in own}
        assert changed == {"as_released": True, **expected}
        again = load_config(schema, [], ["as_released=true", "inference.jpeg_quality=80"])
        assert again.inference.jpeg_quality == 80


def test_defaults_of_a_small_config_stay(tmp_path):
    """What a file does not name keeps its default beside what it names."""
    params = params_of(write_config(tmp_path))
    assert (params.scale_factor, params.cond_drop_prob) == (0.18215, 0.05)
    assert params.conditioner.dropout == 0.1
