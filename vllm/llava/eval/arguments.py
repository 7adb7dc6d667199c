"""The flags that commands over a split share: which model, which entries, where features go."""

import argparse
from pathlib import Path
from typing import Any

from egogen.errors import EgoGenError
from egogen.features.store import LAYOUTS
from egogen.labels import QUERY, STYLES, check_query, dataset_of
from egogen.layout import DATASETS
from llava.checkpoints.fields import is_llava
from llava.describing.describer import Describer, load_describer
from llava.describing.job import Decoding, Job, chunk_entries

DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All shared flags."""
    add = parser.add_argument
    add("--model-path", help="folder of the tuned model, or a hub name")
    add("--dtype", default="auto", choices=DTYPES, help="auto: float16 on a GPU, float32 on a CPU")
    add("--attn", default="sdpa", choices=ATTENTIONS, help="attention kernel (default: sdpa)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: a GPU when there is one)")
    add("--device-map", help="auto: the layers over all GPUs, for models larger than one")
    bits = parser.add_mutually_exclusive_group()
    for name in ("4bit", "8bit"):
        about = f"the language model in {name[0]} bits (needs bitsandbytes)"
        kind: dict[str, Any] = {"dest": "quantization", "action": "store_const", "const": name}
        bits.add_argument(f"--load-{name}", help=about, **kind)
    add("--vision-tower", help="folder with the vision tower when the checkpoint lacks it")
    about = "pixels of the square frames (default: as tuned, the vision tower's, or 448)"
    add("--image-size", type=int, help=about)
    add("--query", default=QUERY, help="question with one {} for the action (default: %(default)s)")
    add("--dataset", choices=DATASETS, help="label convention (default: from the file's name)")
    add("--label-style", choices=STYLES, default="parsed", help="how labels become verb phrases")
    add("--image-dir", required=True, type=Path, help="frame folder of the split")
    add("--save-image-feature-path", type=Path, help="root of the image features (none: not saved)")
    add("--save-text-feature-path", type=Path, help="root of the text features (none: not saved)")
    about = "compact: vision features and the projector in few large files, a fifth of the bytes"
    add("--feature-layout", choices=LAYOUTS, default="released", help=about)
    add("--num-chunks", type=int, default=1)
    add("--chunk-idx", type=int, default=1, help="1 to the number of chunks")
    add("--batch-size", type=int, default=8)


def check_least(args: argparse.Namespace, **least: float) -> None:
    """Raises EgoGenError that names the first flag below its least value."""
    for name, value in least.items():
        if not getattr(args, name) >= value:  # NaN is neither
            flag = "--" + name.replace("_", "-")
            raise EgoGenError(f"{flag} {getattr(args, name)}: expected at least {value}")


def job_fields(args: argparse.Namespace, action_label: Path) -> dict[str, Any]:
    """What the shared flags say of a `llava.describing.job.Job`: its features go by name."""
    roots = {"image": args.save_image_feature_path, "text": args.save_text_feature_path}
    same = ("image_dir", "feature_layout", "num_chunks", "chunk_idx", "batch_size", "label_style")
    return {
        **{name: getattr(args, name) for name in same},
        "action_label": action_label,
        "dataset": args.dataset or dataset_of(action_label),
        "feature_paths": {name: root for name, root in roots.items() if root is not None},
        "query": check_query(args.query),
    }


def check_inputs(args: argparse.Namespace, job: Job, weights: bool = True) -> None:
    """Raises EgoGenError for an action file or a model's folder that is none."""
    chunk_entries(job)
    if args.image_size is not None:
        check_least(args, image_size=1)
    if weights and not args.model_path:
        raise EgoGenError("--model-path: expected the folder of the tuned model")
    if weights:
        is_llava(args.model_path)


def describer_asked(args: argparse.Namespace, settings: Decoding | None = None) -> Describer:
    names = "dtype attn device device_map quantization vision_tower image_size"
    options = {name: getattr(args, name) for name in names.split()}
    return load_describer(args.model_path, settings, **options)
