"""Describe every action of one chunk of a split, and save the features for stage 2."""

import argparse
from collections.abc import Sequence
from typing import Any

from egogen import EgoGenError, run_command, served
from egogen.flags import COMMANDS, add_flags
from llava.describing.job import TOP_K, Decoding, Job
from llava.eval import arguments as shared


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = shared.read_shared("llava.eval.run_llava_in_loop", __doc__, top_k=TOP_K)
    add_flags(parser, COMMANDS, "server")
    args = parser.parse_args(argv)
    if args.as_released:
        args.label_style = "released"
    served.check_arguments(args)
    if len({args.engine == "openai", bool(args.base_url), bool(args.model)}) > 1:
        raise EgoGenError("--engine openai, --base-url, --model (not -path): expected all or none")
    if args.base_url:
        served.read_key(args.base_url)  # refuses what is no address
    folders = args.save_image_feature_path or args.save_text_feature_path
    if args.text_only and (folders or not args.model):
        raise EgoGenError("--text-only: expected --engine openai, and no folders of features")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    fields = shared.job_fields(args, args.action_label)
    job = Job(**fields, save_path=args.save_path, seed=args.seed)
    settings = Decoding(args.temperature, args.top_k, args.max_new_tokens)
    shared.check_inputs(args, job, weights=not args.text_only)

    # Slow to import: bad arguments and files are reported first.
    from llava.describing.loop import run
    from llava.describing.texts import TextOnly, served_texts

    if args.text_only:
        describer: Any = TextOnly(args.image_size)
    else:
        describer = shared.describer_asked(args, None if args.model else settings)
    source = served_texts(args, settings, describer.frames) if args.model else None
    return run(job, describer, source)


if __name__ == "__main__":
    run_command(main)
