"""The flags by which commands are told which model to load and how."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llava.labels import DATASETS, QUERY, STYLES

if TYPE_CHECKING:
    from llava.checkpoint import Loaded

DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model-path", required=True, help="folder of the tuned model")
    add(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="auto: float16 on a GPU, as released, float32 on a CPU",
    )
    add("--attn", default="sdpa", choices=ATTENTIONS, help="attention kernel (default: sdpa)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: a GPU when there is one)")
    add("--device-map", help="auto: the layers over all GPUs, for models larger than one")
    bits = parser.add_mutually_exclusive_group()
    for name in ("4bit", "8bit"):
        bits.add_argument(
            f"--load-{name}",
            dest="quantization",
            action="store_const",
            const=name,
            help=f"the language model in {name[0]} bits (needs bitsandbytes)",
        )
    add("--vision-tower", help="folder with the vision tower when the checkpoint lacks it")


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--query", default=QUERY, help="question with one {} for the action (default: %(default)s)")
    add("--dataset", choices=DATASETS, help="label convention (default: from the file's name)")
    add("--label-style", choices=STYLES, default="parsed", help="how labels become verb phrases")


def load_asked(args: argparse.Namespace) -> Loaded:
    from llava.checkpoint import load  # slow to import: bad arguments are told first

    return load(
        args.model_path,
        dtype=args.dtype,
        attn=args.attn,
        device=args.device,
        device_map=args.device_map,
        quantization=args.quantization,
        vision_tower=args.vision_tower,
    )
