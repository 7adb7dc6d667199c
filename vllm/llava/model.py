"""The vision-language model: CLIP vision tower, projector of one or two layers, Llama.

Letters: B samples, T positions (an image has P of them), P patches of an image, D language width,
C vision width, V vocabulary, N targets of a batch.
"""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig
from transformers.models.llava import modeling_llava

from egogen.atomic import as_umask_says
from egogen.errors import EgoGenError
from llava.tokens import IGNORE, IMAGE_ID

PROJECTOR = "model.multi_modal_projector"


def join_layers(state: dict[str, torch.Tensor], prefix: str = f"{PROJECTOR}.") -> None:
    """Make one layer of two without activation, as files in transformers' layout hold them.

    In files written here the second is the identity, and the product exact.
    """
    names = [f"{prefix}linear_{layer}.{kind}" for layer in "12" for kind in ("weight", "bias")]
    if not all(name in state for name in names):
        return
    dtype = state[names[0]].dtype
    weight_1, bias_1, weight_2, bias_2 = (state[name].float() for name in names)
    state[names[0]] = (weight_2 @ weight_1).to(dtype)
    state[names[1]] = (weight_2 @ bias_1 + bias_2).to(dtype)
    del state[names[2]], state[names[3]]


def with_identity(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` of a model with one projector layer, and the identity as its second one."""
    bias = state[f"{PROJECTOR}.linear_1.bias"]
    second = {"weight": torch.eye(len(bias), dtype=bias.dtype), "bias": torch.zeros_like(bias)}
    return {**state, **{f"{PROJECTOR}.linear_2.{kind}": value for kind, value in second.items()}}


class Llava(modeling_llava.LlavaForConditionalGeneration):
    """transformers' Llava with the conventions of the LLaVA authors' own code.

    `config.projector_layers` (1 or 2) chooses the projector: the first LLaVA has one linear layer,
    transformers' Llava always two, so that files hold the identity as a second one. In `input_ids`
    each image is P times IMAGE_ID, which needs no row of the vocabulary.
    """

    source_folder: Path | None = None  # whose files the weights may be maps of

    model: Any  # transformers' LlavaModel: vision tower, projector and language model

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        if projector_layers(config) == 1:
            widths = config.vision_config.hidden_size, config.text_config.hidden_size
            projector = nn.Sequential(OrderedDict(linear_1=nn.Linear(*widths)))
            projector.register_load_state_dict_pre_hook(lambda _, *given: join_layers(*given[:2]))
            self.model.multi_modal_projector = projector
            self.post_init()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Always under transformers' own names, whatever layout the weights were read from.

        Its LlavaForConditionalGeneration finds every weight that it asks for. Raises EgoGenError
        for the folder that the weights came from: they may be maps of its files.
        """
        source = self.source_folder
        if source is not None and source.resolve() == Path(save_directory).resolve():
            raise EgoGenError(f"{save_directory}: the model was read from here, expected another")
        state = kwargs.pop("state_dict", None) or self.state_dict()
        if projector_layers(self.config) == 1 and f"{PROJECTOR}.linear_1.bias" in state:
            state = with_identity(state)
        options = {"save_original_format": False, **kwargs}
        super().save_pretrained(save_directory, state_dict=state, **options)
        as_umask_says(Path(save_directory))

    @property
    def patches(self) -> int:
        """P, the positions that one image takes."""
        vision = self.config.vision_config
        grid = (vision.image_size // vision.patch_size) ** 2
        return grid + (self.config.vision_feature_select_strategy == "full")

    def vision_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, size, size) -> (B, P, C): hidden state `vision_feature_layer` without class token.

        Layers above that one are not run, and no gradient is kept of a tower that does not learn.
        """
        tower = self.model.vision_tower
        learns = any(parameter.requires_grad for parameter in tower.parameters())
        layer, offloaded = self.config.vision_feature_layer, tower.device.type == "meta"
        # Weights that lie on disk are fetched, and inputs moved to them, when the tower is called.
        pixels = pixel_values.to(None if offloaded else tower.device, tower.dtype)  # (B, 3, s, s)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            if offloaded or not isinstance(tower, CLIPVisionModel):
                states = tower(pixels, output_hidden_states=True).hidden_states[layer]
            else:
                blocks = tower.encoder.layers
                states = tower.pre_layrnorm(tower.embeddings(pixels))  # (B, 1+P, C)
                for block in blocks[: layer + 1 + len(blocks) if layer < 0 else layer]:
                    states = block(states, attention_mask=None)  # (B, 1+P, C)
        return states if self.config.vision_feature_select_strategy == "full" else states[:, 1:]

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, size, size) -> (B, P, D): what the language model sees of each image."""
        return self.model.multi_modal_projector(self.vision_features(pixel_values))  # (B, P, D)

    def embed(
        self, input_ids: torch.Tensor, features_BPD: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Token embeddings (B, T, D) with the features at the IMAGE_ID positions.

        Rows without IMAGE_ID take part with weight zero, so that every rank has a gradient for the
        projector.
        """
        of_image = input_ids == IMAGE_ID  # (B, T)
        embeds = self.get_input_embeddings()(input_ids.masked_fill(of_image, 0))  # (B, T, D)
        if features_BPD is None:
            return embeds
        features = features_BPD.to(embeds.device, embeds.dtype)  # (B, P, D)
        used = of_image.any(1)  # (B,)
        embeds = embeds.masked_scatter(of_image[..., None], features[used])  # (B, T, D)
        return embeds if bool(used.all()) else embeds + 0.0 * features[~used].sum()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> modeling_llava.LlavaCausalLMOutputWithPast:
        """Logits (B, T, V), or with `labels` (B, T) only the loss.

        The loss is the mean over all targets of the batch, or over `num_items_in_batch` where that
        is given: the targets of an accumulated batch. Logits are computed only where there is a
        target.
        """
        if inputs_embeds is None:
            features = None if pixel_values is None else self.image_features(pixel_values)
            if input_ids is None:
                raise ValueError("neither input_ids nor inputs_embeds are given")
            inputs_embeds = self.embed(input_ids, features)  # (B, T, D)
        if labels is None:
            kwargs |= {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
            return super().forward(**kwargs)
        if attention_mask is not None and bool(attention_mask[:, 0].all()):
            attention_mask = None  # padded on the right: causal attention never looks there
        hidden = self.model.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state  # (B, T, D)
        following = labels[:, 1:]  # (B, T - 1)
        wanted = following != IGNORE  # (B, T - 1)
        logits = self.lm_head(hidden[:, :-1][wanted]).float()  # (N, V)
        total = F.cross_entropy(logits, following[wanted], reduction="sum")  # ()
        loss = total / (num_items_in_batch or wanted.sum())  # ()
        return modeling_llava.LlavaCausalLMOutputWithPast(loss=loss)


def runs_on(module: nn.Module) -> torch.device:
    """Where a layer computes, which may be another place than where a device map keeps it."""
    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if place is None else torch.device(place)


def projector_layers(config: LlavaConfig) -> int:
    return int(getattr(config, "projector_layers", 2))


def build_config(
    text: LlamaConfig, vision: CLIPVisionConfig, projector_layers: int = 1, **fields: Any
) -> LlavaConfig:
    """One config for everything that a checkpoint folder has to say about its model.

    `fields` are those of the projector's inputs and of prompts, by default as released.
    """
    released = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    released |= {"image_aspect_ratio": "square", "conversation_template": "llama_2"}
    follow: dict[str, Any] = {"projector_hidden_act": "linear" if projector_layers == 1 else "gelu"}
    follow |= {"image_seq_length": (vision.image_size // vision.patch_size) ** 2}
    follow |= {"image_token_index": IMAGE_ID, "tie_word_embeddings": False}
    parts = {"text_config": text, "vision_config": vision, "projector_layers": projector_layers}
    return LlavaConfig(**parts, **follow, **(released | fields))
