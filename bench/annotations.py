"""Official annotations at full size: EPIC's training table and Ego4D's interactions.

    python bench/annotations.py

Writes invented rows in both forms, has `python -m egogen.build --table-only` read each in a process
of its own, and prints JSON: seconds by the clock, and the most bytes that the processes held.
"""

import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT)]

from egogen.errors import command_parser, run_command  # noqa: E402

COLUMNS = ["narration_id", "video_id", "start_timestamp", "stop_timestamp", "narration", "nouns"]
FRAMES = ["pre_45", "pre_30", "pre_15", "pre_frame", "contact_frame", "pnr_frame", "post_frame"]
BOX = {"object_type": "left_hand", "bbox": {"x": 512.25, "y": 300.5, "width": 96, "height": 120.75}}


def write_epic(path: Path, rows: int) -> None:
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for k in range(rows):
            clip, second = f"P{k // 3000:02d}_01", f"00:{k % 3000 // 60:02d}:{k % 60:02d}"
            times = f"{second}.10", f"{second}.90"
            table.writerow([f"{clip}_{k}", clip, *times, "wash knife.", "['knife', 'tap']"])


def write_fho(path: Path, rows: int) -> None:
    frames = {kind: 100 + 15 * n for n, kind in enumerate(FRAMES)}
    more = {"critical_frames": frames, "clip_critical_frames": frames, "is_rejected": False}
    more["frames"] = [{"frame_type": kind, "boxes": [BOX] * 3} for kind in FRAMES]
    texts = ((f"{k:032x}", f"#C C picks up cup {k} ") for k in range(rows))
    actions = (json.dumps({"uid": uid, "narration_text": text, **more}) for uid, text in texts)
    interval = f'{{"narrated_actions": [{",".join(actions)}]}}'
    path.write_text(f'{{"videos": [{{"video_uid": "v", "annotated_intervals": [{interval}]}}]}}')


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of all rows (%(default)s)")
    share, report = parser.parse_args(argv).share, {}
    forms = {"epic100": (write_epic, 67_217), "ego4d-fho": (write_fho, 90_000)}
    with tempfile.TemporaryDirectory() as folder:
        for form, (write, rows) in forms.items():
            table = Path(folder, form)
            write(table, int(rows * share))
            words = ["--from", form, "--table", table, "--table-only", table.with_suffix(".csv")]
            begun = time.perf_counter()
            command = [sys.executable, "-m", "egogen.build", *words]
            subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
            took = round(time.perf_counter() - begun, 1)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
            report[form] = {"rows": int(rows * share), "seconds": took, "peak_memory": peak}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_command(main)
