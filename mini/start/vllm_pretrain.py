"""A small Llava (CLIP, one linear layer, Llama) with random weights, and its pretraining on mini
scenes: vision on labels of patches, then language on what stands where.
"""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaConfig

from egogen.atomic import read_object, write_bytes
from egogen.frames import read_rgb
from egogen.seeds import stable_seed
from llava.checkpoints.load import Loaded
from llava.conversation import IMAGE_MARK, find_template
from llava.image_processing import ImageProcessor
from llava.model import Llava
from llava.tokenizer import MODEL_FILE, TextTokenizer, load_tokenizer, write_tokenizer_config
from llava.tokens import Encoded, collate, encode_conversation, expand_sample
from mini.start.learning import flat_rates, learn
from mini.start.vllm_scenes import Scene, caption, label_words, patch_labels, questions

VOCABULARY = 640  # pieces, the 256 bytes among them
FOLDER = Path(__file__).parents[2] / "configs" / "mini" / "llava"
BACKGROUND_WEIGHT = 0.1  # nearly all patches are table
BATCH, RATE, DECAY = 16, 3e-3, 0.01  # scenes a step, highest learning rate, weight decay
# In all but the last WHOLE share of the steps, language sees KEPT patches of an image, mostly of
# things: among hundreds of patches of bare table, attention takes very long to find what is asked
# about. The last steps see complete images, half as many at a time.
KEPT, WHOLE = 40, 0.25
CAPTIONS, ROUNDS = 0.3, 6  # share of captions, the others are questions; questions on a scene


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


def scene_pixels(scenes: Sequence[Scene], processor: ImageProcessor) -> torch.Tensor:
    """(N, 3, size, size) of all source frames; those of mirrored scenes are flipped."""
    pixels: dict[Path, torch.Tensor] = {}
    for scene in scenes:
        if scene.frame not in pixels:
            pixels[scene.frame] = processor(read_rgb(scene.frame))
    return torch.stack(
        [pixels[each.frame].flip(-1) if each.mirrored else pixels[each.frame] for each in scenes]
    )


def word_directions(base: LlavaBase) -> list[torch.Tensor]:
    """Per group of labels the unit directions (labels, D) of their words among the embeddings."""
    table = base.model.get_input_embeddings().weight.detach()
    groups = []
    for words in label_words():
        means = [table[torch.tensor(base.word(word))].mean(0) for word in words]
        groups.append(F.normalize(torch.stack(means), dim=-1))
    return groups


def pretrain_vision(
    base: LlavaBase, scenes: Sequence[Scene], pixels: torch.Tensor, steps: int, seed: int
) -> float:
    """Train tower and projector so that features of patches say what kind of thing they show, where
    and in which condition.

    As with CLIP's tower, what a patch shows lies in the direction of the words for it; these are
    the language model's own embeddings, so that it finds words and patches alike.
    """
    directions = word_directions(base)
    labels = torch.from_numpy(np.stack([patch_labels(scene, base.grid) for scene in scenes]))
    labels = labels.flatten(2)  # (N, 3, P)
    weights = [torch.ones(len(words)) for words in directions]
    for weight in weights:
        weight[0] = BACKGROUND_WEIGHT
    generator = torch.Generator().manual_seed(stable_seed(seed, "vision"))

    def loss_of(_: int) -> tuple[torch.Tensor, float]:
        rows = torch.randint(len(scenes), (BATCH,), generator=generator)
        gain = 1 + 0.1 * torch.randn(BATCH, 3, 1, 1, generator=generator)
        features = base.project(base.see(pixels[rows] * gain))  # (B, P, D)
        total = torch.zeros(())
        for words, weight, target in zip(directions, weights, labels[rows].unbind(1), strict=True):
            logits = (features @ words.T).flatten(0, 1)
            total = total + F.cross_entropy(logits, target.flatten(), weight)
        return total, total.item()

    parts = (base.tower, base.projector)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    rates = flat_rates(steps, RATE)
    return learn(parameters, loss_of, rates, "pretrain vision", weight_decay=DECAY)


def pretrain_language(
    base: LlavaBase, scenes: Sequence[Scene], pixels: torch.Tensor, steps: int, seed: int
) -> float:
    """Train projector and language model to list, and to answer, what stands where."""
    rng = np.random.default_rng(stable_seed(seed, "language"))
    generator = torch.Generator().manual_seed(stable_seed(seed, "patches"))
    base.tower.requires_grad_(False)
    with torch.no_grad():
        seen = torch.cat([base.see(part) for part in pixels.split(64)])  # (N, P, C)
    shown = torch.from_numpy(np.stack([patch_labels(scene, base.grid)[0] for scene in scenes]) > 0)
    weights = torch.where(shown.flatten(1), 1.0, BACKGROUND_WEIGHT)  # (N, P)

    def sample(row: int, patches: int) -> Encoded:
        captioned = rng.random() < CAPTIONS
        turns = caption(scenes[row], rng) if captioned else questions(scenes[row], rng, ROUNDS)
        return base.encode(turns, patches)

    def loss_of(step: int) -> tuple[torch.Tensor, float]:
        complete = step >= steps * (1 - WHOLE)
        patches = base.grid**2 if complete else KEPT
        rows = rng.integers(len(scenes), size=BATCH // (1 + complete))
        batch = collate([sample(int(row), patches) for row in rows], base.pad_id)
        features = seen[torch.from_numpy(rows)]
        if complete:
            places = torch.arange(patches).expand(len(rows), -1)
        else:
            places = torch.multinomial(weights[rows], patches, generator=generator).sort(1).values
            features = features.gather(1, places[..., None].expand(-1, -1, features.shape[-1]))
        loss = base.loss(batch, features, places)
        return loss, loss.item()

    rates = flat_rates(steps, RATE)
    return learn(base.model.parameters(), loss_of, rates, "pretrain language", weight_decay=DECAY)
