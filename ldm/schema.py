"""The typed configuration of stage 2, in the released layout. Defaults are the released values.

The keys are those of the released YAML files (`model.params.ckpt_path`, `data.params.train.params.
edit_path`, ...); keys of this project stand beside them. Each one has its effect; released keys
that have none here are listed in `ldm.released_config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from egogen.actions import DESCRIPTION_KEY

MISSING_PATH = ""


def _list(*values: Any) -> Any:
    return field(default_factory=lambda: list(values))


@dataclass
class UNetParams:
    """CompVis names, mapped onto diffusers in `ldm.architecture`. Defaults: SD v1.5."""

    image_size: int = 32
    in_channels: int = 8  # noisy latent (4) + source frame latent (4)
    out_channels: int = 4
    model_channels: int = 320
    attention_resolutions: list[int] = _list(4, 2, 1)
    num_res_blocks: int = 2
    channel_mult: list[int] = _list(1, 2, 4, 4)
    num_heads: int = 8
    transformer_depth: int = 1
    context_dim: int = 768
    use_checkpoint: bool = True


@dataclass
class UNetConfig:
    params: UNetParams = field(default_factory=UNetParams)


@dataclass
class AutoencoderLayers:
    z_channels: int = 4
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: list[int] = _list(1, 2, 4, 4)
    num_res_blocks: int = 2


@dataclass
class AutoencoderParams:
    embed_dim: int = 4
    ddconfig: AutoencoderLayers = field(default_factory=AutoencoderLayers)


@dataclass
class AutoencoderConfig:
    params: AutoencoderParams = field(default_factory=AutoencoderParams)


@dataclass
class TextEncoderParams:
    version: str = "openai/clip-vit-large-patch14"  # hub name or folder: tokenizer + text model
    max_length: int = 77


@dataclass
class TextEncoderConfig:
    params: TextEncoderParams = field(default_factory=TextEncoderParams)


@dataclass
class ConditionerConfig:
    """The paper's part: VLLM features to cross-attention rows. Defaults: the released sizes."""

    variant: str = "both"  # none | image | text | both
    feature_dim: int = 5120
    image_rows: int = 256
    text_rows: int = 77
    num_heads: int = 8
    num_layers: int = 2
    feedforward_dim: int = 2048
    dropout: float = 0.1
    mask_text_padding: bool = False  # released: padding rows are attended to
    trained: bool = True  # released: false (the optimizer held the UNet only)


@dataclass
class LearningRateParams:
    warm_up_steps: list[int] = _list(0)
    cycle_lengths: list[int] = _list(10000000000000)
    f_start: list[float] = _list(1e-6)
    f_max: list[float] = _list(1.0)
    f_min: list[float] = _list(1.0)


@dataclass
class LearningRateConfig:
    params: LearningRateParams = field(default_factory=LearningRateParams)


@dataclass
class ModelParams:
    ckpt_path: str | None = None
    linear_start: float = 0.00085
    linear_end: float = 0.012
    timesteps: int = 1000
    channels: int = 4
    scale_factor: float = 0.18215
    use_ema: bool = True
    load_ema: bool = True
    parameterization: str = "eps"  # what the UNet predicts: eps (released) | x0
    dropout_share: float = 0.05  # u of the classifier-free dropout table
    ema_decay: float = 0.9999
    ema_every_micro_batch: bool = False  # released: true
    scheduler_config: LearningRateConfig = field(default_factory=LearningRateConfig)
    unet_config: UNetConfig = field(default_factory=UNetConfig)
    first_stage_config: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    cond_stage_config: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    conditioner: ConditionerConfig = field(default_factory=ConditionerConfig)


@dataclass
class ModelConfig:
    base_learning_rate: float = 1e-4
    weight_decay: float = 0.01
    params: ModelParams = field(default_factory=ModelParams)


@dataclass
class FeatureRoots:
    llava_image: Any = MISSING_PATH  # a folder, or a list of folders (one per training set)
    llava_text: Any = MISSING_PATH


@dataclass
class DatasetParams:
    data_path: Any = MISSING_PATH
    edit_path: Any = MISSING_PATH
    res: int = 256
    flip_prob: float = 0.0
    text_prompt_key: str = DESCRIPTION_KEY
    additional_cond_path: FeatureRoots = field(default_factory=FeatureRoots)


@dataclass
class DatasetConfig:
    params: DatasetParams = field(default_factory=DatasetParams)


@dataclass
class DataParams:
    batch_size: int = 32
    num_workers: int = 8
    cache_path: str | None = None  # written by `python -m ldm.cache`
    train: DatasetConfig = field(default_factory=DatasetConfig)
    validation: DatasetConfig = field(default_factory=DatasetConfig)


@dataclass
class DataConfig:
    params: DataParams = field(default_factory=DataParams)


@dataclass
class ImageLoggerParams:
    batch_frequency: int = 2000  # optimizer steps
    max_images: int = 2


@dataclass
class ImageLoggerConfig:
    params: ImageLoggerParams = field(default_factory=ImageLoggerParams)


@dataclass
class CallbacksConfig:
    image_logger: ImageLoggerConfig = field(default_factory=ImageLoggerConfig)


@dataclass
class LightningConfig:
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    trainer: dict[str, Any] = field(default_factory=dict)  # arguments of lightning's Trainer
    checkpoint_every: int = 1000  # optimizer steps between writes of last.ckpt
    keep_every: int = 0  # 0: keep last.ckpt alone; n: also keep a copy every n steps
    keep_at_most: int = 3  # such copies, the newest ones; released: all of them
    log_every: int = 50
    logger: str = "tensorboard"  # tensorboard | wandb | none
    validation_draws: str = "fixed"  # fixed | random (released): t, noises and dropout
    tf32: bool = True  # matrix products on CUDA, as the released PyTorch did in float32
    channels_last: bool = False  # memory format of the UNet
    compile: bool = False  # torch.compile of the UNet


@dataclass
class InferenceConfig:
    steps: int = 100
    scales_img: list[Any] = _list(1.5)  # numbers; 2 and 2.0 name their folders as written
    scales_txt: list[Any] = _list(7.5)
    seed: int = 0
    batch_size: int = 8
    height: int = 256  # of the written picture; the width follows the clip's aspect
    picture: str = "clamp"  # clamp | minmax (released)
    jpeg_quality: int = 95  # released: 75
    noise: str = "sample"  # sample: of (seed, clip, action) | process: one stream (released)
    sampler: str = "euler_ancestral"  # | dpmpp_2m | unipc | ddim, see ldm/sampling.py
    precision: str = "auto"  # auto | fp32 | bf16 | fp16, by autocast
    half_weights: bool = False  # the UNet's weights in that precision too: half the memory
    channels_last: bool | None = None  # null: on CUDA
    compile: bool = False  # torch.compile of the UNet


@dataclass
class TrainConfig:
    as_released: bool = False  # the values of AS_RELEASED in place of the defaults
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lightning: LightningConfig = field(default_factory=LightningConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)  # for sample pictures


@dataclass
class GenerateDataConfig:
    metadata_path: str = MISSING_PATH
    params: DatasetParams = field(default_factory=DatasetParams)


@dataclass
class GenerateConfig:
    as_released: bool = False  # the values of AS_RELEASED in place of the defaults
    model: ModelConfig = field(default_factory=ModelConfig)
    data: GenerateDataConfig = field(default_factory=GenerateDataConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)


# Switches of the differences to the released code, as it had them; `as_released: true` makes them
# the defaults, so that a YAML or an override can still say otherwise.
AS_RELEASED: dict[str, Any] = {
    "model.params.conditioner.trained": False,
    "model.params.ema_every_micro_batch": True,
    "lightning.validation_draws": "random",
    "inference.picture": "minmax",
    "inference.jpeg_quality": 75,
    "inference.noise": "process",
}
CHOICES = {
    "model.params.conditioner.variant": ("none", "image", "text", "both"),
    "model.params.parameterization": ("eps", "x0"),
    "inference.picture": ("clamp", "minmax"),
    "inference.noise": ("sample", "process"),
    "inference.precision": ("auto", "fp32", "bf16", "fp16"),
    "lightning.logger": ("tensorboard", "wandb", "none"),
    "lightning.validation_draws": ("fixed", "random"),
}
AT_LEAST_1 = (
    "inference.steps",
    "inference.batch_size",
    "inference.height",
    "data.params.batch_size",
    "data.params.res",
    "data.params.train.params.res",
    "data.params.validation.params.res",
    "lightning.checkpoint_every",
    "lightning.log_every",
)
