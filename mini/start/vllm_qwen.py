"""A small Qwen2.5-VL of the mini world with random weights: the second class of base models."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from llava.checkpoints.hub_model import HubModel
from llava.image_processing import ImageProcessor
from llava.tokens import IGNORE, Encoded
from mini.start.vllm_pretrain import HEADS, HIDDEN, LAYERS, VISION_HIDDEN, VOCABULARY

IMAGE_SIZE, PATCH, MERGE = 96, 4, 2  # pixels, pixels, patches a side that are one row
VISION_LAYERS = 2
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
BEFORE, IMAGE, BEHIND, VIDEO = (
    "<|vision_start|>",
    "<|image_pad|>",
    "<|vision_end|>",
    "<|video_pad|>",
)
ANSWER = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>", re.DOTALL)
TEMPLATE = (  # Qwen's without its default system message
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Qwen's kind of vocabulary (BPE of bytes, marks behind it), trained on `texts`."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(sorted(set(texts)), trainer)
    raw.add_special_tokens([PAD, START, END, BEFORE, BEHIND, IMAGE, VIDEO])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
        model_max_length=2048,
    )


def build(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random weights, sizes and start like those of mini.start.vllm_llava.

    Each layer of the vision tower sees the whole image.
    """
    number = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN * 2,
        "initializer_range": HIDDEN**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA, "mrope_section": SECTIONS},
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": number(END),
        "pad_token_id": number(PAD),
    }
    vision = {
        "hidden_size": VISION_HIDDEN,
        "intermediate_size": VISION_HIDDEN * 3,
        "initializer_range": VISION_HIDDEN**-0.5,
        "depth": VISION_LAYERS,
        "num_heads": VISION_HIDDEN // 32,
        "out_hidden_size": HIDDEN,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "window_size": IMAGE_SIZE,
        "fullatt_block_indexes": list(range(VISION_LAYERS)),
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=number(IMAGE),
        video_token_id=number(VIDEO),
        vision_start_token_id=number(BEFORE),
        vision_end_token_id=number(BEHIND),
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[number(END), number(PAD)], pad_token_id=number(PAD)
    )
    return model


class QwenBase:
    """A `Base` (mini.start.vllm_pretrain) with a vocabulary of `texts`."""

    grid = IMAGE_SIZE // PATCH // MERGE
    frames = ImageProcessor(IMAGE_SIZE, "squeeze")

    def __init__(self, texts: Iterable[str], folder: Path):
        tokenizer = train_tokenizer(texts, VOCABULARY)
        self.model = build(tokenizer)
        size = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}
        sizes = {"patch_size": PATCH, "merge_size": MERGE, "size": size}
        images, videos = Qwen2VLImageProcessor(**sizes), Qwen2VLVideoProcessor(**sizes)
        processor = Qwen2_5_VLProcessor(images, tokenizer, videos, TEMPLATE)
        self.hub = HubModel(self.model, processor, self.frames, str(folder))
        visual = self.model.model.visual
        self.tower = nn.ModuleList([visual.patch_embed, visual.blocks])
        self.projector = visual.merger
        self.pad_id = self.hub.pad_id

    def word(self, word: str) -> list[int]:
        return self.hub.processor.tokenizer(f" {word}")["input_ids"]

    def see(self, pixels: Tensor) -> Tensor:
        """As the image processor has it, all patches that are one row stand behind each other."""
        count, side = len(pixels), self.grid * MERGE
        cells = pixels.unflatten(3, (self.grid, MERGE, PATCH)).unflatten(
            2, (self.grid, MERGE, PATCH)
        )
        cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (B, g, g, m, m, 3, p, p)
        twice = cells.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)  # a film of two
        grids = torch.tensor([[1, side, side]]).repeat(count, 1)
        flat = twice.flatten(5).flatten(0, 4)
        states = self.model.model.visual(flat, grid_thw=grids).last_hidden_state
        return states.view(count, self.grid**2, -1)  # (B, P, m * m * width)

    def project(self, seen: Tensor) -> Tensor:
        return self.projector(seen.reshape(-1, VISION_HIDDEN)).view(*seen.shape[:2], HIDDEN)

    def encode(self, turns: Sequence[str], patches: int) -> Encoded:
        text = self.hub.render(turns, True).replace(IMAGE, IMAGE * patches)
        encoded = self.hub.processor.tokenizer(text)
        ids = encoded["input_ids"]
        labels = [IGNORE] * len(ids)
        for answer in ANSWER.finditer(text):
            first, last = map(encoded.char_to_token, (answer.start(), answer.end() - 1))
            labels[first : last + 1] = ids[first : last + 1]
        return Encoded(ids, labels)

    def loss(self, batch: dict[str, Tensor], seen: Tensor, places: Tensor) -> Tensor:
        """Patches have the positions that they have in a complete image."""
        ids = batch["input_ids"]  # (B, T)
        of_image = ids == self.hub.image_id
        embeds = self.model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter(of_image[..., None], self.project(seen))  # (B, T, D)
        first, count = int(of_image[0].int().argmax()), places.shape[1]
        positions = torch.arange(ids.shape[1]).repeat(3, len(ids), 1)  # (3, B, T)
        positions[:, :, first + count :] += self.grid - count
        within = torch.stack([0 * places, places // self.grid, places % self.grid])
        positions[:, :, first : first + count] = first + within
        return self.model(
            inputs_embeds=embeds, position_ids=positions, labels=batch["labels"]
        ).loss  # padded on the right: causal attention never looks there

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.hub.save_tools(folder)


THETA, SECTIONS = 1e6, [4, 6, 6]
