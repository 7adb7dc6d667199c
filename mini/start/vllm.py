"""Make the small pretrained starting point of the mini world ("llava_pretrained" there).

A vocabulary of the tuning texts, a CLIP vision tower whose features say what patches show, and
a Llama that answers questions about the frames: all that tuning starts from, made on train only.
"""

import argparse
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from transformers import CLIPVisionConfig, LlamaConfig, set_seed

from egogen.atomic import read_json, write_bytes, write_json
from egogen.errors import command_parser, run_command
from egogen.labels import QUERY
from llava.checkpoints.load import Loaded, save_tools
from llava.conversation import find_template
from llava.image_processing import ImageProcessor
from llava.model import Llava, build_config
from llava.tokenizer import MODEL_FILE, TextTokenizer, load_tokenizer, write_tokenizer_config
from llava.train.data import read_conversations
from mini.start.vllm_pretrain import pretrain_language, pretrain_vision, scene_pixels
from mini.start.vllm_scenes import caption, label_words, mirror, questions, read_scenes

EXAMPLE = """example:
  python -m mini.start.vllm --dataset-root data/mini --name ego4d --out runs/mini/base"""
FINISHED_FILE = "finished.json"
VOCABULARY = 640  # pieces, the 256 bytes among them
IMAGE_SIZE, PATCH = 64, 4  # pixels
HIDDEN, LAYERS, HEADS = 96, 3, 3  # of the language model; the features are as wide
VISION_HIDDEN, VISION_LAYERS = 64, 3  # the last one is never run (layer -2 is read)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, EXAMPLE, "python -m mini.start.vllm")
    add = parser.add_argument
    add("--dataset-root", type=Path, required=True, help="root of a mini dataset")
    add("--name", nargs="+", default=["ego4d", "epickitchen"], help="datasets (default: both)")
    add("--out", type=Path, required=True)
    add("--seed", type=int, default=0)
    add("--vision-steps", type=int, default=200)
    add("--language-steps", type=int, default=600)
    return parser.parse_args(argv)


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


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
    path = args.out / FINISHED_FILE
    # A folder of before says more of itself, the sizes that are constants now.
    if path.exists() and settings.items() <= read_json(path)["settings"].items():
        print(f"{args.out}: finished, nothing to do")
        return
    path.unlink(missing_ok=True)
    set_seed(args.seed)
    scenes = read_scenes(args.dataset_root, args.name)
    scenes += [mirror(scene) for scene in scenes]
    texts = [QUERY, *(word for words in label_words() for word in words)]
    for name in args.name:
        for conversation in read_conversations(args.dataset_root / f"{name}_conversations.json"):
            texts += conversation.turns
    for scene in scenes:
        rng = np.random.default_rng(args.seed)
        texts += [*caption(scene, rng), *questions(scene, rng, len(scene.things))]
    tokenizer = train_tokenizer(texts, args.out, VOCABULARY)
    model = build(len(tokenizer))
    processor = ImageProcessor(IMAGE_SIZE, "squeeze")
    template = find_template(model.config.conversation_template)
    loaded = Loaded(model, tokenizer, processor, template, args.out)
    pixels = scene_pixels(scenes, processor)
    losses = {
        "vision": pretrain_vision(loaded, scenes, pixels, args.vision_steps, args.seed),
        "language": pretrain_language(loaded, scenes, pixels, args.language_steps, args.seed),
    }
    model.save_pretrained(args.out)
    save_tools(loaded, args.out)
    write_json(path, {"settings": settings, "final_loss": losses, "scenes": len(scenes)})
    print(f"{args.out}: pretrained on {len(scenes)} scenes, final losses {losses}")


if __name__ == "__main__":
    run_command(main)
