"""Texts as ids, targets and batches.

An image stands in a text as one IMAGE_ID, and is expanded to one for each of its P patches before a
model reads the ids. Letters: B samples, T ids of the longest sample, S the same with images
expanded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch.nn.utils.rnn import pad_sequence

from llava.conversation import END, IMAGE_MARK, Template, rounds_of
from llava.tokenizer import TextTokenizer

IMAGE_ID = -200  # stands for an image in the ids
IGNORE = -100  # a label that is no target


@dataclass(frozen=True)
class Encoded:
    """Ids of one conversation, one IMAGE_ID per image, and the targets (IGNORE where none)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def targets(self) -> int:
        return sum(label != IGNORE for label in self.labels)


def encode_prompt(text: str, tokenizer: TextTokenizer, image: bool = True) -> list[int]:
    """`<s>` and the ids of `text`; with `image` every "<image>" becomes IMAGE_ID.

    The texts before and after an image are tokenised one by one, as in the released code.
    """
    ids = [tokenizer.bos_id]
    for index, piece in enumerate(text.split(IMAGE_MARK) if image else [text]):
        ids += ([IMAGE_ID] if index else []) + tokenizer.encode(piece)
    return ids


def encode_conversation(
    turns: Sequence[str], template: Template, tokenizer: TextTokenizer, image: bool = True
) -> Encoded:
    """Ids of a conversation in which every question has its answer.

    Targets are the answers, each with the end mark behind it.
    """
    rounds = [(instruction, answer or "") for instruction, answer in rounds_of(turns, template)]
    text = "".join(instruction + answer + END for instruction, answer in rounds)
    ids = encode_prompt(text, tokenizer, image)
    labels = [IGNORE] * len(ids)
    position = 1
    for instruction, answer in rounds:
        # The space before an answer belongs to its first piece, so count the instruction with one
        # more space and take that off again.
        start = position + len(encode_prompt(instruction + " ", tokenizer, image)) - 2
        position += len(encode_prompt(instruction + answer, tokenizer, image))
        labels[start:position] = ids[start:position]
    return Encoded(ids, labels)


def cut(sample: Encoded, max_length: int, patches: int = 1) -> Encoded:
    """The sample's first ids, at most `max_length` where an image counts as `patches` positions.

    `patches=1` is the rule of the released code, which cuts before the image becomes 256 positions.
    """
    length = 0
    for count, number in enumerate(sample.input_ids):
        length += patches if number == IMAGE_ID else 1
        if length > max_length:
            return Encoded(sample.input_ids[:count], sample.labels[:count])
    return sample


def collate(samples: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded (B, T) int64 `input_ids`, `labels`, and bool `attention_mask`."""
    return {
        "input_ids": padded([sample.input_ids for sample in samples], pad_id),
        "labels": padded([sample.labels for sample in samples], IGNORE),
        "attention_mask": padded([[True] * len(sample.input_ids) for sample in samples], False),
    }


def padded(rows: Sequence[Sequence[int]], value: int, side: str = "right") -> torch.Tensor:
    """Rows of unequal length as one tensor (B, T), filled up with `value` on one side."""
    parts = [torch.tensor(row) for row in rows]
    return pad_sequence(parts, batch_first=True, padding_value=value, padding_side=side)


def expand(ids: Sequence[int], patches: int) -> list[int]:
    """Repeat IMAGE_ID once per patch."""
    return [copy for number in ids for copy in [number] * (patches if number == IMAGE_ID else 1)]


def expand_sample(sample: Encoded, patches: int) -> Encoded:
    """The sample with `patches` IMAGE_IDs per image; none of them is a target."""
    pairs = zip(sample.input_ids, sample.labels, strict=True)
    spread = ([IGNORE] * patches if number == IMAGE_ID else [label] for number, label in pairs)
    return Encoded(expand(sample.input_ids, patches), [*chain.from_iterable(spread)])
