"""Both stages on a mini dataset, from rendering to the report, as the commands a user types."""

import hashlib
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT)]

from egogen import EgoGenError, lock, read_parser, run_command  # noqa: E402
from egogen.atomic import read_json, write_json, write_text  # noqa: E402
from mini import COMMANDS, tables  # noqa: E402

PIPELINE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PRESETS, VARIANTS = PIPELINE["presets"], PIPELINE["variants"]
FULL_VARIANT = "description_image_text"


@dataclass
class Run:
    """A run in the folder `out`; `values` stand for the words in braces of run.yaml.

    They are quoted as for a shell, so that a folder's name may hold blanks.
    """

    out: Path
    values: Mapping[str, Any]
    before: str = ""  # key of the last step
    described: str = ""  # the same, of stage 1

    def do(self, part: str, words: Mapping[str, str] | None = None, **more: object) -> None:
        """The steps of a part of run.yaml, with more words and values."""
        values = {"variant": "", "text": "", "features": "", **self.values, **more}
        values |= {"python": shlex.quote(sys.executable), "out": shlex.quote(str(self.out))}
        for name, text in (PIPELINE["words"] | (words or {})).items():
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


def stage_one(run: Run) -> None:
    run.do("base")
    for split in ("val", "train"):
        run.do("describe", split=split)
    run.do("right")
    run.described = run.before


def stage_two(run: Run, variant: str, **told: Any) -> str:
    """Train a variant and score its val frames; -> their folder, quoted."""
    run.before = run.described  # no variant follows from another
    run.do("generate", variant=variant, **told)
    return score(run, variant, run.out / "logs" / variant / "checkpoints" / "last")


def score(run: Run, name: str, generated: Path) -> str:
    images = shlex.quote(str(next(generated.glob("*/images"))))
    run.do("score", variant=name, images=images)
    return images


def whole(run: Run) -> None:
    """Both stages, and the report."""
    stage_one(run)
    images = stage_two(run, FULL_VARIANT, **VARIANTS[FULL_VARIANT])
    run.do("measure", variant=FULL_VARIANT, images=images)
    print(f"\nreport: {run.out / 'report' / 'report.html'}")


def ablation(run: Run) -> None:
    """Stage 2 of all variants, and frames of some whose inputs are in part another action's."""
    stage_one(run)
    for variant, told in VARIANTS.items():
        stage_two(run, variant, **told)
        if variant in PIPELINE["listeners"]:
            run.do("swap", variant=variant)
            for name, words in PIPELINE["swaps"].items():
                run.do("listen", {"swapping": words}, variant=variant, swap=name, **told)
                score(run, f"{variant}-{name}", run.out / "swapped" / variant / name)


def scale(run: Run) -> None:
    """A run for each number of pairs, with a stage 2 for each number of steps."""
    for pairs in run.values["scale_pairs"]:
        part = Run(run.out / f"pairs{pairs}", {**run.values, "pairs": pairs})
        stage_one(part)
        for steps in run.values["scale_steps"]:
            told = {**VARIANTS[FULL_VARIANT], "train_steps": steps}
            stage_two(part, f"{FULL_VARIANT}_{steps}", **told)


def tables_of(what: str, folders: Sequence[Path], sizes: Any) -> dict[str, list[tables.Row]]:
    """The rows of each table of the runs of some seeds."""
    variants = VARIANTS if what == "ablation" else [FULL_VARIANT]
    runs: list[tuple] = [({"told": name}, ".", name) for name in variants]
    if what == "scale":
        many = product(sizes["scale_pairs"], sizes["scale_steps"])
        runs = [({"pairs": x, "steps": n}, f"pairs{x}", f"{FULL_VARIANT}_{n}") for x, n in many]
    reached = [tables.reached([at / part for at in folders], name) for _, part, name in runs]
    made = {"rows": [head | found for (head, *_), found in zip(runs, reached, strict=True)]}
    if what == "ablation":
        made["compared"] = tables.paired(folders, PIPELINE["compared"])
        made["listened"] = tables.listened(folders, PIPELINE["listeners"], PIPELINE["swaps"])
    return made


def main(argv: Sequence[str]) -> None:
    choices = {"what": [*PRESETS, "ablation", "scale"], "preset": PRESETS}
    args = read_parser(COMMANDS, "run", __doc__, choices).parse_args(argv)
    do = {"ablation": ablation, "scale": scale}.get(args.what, whole)
    preset = args.what if do is whole else args.preset
    name = "scale" if do is scale else "quickstart" if preset == "quick" else preset
    out = (args.out or PROJECT / "runs" / name).absolute()
    folders = {seed: Path(f"{out}{seed}") for seed in args.seeds or ()} or {args.seed: out}
    begun = time.monotonic()
    for seed, folder in folders.items():
        with lock(folder / ".lock", "running"):
            do(Run(folder, {"seed": seed, **PRESETS[preset]}))
    made = tables_of(args.what, [*folders.values()], PRESETS[preset])
    text = tables.markdown(made)
    print(f"\n{text}")
    if do is not whole:
        write_json(Path(f"{out}_{args.what}.json"), {"preset": preset, "seeds": [*folders], **made})
        write_text(Path(f"{out}_{args.what}.md"), text)
    if do is scale:
        tables.plot(made["rows"], Path(f"{out}_scale.png"))
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n{time.monotonic() - begun:.0f} s, largest process {largest:.1f} GiB")


if __name__ == "__main__":
    run_command(main)
