"""The describer for any image-text model of transformers, by its own `generate` and forward pass.

Letters: B samples, S prompt positions (a frame has P of them), P rows of a frame, D language width,
T of the longest prompt and answer, V vocabulary, n tokens of a text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LogitsProcessor

from egogen.errors import EgoGenError
from llava.checkpoints.hub_model import HubModel, Inputs, plain_generation
from llava.checkpoints.load import name_of_weights, quantization_of, quiet
from llava.describing import decoding
from llava.describing.decoding import Choice, Decoding, OnText, Written, in_half
from llava.describing.describer import Description, Feature, Name


class Chosen(LogitsProcessor):
    """Makes `generate` go on with the token that `choose` takes for each sample of a batch.

    `ids` are those of each sample up to an id of `ends`; behind it comes padding.
    """

    def __init__(self, choose: Choice, samples: int, vocabulary: int, ends: set[int], pad: int):
        self.choose, self.vocabulary, self.ends, self.pad = choose, vocabulary, ends, pad
        self.ids: list[list[int]] = [[] for _ in range(samples)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        going = [row for row, ids in enumerate(self.ids) if not ids or ids[-1] not in self.ends]
        tokens = self.choose(scores[going, : self.vocabulary], going)
        for row, token in zip(going, tokens, strict=True):
            self.ids[row].append(token)
        forced = torch.full_like(scores, -torch.inf)  # (B, V)
        forced[:, self.pad] = 0
        forced[going, self.pad] = -torch.inf
        forced[going, tokens] = 0
        return forced


@contextmanager
def watched(module: nn.Module, name: str | None = None) -> Iterator[list[Tensor]]:
    """What `module` is called with inside the block: its argument `name`, or the first."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        kept.append(kwargs[name] if name in kwargs else args[0])

    with module.register_forward_pre_hook(keep, with_kwargs=True):
        yield kept


class HubDescriber:
    """A `Describer`. Its features are "image", the rows that the language model is given for the
    frame (P, D), and "text", a hidden state after the final norm (n, D) for each token of the text,
    the end mark included; both are float16.

    `settings` say how it writes; None: it only makes the features of given texts.
    """

    def __init__(self, hub: HubModel, settings: Decoding | None = None):
        self.hub, self.settings, self.name, self.frames = hub, settings, hub.folder, hub.frames
        try:
            self.features = {"image": Feature(hub.width, hub.rows), "text": Feature(hub.width)}
            # Whether processor and model fit shows in use only.
            self.describe([hub.blank], ["How?"], seeds=[0], names=[("", "")], texts=["So."])
        except EgoGenError:
            raise
        except Exception as error:  # both raise what they like
            raise EgoGenError(f"{self.name}: processor and model do not fit: {error}") from error

    @cached_property
    def provenance(self) -> dict[str, Any]:
        model, frames = self.hub.model, self.hub.frames
        name = name_of_weights((part, 64) for part in model.modules())
        info = {"model": name, "family": model.config.model_type}
        info |= {"width": self.hub.width, "image_size": frames.size}
        info |= {"image_aspect_ratio": frames.aspect, "quantization": quantization_of(model)}
        return {**info, **decoding.writing_settings(self.settings)}

    def too_long(self, question: str, name: Name, text: str | None = None) -> str:
        answer = None if text is None else self.hub.answer_ids([question], text)
        length = self.hub.length(question)
        return decoding.no_room(self.hub.model.config, length, answer, self.settings)

    @quiet()
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
        hub = self.hub
        answers: list[list[int]] = [[] for _ in questions]
        if texts is not None:
            pairs = zip(questions, texts, strict=True)
            answers = [hub.answer_ids([question], text) for question, text in pairs]
        asked = zip(images, questions, answers, strict=True)
        samples = [hub.encode(image, question, answer=ids) for image, question, ids in asked]
        batch = hub.collate(samples, "left" if texts is None else "right")
        with watched(hub.model.get_decoder(), "inputs_embeds") as embedded:
            decode = partial(hub.processor.tokenizer.decode, skip_special_tokens=True)
            told = partial(decoding.told, decode=decode, on_text=on_text)
            if texts is None:
                written = self._write(batch, seeds, told)
            else:
                written = self._rows(batch, answers)
        if texts is None:
            texts = [decode(made.ids).strip() for made in written]
        of_image = batch["input_ids"] == hub.image_id  # (B, S)
        seen = embedded[0][of_image.to(embedded[0].device)]  # (B * P, D)
        seen = seen.view(len(samples), hub.rows, hub.width)  # (B, P, D)
        return [
            Description(text, {"image": image, "text": in_half(made.rows, self.name)}, ids=made.ids)
            for text, image, made in zip(texts, in_half(seen, self.name), written, strict=True)
        ]

    def _write(
        self, batch: Inputs, seeds: Sequence[int], told: Callable[[Choice], Choice]
    ) -> list[Written]:
        """`generate` of left-padded prompts; each sample draws from its own seed."""
        hub, settings = self.hub, self.settings
        if settings is None:
            raise ValueError("no texts and no settings to write them with")
        size = len(hub.processor.tokenizer)
        choose = told(decoding.chooser(settings, seeds))
        chosen = Chosen(choose, len(seeds), size, hub.ends, hub.pad_id)
        head = hub.model.get_output_embeddings()
        with plain_generation(hub, settings.max_new_tokens), watched(head) as states:
            hub.model.generate(**hub.to_device(batch), logits_processor=[chosen])
        rows = torch.stack([state[:, -1] for state in states], 1).cpu()  # (B, n, D) of (B, 1, D)
        return [Written(ids, rows[row, : len(ids)]) for row, ids in enumerate(chosen.ids)]

    def _rows(self, batch: Inputs, answers: Sequence[Sequence[int]]) -> list[Written]:
        """One pass over prompts and answers, padded on the right."""
        made = self.hub.model.base_model(**self.hub.to_device(batch), use_cache=False)
        hidden = made.last_hidden_state  # (B, T, D), after the final norm
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = decoding.rows_before(hidden, lengths, answers)
        return [Written(list(ids), kept) for ids, kept in zip(answers, rows, strict=True)]
