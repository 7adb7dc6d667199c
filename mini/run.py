"""Both stages on a mini dataset, from rendering to the report, as the commands a user types."""

import hashlib
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT)]

from egogen import EgoGenError, read_json, read_parser, run_command, write_json  # noqa: E402
from mini import COMMANDS  # noqa: E402

PIPELINE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PRESETS, VARIANTS = PIPELINE["presets"], PIPELINE["variants"]
FULL_VARIANT = "description_image_text"


@dataclass
class Run:
    """A run in the folder `out`; `values` stand for the words in braces of run.yaml.

    They are quoted as for a shell, so that a folder's name may hold blanks.
    """

    out: Path
    values: dict[str, object]
    before: str = ""  # key of the last step

    def do(self, part: str, **more: object) -> None:
        """The steps of a part of run.yaml, with more values."""
        values = {"variant": "", "text": "", "features": "", **self.values, **more}
        for name, text in PIPELINE["words"].items():
            values[name] = text.format(**values)
        for step in PIPELINE["steps"][part]:
            chunks = (1, 2) if "{chunk}" in step["command"] else (1,)
            lines = [step["command"].format(**values, chunk=chunk) for chunk in chunks]
            outputs = map(Path, shlex.split(step["leaves"].format(**values)))
            self.step(step["name"].format(**values), [*outputs], [shlex.split(x) for x in lines])

    def step(self, name: str, outputs: Sequence[Path], lines: Sequence[Sequence[str]]) -> None:
        """Run the commands, side by side when there are several, unless that has been done.

        The commands resume by themselves, yet starting twenty of them to find nothing to do takes
        minutes. So steps.json keeps a key a step, of its commands, of the files that it left and of
        the step before: what follows a step done anew is done anew.
        """
        stamps = self.out / "steps.json"
        done = read_json(stamps) if stamps.exists() else {}
        if done.get(name) != key(self.before, lines, outputs):
            print(f"\n== {name}", *("   $ " + shown(line) for line in lines), sep="\n", flush=True)
            begun = time.monotonic()
            run_commands(name, lines)
            done[name] = key(self.before, lines, outputs)
            write_json(stamps, done)
            print(f"   {name}: {time.monotonic() - begun:.0f} s", flush=True)
        self.before = done[name]


def shown(line: Sequence[str]) -> str:
    """The command as one would type it in the project's folder."""
    words = ["python" if word == sys.executable else word for word in line]
    return shlex.join(word.replace(f"{PROJECT}/", "") for word in words)


def key(before: str, lines: Sequence[Sequence[str]], outputs: Sequence[Path]) -> str:
    """A digest of a step: `before`, its command lines, and name, size and time of change of all
    files that are under `outputs`.
    """
    found: list[object] = [before, lines]
    for output in outputs:
        for path in [output, *sorted(output.rglob("*"))] if output.is_dir() else [output]:
            if path.is_file():
                stat = path.stat()
                found.append([str(path), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def run_commands(name: str, lines: Sequence[Sequence[str]]) -> None:
    paths = f"{PROJECT}:{PROJECT / 'vllm'}"
    environment = os.environ | {"PYTHONPATH": paths, "PYTHON": sys.executable}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    if len(lines) > 1:  # one core each: threads of several processes would wait for each other
        environment["OMP_NUM_THREADS"] = "1"
    running = [subprocess.Popen(line, cwd=PROJECT, env=environment) for line in lines]
    try:
        codes = [process.wait() for process in running]
    except BaseException:
        for process in running:
            process.terminate()
        raise
    if any(codes):
        raise EgoGenError(f"step '{name}' failed, see above; the same command continues from here")


def summary(run: Run, variants: Sequence[str]) -> str:
    """One line a variant, and one on the descriptions."""
    texts = read_json(run.out / "scores" / "descriptions.json")
    lines = [
        f"descriptions with the right object, hand and target: {texts['object_hand_target']:.1%} "
        f"of {texts['count']}",
        f"{'stage 2 is told':<24}{'done':>8}{'other':>8}{'PSNR':>8}{'gain':>8}   (val frames)",
    ]
    for variant in variants:
        score = read_json(run.out / "scores" / f"{variant}.json")
        lines.append(
            f"{variant:<24}{score['done_rate']:>8.1%}{score['other_action_rate']:>8.1%}"
            f"{score['psnr_changed']:>8.2f}{score['psnr_gain']:>+8.2f}"
        )
    return "\n".join([*lines, PIPELINE["legend"]])


def main(argv: Sequence[str]) -> None:
    choices = {"what": [*PRESETS, "ablation"], "preset": PRESETS}
    args = read_parser(COMMANDS, "run", __doc__, choices).parse_args(argv)
    preset = args.preset if args.what == "ablation" else args.what
    default = PROJECT / "runs" / ("quickstart" if preset == "quick" else preset)
    out = (args.out or default).absolute()
    values = {"python": shlex.quote(sys.executable), "out": shlex.quote(str(out))}
    run = Run(out, values | {"seed": args.seed} | PRESETS[preset])
    begun = time.monotonic()
    run.do("base")
    for split in ("val", "train"):
        run.do("describe", split=split)
    run.do("right")
    variants = list(VARIANTS) if args.what == "ablation" else [FULL_VARIANT]
    for variant in variants:
        run.do("generate", variant=variant, **VARIANTS[variant])
        generated = out / "logs" / variant / "checkpoints" / "last"
        images = shlex.quote(str(next(generated.glob("*/images"))))
        run.do("score", variant=variant, images=images)
    if args.what != "ablation":
        run.do("measure", variant=FULL_VARIANT, images=images)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n{summary(run, variants)}")
    print(f"{time.monotonic() - begun:.0f} s, largest process {largest:.1f} GiB")
    if args.what != "ablation":
        print(f"report: {run.out / 'report' / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
