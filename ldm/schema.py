"""The typed configuration of stage 2. Defaults are the values of the released code; where they are
not, "released" in the comment gives the value there.

Files and dotted overrides have the layout of the released YAML files, see `ldm.file_layout`;
released keys that have no effect here are listed in `released.yaml`.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any

from egogen import DESCRIPTION_KEY, EgoGenError

MISSING_PATH = ""
SAMPLER_NAMES = ("euler_ancestral", "dpmpp_2m", "unipc", "ddim")  # the rows of ldm.sampling


def _list(*values: Any) -> Any:
    return field(default_factory=lambda: list(values))


def _one_of(*allowed: str) -> Any:
    """The first is the default; `ldm.config` refuses others."""
    return field(default=allowed[0], metadata={"allowed": allowed})


def _at_least(least: int, default: Any = MISSING) -> Any:
    """A whole number; `ldm.config` refuses smaller ones."""
    return field(default=default, metadata={"least": least})


def _share(default: float) -> Any:
    """A number from 0 to 1; `ldm.config` refuses others."""
    return field(default=default, metadata={"share": True})


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """One number of pixels, of squares, or (height, width) -> (height, width)."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


@dataclass
class UNetParams:
    """CompVis names, mapped onto diffusers in `ldm.networks.architecture`. Defaults: SD v1.5."""

    image_size: int = _at_least(1, default=32)
    in_channels: int = _at_least(1, default=8)  # noisy latent (4) + source frame's (4)
    out_channels: int = _at_least(1, default=4)
    model_channels: int = _at_least(1, default=320)
    attention_resolutions: list[int] = _list(4, 2, 1)
    num_res_blocks: int = _at_least(1, default=2)
    channel_mult: list[int] = _list(1, 2, 4, 4)
    num_heads: int = _at_least(1, default=8)
    transformer_depth: int = _at_least(1, default=1)
    context_dim: int = _at_least(1, default=768)
    use_checkpoint: bool = True


@dataclass
class AutoencoderParams:
    embed_dim: int = _at_least(1, default=4)
    z_channels: int = _at_least(1, default=4)
    resolution: Any = 256  # of frames, as `res` below; what a pipeline makes by default
    in_channels: int = _at_least(1, default=3)
    out_ch: int = _at_least(1, default=3)
    ch: int = _at_least(1, default=128)
    ch_mult: list[int] = _list(1, 2, 4, 4)
    num_res_blocks: int = _at_least(1, default=2)


@dataclass
class TextEncoderParams:
    version: str = "openai/clip-vit-large-patch14"  # hub name or folder: tokenizer + text model
    max_length: int = _at_least(1, default=77)


@dataclass
class FeatureParams:
    """A feature of stage 1: how wide it is in its store, and how it enters the context."""

    width: int = _at_least(1)
    rows: int = _at_least(1)  # of the context
    encoder: str = _one_of("linear", "self_attention")  # linear, then self-attention over the rows
    padded: bool = False  # true: any number of rows, cut or zero-padded; false: exactly `rows`


def default_features() -> dict[str, FeatureParams]:
    """The features of the released code, in the order that they have in the context."""
    return {
        "image": FeatureParams(5120, 256),
        "text": FeatureParams(5120, 77, "self_attention", padded=True),
    }


@dataclass
class ConditionerParams:
    """The paper's part: VLLM features to cross-attention rows. Defaults: the released sizes."""

    features: dict[str, FeatureParams] = field(default_factory=default_features)
    num_heads: int = _at_least(1, default=8)
    num_layers: int = _at_least(1, default=2)
    feedforward_dim: int = _at_least(1, default=2048)
    dropout: float = _share(0.1)
    mask_text_padding: bool = False  # of padded features; released: their padding is attended to
    trained: bool = True  # released: false (the optimizer held the UNet only)


@dataclass
class LearningRateParams:
    """See `ldm.training.module.rate_factor`; one value in each list, as in released files."""

    warm_up_steps: list[int] = _list(0)
    cycle_lengths: list[int] = _list(10000000000000)
    f_start: list[float] = _list(1e-6)
    f_max: list[float] = _list(1.0)
    f_min: list[float] = _list(1.0)


@dataclass
class LoraParams:
    """Adapters that are trained in place of the networks (LoRA; peft)."""

    rank: int = _at_least(0, default=0)  # 0: none, everything is trained
    alpha: float | None = None  # weight of the adapters is alpha / rank; null: rank
    targets: list[str] = _list("attention")  # and "conditioner", or names of layers of the UNet


@dataclass
class DistillParams:
    """One branch that learns the guided prediction of a teacher, see `ldm.training.distill`."""

    teacher: str | None = None  # a checkpoint; null: none
    scale_txt: Any = 7.5  # of the teacher's guidance: a number, or [low, high] to draw and embed
    scale_img: Any = 1.5

    @property
    def ranges(self) -> list[tuple[float, float]]:
        """(low, high) of the scales of text and image; equal where one is a number."""
        both = self.scale_txt, self.scale_img
        return [(s[0], s[1]) if isinstance(s, list | tuple) else (s, s) for s in both]

    @property
    def drawn(self) -> bool:
        """Whether the network is told the scales."""
        return self.teacher is not None and any(low != high for low, high in self.ranges)

    @property
    def note(self) -> dict[str, Any] | None:
        """What checkpoints and folders record."""
        scales = {"scale_txt": self.scale_txt, "scale_img": self.scale_img}
        return scales if self.teacher is not None else None

    def check(self, *scales: float) -> None:
        """Raises EgoGenError for scales (text, image) that distilled weights do not stand for."""
        names = "guidance_scale, inference.scales_txt", "image_guidance_scale, inference.scales_img"
        for name, scale, (low, high) in zip(names, scales, self.ranges, strict=True):
            if self.teacher is not None and not low <= scale <= high:
                expected = low if low == high else f"{low} to {high}"
                raise EgoGenError(f"{name}: {scale}, expected {expected}, as it was distilled from")


@dataclass
class ModelParams:
    ckpt_path: str | None = None
    linear_start: float = 0.00085
    linear_end: float = 0.012
    timesteps: int = _at_least(2, default=1000)
    channels: int = _at_least(1, default=4)
    scale_factor: float = 0.18215
    use_ema: bool = True
    load_ema: bool = True
    parameterization: str = _one_of("eps", "x0", "v")  # predicted: noise, clean latents, velocity
    cond_drop_prob: float = _share(0.05)  # u of `ldm.conditioning.dropout_masks`
    ema_decay: float = _share(0.9999)
    ema_every_micro_batch: bool = False  # released: true
    learning_rate: LearningRateParams = field(default_factory=LearningRateParams)
    unet: UNetParams = field(default_factory=UNetParams)
    autoencoder: AutoencoderParams = field(default_factory=AutoencoderParams)
    text_encoder: TextEncoderParams = field(default_factory=TextEncoderParams)
    conditioner: ConditionerParams = field(default_factory=ConditionerParams)
    lora: LoraParams = field(default_factory=LoraParams)
    distill: DistillParams = field(default_factory=DistillParams)


@dataclass
class OptimizerParams:
    base_learning_rate: float = _share(1e-4)
    weight_decay: float = _share(0.01)


@dataclass
class DatasetParams:
    data_path: Any = MISSING_PATH  # a path, or a list of paths (one per training set)
    edit_path: Any = MISSING_PATH
    res: Any = 256  # pixels of the squeezed frames: a number, or [height, width]
    aspect_ratio: float = 1.0  # width over height of one number; `ldm.config` puts it into `res`
    flip_prob: float = _share(0.0)
    text_prompt_key: str = DESCRIPTION_KEY
    features: dict[str, Any] = field(default_factory=dict)  # name -> folder, or list of folders


@dataclass
class DataParams:
    batch_size: int = _at_least(1, default=32)
    num_workers: int = _at_least(0, default=8)
    cache_path: str | None = None  # written by `python -m ldm.cache`
    train: DatasetParams = field(default_factory=DatasetParams)
    validation: DatasetParams = field(default_factory=DatasetParams)


@dataclass
class ImageLoggerParams:
    batch_frequency: int = _at_least(1, default=2000)  # optimizer steps
    max_images: int = _at_least(0, default=2)


@dataclass
class LightningConfig:
    image_logger: ImageLoggerParams = field(default_factory=ImageLoggerParams)
    trainer: dict[str, Any] = field(default_factory=dict)  # arguments of lightning's Trainer
    checkpoint_every: int = _at_least(1, default=1000)  # steps between writes of last.ckpt
    keep_every: int = _at_least(0, default=0)  # n: also keep a copy every n steps; 0: none
    keep_at_most: int = _at_least(0, default=3)  # newest such copies; released: all of them
    log_every: int = _at_least(1, default=50)
    logger: str = _one_of("tensorboard", "wandb", "none")
    validation_draws: str = _one_of("fixed", "random")  # t, noises, dropout; released: random
    tf32: bool = True  # matrix products on CUDA, as the released PyTorch did in float32
    channels_last: bool = False  # memory format of the UNet
    compile: bool = False  # torch.compile of the UNet


@dataclass
class InferenceConfig:
    steps: int = _at_least(1, default=100)
    scales_img: list[Any] = _list(1.5)  # numbers; 2 and 2.0 name their folders as written
    scales_txt: list[Any] = _list(7.5)
    seed: int = 0
    batch_size: int = _at_least(1, default=8)
    height: int | None = _at_least(1, default=None)  # written, at the clip's aspect; null: as `res`
    picture: str = _one_of("clamp", "minmax")  # released: minmax
    jpeg_quality: int = _at_least(1, default=95)  # released: 75
    noise: str = _one_of("sample", "process")  # of (seed, clip, action); one stream (released)
    preset: str | None = None  # "fast": a sampler, its steps and an interval (released.yaml)
    sampler: str = _one_of(*SAMPLER_NAMES)
    guidance_interval: list[float] | None = None  # [low, high] sigma; outside it one branch is run
    precision: str = _one_of("auto", "fp32", "bf16", "fp16")  # by autocast
    half_weights: bool = False  # the UNet's weights in that precision too: half the memory
    channels_last: bool | None = None  # null: on CUDA
    compile: bool = False  # torch.compile of the UNet


@dataclass
class TrainConfig:
    as_released: bool = False  # the values of AS_RELEASED in place of the defaults
    optimizer: OptimizerParams = field(default_factory=OptimizerParams)
    model: ModelParams = field(default_factory=ModelParams)
    data: DataParams = field(default_factory=DataParams)
    lightning: LightningConfig = field(default_factory=LightningConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)  # for sample images


@dataclass
class GenerateConfig:
    as_released: bool = False  # the values of AS_RELEASED in place of the defaults
    optimizer: OptimizerParams = field(default_factory=OptimizerParams)  # without effect here
    model: ModelParams = field(default_factory=ModelParams)
    loras: list[str] = _list()  # adapters to add to the weights: FILE or FILE:SCALE
    metadata_path: str = MISSING_PATH
    data: DatasetParams = field(default_factory=DatasetParams)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
