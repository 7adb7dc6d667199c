"""Names of weights in the released (CompVis) layout, for those of `ldm.model.LegoModel`.

Both directions of every conversion and every loading use this one map. The layout is that of Stable
Diffusion v1: `openaimodel.UNetModel`, `autoencoder.AutoencoderKL`, the CLIP text tower, and beside
them LEGO's encoders of features.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.model import LegoModel

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
CONDITIONER = "conditioner."  # of names here; in the released layout it has no prefix
# Own names, which all features have alike -> names in files, which the released code chose.
NAMED_BY_RELEASE = {
    "encoders.image.projection.": "projection_img.",
    "encoders.text.projection.": "projection_txt.",
    "encoders.text.attention.": "self_attn_mix.",
}
EMA = "model_ema."
LIVE = "live."  # this project's addition, see `ldm.checkpoints.layouts.to_released`

ATTENTION_OF_VAE = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
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
    projection.weight" -> "ema.conditioner.projection_txt.weight". Other names stay.
    """
    for own, released in NAMED_BY_RELEASE.items():
        name = name.replace(CONDITIONER + own, CONDITIONER + released)
    return name


def own_name(name: str) -> str:
    """The reverse of `stored_name`."""
    for own, released in NAMED_BY_RELEASE.items():
        name = name.replace(CONDITIONER + released, CONDITIONER + own)
    return name


def released_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a weight of `shape` has under its released name."""
    return (*shape, 1, 1) if CONVOLVED.fullmatch(name) else tuple(shape)


def shadow_name(name: str) -> str:
    """Where a released file has the EMA of `name`, a name that begins with "model."."""
    return EMA + name.removeprefix("model.").replace(".", "")


def vae_name(name: str, levels: int) -> str:
    """Name in diffusers' autoencoder -> name below `VAE`; the decoder's levels count from below."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    found = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)(.*)", name)
    if found:
        kind = "block" if found[2] == "resnets" else "upsample"
        return f"decoder.up.{levels - 1 - int(found[1])}.{kind}{found[3]}"
    found = re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)", name)
    if found:
        return f"{found[1]}mid.attn_1.{ATTENTION_OF_VAE[found[2]]}.{found[3]}"
    return name
