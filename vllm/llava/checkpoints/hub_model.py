"""Any image-text model of transformers: its folder or hub name, and texts and frames as its inputs.

What LLaVA checkpoints have modules of their own for comes from the model's own processor here: the
chat template writes the prompts, the tokenizer and the image processor make the inputs. Every frame
is first made a square of one size, so that all have the same number of rows.

Letters: T positions of a text, in which an image has P; D language width.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from egogen import EgoGenError, listed, read_object, write_json
from egogen.devices import usable_device
from egogen.download.hub import local_path
from llava.checkpoints.fields import CONFIG_FILE
from llava.checkpoints.load import pick_dtype, quantization_config, quiet
from llava.conversation import escape_marks
from llava.image_processing import ImageProcessor
from llava.model import runs_on
from llava.tokens import IGNORE, padded

FRAMES_FILE = "frames.json"  # how the frames of a tuned model are made square
DEFAULT_SIZE = 448  # pixels, for models that take any
# Switches of image processors that cut one image into several views.
VIEWS = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")
JSON_FILES = ["generation_config", "processor_config", "preprocessor_config"]
JSON_FILES += ["tokenizer_config", "tokenizer"]
PAD_IDS = {"attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0, "labels": IGNORE}
OPTIONS = {"enable_thinking": False}  # for chat templates that know them

Inputs = dict[str, Tensor]  # what a processor makes of a sample: (1, T) of texts, others of images


@dataclass
class HubModel:
    """A model with everything that is needed to talk to it. `folder` is where it came from."""

    model: Any
    processor: Any
    frames: ImageProcessor
    folder: str

    @property
    def image_id(self) -> int:
        """The id at whose positions the language model is given the rows of an image."""
        return int(self.model.config.image_token_id)

    @cached_property
    def ends(self) -> set[int]:
        """The ids that end an answer."""
        named = self.model.generation_config.eos_token_id, self.processor.tokenizer.eos_token_id
        ends = {end for part in named for end in (part if isinstance(part, list) else [part])}
        return ends - {None}

    @cached_property
    def rows(self) -> int:
        """P, the positions that a frame takes."""
        blank = self.encode(self.blank, "")
        return int((blank["input_ids"] == self.image_id).sum())

    @property
    def blank(self) -> Image.Image:
        return Image.new("RGB", (self.frames.size, self.frames.size))

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.config.get_text_config().hidden_size)

    def escape(self, text: str) -> str:
        """Take the tokenizer's marks inside user text apart, so that they stay text."""
        tokens = self.processor.tokenizer.added_tokens_decoder.values()
        marks = (token.content for token in tokens)
        return escape_marks(text, (m for m in marks if len(m) > 1 and not m.isspace()))

    def render(self, turns: Sequence[str], pictured: bool, **options: Any) -> str:
        """Turns (question, answer ...) by the chat template; the frame is in front of the first."""
        messages, written = [], str(self.processor.chat_template)
        known = {name: value for name, value in OPTIONS.items() if name in written}
        for number, turn in enumerate(turns):
            content: list[dict[str, str]] = [{"type": "text", "text": turn}]
            if number == 0 and pictured:
                content.insert(0, {"type": "image"})
            messages.append({"role": ("user", "assistant")[number % 2], "content": content})
        try:
            return self.processor.apply_chat_template(messages, **options, **known)
        except Exception as error:  # templates raise what they like
            raise EgoGenError(f"{self.folder}: chat template: {error}") from None

    def prompt(self, turns: Sequence[str], pictured: bool = True) -> str:
        """The open prompt behind which the model answers the last of `turns`."""
        turns = [self.escape(turn) for turn in turns]
        return self.render(turns, pictured, add_generation_prompt=True)

    def answer_ids(self, turns: Sequence[str], text: str, pictured: bool = True) -> list[int]:
        """Ids of the answer `text` to the last of `turns`, with the mark that ends it.

        The chat template decides what stands around the text. Raises EgoGenError for an empty one.
        """
        text = self.escape(text.strip())
        if not text:
            raise EgoGenError(f"question {turns[-1]!r}: the description is empty, expected text")
        prompt = self.prompt(turns, pictured)
        whole = self.render([*(self.escape(turn) for turn in turns), text], pictured)
        head, found, tail = whole.rpartition(text)
        if not found:
            found = "the chat template does not repeat an answer as it is"
            raise EgoGenError(f"{self.folder}: {found}")
        lead = head.removeprefix(prompt) if head.startswith(prompt) else ""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(f"{lead}{text}{tail}", add_special_tokens=False)["input_ids"]
        end = next((place for place, number in enumerate(ids) if number in self.ends), None)
        # Some templates write no mark behind an answer; the model has to learn one all the same.
        return [*ids, tokenizer.eos_token_id] if end is None else ids[: end + 1]

    def encode(self, image: Image.Image | None, *turns: str, answer: Sequence[int] = ()) -> Inputs:
        """The model's inputs for a prompt about a frame, and behind it the ids of an answer."""
        prompt = self.prompt(turns, image is not None)
        bos = self.processor.tokenizer.bos_token
        begun = bool(bos) and prompt.startswith(bos)  # by the template
        images = None if image is None else [[self.frames.square(image)]]
        options = {"return_tensors": "pt", "add_special_tokens": not begun}
        inputs = self.processor(text=[prompt], images=images, **options)
        length = inputs["input_ids"].shape[1]
        made = {name: torch.as_tensor(value) for name, value in inputs.items()}
        for name, value in made.items():
            if value.shape == (1, length) and answer:
                more = list(answer) if name == "input_ids" else [int(name == "attention_mask")]
                made[name] = torch.cat([value, value.new_tensor([more]).expand(1, len(answer))], 1)
        return made

    def collate(self, samples: Sequence[Inputs], side: str) -> Inputs:
        """One batch of samples: texts filled up on one side, what belongs to images joined."""
        batch: Inputs = {}
        for name in dict.fromkeys(name for sample in samples for name in sample):
            having = [sample for sample in samples if name in sample]
            if all(sample[name].shape == sample["input_ids"].shape for sample in having):
                rows = [sample[name][0].tolist() for sample in having]
                batch[name] = padded(rows, PAD_IDS.get(name, self.pad_id), side)
            else:
                batch[name] = torch.cat([sample[name] for sample in having])
        return batch

    def to_device(self, batch: Inputs) -> Inputs:
        """Where the model begins to compute; numbers of images in its precision."""
        device, dtype = runs_on(self.model.get_input_embeddings()), self.model.dtype
        dtypes = {name: dtype if part.is_floating_point() else None for name, part in batch.items()}
        return {name: part.to(device, dtypes[name]) for name, part in batch.items()}

    def length(self, *turns: str, pictured: bool = True) -> int:
        """Positions of the prompt, those of the frame included."""
        if not pictured:
            return self.encode(None, *turns)["input_ids"].shape[1]
        return len(self.processor.tokenizer(self.prompt(turns))["input_ids"]) + self._expansion

    @cached_property
    def _expansion(self) -> int:
        """How many more ids a prompt has once its image mark stands for a frame."""
        short = len(self.processor.tokenizer(self.prompt([""]))["input_ids"])
        return self.encode(self.blank, "")["input_ids"].shape[1] - short

    @property
    def pad_id(self) -> int:
        number = self.processor.tokenizer.pad_token_id
        return self.processor.tokenizer.eos_token_id if number is None else number

    def projector(self) -> list[str]:
        """Names of the parts from vision to language: beside the towers, or mergers in them."""
        parts: list[nn.Module] = []
        for name, child in self.model.base_model.named_children():
            if isinstance(child, PreTrainedModel):  # a tower, or the language model
                parts += [part for part in child.modules() if "Merger" in type(part).__name__]
            elif "audio" not in name:
                parts.append(child)
        known = {module: name for name, module in self.model.named_modules()}
        return [known[part] for part in parts if len(part.state_dict())]

    def block_layers(self) -> str:
        """A pattern of the names of all linear layers in the language model's blocks."""
        inside, found = {*self.model.get_decoder().modules()}, set()
        for name, part in self.model.named_modules():
            if isinstance(part, nn.Linear) and part in inside:
                found.add(re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)))
        return "|".join(sorted(pattern for pattern in found if r"\d" in pattern))

    def save_tools(self, folder: str | os.PathLike) -> None:
        """Processor files and the size of frames, so that a folder with weights is complete."""
        self.processor.save_pretrained(folder)
        frames = {"image_size": self.frames.size, "image_aspect_ratio": self.frames.aspect}
        write_json(Path(folder) / FRAMES_FILE, frames)


def usual_size(config: Any, settings: Mapping[str, Any]) -> Any:
    """The size of frames of a model: the one it was tuned with, its tower's, or DEFAULT_SIZE."""
    tower = getattr(config, "vision_config", None)
    size = settings.get("image_size") or getattr(tower, "image_size", None)
    return (size[0] if isinstance(size, list | tuple) else size) or DEFAULT_SIZE


def load_hub(
    folder: str | os.PathLike,
    *,
    dtype: str = "auto",
    device: str | None = None,
    attn: str = "sdpa",
    quantization: str | None = None,
    image_size: int | None = None,
    aspect: str | None = None,
    **places: Any,
) -> HubModel:
    """The model of a folder or a hub name, in evaluation mode, with its processor.

    `image_size` and `aspect` (square, pad, squeeze) say how frames are made square; by default as
    the model was tuned, else its vision tower's size and "square". `places` are those of
    `llava.checkpoints.load.load_model`. Raises EgoGenError for models without images or a chat
    template, and for weights that config.json does not fit.
    """
    name, target = local_path(folder), usable_device(device)
    precision = pick_dtype(dtype, target)
    try:
        with quiet():
            config, processor = _tools(name)
            options: dict[str, Any] = {"dtype": precision, "attn_implementation": attn, **places}
            if quantization or target.type != "cpu":
                options["device_map"] = options.get("device_map") or {"": target}
            if quantization:
                quantized = quantization_config(quantization, precision, _skipped(config))
                options["quantization_config"] = quantized
            options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # in `found`
            model, found = AutoModelForImageTextToText.from_pretrained(
                name, config=config, trust_remote_code=False, **options
            )
    except EgoGenError:
        raise
    except Exception as error:  # files of any kind, and libraries raise what they like
        said = str(error).strip().split("\n\n")[0]
        raise EgoGenError(f"{name}: cannot be loaded ({said})") from error
    # Under ZeRO-3 transformers (5.23) keeps renamings too that no weight of the folder needed, and
    # would undo them when it saves.
    if renamings := getattr(model, "_weight_conversions", None):
        model._weight_conversions = [each for each in renamings if getattr(each, "_was_used", True)]
    wrong = [f"missing: {key}" for key in sorted(found["missing_keys"])]
    wrong += [f"mis-shaped: {key}" for key, *_ in sorted(found["mismatched_keys"])]
    if wrong:
        raise EgoGenError(f"{name}: weights that config.json does not fit: {listed(wrong)}")
    settings = read_object(Path(name) / FRAMES_FILE, needed=False)
    size = usual_size(config, settings) if image_size is None else image_size
    if not isinstance(size, int) or size < 1:
        raise EgoGenError(f"{name}: frames of {size!r} pixels, expected at least 1")
    frames = ImageProcessor(size, aspect or settings.get("image_aspect_ratio") or "square")
    return HubModel(model.eval(), processor, frames, name)


def _tools(name: str) -> tuple[Any, Any]:
    """Configuration and processor; the processor makes one view of an image."""
    for file in JSON_FILES:  # the libraries pass over some that they cannot read
        read_object(Path(name) / f"{file}.json", needed=False)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    _check_kind(name, config)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    for part in ("tokenizer", "image_processor", "chat_template"):
        if not getattr(processor, part, None):
            raise EgoGenError(f"{name}: its processor has no {part}, expected one")
    if processor.tokenizer.eos_token_id is None:
        raise EgoGenError(f"{name}: its tokenizer has no eos_token, expected one")
    for switch in VIEWS:
        if hasattr(processor.image_processor, switch):
            setattr(processor.image_processor, switch, False)
    return config, processor


def _check_kind(name: str, config: Any) -> None:
    """Raises EgoGenError unless it is a model whose language model reads rows of an image."""
    where, kind = Path(name) / CONFIG_FILE, f"a {config.model_type} model"
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise EgoGenError(f"{where}: {kind}, expected an image-text model")
    crossed = hasattr(config.get_text_config(), "cross_attention_layers")
    if config.is_encoder_decoder or crossed:
        expected = "expected one whose language model reads them as rows among the words"
        raise EgoGenError(f"{where}: {kind} looks at images by cross attention, {expected}")
    if getattr(config, "image_token_id", None) is None:
        raise EgoGenError(f"{where}: {kind} that names no image_token_id, expected one")


def _skipped(config: Any) -> list[str]:
    """What quantization leaves alone (vision, projector, head), from the model without weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    apart = {*model.base_model.children(), model.get_output_embeddings()} - {model.get_decoder()}
    return [name for name, part in model.named_modules() if part in apart]


def plain_generation(hub: HubModel, max_new_tokens: int) -> AbstractContextManager:
    """Inside the block `generate` goes by logits alone, whatever the folder asks for."""
    bos = hub.model.generation_config.bos_token_id
    marks = {"bos_token_id": bos, "eos_token_id": sorted(hub.ends), "pad_token_id": hub.pad_id}
    how = {"max_new_tokens": max_new_tokens, "do_sample": False, "suppress_tokens": [hub.image_id]}
    # `generate` fills in from the model's own settings whatever an argument leaves open.
    return mock.patch.object(hub.model, "generation_config", GenerationConfig(**how, **marks))
