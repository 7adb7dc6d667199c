"""The describer for LLaVA checkpoints: prompt, image features, text and text features.

Letters: B samples, P patches of an image, C vision width, D language width, n tokens of a text.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from PIL import Image

from egogen.errors import EgoGenError
from egogen.features.projector import Projector
from llava.checkpoints.load import Loaded, quantization_of
from llava.conversation import escape_marks, prompt_for
from llava.describing.decoding import Decoding, Written, text_rows
from llava.describing.describer import Description, Feature, Name
from llava.describing.engine import Engine, Request, transformers_engine
from llava.model import Llava
from llava.tokens import encode_prompt, expand


def prompt_ids(loaded: Loaded, question: str) -> list[int]:
    """Ids of the open prompt with `question` about an image, one IMAGE_ID for the image."""
    prompt = prompt_for(escape_marks(question), loaded.template)
    return encode_prompt(prompt, loaded.tokenizer)


def fingerprint(model: Llava) -> str:
    """A short name for the model's weights, from the parts that any tuning changes."""
    digest = hashlib.sha256()
    projector = model.model.multi_modal_projector.children()
    for module in (*projector, model.model.language_model.norm, model.lm_head):
        with align_module_device(module):  # a device map may keep it elsewhere
            for part in module.parameters():
                rows = part if module is not model.lm_head else part[:64]
                digest.update(rows.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


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


def _half(values: torch.Tensor) -> np.ndarray:
    return values.to(torch.float16).cpu().numpy()


class LlavaDescriber:
    """A `Describer`. Its features are "image", the projector's output (P, D), and "text", a hidden
    state (n, D) for each token written, the end mark included; both are float16.

    `engine` writes the texts (default: the model itself, drawing).
    """

    def __init__(self, loaded: Loaded, engine: Engine | None = None):
        self.loaded, self.model = loaded, loaded.model
        self.engine = engine or transformers_engine(loaded, Decoding())
        self.name = str(loaded.folder)
        width = self.model.config.text_config.hidden_size
        self.features = {
            "image": Feature(width, self.model.patches, partial(projector_of, self.model)),
            "text": Feature(width),
        }

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return {**model_info(self.loaded), **self.engine.origin}

    def _prompt(self, question: str) -> list[int]:
        return expand(prompt_ids(self.loaded, question), self.model.patches)

    def too_long(self, question: str, name: Name) -> str:
        """Why prompt and answer have no room in the model's context, or ""."""
        length = len(self._prompt(question)) + self.engine.longest(question, name)
        context = self.model.config.text_config.max_position_embeddings
        if length <= context:
            return ""
        return f"{length} tokens with prompt, image and answer, expected at most {context}"

    @torch.inference_mode()
    def describe(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        seeds: Sequence[int],
        names: Sequence[Name],
    ) -> list[Description]:
        """Raises EgoGenError when the model produces no finite features."""
        vision = self.model.vision_features(self.loaded.image_processor.batch(images))  # (B, P, C)
        features = self.model.model.multi_modal_projector(vision)  # (B, P, D)
        requests = [
            Request(name, image, escape_marks(question), self._prompt(question), rows, seed)
            for name, image, question, rows, seed in zip(
                names, images, questions, features, seeds, strict=True
            )
        ]
        written = self.engine.write(requests)
        text = self._text_rows(requests, written)  # B times (n, D)
        image_BPD, vision_BPC = _half(features), _half(vision)
        if not np.isfinite(image_BPD).all():
            raise EgoGenError(
                f"{self.name}: image features overflow in half precision, expected finite numbers"
            )
        return [
            Description(
                self.loaded.tokenizer.decode(sample.ids).strip(),
                {"image": image_BPD[row], "text": _half(text[row])},
                {"image": vision_BPC[row]},
                sample.ids,
            )
            for row, sample in enumerate(written)
        ]

    def _text_rows(
        self, requests: Sequence[Request], written: Sequence[Written]
    ) -> list[torch.Tensor]:
        """The engine's hidden states, or those of one teacher-forced pass where it kept none."""
        kept = [sample.rows for sample in written if sample.rows is not None]
        if len(kept) == len(written):
            return kept
        features = torch.stack([request.features for request in requests])  # (B, P, D)
        prompts, answers = [request.ids for request in requests], [made.ids for made in written]
        return text_rows(self.model, prompts, answers, features, self.loaded.tokenizer.pad_id)
