"""The small Llava of the mini world with random weights: CLIP, one linear layer, Llama."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from egogen.atomic import write_bytes
from llava.checkpoints.load import Loaded, save_tools
from llava.conversation import IMAGE_MARK, find_template
from llava.image_processing import ImageProcessor
from llava.model import Llava, build_config
from llava.tokenizer import MODEL_FILE, TextTokenizer, load_tokenizer, write_tokenizer_config
from llava.tokens import Encoded, encode_conversation, expand_sample
from mini.start.vllm_pretrain import HEADS, HIDDEN, LAYERS, VISION_HIDDEN, VOCABULARY

IMAGE_SIZE, PATCH = 64, 4  # pixels
VISION_LAYERS = 3  # the last one is never run (layer -2 is read)


def train_tokenizer(texts: Iterable[str], folder: Path, size: int) -> TextTokenizer:
    """Llama's kind of vocabulary (BPE with bytes for what is unknown), trained on `texts`."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(set(texts))),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    write_bytes(folder / MODEL_FILE, buffer.getvalue())
    write_tokenizer_config(folder, 2048)
    return load_tokenizer(folder)


def build(vocabulary: int) -> Llava:
    """A model with random weights. Complete frames are squeezed into the square.

    Weights start larger and rotary positions turn slower than Llama's: with so few and so narrow
    heads, words would else not find patches by what these show, hundreds of positions away.
    """
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 2,
        initializer_range=HIDDEN**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=VISION_HIDDEN,
        intermediate_size=VISION_HIDDEN * 3,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=VISION_HIDDEN // 32,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=VISION_HIDDEN,
    )
    config = build_config(
        text, vision, image_aspect_ratio="squeeze", conversation_template="llama_2_short"
    )
    return Llava(config)


class LlavaBase:
    """A `Base` (mini.start.vllm_pretrain) with a vocabulary of `texts`, which `folder` holds."""

    grid = IMAGE_SIZE // PATCH
    frames = ImageProcessor(IMAGE_SIZE, "squeeze")

    def __init__(self, texts: Iterable[str], folder: Path):
        tokenizer = train_tokenizer(texts, folder, VOCABULARY)
        self.model = build(len(tokenizer))
        template = find_template(self.model.config.conversation_template)
        self.loaded = Loaded(self.model, tokenizer, self.frames, template, folder)
        self.tower = self.model.model.vision_tower
        self.projector = self.model.model.multi_modal_projector
        self.pad_id = tokenizer.pad_id

    def word(self, word: str) -> list[int]:
        return self.loaded.tokenizer.encode(word)

    def see(self, pixels: Tensor) -> Tensor:
        return self.model.vision_features(pixels)

    def project(self, seen: Tensor) -> Tensor:
        return self.projector(seen)

    def encode(self, turns: Sequence[str], patches: int) -> Encoded:
        turns = [f"{IMAGE_MARK}\n{turns[0]}", *turns[1:]]
        encoded = encode_conversation(turns, self.loaded.template, self.loaded.tokenizer)
        return expand_sample(encoded, patches)

    def loss(self, batch: dict[str, Tensor], seen: Tensor, places: Tensor) -> Tensor:
        """Patches stand in their order, wherever in the image they are."""
        embeds = self.model.embed(batch["input_ids"], self.project(seen))
        mask, labels = batch["attention_mask"], batch["labels"]
        return self.model(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        save_tools(self.loaded, folder)
