"""Tuning of any image-text model of transformers: its samples, its loss, and what of it learns.

A conversation of k rounds is k samples. Each asks as the model is asked when it describes, with the
rounds before it as the chat template writes them, and only its answer is a target.

Letters: B samples, T positions, K of them with a target in any sample, N targets, V vocabulary.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils.other import get_module_class_from_name
from torch import Tensor

from egogen.actions import inside
from egogen.errors import EgoGenError
from egogen.frames import read_rgb
from llava.checkpoints.hub_model import HubModel, Inputs, load_hub
from llava.conversation import IMAGE_MARK
from llava.tokens import IGNORE
from llava.train.arguments import Flags
from llava.train.data import Conversation, TuningData


class HubData(TuningData):
    """A sample for each round that has a target, with the frame in front of the first question.

    An answer is cut so that its sample has at most `max_length` positions.
    """

    def __init__(
        self,
        conversations: Iterable[Conversation],
        image_folder: str | os.PathLike,
        hub: HubModel,
        *,
        max_length: int = 2048,
        cache: int = 0,
    ):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loaders' processes are forked
        self.hub, self.max_length = hub, max_length
        self.fill(conversations, image_folder, cache)
        self.hub = replace(hub, model=None)  # a process that loads samples needs no weights

    def samples_of(self, conversation: Conversation) -> list[Any]:
        """(image, turns up to a question, ids of its answer) of each round."""
        image, turns, rounds = conversation.image, conversation.turns, []
        if image is not None:
            turns = tuple(turn.replace(IMAGE_MARK, "") for turn in turns)
        for end in range(1, len(turns), 2):
            asked = [turn.strip() for turn in turns[:end]]
            room = self.max_length - self.hub.length(*asked, pictured=image is not None)
            answer = self.hub.answer_ids(asked, turns[end], image is not None)[: max(0, room)]
            rounds += [(image, asked, answer)] if answer else []
        return rounds

    def _pixels(self, image: str | None) -> Any:
        return image and self.hub.frames.square(read_rgb(inside(self.image_folder, image)))

    def __getitem__(self, index: int) -> Inputs:
        image, asked, answer = self.samples[index]
        inputs = self.hub.encode(self.pixels(image), *asked, answer=answer)
        labels = torch.full_like(inputs["input_ids"], IGNORE)  # (1, T)
        labels[0, -len(answer) :] = torch.tensor(answer)
        return {**inputs, "labels": labels}


class HubCollator:
    """Samples -> one batch, padded on the right; logits are made where a sample has a target.

    A batch without a frame gets one more sample, a blank frame without targets: the projector,
    for which other processes wait, takes part, and the loss stays as it is.
    """

    def __init__(self, hub: HubModel):
        self.hub = replace(hub, model=None)
        blank = self.hub.encode(hub.blank, "")
        self.blank = {**blank, "labels": torch.full_like(blank["input_ids"], IGNORE)}

    def __call__(self, samples: Sequence[Inputs]) -> dict[str, Any]:
        if not any(self.blank.keys() <= sample.keys() for sample in samples):
            samples = [*samples, self.blank]
        batch = self.hub.collate(samples, "right")
        wanted = batch["labels"][:, 1:] != IGNORE  # (B, T - 1)
        places = wanted.any(0).nonzero().flatten()  # (K,)
        return {**batch, "logits_to_keep": places, "use_cache": False}


def mean_over_targets(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """The loss of logits (B, K, V): targets of the whole step are `num_items_in_batch`."""
    following = labels[:, 1:]  # (B, T - 1)
    wanted = following != IGNORE  # (B, T - 1)
    logits = outputs.logits[wanted[:, wanted.any(0)]].float()  # (N, V)
    return F.cross_entropy(logits, following[wanted], reduction="sum") / num_items_in_batch


def prepare_hub(flags: Flags, **options: Any) -> HubModel:
    """The model, of which language model, head and projector learn; `options` are of `load_hub`.

    Raises EgoGenError for flags that have no meaning for it.
    """
    (name, tower, *_), data, tuning = vars(flags.model).values(), flags.data, flags.tuning
    released = tuning.as_released or data.cut_rule == "released"
    wrong = (
        "--vision_tower" if tower else "--as_released and --cut_rule released" if released else ""
    )
    if wrong:
        raise EgoGenError(f"{wrong}: only for LLaVA checkpoints, which {name} is not")
    size, aspect = data.image_size, data.image_aspect_ratio
    hub = load_hub(name, device="cpu", image_size=size, aspect=aspect, **options)
    model = hub.model
    for child in model.base_model.children():
        if child is not model.get_decoder():
            child.requires_grad_(False)
    for part in hub.projector():
        model.get_submodule(part).requires_grad_(True)
    if tuning.fsdp:
        found = [
            kind for kind in model._no_split_modules if get_module_class_from_name(model, kind)
        ]
        tuning.fsdp_plugin_args["transformer_cls_names_to_wrap"] = ",".join(found)
    # A checkpoint is read back by the model's own names; the result gets the names of the base.
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    return hub
