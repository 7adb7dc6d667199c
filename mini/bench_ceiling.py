"""What the shipped autoencoder lets through: the val targets of a mini dataset, decoded.

    python mini/bench_ceiling.py --dataset-root runs/full/data

Prints JSON: what the oracle and the changed region say of those images (see mini.oracle.score).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT)]

import torch  # noqa: E402

from egogen.actions import inside, read_actions  # noqa: E402
from egogen.errors import command_parser, run_command  # noqa: E402
from egogen.frames import read_rgb  # noqa: E402
from egogen.jobs import track  # noqa: E402
from egogen.layout import action_file, frame_folder  # noqa: E402
from ldm.checkpoints.load import load_start  # noqa: E402
from ldm.config import GenerateConfig, load_config  # noqa: E402
from ldm.images import to_image, to_pixels  # noqa: E402
from ldm.model import LegoModel  # noqa: E402
from mini.oracle.score import read_truth, score_frame, summary  # noqa: E402


@torch.no_grad()
def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--dataset-root", type=Path, required=True)
    parser.add_argument("--name", default="ego4d")
    args = parser.parse_args(argv)
    config = load_config(GenerateConfig, [str(PROJECT / "configs" / "generate_mini.yaml")])
    model = LegoModel(config.model).eval()
    load_start(model, str(PROJECT / "configs" / "mini" / "start.safetensors"))
    folder = frame_folder(args.dataset_root, args.name, "val")
    entries = read_actions(action_file(args.dataset_root, args.name, "val"))
    truth, rows = read_truth(args.dataset_root, args.name), []
    for entry in track(entries, len(entries), "ceiling", "frames"):
        source, target = (read_rgb(inside(folder, name)) for name in (entry.image_0, entry.image_1))
        moments = model.encode_moments(to_pixels(target, config.data.res)[None])
        decoded = model.decode(model.scale_factor * model.image_latents(moments))[0]
        image = to_image(decoded, target.size, config.inference.height, "clamp")
        actions = dict(truth[entry.clip]["actions"])
        own = actions.pop(entry.action_id)
        rows.append({"verb": own["verb"], **score_frame(source, target, image, own, actions)})
    print(json.dumps(summary(rows), indent=2))


if __name__ == "__main__":
    run_command(main)
