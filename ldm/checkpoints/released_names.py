"""Names of weights in the released (CompVis) layout, for those of `ldm.model.LegoModel`: that of
Stable Diffusion v1 and, beside it, LEGO's encoders of features. Loading and both directions of
conversion use this one map.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from ldm.model import LegoModel

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
CONDITIONER = "conditioner."  # of names here; in the released layout it has no prefix
EMA = "model_ema."
LIVE = "live."  # this project's addition, see `ldm.checkpoints.layouts.to_released`

RULES = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text("utf-8"))
NAMED_BY_RELEASE: dict[str, str] = RULES["conditioner"]
# What peft adds to the names in a layer with an adapter; files are without.
PEFT_LEVELS = re.compile(r"\.base_layer(?=\.\w+$)|(?<=\.lora_[AB])\.default(?=\.weight$)")
# Linear layers here, 1x1 convolutions there: two more axes of length one.
CONVOLVED = re.compile(re.escape(VAE) + r"(en|de)coder\.mid\.attn_1\.(q|k|v|proj_out)\.weight")


def released_names(model: "LegoModel") -> dict[str, str]:
    """{name in `model.state_dict()`: released name}, in the order of the former."""
    rules = {
        model.denoiser.name: lambda name: UNET + model.denoiser.released_name(name),
        "vae": lambda name: VAE + vae_name(name, len(model.vae.config.block_out_channels)),
        "text_encoder": lambda name: TEXT + name.removeprefix("text_model."),
        "conditioner": lambda name: stored_name(CONDITIONER + name).removeprefix(CONDITIONER),
    }
    names = {}
    for own in model.state_dict():
        part, name = own.split(".", 1)
        names[own] = rules[part](name)
    return names


def stored_name(name: str) -> str:
    """The conditioner's part of any name, as files have it: "ema.conditioner.encoders.text.
    projection.weight" -> "ema.conditioner.projection_txt.weight"; and without peft's levels.
    """
    name = PEFT_LEVELS.sub("", name)
    for own, released in NAMED_BY_RELEASE.items():
        name = name.replace(CONDITIONER + own, CONDITIONER + released)
    return name


def released_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a weight of `shape` has under its released name."""
    return (*shape, 1, 1) if CONVOLVED.fullmatch(name) else tuple(shape)


def shadow_name(name: str) -> str:
    """Where a released file has the EMA of `name`, a name that begins with "model."."""
    return EMA + name.removeprefix("model.").replace(".", "")


def _renamed(name: str, network: str) -> str:
    for pattern, new in RULES[network].items():
        name = re.sub(pattern, new, name)
    return name


def vae_name(name: str, levels: int) -> str:
    """Name in diffusers' autoencoder -> name below `VAE`; the decoder's levels count from below."""
    name = _renamed(name, "vae")
    return re.sub(r"(?<=\.up\.)\d+", lambda found: str(levels - 1 - int(found[0])), name)


def unet_name(name: str, config: Any) -> str:
    """Name in diffusers' UNet, of this config -> name below `UNET`.

    CompVis numbers all layers of the way down in one list, and all of the way up: each level has
    its residual layers, on the way down one more to shrink; growing belongs to a level's last one.
    """
    name = _renamed(name, "unet")
    found = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)", name)
    if not found:
        return name
    side, level, kind, number, rest = found.groups()
    layers, index, attends = config.layers_per_block, int(number), int(kind == "attentions")
    if side == "mid":
        return f"middle_block.{1 if attends else 2 * index}.{rest}"
    first, place = int(level) * (layers + 1) + (side == "down"), attends
    if kind == "upsamplers":
        place = 2 if "CrossAttn" in config.up_block_types[int(level)] else 1
    index = layers if kind.endswith("samplers") else index
    return f"{'input' if side == 'down' else 'output'}_blocks.{first + index}.{place}.{rest}"
