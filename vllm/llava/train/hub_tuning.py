"""Tuning of any image-text model: its samples, its loss, and what of it learns.

Letters: B samples, T positions, K of them with a target in any sample, N targets, V vocabulary.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from egogen import EgoGenError, inside
from egogen.frames import read_rgb
from llava.checkpoints.hub_model import HubModel, Inputs, load_hub
from llava.conversation import IMAGE_MARK
from llava.tokens import IGNORE
from llava.train.arguments import Flags
from llava.train.data import Conversation, TuningData


def mean_over_targets(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """The loss of logits (B, K, V): targets of the whole step are `num_items_in_batch`."""
    wanted = labels[:, 1:] != IGNORE  # (B, T - 1)
    logits = outputs.logits[wanted[:, wanted.any(0)]].float()  # (N, V)
    return F.cross_entropy(logits, labels[:, 1:][wanted], reduction="sum") / num_items_in_batch


class HubData(TuningData):
    """A sample for each round, in which the rounds before are as the chat template writes them.

    Only its answer is a target, cut where the sample would have more than `max_length` positions.
    """

    loss = staticmethod(mean_over_targets)

    def keep(self, loaded: Any) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loaders' processes are forked
        self.hub = replace(loaded, model=None)
        blank = self.hub.encode(loaded.blank, "")
        self.blank = {**blank, "labels": torch.full_like(blank["input_ids"], IGNORE)}

    def samples_of(self, conversation: Conversation, loaded: Any) -> list[Any]:
        """(image, turns up to a question, ids of its answer) of each round."""
        image, turns, rounds = conversation.image, conversation.turns, []
        if image is not None:
            turns = tuple(turn.replace(IMAGE_MARK, "") for turn in turns)
        for end in range(1, len(turns), 2):
            asked = [turn.strip() for turn in turns[:end]]
            room = self.max_length - loaded.length(*asked, pictured=image is not None)
            answer = loaded.answer_ids(asked, turns[end], image is not None)[: max(0, room)]
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

    def collate(self, samples: Sequence[Inputs]) -> dict[str, Any]:
        """One batch, padded on the right; logits are made where a sample has a target.

        One without a frame gets a blank one without targets, so that the projector takes part.
        """
        if not any(self.blank.keys() <= sample.keys() for sample in samples):
            samples = [*samples, self.blank]
        batch = self.hub.collate(samples, "right")
        places = (batch["labels"][:, 1:] != IGNORE).any(0).nonzero().flatten()  # (K,)
        return {**batch, "logits_to_keep": places, "use_cache": False}


def prepare_hub(flags: Flags, **options: Any) -> HubModel:
    """The model, of which language model, head and projector learn; `options` are of `load_hub`."""
    name, data, tuning = flags.data.model_name_or_path, flags.data, flags.tuning
    if flags.data.vision_tower or data.cut_rule == "released":
        only = "--vision_tower, --as_released and --cut_rule released"
        raise EgoGenError(f"{name}: no LLaVA checkpoint, {only} are for those only")
    size, aspect = data.image_size, data.image_aspect_ratio
    hub = load_hub(name, device="cpu", image_size=size, aspect=aspect, **options)
    model = hub.model
    for part in {*model.base_model.children()} - {model.get_decoder()}:
        part.requires_grad_(False)
    for place in hub.projector():
        model.get_submodule(place).requires_grad_(True)
    if tuning.fsdp:
        units = {type(part).__name__ for part in model.modules()} & {*model._no_split_modules}
        tuning.fsdp_plugin_args["transformer_cls_names_to_wrap"] = ",".join(sorted(units))
    # A checkpoint is read back by the model's own names; the result gets the names of the base.
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    return hub
