"""Whether chunks, batches and kills change what a finished mini run makes of its val split.

    python mini/bench_invariance.py --run runs/quickstart

Describes and generates the val split anew: in one go, in three chunks, one by one, and killed in
the middle (SIGKILL) and started again. Prints JSON: how many descriptions and frames differ from
those made in one go, and by how much at most. Frames of the same batch size must be equal bytes,
those made one by one may differ by one grey level; descriptions must be equal, features up to
rounding. Frames are written as PNG here, so that what is compared is what the model made: JPEG
turns one grey level into several.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT)]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from egogen.atomic import read_json, write_json  # noqa: E402
from egogen.errors import EgoGenError, command_parser, run_command  # noqa: E402

VARIANT = "description_image_text"
WAYS = {  # name: (chunks, batch size, whether killed on the way)
    "one_go": (1, 8, False),
    "three_chunks": (3, 8, False),
    "one_by_one": (1, 1, False),
    "killed": (1, 8, True),
}


def command(line: Sequence[object], produced: Path, pattern: str, kill: bool) -> None:
    """Run a command; with `kill`, first until some files of `produced` are there, then again."""
    words = [sys.executable, *map(str, line)]
    environment = dict(os.environ, PYTHONPATH=f"{PROJECT}:{PROJECT / 'vllm'}")
    if kill:
        process = subprocess.Popen(words, cwd=PROJECT, env=environment)
        while process.poll() is None and len(list(produced.rglob(pattern))) < 20:
            time.sleep(0.05)
        if process.poll() is not None:
            raise EgoGenError("the command ended before it could be killed: use a larger run")
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(words, cwd=PROJECT, env=environment, check=True)


def describe(run: Path, out: Path, way: str) -> None:
    chunks, batch, kill = WAYS[way]
    line = ["-m", "llava.eval.run_llava_in_loop", "--model-path", run / "vllm", "--seed", 42]
    line += ["--image-dir", run / "data/EgoGen/ego4d.fho/val", "--max-new-tokens", 77]
    line += ["--action-label", run / "data/ego4d_val.json", "--save-path", out / "described"]
    line += ["--save-image-feature-path", out / "image", "--save-text-feature-path", out / "text"]
    line += ["--batch-size", batch, "--num-chunks", chunks]
    for chunk in range(1, chunks + 1):
        command([*line, "--chunk-idx", chunk], out / "text", "*.npy", kill)


def as_png(actions: dict) -> dict:
    """The action file with targets named .png: a frame is written in the format of its name."""
    return {
        clip: {
            key: value | {"image_1": str(Path(value["image_1"]).with_suffix(".png"))}
            for key, value in entries.items()
        }
        for clip, entries in actions.items()
    }


def generate(run: Path, out: Path, way: str) -> None:
    """The frames of `run`'s own descriptions and features, from its checkpoint."""
    chunks, batch, kill = WAYS[way]
    checkpoint = out / "last.ckpt"  # frames lie beside the checkpoint's name
    checkpoint.symlink_to((run / "logs" / VARIANT / "checkpoints" / "last.ckpt").resolve())
    line = ["metrics/inference.py", "--config", "configs/generate_mini.yaml", "--ckpt", checkpoint]
    line += [f"data.metadata_path={run / 'data/ego4d_metadata.json'}"]
    line += [f"data.params.data_path={run / 'data/EgoGen/ego4d.fho/val'}"]
    edits = out / "edits.json"
    write_json(edits, as_png(read_json(run / "described/ego4d_val.json")))
    line += [f"data.params.edit_path={edits}"]
    for kind in ("image", "text"):
        line.append(f"data.params.additional_cond_path.llava_{kind}={run / 'features' / kind}/val")
    line += [f"inference.batch_size={batch}", "--n_chunk", chunks]
    for chunk in range(1, chunks + 1):
        command([*line, "--chunk_idx", chunk], out / "last", "*.png", kill)


def sentences(out: Path) -> dict[str, str]:
    return {
        f"{clip}/{action}": json.dumps(value)
        for path in sorted((out / "described").rglob("*.json"))
        for clip, actions in read_json(path).items()
        for action, value in actions.items()
    }


def compare(one: Path, other: Path) -> dict[str, float]:
    """Counts of what differs between two folders made by `describe` and `generate`."""
    texts, others = sentences(one), sentences(other)
    if not texts or texts.keys() != others.keys():
        raise EgoGenError(f"{one} and {other}: other entries are described")
    changed = sum(texts[key] != others[key] for key in texts)
    result: dict[str, float] = {"descriptions": len(texts), "other_descriptions": changed}
    for kind in ("image", "text"):
        paths = sorted(path.relative_to(one) for path in (one / kind).rglob("*.npy"))
        worst = 0.0
        for path in paths:
            a, b = (np.load(root / path).astype(np.float32) for root in (one, other))
            worst = max(worst, float(np.abs(a - b).max()) if a.shape == b.shape else np.inf)
        result |= {f"{kind}_features": len(paths), f"largest_{kind}_difference": worst}
    frames = sorted(path.relative_to(one) for path in (one / "last").rglob("*.png"))
    levels, changed = 0, 0
    for path in frames:
        changed += (one / path).read_bytes() != (other / path).read_bytes()
        a, b = (np.asarray(Image.open(root / path)).astype(int) for root in (one, other))
        levels = max(levels, int(np.abs(a - b).max()))
    return result | {"frames": len(frames), "other_frames": changed, "largest_grey_levels": levels}


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished mini run")
    run = parser.parse_args(argv).run.resolve()
    if not (run / "logs" / VARIANT / "checkpoints" / "last.ckpt").exists():
        raise EgoGenError(f"{run}: not the folder of a finished mini run")
    with tempfile.TemporaryDirectory() as scratch:
        for way in WAYS:
            out = Path(scratch, way)
            out.mkdir()
            describe(run, out, way)
            generate(run, out, way)
        first = next(iter(WAYS))
        found = {way: compare(Path(scratch, first), Path(scratch, way)) for way in WAYS}
    print(json.dumps({way: found[way] for way in WAYS if way != first}, indent=2))


if __name__ == "__main__":
    run_command(main)
