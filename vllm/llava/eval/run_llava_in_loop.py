"""Describe every action of one chunk of a split, and save the features for stage 2."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from egogen.errors import EgoGenError, run_command
from egogen.features import LAYOUTS
from llava.decoding import SAMPLINGS, TOP_K, Decoding
from llava.description_loop import Job, run
from llava.eval.model_arguments import add_label_arguments, add_model_arguments, load_asked
from llava.labels import check_query, dataset_of

EXAMPLE = """example:
  python -m llava.eval.run_llava_in_loop --model-path runs/vllm \\
      --image-dir data/EgoGen/ego4d.fho/val --action-label data/ego4d_val.json \\
      --save-path runs/described/vllm/val \\
      --save-image-feature-path runs/features/image/val \\
      --save-text-feature-path runs/features/text/val --num-chunks 5 --chunk-idx 1
The same command again continues where it was stopped."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.run_llava_in_loop",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    add_label_arguments(parser)
    add = parser.add_argument
    add("--image-dir", required=True, type=Path, help="frame folder of the split")
    add("--action-label", required=True, type=Path, help="action file of the split")
    add("--save-path", required=True, type=Path, help="folder of the result file")
    add("--save-image-feature-path", type=Path, help="root of the image features (none: not saved)")
    add("--save-text-feature-path", type=Path, help="root of the text features (none: not saved)")
    add(
        "--feature-layout",
        choices=LAYOUTS,
        default="released",
        help="compact: vision features and the projector in few large files, a fifth of the bytes",
    )
    add("--seed", type=int, default=42)
    add("--num-chunks", type=int, default=1)
    add("--chunk-idx", type=int, default=1, help="1 to the number of chunks")
    add("--batch-size", type=int, default=8)
    add("--temperature", type=float, default=0.2, help="0 is greedy (default: %(default)s)")
    add("--top-k", type=int, default=TOP_K)
    add("--max-new-tokens", type=int, default=1024)
    add(
        "--sampling",
        choices=SAMPLINGS,
        default="per-sample",
        help="released: one stream of draws a process, one frame at a time; nothing is resumed",
    )
    add(
        "--as-released",
        action="store_true",
        help="labels and sampling as in the published runs (--label-style, --sampling released)",
    )
    args = parser.parse_args(argv)
    if args.as_released:
        args.label_style = args.sampling = "released"
    for name, least in (("batch_size", 1), ("top_k", 1), ("max_new_tokens", 1), ("temperature", 0)):
        if getattr(args, name) < least:
            flag = "--" + name.replace("_", "-")
            raise EgoGenError(f"{flag} {getattr(args, name)}: expected at least {least}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    job = Job(
        image_dir=args.image_dir,
        action_label=args.action_label,
        dataset=args.dataset or dataset_of(args.action_label),
        save_path=args.save_path,
        image_feature_path=args.save_image_feature_path,
        text_feature_path=args.save_text_feature_path,
        feature_layout=args.feature_layout,
        query=check_query(args.query),
        seed=args.seed,
        num_chunks=args.num_chunks,
        chunk_idx=args.chunk_idx,
        batch_size=args.batch_size,
        label_style=args.label_style,
        settings=Decoding(args.temperature, args.top_k, args.max_new_tokens, args.sampling),
    )
    return run(job, load_asked(args))


if __name__ == "__main__":
    run_command(main)
