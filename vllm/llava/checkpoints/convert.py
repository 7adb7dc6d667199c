"""Converting checkpoint folders between the released layout and Hugging Face's, both ways.

Weights keep their bits and their precision. What transformers' Llava asks for beyond them (a second
projector layer, a row of the vocabulary for the image mark) is added on the way to the hub's
layout and taken off on the way back.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers
from torch import Tensor
from transformers import (
    AddedToken,
    CLIPImageProcessor,
    GenerationConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from egogen import EgoGenError, check_choice, read_json, read_object, write_json
from llava import tokenizer as tokenizers
from llava.checkpoints.config import ADDED_ROWS, ORIGIN, TOWER_FOLDER, read_config, released_fields
from llava.checkpoints.fields import CONFIG_FILE, is_released, read_fields
from llava.checkpoints.files import HUB_NAMES, RELEASED_NAMES, rename, weight_files, write_weights
from llava.checkpoints.load import EMBEDDINGS, HEAD, image_processor_of, read_state
from llava.conversation import IMAGE_MARK, chat_template, find_template
from llava.image_processing import ImageProcessor
from llava.model import projector_layers, with_identity
from llava.tokenizer import SentencePieceTokenizer, TextTokenizer, copy_files, load_tokenizer

LAYOUTS = ("llava", "hub")
RECORD_FILE = "converted.json"  # says what a folder was converted from


def convert(
    source: Path, out: Path, layout: str, vision_tower: str | None = None
) -> list[Path] | None:
    """Write the checkpoint in `source` to `out` in another layout ("llava" or "hub").

    config.json is written last, behind what says where it comes from, so that only a complete
    folder has it. Returns the weight files, None when they have been converted before. Raises
    EgoGenError for a folder that holds another checkpoint.
    """
    check_choice("layout ", layout, LAYOUTS)
    config = read_config(source, vision_tower)
    sizes = {path.name: path.stat().st_size for path in weight_files(source)}
    record = {"source": str(source.resolve()), "layout": layout, "bytes": sizes}
    if (out / CONFIG_FILE).exists():
        if (out / RECORD_FILE).exists() and read_json(out / RECORD_FILE) == record:
            return None
        raise EgoGenError(f"{out}: holds another checkpoint, expected an empty or a new folder")
    state = read_state(source, config, vision_tower)
    files, fields = (_write_hub if layout == "hub" else _write_llava)(source, out, config, state)
    write_json(out / RECORD_FILE, record)
    write_json(out / CONFIG_FILE, fields, indent=2)
    return files


# Both write all but config.json, and give that with the weight files.


def _write_hub(
    source: Path, out: Path, config: LlavaConfig, state: dict[str, Tensor]
) -> tuple[list[Path], dict[str, Any]]:
    fields, tokenizer = read_fields(source), load_tokenizer(source)
    # All that may be refused comes before the first file is written.
    pictures, fast = image_processor_of(source, config), fast_tokenizer(source, tokenizer)
    image_id = len(tokenizer)
    added = max(0, image_id + 1 - config.text_config.vocab_size)
    if projector_layers(config) == 1:
        state = with_identity(state)
    if added:
        for name in (EMBEDDINGS, HEAD):
            rows = state[name].new_zeros(added, state[name].shape[1])
            state[name] = torch.cat([state[name], rows])
    files = write_weights(state, out, lambda name: rename(name, HUB_NAMES))
    copy_files(tokenizers.FILES, source, out)
    _write_processor(out, config, pictures, fast)
    write_json(out / tokenizers.ADDED_FILE, {**tokenizer.added, IMAGE_MARK: image_id})
    rows = config.text_config.vocab_size + added
    _write_generation(out, tokenizer, suppress_tokens=list(range(image_id, rows)))
    config.text_config.vocab_size = rows
    config.image_token_index = image_id
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = str(state[HEAD].dtype).removeprefix("torch.")
    written = {**config.to_dict(), ADDED_ROWS: added}
    if is_released(fields):
        written[ORIGIN] = fields
    return files, written


def _write_llava(
    source: Path, out: Path, config: LlavaConfig, state: dict[str, Tensor]
) -> tuple[list[Path], dict[str, Any]]:
    fields, tokenizer = read_fields(source), load_tokenizer(source)
    pictures = image_processor_of(source, config)
    names = RELEASED_NAMES[projector_layers(config)]
    files = write_weights(state, out, lambda name: rename(name, names))
    tower = config.vision_config.to_diff_dict()
    write_json(out / TOWER_FOLDER / CONFIG_FILE, tower, indent=2)
    _save_tokenizer(tokenizer, out)
    pictures.save(out)
    _write_generation(out, tokenizer)
    origin = fields if is_released(fields) else fields.get(ORIGIN)
    released = released_fields(config, origin, TOWER_FOLDER)
    dtype = str(state[HEAD].dtype).removeprefix("torch.")
    return files, {**released, "torch_dtype": dtype}


def _write_generation(out: Path, tokenizer: TextTokenizer, **more: Any) -> None:
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    GenerationConfig(**marks, **more).save_pretrained(out)


def _length(folder: Path) -> dict[str, int]:
    """`model_max_length` where tokenizer_config.json says one."""
    config = read_object(folder / tokenizers.CONFIG_FILE, needed=False)
    return {name: config[name] for name in ("model_max_length",) if name in config}


def _save_tokenizer(tokenizer: TextTokenizer, out: Path) -> None:
    """The tokenizer's files, without what was added to them for transformers."""
    copy_files(tokenizers.FILES, tokenizer.folder, out)
    marks = {mark: number for mark, number in tokenizer.added.items() if mark != IMAGE_MARK}
    if isinstance(tokenizer, SentencePieceTokenizer) and IMAGE_MARK in tokenizer.added:
        length = _length(tokenizer.folder).get("model_max_length", 2048)
        tokenizers.write_tokenizer_config(out, length, tokenizer.legacy)
        (out / tokenizers.FAST_FILE).unlink(missing_ok=True)
        (out / tokenizers.ADDED_FILE).unlink()
        if marks:
            write_json(out / tokenizers.ADDED_FILE, marks)


def _write_processor(
    out: Path, config: LlavaConfig, pictures: ImageProcessor, fast: PreTrainedTokenizerFast
) -> None:
    """What transformers' AutoProcessor reads; sentencepiece's own file stays beside it."""
    vision = {"patch_size": config.vision_config.patch_size, "num_additional_image_tokens": 1}
    vision["vision_feature_select_strategy"] = config.vision_feature_select_strategy
    tools = {"image_processor": CLIPImageProcessor(**pictures.settings()), "tokenizer": fast}
    template = chat_template(find_template(config.conversation_template))
    made = LlavaProcessor(**tools, **vision, image_token=IMAGE_MARK, chat_template=template)
    made.save_pretrained(out)
    path = out / tokenizers.CONFIG_FILE
    write_json(path, {**read_json(path), "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
    pictures.save(out)


def fast_tokenizer(source: Path, tokenizer: TextTokenizer) -> PreTrainedTokenizerFast:
    """transformers' tokenizer that gives the ids of `tokenizer`, with the image mark added.

    The released code tokenises the texts before and after an image one by one, so that a space
    comes in front of each, whether it begins with one or not; the library's conversion does
    otherwise.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        # It pads the shorter answers of a batch, and decoding would not skip a normalized one.
        unknown = AddedToken("<unk>", special=True, normalized=False)
        pieces = LlamaTokenizer.from_pretrained(source, unk_token=unknown).backend_tokenizer
        pieces.pre_tokenizer = None
        steps = [normalizers.Prepend(tokenizers.SPACE), normalizers.Replace(" ", tokenizers.SPACE)]
        pieces.normalizer = normalizers.Sequence(steps)
        marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        known = {"legacy": tokenizer.legacy, "pad_token": "<unk>", **_length(source)}
        fast = PreTrainedTokenizerFast(
            tokenizer_object=pieces, padding_side="left", **marks, **known
        )
    else:
        fast = PreTrainedTokenizerFast.from_pretrained(source, padding_side="left")
    mark = AddedToken(IMAGE_MARK, special=True, normalized=False)
    fast.add_tokens([mark], special_tokens=True)
    if (found := fast.convert_tokens_to_ids(IMAGE_MARK)) != len(tokenizer):
        expected = f"expected {len(tokenizer)}"
        raise EgoGenError(f"{source}: tokenizer gives {IMAGE_MARK} the id {found}, {expected}")
    return fast
