"""The small Llava of the mini world with random weights: CLIP, one linear layer, Llama."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
from torch import Tensor
from transformers import LlavaConfig

from egogen.atomic import read_object, write_bytes
from llava.checkpoints.load import Loaded
from llava.conversation import IMAGE_MARK, find_template
from llava.image_processing import ImageProcessor
from llava.model import Llava
from llava.tokenizer import MODEL_FILE, TextTokenizer, load_tokenizer, write_tokenizer_config
from llava.tokens import Encoded, encode_conversation, expand_sample

VOCABULARY = 640  # pieces, the 256 bytes among them
FOLDER = Path(__file__).parents[2] / "configs" / "mini" / "llava"


def train_tokenizer(texts: Iterable[str], folder: Path, size: int) -> TextTokenizer:
    """Llama's kind of vocabulary (BPE with bytes for what is unknown), trained on `texts`."""
    buffer = io.BytesIO()
    rules = read_object(FOLDER / "sentencepiece.json")
    lines = iter(sorted(set(texts)))
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=lines, model_writer=buffer, vocab_size=size, **rules)
    write_bytes(folder / MODEL_FILE, buffer.getvalue())
    write_tokenizer_config(folder, 2048)
    return load_tokenizer(folder)


class LlavaBase:
    """A model in the making, as pretraining sees it; its vocabulary is made of `texts`.

    B samples, P patches of an image (a square of `grid` a side, line by line), n of them, C the
    width of what the tower says of a patch, D that of what the language model is given for it.
    Besides methods it has word(text), the ids of words inside a sentence; see(pixels), from (B, 3,
    size, size) to (B, P, C); and project(seen), from (B, n, C) to (B, n, D).
    """

    def __init__(self, texts: Iterable[str], folder: Path):
        tokenizer = train_tokenizer(texts, folder, VOCABULARY)
        # Weights start larger and rotary positions turn slower than Llama's: with so few and narrow
        # heads, words would else not find patches by what these show, hundreds of positions away.
        config = LlavaConfig.from_pretrained(FOLDER)
        config.text_config.vocab_size = len(tokenizer)
        self.model = Llava(config)
        parts = self.model.model
        self.frames = ImageProcessor(config.vision_config.image_size, config.image_aspect_ratio)
        self.grid = math.isqrt(self.model.patches)
        template = find_template(config.conversation_template)
        self.loaded = Loaded(self.model, tokenizer, self.frames, template, folder)
        self.tower, self.projector = parts.vision_tower, parts.multi_modal_projector
        self.see, self.project = self.model.vision_features, self.projector
        self.word, self.pad_id = tokenizer.encode, tokenizer.pad_id

    def encode(self, turns: Sequence[str], patches: int) -> Encoded:
        """A conversation about a frame that takes `patches` positions; the answers are targets."""
        turns = [f"{IMAGE_MARK}\n{turns[0]}", *turns[1:]]
        encoded = encode_conversation(turns, self.loaded.template, self.loaded.tokenizer)
        return expand_sample(encoded, patches)

    def loss(self, batch: dict[str, Tensor], seen: Tensor, places: Tensor) -> Tensor:
        """Of samples that see (B, n, C) of the patches `places` (B, n), here only in that order."""
        embeds = self.model.embed(batch.pop("input_ids"), self.project(seen))
        return self.model(inputs_embeds=embeds, **batch).loss

    def save(self, folder: Path) -> None:
        """All files of a checkpoint that tuning starts from."""
        self.model.save_pretrained(folder)
        self.loaded.save_tools(folder)
