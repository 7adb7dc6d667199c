"""Measure generated frames against the ground truth; figures go to metric/ beside the frames."""

import sys
from pathlib import Path

if not __package__:  # run as a script: see the package's docstring
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
from collections.abc import Sequence

from egogen import DESCRIPTION_KEY, layout, read_parser, run_command
from egogen.devices import usable_device
from egogen.settings import setting
from metrics import COMMANDS
from metrics.evaluate import evaluate
from metrics.registry import GROUPS, METRICS, WEIGHTS, Settings


def main(argv: Sequence[str]) -> int:
    choices, workers = {"dataset": layout.DATASETS}, min(4, os.cpu_count() or 1)
    known = {"llava_key": DESCRIPTION_KEY, "weights": WEIGHTS, "workers": workers}
    parser = read_parser(COMMANDS, "all_metrics_in_one", __doc__, choices, **known)
    names = f"comma-separated, of: {', '.join((*METRICS, *GROUPS))}; default: all that can be "
    names += "computed here. One that is named and cannot be is an error"
    parser.add_argument("--metrics", help=names)
    options = parser.parse_args(argv)
    # torch is slow to import: the default device is looked for when the frames are in order.
    device = str(usable_device(options.device)) if options.device else ""
    how = options.batch_size, options.workers, options.llava_key
    settings, dataset = Settings(options.dataset, options.weights, device, *how), options.dataset
    if not (options.gt_path and options.edit_file):
        root, truth = setting("LEGO_DATASET"), layout.GROUND_TRUTH
        options.gt_path = options.gt_path or layout.frame_folder(root, dataset, truth)
        options.edit_file = options.edit_file or layout.action_file(root, dataset, "val")
    evaluate(options, settings)
    return 0


if __name__ == "__main__":
    run_command(main)
