"""Make the small pretrained starting point of the mini world ("llava_pretrained" there)."""

from collections.abc import Sequence

import numpy as np
from transformers import set_seed

from egogen import read_parser, run_command
from egogen.labels import QUERY
from llava.train.data import read_conversations
from mini import COMMANDS
from mini.start.vllm_pretrain import LlavaBase, pretrain_language, pretrain_vision, scene_pixels
from mini.start.vllm_scenes import caption, label_words, mirror, questions, read_scenes


def main(argv: Sequence[str] | None = None) -> None:
    args = read_parser(COMMANDS, "mini.start.vllm", __doc__).parse_args(argv)
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
    base = LlavaBase(texts, args.out)
    pixels = scene_pixels(scenes, base.frames)
    vision = pretrain_vision(base, scenes, pixels, args.vision_steps, args.seed)
    language = pretrain_language(base, scenes, pixels, args.language_steps, args.seed)
    base.save(args.out)
    print(
        f"{args.out}: {len(scenes)} scenes, losses {vision:.4f} (vision), {language:.4f} (language)"
    )


if __name__ == "__main__":
    run_command(main)
