"""Feature stores of both layouts: bytes, and reading as stage 2 does.

    python bench/features.py

Writes a store of each layout at full size (256 patches, width 5120, vision width 1024), then reads
samples in random order through `ldm.data.read_features`, which training and generation use: image
and text features, checked, padded, as half-precision tensors. Prints JSON; seconds are CPU seconds
of one thread, files are in the page cache. What a compact store leaves for later, the projector, is
applied to whole batches where the model is (`ldm.data.project`): its CPU time is given beside, and
on a GPU it is some 3 GFLOP a sample.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402

from bench.measuring import seconds  # noqa: E402
from egogen.actions import ActionEntry  # noqa: E402
from egogen.atomic import write_json  # noqa: E402
from egogen.errors import command_parser, run_command  # noqa: E402
from egogen.features.projector import Projector, write_projector  # noqa: E402
from egogen.features.store import INFO_FILE, open_writer  # noqa: E402
from egogen.jobs import track  # noqa: E402
from ldm.data import project, read_features  # noqa: E402
from ldm.released_config import released_features  # noqa: E402
from ldm.split import Located  # noqa: E402

PATCHES, VISION, WIDTH = 256, 1024, 5120
DISTINCT = 8  # images; reading does not care that they come again and again
BATCH, CPU = 32, torch.device("cpu")
FEATURES = released_features({"feature_dim": WIDTH, "image_rows": PATCHES})


def name_of(number: int) -> str:
    return f"clip_{number // 3:05d}/{number % 3}/pre_frame.jpg"


def write_stores(root: Path, samples: int, text_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    projector = Projector(
        {
            "linear_1.weight": torch.randn(WIDTH, VISION, generator=generator) / VISION**0.5,
            "linear_1.bias": torch.randn(WIDTH, generator=generator),
        },
        "bench",
    )
    vision = torch.randn(DISTINCT, PATCHES, VISION, generator=generator).half()
    content = {
        ("compact", "image"): vision.numpy(),
        ("released", "image"): projector(vision).half().numpy(),
    }
    text = torch.randn(DISTINCT, text_rows, WIDTH, generator=generator).half().numpy()
    writers = {}
    for layout in ("released", "compact"):
        content[layout, "text"] = text
        for kind in ("image", "text"):
            folder = root / layout / kind
            write_json(folder / INFO_FILE, {"kind": kind, "layout": layout, "width": WIDTH})
            writers[layout, kind] = open_writer(folder, kind, layout, "1-of-1")
    write_projector(root / "compact" / "image", projector)
    for first in track(range(0, samples, BATCH), -(-samples // BATCH), "write", "batches"):
        numbers = range(first, min(first + BATCH, samples))
        for place, writer in writers.items():
            writer.write({name_of(k): content[place][k % DISTINCT] for k in numbers})
    for writer in writers.values():
        writer.close()


def read_all(root: Path, layout: str, samples: int, seed: int) -> tuple[float, dict]:
    """CPU seconds for all samples in random order, and the first BATCH of them as one batch."""
    kept, order = [], np.random.default_rng(seed).permutation(samples)
    folders = {name: str(root / layout / name) for name in FEATURES}

    def read() -> None:
        for number in order:
            entry = ActionEntry("clip", "0", name_of(int(number)), "", {})
            sample = read_features(Located(entry, "", folders), FEATURES)
            if len(kept) < BATCH:
                kept.append(sample)

    return seconds(read, CPU), default_collate(kept)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in [folder, *folder.rglob("*")] if path.is_file())


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--text-rows", type=int, default=100, help="tokens of a description")
    parser.add_argument("--rounds", type=int, default=3, help="the fastest of each side counts")
    parser.add_argument("--folder", help="where the stores go for the time being (3 GB)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root, least, batches, report = Path(folder), {}, {}, {}
        write_stores(root, args.samples, args.text_rows)
        for number in range(args.rounds):
            for layout in ("released", "compact"):
                took, batches[layout] = read_all(root, layout, args.samples, number)
                least[layout] = min(took, least.get(layout, took))
        for layout, took in least.items():
            image, text = (size_of(root / layout / kind) for kind in ("image", "text"))
            image -= size_of(root / layout / "image" / "projector.safetensors")
            report[layout] = {
                "image_bytes_per_sample": round(image / args.samples),
                "text_bytes_per_sample": round(text / args.samples),
                "files": sum(p.is_file() for p in (root / layout).rglob("*")),
                "samples_per_second": round(args.samples / took, 1),
                "ms_per_sample": round(took / args.samples * 1000, 3),
            }
        later = seconds(lambda: project(batches["compact"], FEATURES), CPU) / BATCH * 1000
        report["compact"]["projecting_ms_per_sample_on_cpu"] = round(later, 1)
        one, other = (project(batch, FEATURES)["features"]["image"] for batch in batches.values())
        sizes = [report[name]["image_bytes_per_sample"] for name in ("compact", "released")]
        report |= {
            "samples": args.samples,
            "text_rows": args.text_rows,
            "image_bytes_ratio": round(sizes[0] / sizes[1], 4),
            "reading_speedup": round(least["released"] / least["compact"], 2),
            "largest_image_feature_difference": float((one - other).abs().max()),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_command(main)
