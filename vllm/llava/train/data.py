"""Instruction-tuning data: the conversations file, and batches made of it."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from egogen import EgoGenError, read_json
from egogen.actions import inside, safe_relative
from egogen.frames import read_rgb
from llava.checkpoints.load import Loaded
from llava.conversation import IMAGE_MARK, escape_marks
from llava.tokens import collate, cut, encode_conversation, expand_sample


@dataclass(frozen=True)
class Conversation:
    """Turns alternate question, answer. `image` is relative to the image folder, or None."""

    name: str
    turns: tuple[str, ...]
    image: str | None = None


def read_conversations(path: str | os.PathLike) -> list[Conversation]:
    """The tuning file: a list of {"id", "image" (optional), "conversations": [{"from", "value"}]}.

    As in the released code, an answer before the first question is dropped, and the image mark goes
    to the front of its turn (several in one turn are one). Prompt marks inside a turn are taken
    apart. Raises EgoGenError that names the entry.
    """
    data = read_json(path)
    if not isinstance(data, list) or not data:
        raise EgoGenError(f"{path}: expected a list of conversations with at least one entry")
    return [_conversation(item, f"{path}: entry {index}") for index, item in enumerate(data)]


def _conversation(item: Any, where: str) -> Conversation:
    if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
        raise EgoGenError(f"{where}: expected an object with a list 'conversations'")
    image = item.get("image")
    if image is not None:
        safe_relative(image, f"{where}: field 'image'")
    turns = []
    for number, turn in enumerate(item["conversations"]):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        place = f"{where}: turn {number}"
        if speaker not in ("human", "gpt") or not isinstance(turn.get("value"), str):
            raise EgoGenError(f"{place}: expected 'from' human or gpt and a text 'value'")
        if number == 0 and speaker == "gpt":
            continue
        if speaker != ("human", "gpt")[len(turns) % 2]:
            raise EgoGenError(f"{place}: expected human and gpt in turn")
        if speaker == "gpt" and not turn["value"].strip():
            raise EgoGenError(f"{place}: an empty answer, expected text")
        text = escape_marks(turn["value"])
        if image is not None and IMAGE_MARK in text:
            text = f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()
        turns.append(text)
        if image is not None and sum(IMAGE_MARK in text for text in turns) > 1:
            raise EgoGenError(f"{place}: a second {IMAGE_MARK}, expected one for its one image")
    if not turns or len(turns) % 2:
        raise EgoGenError(f"{where}: expected each question to have an answer")
    return Conversation(str(item.get("id", "")), tuple(turns), image)


class TuningData(Dataset):
    """Encoded conversations; those of which a cut leaves no target are left out (`dropped`).

    `cut_expanded` counts an image with all its patches against `max_length`; the released code
    counts it as one position. `cache` images are kept in memory. `loaded` is the model with its
    tools, a `Loaded`. Raises EgoGenError for a missing image and where nothing is left.
    """

    loss: Any = None  # the model's own

    def __init__(
        self,
        conversations: Iterable[Conversation],
        image_folder: str | os.PathLike,
        loaded: Any,
        *,
        max_length: int = 2048,
        cut_expanded: bool = True,
        cache: int = 0,
    ):
        self.image_folder, self.max_length, self.cache = Path(image_folder), max_length, cache
        self.cut_expanded = cut_expanded
        self.samples: list[Any] = []
        self.dropped = 0
        self.keep(loaded)
        for conversation in conversations:
            image = conversation.image
            if image is not None and not (path := self.image_folder / image).is_file():
                raise EgoGenError(f"{path}: no such image (conversation {conversation.name!r})")
            made = self.samples_of(conversation, loaded)
            self.samples += made
            self.dropped += not made
        if not self.samples:
            raise EgoGenError(f"{image_folder}: no conversation has anything to learn")

    def keep(self, loaded: Loaded) -> None:
        """What is needed once the samples are made: processes that load get no weights."""
        self.processor, self.patches = loaded.image_processor, loaded.model.patches
        self.pad_id = loaded.tokenizer.pad_id

    def samples_of(self, conversation: Conversation, loaded: Any) -> list[Any]:
        turns, pictured = conversation.turns, conversation.image is not None
        encoded = encode_conversation(turns, loaded.template, loaded.tokenizer, pictured)
        encoded = cut(encoded, self.max_length, self.patches if self.cut_expanded else 1)
        return [(conversation, encoded)] if encoded.targets else []

    @cached_property
    def pixels(self) -> Callable[[str | None], Any]:
        return lru_cache(maxsize=self.cache)(self._pixels)

    def __getstate__(self) -> dict[str, Any]:  # of processes that load: each keeps its own images
        return {name: part for name, part in vars(self).items() if name != "pixels"}

    def _pixels(self, image: str | None) -> Any:
        if image is None:
            return torch.zeros(3, self.processor.size, self.processor.size)
        return self.processor(read_rgb(inside(self.image_folder, image)))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        conversation, encoded = self.samples[index]
        pixels = self.pixels(conversation.image)
        return {"encoded": expand_sample(encoded, self.patches), "pixel_values": pixels}

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """-> what `llava.tokens.collate` gives, and pixel_values (B, 3, size, size)."""
        batch = collate([sample["encoded"] for sample in samples], self.pad_id)
        return {**batch, "pixel_values": torch.stack([s["pixel_values"] for s in samples])}
