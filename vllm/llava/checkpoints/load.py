"""Checkpoint folders: config.json decides what a folder holds and how it is to be used.

Folders of three layouts are read: those written here, the released LLaVA layout (LLaVA-1.5's too)
and that of Hugging Face's Llava. Their fields and names of weights are known in `config` and
`files`; `convert` writes one from another.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, LlavaConfig, logging
from transformers.modeling_utils import set_zero3_state

from egogen import EgoGenError, check_choice, write_text
from egogen.devices import usable_device
from egogen.weight_files import check_names, shapes_of
from llava.checkpoints.config import ADDED_ROWS, ON_HUB, hub_file, read_config, tower_folder
from llava.checkpoints.fields import read_fields, ties_head, tower_name
from llava.checkpoints.files import WHOLE_FILES, read_tower, read_weights, weight_files
from llava.conversation import Template, chat_template, find_template
from llava.image_processing import ImageProcessor, load_image_processor
from llava.model import PROJECTOR, Llava, join_layers, projector_layers
from llava.tokenizer import FILES, TextTokenizer, copy_files, load_tokenizer

QUANTIZATIONS = ("4bit", "8bit")
UNQUANTIZED = ["model.vision_tower", PROJECTOR, "lm_head"]
SECOND_LAYER = f"{PROJECTOR}.linear_2.weight", f"{PROJECTOR}.linear_2.bias"
EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
# What transformers wants beside the weights of a hub folder, carried along when it is tuned.
HUB_FILES = ("processor_config.json", "chat_template.json")
CHAT_FILE = "chat_template.jinja"

if not sys.stderr.isatty():
    logging.disable_progress_bar()  # the library's bars fill a log; ours print lines there


@dataclass
class Loaded:
    """A model with everything that is needed to talk to it. `folder` is where it came from."""

    model: Llava
    tokenizer: TextTokenizer
    image_processor: ImageProcessor
    template: Template
    folder: Path

    def save_tools(self, folder: str | os.PathLike) -> None:
        """Tokenizer and image processor files, so that a folder with weights is complete."""
        copy_files((*FILES, *HUB_FILES), self.folder, Path(folder))
        self.image_processor.save(folder)
        if (self.folder / CHAT_FILE).exists():  # tuning may have chosen another template
            write_text(Path(folder) / CHAT_FILE, chat_template(self.template))


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' warnings stay out of the log inside the block: they are about its own use."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto": half precision on a GPU, as in the released code, and float32 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return getattr(torch, name.removeprefix("torch."))


def read_state(
    folder: str | os.PathLike, config: LlavaConfig, vision_tower: str | None = None
) -> dict[str, Tensor]:
    """All weights of a checkpoint under the model's own names, mapped from the files.

    A vision tower inside the checkpoint is used; if there is none, that of `vision_tower`, of the
    folder that config.json names or that lies beside the weights, or of the hub. Raises EgoGenError
    that lists every weight which is missing, unknown or of another shape than `config` says.
    """
    folder, fields = Path(folder), read_fields(folder)
    with torch.device("meta"), set_zero3_state():  # nothing to be shared out by DeepSpeed
        expected = shapes_of(Llava(config).state_dict())
    state = read_weights(folder, {*expected, *SECOND_LAYER})
    if projector_layers(config) == 1:
        join_layers(state)
    if ties_head(fields):  # files hold one of the two
        for name, other in ((HEAD, EMBEDDINGS), (EMBEDDINGS, HEAD)):
            if name not in state and other in state:
                state[name] = state[other].clone()
    added = getattr(config, ADDED_ROWS, 0)
    for name in (EMBEDDINGS, HEAD) if added else ():
        if name in state:
            state[name] = state[name][:-added]
    if not any(name.startswith("model.vision_tower.") for name in state):
        named = vision_tower or tower_name(fields)
        state |= read_tower(_tower_files(folder, named, bool(vision_tower)))
    check_names(shapes_of(state), expected, f"{folder}: weights that config.json does not fit")
    return state


def _tower_files(checkpoint: Path, name: str | None, given: bool) -> list[Path]:
    """Weight files of the vision tower that a checkpoint without one asks for."""
    local = Path(name) if given and name else tower_folder(name, checkpoint)
    if local is not None and local.is_dir():
        return weight_files(local)
    found = (hub_file(name, file) for file in WHOLE_FILES)
    path = next((path for path in found if path is not None), None)
    if path is None:
        lacking = f"holds no vision tower, and {name!r} is neither a folder nor {ON_HUB}"
        raise EgoGenError(f"{checkpoint}: {lacking}")
    return [path]


def quantization_config(
    quantization: str, dtype: torch.dtype, apart: Sequence[str] = UNQUANTIZED
) -> BitsAndBytesConfig:
    """The language model's layers in 4 bits (NF4, scales in 8) or 8 bits; computed in `dtype`.

    `apart` (vision tower, projector, head) stays in `dtype`. Raises EgoGenError without
    bitsandbytes.
    """
    check_choice("quantization ", quantization, QUANTIZATIONS)
    if find_spec("bitsandbytes") is None:
        lacking = "bitsandbytes is not installed, expected it (pip install bitsandbytes)"
        raise EgoGenError(f"--load-{quantization}: {lacking}")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(apart))
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    nf4 |= {"bnb_4bit_compute_dtype": dtype, "llm_int8_skip_modules": list(apart)}
    return BitsAndBytesConfig(load_in_4bit=True, **nf4)


def quantization_of(model: Any) -> str | None:
    """How the model was loaded: "4bit", "8bit" or None."""
    loaded = (name for name in QUANTIZATIONS if getattr(model, f"is_loaded_in_{name}", False))
    return next(loaded, None)


def name_of_weights(parts: Iterable[tuple[nn.Module, int | None]]) -> str:
    """A short name for weights, by so many numbers (None: all) of each parameter of the modules."""
    digest = hashlib.sha256()
    for module, most in parts:
        with align_module_device(module):  # a device map may keep it elsewhere
            for part in module.parameters(recurse=False):
                digest.update(part.detach().flatten()[:most].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_model(
    folder: str | os.PathLike,
    *,
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    vision_tower: str | None = None,
    quantization: str | None = None,
    **places: Any,
) -> Llava:
    """The model of a folder in any of the layouts, in evaluation mode.

    Weights go from the mapped files straight to where they belong, one after the other: nothing
    that is pickled is executed, and the host needs room for the weights that stay there, once.

    quantization  None, "4bit" or "8bit"
    places        what transformers' `from_pretrained` takes: device_map ({"": device}, "auto": over
                  all GPUs, then the CPU, then `offload_folder`, each up to `max_memory`, or
                  {module: device}; without one the CPU)

    Raises EgoGenError when weights do not fit config.json, or a library is not there.
    """
    folder = Path(folder)
    config = read_config(folder, vision_tower)
    if quantization:
        places["quantization_config"] = quantization_config(quantization, dtype)
        places["device_map"] = places.get("device_map") or {"": "cpu"}
    state = read_state(folder, config, vision_tower)
    options = {"config": config, "dtype": dtype, "attn_implementation": attn, **places}
    try:
        with quiet():
            model = Llava.from_pretrained(None, state_dict=state, **options)
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        raise EgoGenError(f"{folder}: weights cannot be loaded ({error})") from error
    vars(model.config).pop(ADDED_ROWS, None)  # they are not in the model, nor in what it saves
    model.source_folder = folder
    return model.eval()


def load(
    folder: str | os.PathLike, *, dtype: str = "auto", device: str | None = None, **options: Any
) -> Loaded:
    """Everything needed to describe images with the checkpoint in `folder`.

    All of the model is on `device`, unless `options`, those of `load_model`, have a device_map.
    """
    target = usable_device(device)
    if not options.get("device_map") and (target.type != "cpu" or options.get("quantization")):
        options["device_map"] = {"": target}
    return with_tools(load_model(folder, dtype=pick_dtype(dtype, target), **options), folder)


def with_tools(model: Llava, folder: str | os.PathLike) -> Loaded:
    """The model together with tokenizer, image processor and template of its folder."""
    config, tokenizer = model.config, load_tokenizer(folder)
    tokenizer.rows = model.get_input_embeddings().num_embeddings
    if tokenizer.base_size() > tokenizer.rows:
        expected = f"expected at most the model's {tokenizer.rows}"
        raise EgoGenError(f"{folder}: tokenizer of {tokenizer.base_size()} pieces, {expected}")
    processor = image_processor_of(folder, config)
    template = find_template(config.conversation_template)
    return Loaded(model, tokenizer, processor, template, Path(folder))


def image_processor_of(folder: str | os.PathLike, config: LlavaConfig) -> ImageProcessor:
    return load_image_processor(folder, config.vision_config.image_size, config.image_aspect_ratio)
