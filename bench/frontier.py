"""Quality against evaluations of the UNet on a mini run: samplers, steps, intervals, students."""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

from egogen import EgoGenError, read_parser, run_command  # noqa: E402
from egogen.atomic import atomic_path, read_json, write_json  # noqa: E402
from ldm import generate  # noqa: E402
from ldm.config import check_range, load_config  # noqa: E402
from ldm.sampling import SAMPLERS  # noqa: E402
from ldm.schema import GenerateConfig, InferenceConfig, TrainConfig  # noqa: E402
from metrics.intervals import clip_numbers, compare_columns, percentiles, resampled_means  # noqa: E402
from mini.oracle.score import score_folder  # noqa: E402
from mini.run import FULL_VARIANT  # noqa: E402

COMMANDS = Path(__file__).with_name("commands.toml")
NAME = "ego4d"  # of a run's dataset
FIGURES = ("done", "psnr_gain", "psnr_changed")  # of a frame; higher is better


class Setting(NamedTuple):
    model: str  # "teacher" or the name of a student's run
    sampler: str
    steps: int
    interval: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        return "-".join(map(str, [*self[:3], *(self.interval or ())]))


def read_run(run: Path, scale_txt: float, scale_img: float) -> GenerateConfig:
    """How the run's frames are generated, with other scales."""
    trained = run / "logs" / FULL_VARIANT / "config.yaml"
    train = load_config(TrainConfig, [str(trained)], ["model.params.load_ema=true"])
    how = InferenceConfig(scales_txt=[scale_txt], scales_img=[scale_img], batch_size=20, height=256)
    sizes = str(run / "data" / f"{NAME}_metadata.json")
    return GenerateConfig(
        model=train.model, metadata_path=sizes, data=train.data.validation, inference=how
    )


def measure(
    setting: Setting, ckpt: Path, config: GenerateConfig, data: Path, out: Path, chunks: int
) -> dict[str, Any]:
    """Scores and counts of one setting's frames, unless they are in `out`."""
    record, frames = out / f"{setting.name}.json", out / setting.name
    scales = config.inference.scales_txt[0], config.inference.scales_img[0]
    key = [generate.fingerprint(str(ckpt)), chunks, *scales]
    if record.exists() and (found := read_json(record))["key"] == key:
        return found
    shutil.rmtree(frames, ignore_errors=True)  # of a run that was stopped: counts would be lost
    frames.mkdir(parents=True)
    (link := frames / "model.ckpt").symlink_to(ckpt.absolute())
    how = {"sampler": setting.sampler, "steps": setting.steps}
    how["guidance_interval"] = setting.interval and list(setting.interval)
    config = replace(config, inference=replace(config.inference, **how))
    evaluated, decoded = Counter[str](), Counter[str]()

    def counted(*args: Any, load: Any = generate.load_model) -> Any:
        model = load(*args)
        for network, seen in ((model.unet, evaluated), (model.vae.decoder, decoded)):
            network.register_forward_pre_hook(lambda _, x, n=seen: n.update(items=len(x[0])))
        return model

    begun = time.process_time()
    with mock.patch.object(generate, "load_model", counted):
        generate.generate_chunk(config, str(link), chunks, 1, torch.device("cpu"))
    seconds = time.process_time() - begun
    rows = score_folder(data, NAME, "val", next((frames / "model").glob("*/images")))["rows"]
    found = {name: [row[name] for row in rows] for name in ("clip", *FIGURES)}
    found |= {"key": key, "evaluations": evaluated.total() / decoded.total()}
    found["seconds"] = seconds / len(rows)
    write_json(record, found)
    return found


def row(setting: Setting, found: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Its figures, and what they are above those of the reference."""
    clips = found["clip"]
    made = {"name": setting.name, **setting._asdict(), "distilled": setting.model != "teacher"}
    made |= {"evaluations": found["evaluations"], "seconds_per_frame": found["seconds"]}
    for name in FIGURES:
        values = np.array(found[name], float)
        made[name] = float(np.nanmean(values))
        made[f"{name}_ci95"] = percentiles(resampled_means(values, clip_numbers(clips)))
        compared = compare_columns(name, reference[name], found[name], clips, up=True)
        made[f"{name}_difference"] = compared and [compared.difference, compared.interval]
    return {**made, "frames": len(clips)}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Done against evaluations: a colour a sampler; triangles: intervals, squares: students."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="evaluations a frame", ylabel="done")
    lines: dict[tuple, list] = {}
    for made in sorted(rows, key=lambda made: made["evaluations"]):
        lines.setdefault((made["sampler"], made["model"], made["interval"]), []).append(made)
    for (sampler, model, interval), line in lines.items():
        across, done = np.array([(made["evaluations"], made["done"]) for made in line]).T
        ends = np.array([made["done_ci95"] or [made["done"]] * 2 for made in line]).T
        style = "s:" if line[0]["distilled"] else "^--" if interval else "o-"
        look = {"fmt": f"C{[*SAMPLERS].index(sampler)}{style}", "capsize": 2}
        name = f"{sampler}, {model}" + (f" in {interval}" if interval else "")
        across *= 1.006 ** len(axes.containers)  # so that bars stand side by side
        axes.errorbar(across, done, np.abs(ends - done), label=name, **look)
    figure.legend(loc="outside lower center", ncols=3, fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def interval_of(text: str) -> tuple[float, ...] | None:
    if text == "none":
        return None
    check_range("--intervals", ends := tuple(map(float, text.split(","))))
    return ends


def setting_of(text: str) -> Setting:
    model, sampler, steps = text.rsplit("-", 2)
    if sampler not in SAMPLERS:
        raise ValueError(sampler)  # for argparse to say
    return Setting(model, sampler, int(steps))


def main(argv: Sequence[str]) -> None:
    choices = {"samplers": SAMPLERS}
    parser = read_parser(COMMANDS, "frontier", __doc__, choices, samplers=[*SAMPLERS])
    add = parser.add_argument
    add("--intervals", nargs="+", type=interval_of, default=[None], help="none or LOW,HIGH (sigma)")
    add("--reference", type=setting_of, default="teacher-euler_ancestral-100", help="a row's name")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = read_run(args.run, args.scale_txt, args.scale_img)
    models = {"teacher": args.run / "logs" / FULL_VARIANT / "checkpoints" / "last.ckpt"}
    models |= {ckpt.absolute().parents[1].name: ckpt for ckpt in args.student}
    if args.reference.model not in models:
        raise EgoGenError(f"--reference {args.reference.name}: expected one of {', '.join(models)}")
    settings = [args.reference]
    for model in models:
        for interval in args.intervals if model == "teacher" else [None]:
            settings += [Setting(model, s, n, interval) for s in args.samplers for n in args.steps]
    count = sum(map(len, read_json(config.data.edit_path).values()))
    chunks = max(1, count // args.limit) if args.limit else 1
    at = config, args.run / "data", args.out, chunks
    found = {s: measure(s, models[s.model], *at) for s in dict.fromkeys(settings)}
    rows = [row(setting, record, found[args.reference]) for setting, record in found.items()]
    if args.plot:
        plot(rows, args.plot)
    print(json.dumps({**vars(args), "rows": rows}, indent=1, default=str))


if __name__ == "__main__":
    run_command(main)
