"""Host memory and time of loading a stage-1 checkpoint, against building the model and filling it.

Random bfloat16 weights of about 1.2 GB (hidden 1280, 12 layers, ViT-L/14), one process a case, one
thread. Peaks are over what the process had before, as shares of the bytes of the weights:
`resident` counts pages of the mapped files, which the system takes back when it needs them,
`anonymous` does not. Prints one JSON object.

example:
  python bench/loading.py --out /tmp/loading
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "vllm")]

import torch  # noqa: E402
from transformers import CLIPVisionConfig, LlamaConfig  # noqa: E402

from egogen.atomic import write_json  # noqa: E402
from egogen.errors import run_command  # noqa: E402
from llava.checkpoints.config import (  # noqa: E402
    CLIP_L_14,
    CONFIG_FILE,
    TOWER_FOLDER,
    read_config,
    released_fields,
)
from llava.checkpoints.files import (  # noqa: E402
    RELEASED_NAMES,
    read_weights,
    rename,
    write_weights,
)
from llava.checkpoints.load import load_model  # noqa: E402
from llava.model import Llava, build_config  # noqa: E402

CASES = {  # name -> files, options of load_model
    "safetensors": ("safetensors", {}),
    "bin": ("bin", {}),
    "safetensors to float16": ("safetensors", {"dtype": torch.float16}),
    "8bit": ("safetensors", {"quantization": "8bit"}),
    "4bit": ("safetensors", {"quantization": "4bit"}),
}
PLAIN = "built and filled (bin)"


def write_checkpoints(out: Path) -> None:
    """The same weights in the released layout, as safetensors and as .bin."""
    text = LlamaConfig(
        hidden_size=1280,
        intermediate_size=3456,
        num_hidden_layers=12,
        num_attention_heads=10,
        vocab_size=32000,
    )
    config = build_config(text, CLIPVisionConfig(**CLIP_L_14, image_size=224))
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Llava(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        for name, shape in shapes.items()
    }
    for kind in ("safetensors", "bin"):
        folder = out / kind
        fields = {**released_fields(config, None, TOWER_FOLDER), "torch_dtype": "bfloat16"}
        write_json(folder / CONFIG_FILE, fields)
        tower = config.vision_config.to_diff_dict()
        write_json(folder / TOWER_FOLDER / CONFIG_FILE, tower)
        if kind == "safetensors":
            write_weights(state, folder, lambda name: rename(name, RELEASED_NAMES[1]))
        else:
            named = {rename(name, RELEASED_NAMES[1]): value for name, value in state.items()}
            torch.save(named, folder / "pytorch_model.bin")


def memory() -> dict[str, int]:
    """Bytes of this process: in memory, and of those the ones that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if "kB" in line}
    return {"resident": found["VmRSS"], "anonymous": found["RssAnon"]}


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Peaks of `memory` over what it was, looked at a few hundred times a second."""
    before, done = memory(), threading.Event()
    peaks = dict.fromkeys(before, 0)

    def look() -> None:
        while not done.wait(0.003):
            for name, value in memory().items():
                peaks[name] = max(peaks[name], value - before[name])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def load_plainly(folder: Path) -> Llava:
    """A model with weights of its own, filled from the whole file read into memory."""
    config = read_config(folder)
    torch.set_default_dtype(torch.bfloat16)
    model = Llava(config)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    own = {rename(name, RELEASED_NAMES[1]): name for name in model.state_dict()}
    model.load_state_dict({own[name]: value for name, value in state.items()})
    return model


def one_case(out: Path, name: str) -> dict:
    torch.set_num_threads(1)
    files, options = CASES.get(name, ("bin", {}))
    size = sum(value.nbytes for value in read_weights(out / files).values())
    start, begun = time.process_time(), time.monotonic()
    with watched() as peaks:
        if name == PLAIN:
            model = load_plainly(out / files)
        else:
            model = load_model(out / files, **{"dtype": torch.bfloat16, **options})
        for value in model.parameters():  # mapped pages count as soon as they are used
            value.view(-1).view(torch.uint8)[::4096].sum()
    return {
        "weights_gb": round(size / 1e9, 3),
        **{f"peak_{kind}_share": round(value / size, 3) for kind, value in peaks.items()},
        "cpu_seconds": round(time.process_time() - start, 2),
        "seconds": round(time.monotonic() - begun, 2),
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for 2.5 GB of files, removed at the end")
    add("--case", choices=[*CASES, PLAIN], help="this one, with the files that are in --out")
    args = parser.parse_args(argv)
    if args.case:
        print(json.dumps(one_case(args.out, args.case)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.out) as folder:
        write_checkpoints(Path(folder))
        names = [name for name in CASES if "bit" not in name or find_spec("bitsandbytes")]
        results = {}
        for name in [*names, PLAIN]:
            command = [sys.executable, __file__, "--out", folder, "--case", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    run_command(main)
