"""Released (CompVis) network parameters -> diffusers and transformers modules."""

import operator
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from egogen import EgoGenError
from ldm.conditioning import INIT_GAIN, FeatureConditioner, features_as_list
from ldm.denoiser import Denoiser, UNetDenoiser, build_unet
from ldm.file_layout import file_place
from ldm.schema import AutoencoderParams, ConditionerParams, ModelParams, height_width

# The text tower of CLIP ViT-L/14, which Stable Diffusion v1.5 uses: what differs from the defaults.
CLIP_VIT_L14_TEXT = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)


def build_parts(params: ModelParams) -> dict[str, nn.Module | Denoiser]:
    """Networks of `LegoModel` by name, in its order, random. Raises EgoGenError for odd sizes."""
    unet = params.unet
    _check_channels(params)
    parts = {
        "denoiser": UNetDenoiser(build_unet(unet, params.distill.drawn)),
        "conditioner": build_conditioner(params.conditioner, unet.context_dim),
        "vae": build_autoencoder(params.autoencoder, params.scale_factor),
        "text_encoder": build_text_encoder(params.text_encoder.version),
    }
    width = parts["text_encoder"].config.hidden_size
    if width != unet.context_dim:
        raise EgoGenError(
            f"config: text encoder is {width} wide, expected unet context_dim={unet.context_dim}"
        )
    return parts


def _check_channels(params: ModelParams) -> None:
    """The denoiser takes noisy latents and the source frame's, and gives latents."""
    channels = params.channels
    wanted = {"unet.in_channels": 2 * channels, "unet.out_channels": channels}
    wanted |= {"autoencoder.embed_dim": channels, "autoencoder.z_channels": channels}
    for place, expected in wanted.items():
        if (value := operator.attrgetter(place)(params)) != expected:
            raise EgoGenError(
                f"config: {file_place(f'model.{place}')}={value}: expected {expected}, as "
                f"model.params.channels={channels}"
            )


def build_conditioner(params: ConditionerParams, context_dim: int) -> FeatureConditioner:
    attention = params.num_heads, params.num_layers, params.feedforward_dim, params.dropout
    features, masked = features_as_list(params.features), params.mask_text_padding
    attends = any(spec.encoder == "self_attention" for spec in params.features.values())
    if attends and context_dim % params.num_heads:
        raise EgoGenError(
            f"config: model.params.conditioner.num_heads={params.num_heads}: expected a divisor of "
            f"unet context_dim={context_dim}"
        )
    conditioner = FeatureConditioner(features, context_dim, *attention, masked)
    for name, spec in params.features.items() if params.trained else ():
        conditioner.encoders[name].scale_init(INIT_GAIN[spec.encoder])
    return conditioner


def build_autoencoder(params: AutoencoderParams, scale_factor: float) -> AutoencoderKL:
    count = len(params.ch_mult)
    return AutoencoderKL(
        in_channels=params.in_channels,
        out_channels=params.out_ch,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=tuple(params.ch * factor for factor in params.ch_mult),
        layers_per_block=params.num_res_blocks,
        latent_channels=params.z_channels,
        norm_num_groups=min(32, params.ch),  # 32 at every real size
        sample_size=max(height_width(params.resolution)),
        scaling_factor=scale_factor,
    )


def build_text_encoder(version: str) -> CLIPTextModel:
    """A randomly initialised text tower; its weights come from a checkpoint or from `version`."""
    if version == "openai/clip-vit-large-patch14":
        return CLIPTextModel(CLIPTextConfig(**CLIP_VIT_L14_TEXT))
    return CLIPTextModel(_from_folder(CLIPTextConfig, version))


def load_tokenizer(version: str) -> CLIPTokenizer:
    return _from_folder(CLIPTokenizer, version)


def _from_folder(kind: Any, version: str) -> Any:
    path_only = version.count("/") > 1 or version.startswith((".", "/", "~"))
    if path_only and not Path(version).is_dir():
        raise EgoGenError(
            f"cond_stage_config.params.version={version}: no such folder (nor a hub's name, which "
            "is namespace/name)"
        )
    try:
        return kind.from_pretrained(version)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise EgoGenError(
            f"cond_stage_config.params.version={version}: {kind.__name__} not found ({first})"
        ) from None
