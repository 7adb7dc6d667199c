"""The describer for LLaVA checkpoints: prompt, image features, text and text features.

Letters: B samples, P patches of an image, C vision width, D language width, n tokens of a text.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from transformers import Cache

from egogen.errors import EgoGenError
from egogen.features.projector import Projector
from llava.checkpoints.load import Loaded, name_of_weights, quantization_of
from llava.conversation import IMAGE_MARK, escape_marks, prompt_for
from llava.describing import decoding
from llava.describing.decoding import Decoding, OnText, Written, in_half
from llava.describing.describer import Description, Feature, Name
from llava.model import Llava
from llava.tokens import IGNORE, IMAGE_ID, encode_conversation, encode_prompt, expand


def prompt_ids(loaded: Loaded, question: str) -> list[int]:
    """Ids of the open prompt with `question` about an image, one IMAGE_ID for the image."""
    prompt = prompt_for(escape_marks(question), loaded.template)
    return encode_prompt(prompt, loaded.tokenizer)


def answer_ids(loaded: Loaded, question: str, text: str) -> list[int]:
    """Ids of an answer as tuning has them: the text, a space and the end mark.

    Raises EgoGenError for an empty one.
    """
    text = escape_marks(text.strip().replace(IMAGE_MARK, "< image >"))
    if not text:
        raise EgoGenError(f"question {question!r}: the description is empty, expected text")
    turns = [f"{IMAGE_MARK}\n{question}", text]
    sample = encode_conversation(turns, loaded.template, loaded.tokenizer)
    return [label for label in sample.labels if label != IGNORE]


def fingerprint(model: Llava) -> str:
    """A short name for the model's weights, from the parts that any tuning changes."""
    parts = *model.model.multi_modal_projector.children(), model.model.language_model.norm
    head = model.lm_head, 64 * model.lm_head.in_features  # of the head 64 rows
    return name_of_weights([*((part, None) for part in parts), head])


def model_info(loaded: Loaded) -> dict[str, Any]:
    """What of the checkpoint the features depend on."""
    model = loaded.model
    return {
        "model": fingerprint(model),
        "width": model.config.text_config.hidden_size,
        "image_size": model.config.vision_config.image_size,
        "quantization": quantization_of(model),
    }


def projector_of(model: Llava) -> Projector:
    state = model.model.multi_modal_projector.state_dict()
    return Projector({name: value.cpu() for name, value in state.items()}, "the model's projector")


class LlavaDescriber:
    """A `Describer`. Its features are "image", the projector's output (P, D), and "text", a hidden
    state (n, D) for each token of the text, the end mark included; both are float16.

    `settings` say how it writes; None: it only makes the features of given texts.
    """

    def __init__(self, loaded: Loaded, settings: Decoding | None = None):
        self.loaded, self.model, self.settings = loaded, loaded.model, settings
        self.name, self.frames = str(loaded.folder), loaded.image_processor
        width = self.model.config.text_config.hidden_size
        image = Feature(width, self.model.patches, partial(projector_of, self.model))
        self.features = {"image": image, "text": Feature(width)}

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return {**model_info(self.loaded), **decoding.writing_settings(self.settings)}

    def _prompt(self, question: str) -> list[int]:
        return expand(prompt_ids(self.loaded, question), self.model.patches)

    @cached_property
    def _prefix(self) -> Cache:
        """Keys and values of the system text, which stands in front of every image."""
        prompt = prompt_ids(self.loaded, "")
        return decoding.read_prefix(self.model, prompt[: prompt.index(IMAGE_ID)])

    def too_long(self, question: str, name: Name, text: str | None = None) -> str:
        answer = None if text is None else answer_ids(self.loaded, question, text)
        length = len(self._prompt(question))
        return decoding.no_room(self.model.config, length, answer, self.settings)

    @torch.inference_mode()
    def describe(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        seeds: Sequence[int],
        names: Sequence[Name],
        texts: Sequence[str] | None = None,
        on_text: OnText | None = None,
    ) -> list[Description]:
        """Raises EgoGenError when the model produces no finite features."""
        pixels = self.loaded.image_processor.batch(images)  # (B, 3, size, size)
        # What a layer makes of two images stays in a processor's cache: less time than all at once.
        parts = pixels.split(2 if self.model.device.type == "cpu" else len(images))
        vision = torch.cat([self.model.vision_features(part) for part in parts])  # (B, P, C)
        features = self.model.model.multi_modal_projector(vision)  # (B, P, D)
        prompts = [self._prompt(question) for question in questions]
        tokenizer = self.loaded.tokenizer
        if texts is None:
            if self.settings is None:
                raise ValueError("no texts and no settings to write them with")
            choose = decoding.chooser(self.settings, seeds)
            how: dict[str, Any] = {"choose": decoding.told(choose, tokenizer.decode, on_text)}
            how |= {"max_new_tokens": self.settings.max_new_tokens, "prefix": self._prefix}
            how |= {"eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
            how["vocabulary"] = len(tokenizer)
            written = decoding.decode(self.model, prompts, features, **how)
            texts = [tokenizer.decode(made.ids).strip() for made in written]
        else:
            pairs = zip(questions, texts, strict=True)
            answers = [answer_ids(self.loaded, question, text) for question, text in pairs]
            rows = decoding.text_rows(self.model, prompts, answers, features, tokenizer.pad_id)
            written = [Written(ids, made) for ids, made in zip(answers, rows, strict=True)]
        halves = in_half(features, self.name), in_half(vision, self.name)  # (B, P, D), (B, P, C)
        described = []
        for text, made, image, seen in zip(texts, written, *halves, strict=True):
            kept = {"image": image, "text": in_half(made.rows, self.name)}
            described.append(Description(text, kept, {"image": seen}, made.ids))
        return described
