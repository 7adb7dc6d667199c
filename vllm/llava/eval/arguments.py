"""The flags that commands over a split share: which model, which entries, where features go."""

import argparse
from pathlib import Path
from typing import Any

from egogen import DATASETS, EgoGenError, read_parser
from egogen.features.store import LAYOUTS
from egogen.labels import QUERY, STYLES, check_query, dataset_of
from llava import COMMANDS
from llava.checkpoints.fields import is_llava
from llava.describing.describer import Describer, load_describer
from llava.describing.job import Decoding, Job, chunk_entries


def read_shared(command: str, about: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The parser of a command over a split."""
    choices = {"dataset": DATASETS, "label_style": STYLES, "feature_layout": LAYOUTS}
    return read_parser(COMMANDS, command, about, choices, query=QUERY, **defaults)


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
    if weights and not args.model_path:
        raise EgoGenError("--model-path: expected the folder of the tuned model")
    if weights:
        is_llava(args.model_path)


def describer_asked(args: argparse.Namespace, settings: Decoding | None = None) -> Describer:
    names = "dtype attn device device_map quantization vision_tower image_size"
    options = {name: getattr(args, name) for name in names.split()}
    return load_describer(args.model_path, settings, **options)
