"""What the checks of a feature store add to reading its bytes; prints JSON.

    python bench/features.py [--mib 128]

In turns, in processor time and from the page cache, `np.load` or the shards' own reader reads all
frames, and then the store's `stored`: `ratio` of the best turns, and `first_ratio` of the first.
What a compact store has found finite it does not look at again.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.measuring import seconds  # noqa: E402
from egogen.errors import command_parser, run_command  # noqa: E402
from egogen.features.store import LAYOUTS, FeatureWriter, open_store, record_store  # noqa: E402

SHAPES = {"image": (256, 5120), "vision": (256, 1024), "text": (77, 5120)}


def measure(root: Path, layout: str, shape: tuple[int, int], size: int) -> dict:
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    names = [f"clip/{number}/frame" for number in range(max(1, size // rows.nbytes))]
    record_store(root, "rows", layout, {"width": shape[1]}, None)
    FeatureWriter(root, "rows", layout, "1-of-1").write({f"{name}.jpg": rows for name in names})
    store, taken = open_store(root), []
    bare = store.shards.read if layout == "compact" else lambda name: np.load(f"{root}/{name}.npy")
    for read in (bare, lambda name: store.stored(f"{name}.jpg")) * 7:
        call = lambda: [None for name in names if read(name) is None]  # noqa: B023, E731
        taken.append(seconds(call, torch.device("cpu")))
    plain, checked = min(taken[::2]), min(taken[1::2])
    found = {"bytes_s": plain, "checked_s": checked, "ratio": checked / plain}
    return found | {"first_ratio": taken[1] / plain}


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--mib", type=int, default=128, help="of each store (%(default)s)")
    size, found = parser.parse_args(argv).mib << 20, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            stores = {layout: Path(folder, layout, name) for layout in LAYOUTS}
            found[name] = {kind: measure(stores[kind], kind, shape, size) for kind in LAYOUTS}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    run_command(main)
