"""Quality against evaluations of the UNet on a mini run: samplers, steps, intervals, students.

    python bench/frontier.py --run runs/full --out runs/frontier --plot frontier.png \
        --scale-txt 2.0 --scale-img 1.25 --student logs/student/checkpoints/last.ckpt

The frames of the val split are made in each setting and scored by the oracle. Prints one JSON: a
row a setting, with 95 % intervals over clips, and what it differs by, frame by frame, from the
first row, which is the run's model with three branches and 100 steps of euler_ancestral.
Evaluations are counted in the network, an image in a branch each. Settings that are done in --out
are not done again.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

from egogen.atomic import atomic_path, read_json, write_json  # noqa: E402
from egogen.errors import EgoGenError, command_parser, run_command  # noqa: E402
from ldm import generate  # noqa: E402
from ldm.config import GenerateConfig, check_scales, load_config, load_model_params  # noqa: E402
from ldm.sampling import SAMPLERS  # noqa: E402
from metrics.intervals import clip_numbers, compare_columns, percentiles, resampled_means  # noqa: E402
from mini.oracle.score import score_folder  # noqa: E402
from mini.run import FULL_VARIANT, NAME, PRESETS, PROJECT, Run  # noqa: E402

FIGURES = ("done", "psnr_gain", "psnr_changed")  # of a frame; higher is better


@dataclass(frozen=True)
class Setting:
    model: str  # "teacher" or the name of a student's run
    sampler: str
    steps: int
    interval: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        within = f"-{self.interval[0]}-{self.interval[1]}" if self.interval else ""
        return f"{self.model}-{self.sampler}-{self.steps}{within}"


@dataclass
class Counter:
    evaluations: int = 0  # of the UNet, images times branches
    frames: int = 0  # decoded
    seconds: float = 0.0  # of processor time, from a batch's first evaluation to its pictures
    begun: float | None = None

    def watch(self, model: Any) -> Any:
        model.denoiser.network.register_forward_pre_hook(self.evaluated)
        model.vae.decoder.register_forward_hook(self.decoded)
        return model

    def evaluated(self, _: Any, given: tuple) -> None:
        self.begun = self.begun or time.process_time()
        self.evaluations += len(given[0])

    def decoded(self, _: Any, given: tuple, made: Any) -> None:
        self.seconds += time.process_time() - (self.begun or 0.0)
        self.frames, self.begun = self.frames + len(given[0]), None


@contextmanager
def counting() -> Iterator[Counter]:
    """Counts what models do that are loaded inside."""
    counter, load = Counter(), generate.load_model
    with mock.patch.object(generate, "load_model", lambda *a: counter.watch(load(*a))):
        yield counter


def read_run(run: Run, scale_txt: float, scale_img: float) -> GenerateConfig:
    """How the run's frames are generated, with other scales."""
    logs, features = run.out / "logs" / FULL_VARIANT, run.out / "features"
    words = [f"data.metadata_path={run.data / f'{NAME}_metadata.json'}"]
    words.append(f"data.params.data_path={run.frames / 'val'}")
    words.append(f"data.params.edit_path={run.described('val')}")
    for kind in ("image", "text"):
        words.append(f"data.params.additional_cond_path.llava_{kind}={features / kind / 'val'}")
    words += [f"inference.scales_txt=[{scale_txt}]", f"inference.scales_img=[{scale_img}]"]
    config = load_config(GenerateConfig, [str(PROJECT / "configs/generate_mini.yaml")], words)
    params = load_model_params(str(logs / "config.yaml"), ["model.params.load_ema=true"])
    return replace(config, model=params)


def measure(
    setting: Setting, ckpt: Path, config: GenerateConfig, data: Path, out: Path, chunks: int
) -> dict[str, Any]:
    """Frames, scores and counts of one setting, unless they are in `out`."""
    record = out / f"{setting.name}.json"
    key = [generate.fingerprint(str(ckpt)), chunks, config.inference.scales_img[0]]
    key.append(config.inference.scales_txt[0])
    if record.exists() and (found := read_json(record))["key"] == key:
        return found
    frames, link = out / setting.name, out / setting.name / "model.ckpt"
    shutil.rmtree(frames, ignore_errors=True)  # of a run that was stopped: counts would be lost
    frames.mkdir(parents=True)
    link.symlink_to(ckpt.absolute())
    interval = list(setting.interval) if setting.interval else None
    how = {"sampler": setting.sampler, "steps": setting.steps, "guidance_interval": interval}
    config = replace(config, inference=replace(config.inference, **how))
    with counting() as counter:
        generate.generate_chunk(config, str(link), chunks, 1, torch.device("cpu"))
    rows = score_folder(data, NAME, "val", next((frames / "model").glob("*/images")))["rows"]
    found = {"key": key, "evaluations": counter.evaluations / counter.frames}
    found |= {"seconds": counter.seconds / counter.frames, "clips": [r["clip"] for r in rows]}
    found |= {name: [r[name] and float(r[name]) for r in rows] for name in FIGURES}
    write_json(record, found)
    return found


def row(setting: Setting, found: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"name": setting.name, **vars(setting), "frames": len(found["clips"])}
    made |= {"distilled": setting.model != "teacher", "evaluations": found["evaluations"]}
    made["seconds_per_frame"] = found["seconds"]
    for name in FIGURES:
        compared = compare_columns(name, first[name], found[name], found["clips"], up=True)
        resampled = resampled_means(found[name], clip_numbers(found["clips"]))
        if compared is None:
            raise EgoGenError(f"{setting.name}: no frame has a {name}, expected more frames")
        made |= {name: compared.second, f"{name}_ci95": percentiles(resampled)}
        made[f"{name}_difference"] = compared.difference
        made[f"{name}_difference_ci95"] = compared.interval
    return made


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Done against evaluations: a colour a sampler; circles, triangles in intervals, squares of
    students."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[tuple, list] = {}
    for made in rows:
        lines.setdefault((made["sampler"], made["model"], made["interval"]), []).append(made)
    for (sampler, model, interval), line in lines.items():
        line = sorted(line, key=lambda made: made["evaluations"])
        ends = [made["done_ci95"] or [made["done"]] * 2 for made in line]
        done = [made["done"] for made in line]
        margins = list(zip(*((d - e[0], e[1] - d) for d, e in zip(done, ends, strict=True))))  # noqa: B905
        name = sampler + (f" in {interval}" if interval else "")
        axes.errorbar(
            [made["evaluations"] for made in line],
            done,
            margins,
            color=f"C{[*SAMPLERS].index(sampler)}",
            marker="s" if line[0]["distilled"] else "^" if interval else "o",
            linestyle=":" if line[0]["distilled"] else "--" if interval else "-",
            capsize=2,
            label=name if model == "teacher" else f"{name}, {model}",
        )
    axes.set(xscale="log", xlabel="evaluations a frame", ylabel="done")
    axes.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def interval_of(text: str) -> tuple[float, ...] | None:
    return None if text == "none" else tuple(float(end) for end in text.split(","))


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of mini/run.py")
    add("--out", type=Path, required=True, help="what is done, kept")
    add("--student", type=Path, action="append", default=[], help="distilled last.ckpt; repeatable")
    add("--samplers", nargs="+", choices=SAMPLERS, default=[*SAMPLERS])
    add("--steps", nargs="+", type=int, default=[6, 8, 12, 20, 30])
    add("--intervals", nargs="+", type=interval_of, default=[None], help="none or LOW,HIGH (sigma)")
    add("--scale-txt", type=float, default=2.0)
    add("--scale-img", type=float, default=1.25)
    add("--limit", type=int, help="about so many frames")
    add("--threads", type=int, default=1)
    add("--reference", help="name of the row that all are compared with (default: the first)")
    add("--plot", type=Path, help="PNG")
    args = parser.parse_args(argv)
    for interval in filter(None, args.intervals):
        check_scales("--intervals", interval)
    torch.set_num_threads(args.threads)
    run = Run(args.run.absolute(), PRESETS["full"], 0)
    config = read_run(run, args.scale_txt, args.scale_img)
    models = {"teacher": run.out / "logs" / FULL_VARIANT / "checkpoints" / "last.ckpt"}
    models |= {ckpt.absolute().parents[1].name: ckpt for ckpt in args.student}
    settings = [Setting("teacher", "euler_ancestral", steps) for steps in (100, 12)]
    for model in models:
        for interval in args.intervals if model == "teacher" else [None]:
            pairs = [(sampler, steps) for sampler in args.samplers for steps in args.steps]
            settings += [Setting(model, *pair, interval) for pair in pairs]
    count = sum(map(len, read_json(run.described("val")).values()))
    chunks = max(1, round(count / args.limit)) if args.limit else 1
    found = {}
    for setting in dict.fromkeys(settings):
        paths = run.data, args.out
        found[setting] = measure(setting, models[setting.model], config, *paths, chunks)
    names = {setting.name: record for setting, record in found.items()}
    if (first := names.get(args.reference or settings[0].name)) is None:
        raise EgoGenError(f"--reference {args.reference}: expected one of {', '.join(names)}")
    rows = [row(setting, record, first) for setting, record in found.items()]
    if args.plot:
        plot(rows, args.plot)
    scales = {"scale_txt": args.scale_txt, "scale_img": args.scale_img}
    print(json.dumps({"run": str(args.run), **scales, "rows": rows}, indent=1))


if __name__ == "__main__":
    run_command(main)
