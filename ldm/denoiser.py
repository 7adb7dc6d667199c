"""The denoiser: the network that predicts noise, and the only place that knows what kind it is.

Sampling, training, checkpoints and the pipeline use the methods of `Denoiser`; another kind of
network is another subclass, given to `LegoModel` among its parts.

Letters: B batch, n distinct contexts, c latent channels, h w latent size, L context rows,
C context width, D width of a linear layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from egogen import EgoGenError
from ldm.checkpoints.released_names import unet_name
from ldm.schema import UNetParams

SCALE_CHANNELS = 256  # that a guidance scale is embedded in
Predictor = Callable[[Tensor, Tensor], Tensor]  # (x (B, 2c, h, w), t (B,)) -> (B, c, h, w)


class Denoiser:
    """A network with what stage 2 asks of it. Subclasses say how it is called (`forward`).

    `name` is the network's among the parts of `LegoModel`, and so in checkpoints: the one that
    diffusers gives to this component of a pipeline.
    """

    name = "denoiser"
    first_weight = ""  # name of the weight that the 2c input channels meet

    def __init__(self, network: nn.Module):
        self.network = network

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """(B, 2c, h, w), (B,), (B, L, C) -> (B, c, h, w): noise or clean latents."""
        raise NotImplementedError

    def hold(self, contexts: Tensor, rows: Tensor, **more: Tensor) -> Predictor:
        """-> predict(x, t), item i of whose batch attends to `contexts[rows[i]]` in every call.

        contexts: (n, L, C); rows: (B,) int64; `more` goes to `forward`. What linear layers make of
        the contexts alone, keys and values mostly, is computed once, in the first call, and belongs
        to the predictor: the network may have others at the same time, and any processors and
        adapters. Compiled networks compute everything in every call.
        """
        if self.dtype != torch.float32:
            contexts = contexts.to(self.dtype)
        context = contexts[rows]  # (B, L, C)
        if not is_compiled(self.network):
            context = context.as_subclass(HeldContext)
            context.contexts, context.rows = contexts, rows
            context.made = WeakTensorKeyDictionary()
        return lambda x, t: self(x, t, context, **more)

    def released_name(self, name: str) -> str:
        """The name of a weight of the network in the released (CompVis) layout."""
        return name

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, **more: Tensor) -> Tensor:
        """`forward` in the precision of the weights; where they are float32, autocast decides."""
        if self.dtype == torch.float32:
            return self.forward(x, t, context, **more)
        with torch.autocast(x.device.type, enabled=False):
            return self.forward(x.to(self.dtype), t, context.to(self.dtype), **more)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in: diffusers' networks may keep their weights in less."""
        if isinstance(dtype := getattr(self.network, "dtype", None), torch.dtype):
            return dtype
        return next(self.network.parameters()).dtype

    def widened(self, weight: Tensor) -> Tensor:
        """`first_weight` (out, in, ...) with zeros for the input channels that it lacks."""
        lacking = self.network.get_parameter(self.first_weight).shape[1] - weight.shape[1]
        return functional.pad(weight, (0, 0) * (weight.ndim - 2) + (0, max(0, lacking)))

    def prepare(
        self, dtype: torch.dtype | None = None, channels_last: bool = False, compiled: bool = False
    ) -> None:
        """Precision of the weights, memory format and compilation, in place."""
        if dtype is not None:
            self.network.to(dtype)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled:
            self.network.compile()

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass in place of keeping them (training)."""
        raise EgoGenError(f"config: use_checkpoint: not possible with {type(self).__name__}")


class UNetDenoiser(Denoiser):
    """diffusers' UNet with cross-attention."""

    name = "unet"
    first_weight = "conv_in.weight"

    network: UNet2DConditionModel

    def forward(self, x: Tensor, t: Tensor, context: Tensor, *, scales: Any = None) -> Tensor:
        """`scales` (B, 2): of the guidance that one branch stands for, see ldm.training.distill."""
        embedded = scales  # as in latent consistency models (Luo et al. 2023)
        if scales is not None:
            waves = get_timestep_embedding(scales.flatten(), SCALE_CHANNELS, scale=1000)
            embedded = waves.reshape(len(scales), -1).to(x.dtype)  # (B, 2 * SCALE_CHANNELS)
        return self.network(x, t, context, timestep_cond=embedded).sample

    def released_name(self, name: str) -> str:
        return unet_name(name, self.network.config)

    def checkpoint_activations(self) -> None:
        self.network.enable_gradient_checkpointing()


class HeldContext(Tensor):
    """A context (B, L, C) that keeps what linear layers make of it: a layer is computed once.

    At the real size (410 rows of 768) keys and values are 16 GFLOP a branch, a tenth of a denoising
    step at 256 pixels. For everything else it is an ordinary tensor.
    """

    contexts: Tensor  # (n, L, C)
    rows: Tensor  # (B,) int64
    made: WeakTensorKeyDictionary  # weight of a layer -> what it gives (B, L, D)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Any = None
    ) -> Any:
        """torch calls this in place of `func`, one of its functions, given such a tensor."""
        if func is functional.linear and type(args[0]) is cls and not kwargs:
            held, weight, *bias = args
            if weight not in held.made:
                held.made[weight] = func(held.contexts, weight, *bias)[held.rows]
            return held.made[weight]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def is_compiled(network: nn.Module) -> bool:
    """Whether it or a part of it is compiled by torch, whose code takes plain tensors only."""
    return any(
        module._compiled_call_impl is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in network.modules()
    )


def build_unet(params: UNetParams, told_scales: bool = False) -> UNet2DConditionModel:
    """Released (CompVis) parameters -> diffusers' network; `told_scales`: see `forward`."""
    channels = [params.model_channels * factor for factor in params.channel_mult]
    for count in channels:
        if count % params.num_heads or count % 32:
            raise EgoGenError(
                f"config: unet_config: a level has {count} channels, expected a multiple of 32 "
                f"and of num_heads={params.num_heads}"
            )
    attends = [2**level in params.attention_resolutions for level in range(len(channels))]
    unet = UNet2DConditionModel(
        sample_size=params.image_size,
        in_channels=params.in_channels,
        out_channels=params.out_channels,
        block_out_channels=tuple(channels),
        layers_per_block=params.num_res_blocks,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        transformer_layers_per_block=params.transformer_depth,
        cross_attention_dim=params.context_dim,
        # diffusers' historical name: for Stable Diffusion v1 it is the number of heads
        attention_head_dim=params.num_heads,
        time_cond_proj_dim=2 * SCALE_CHANNELS if told_scales else None,
    )
    if told_scales:  # without effect until it has learnt
        nn.init.zeros_(unet.time_embedding.cond_proj.weight)
    return unet
