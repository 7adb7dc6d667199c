"""What the checks of a feature store add to reading its bytes, in both layouts; prints JSON.

    python bench/features.py

In turns, and in processor time with the files in the page cache, `np.load` or the shards' reader
reads all frames, and the store's `stored`, which checks; the best turn counts. `first_ratio` is of
the store's first turn: what a compact store has found finite it does not look at again.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.measuring import seconds  # noqa: E402
from egogen.errors import command_parser, run_command  # noqa: E402
from egogen.features.store import LAYOUTS, FeatureWriter, open_store, record_store  # noqa: E402

SHAPES = {"image": (256, 5120), "vision": (256, 1024), "text": (77, 5120)}


def measure(root: Path, layout: str, shape: tuple[int, int], size: int, repeats: int) -> dict:
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    names = [f"clip/{number}/frame" for number in range(max(1, size // rows.nbytes))]
    record_store(root, "rows", layout, {"width": shape[1]}, None)
    writer = FeatureWriter(root, "rows", layout, "1-of-1")
    writer.write({f"{name}.jpg": rows for name in names})
    writer.close()
    store = open_store(root)
    bare = store.shards.read if layout == "compact" else lambda name: np.load(root / f"{name}.npy")
    taken: list[list[float]] = [[], []]
    for turn in range(2 * repeats):
        read = (bare, lambda name: store.stored(f"{name}.jpg"))[turn % 2]
        call = partial(list, (None for name in names if read(name) is None))  # noqa: B023
        taken[turn % 2].append(seconds(call, torch.device("cpu")))
    bytes_s, checked_s = map(min, taken)
    ratios = {"ratio": checked_s / bytes_s, "first_ratio": taken[1][0] / bytes_s}
    return {"bytes_s": bytes_s, "checked_s": checked_s, **ratios}


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--mib", type=int, default=128, help="of each store (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7)
    args, found = parser.parse_args(argv), {}
    with tempfile.TemporaryDirectory() as folder:
        for layout in LAYOUTS:
            for name, shape in SHAPES.items():
                root, size = Path(folder, layout, name), args.mib << 20
                found[f"{layout} {name}"] = measure(root, layout, shape, size, args.repeats)
    print(json.dumps(vars(args) | found, indent=1))


if __name__ == "__main__":
    run_command(main)
