"""What runs of one or more seeds reached: means, intervals and comparisons, as rows of tables.

Runs of other seeds have other clips. So intervals come from drawing seeds and, in each seed drawn,
clips, both with replacement (Davison & Hinkley 1997, section 3.8): with three seeds a little narrow
where most of the spread is between seeds, and wide where it is between clips. p is of signs flipped
clip by clip over all seeds (`metrics.intervals.sign_flip_p`), and not corrected for the number of
comparisons: it says whether these models differ on new clips. Each seed's mean shows if others do.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, product, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from egogen import atomic_path, read_json, stable_seed
from metrics.intervals import RESAMPLES, SEED, percentiles, sign_flip_p

Folders = Sequence[Path]  # of the runs, one a seed
Row = dict[str, Any]  # of a table: texts, numbers, and what `measured` gives
FIGURES = ("done", "other", "gain", "other done")


def read_frames(folders: Folders, name: str) -> dict[str, np.ndarray]:
    """Figures, each (seeds, clips, actions), of frames scored as `name`; NaN where there is none.

    "done" and "other done": 1 where the frame's own action is, and where the next one of the clip
    is; "other": the share of all others of the clip that are; "gain": dB over copying. All seeds
    have the same number of clips.
    """
    runs = []
    for folder in folders:
        rows = read_json(folder / "scores" / f"{name}.json")["rows"]
        clips = [[*group] for _, group in groupby(rows, itemgetter("clip"))]
        told = [[*map(figures_of, clip, [*clip[1:], clip[0]])] for clip in clips]
        runs.append([*zip(*zip_longest(*told, fillvalue=[np.nan] * len(FIGURES)), strict=True)])
    values = np.array(runs, float)  # (seeds, clips, actions, figures)
    return {figure: values[..., k] for k, figure in enumerate(FIGURES)}


def figures_of(row: Row, following: Row) -> list[float | None]:
    seen, others = row["others_done"], max(row["others"], 1)
    return [row["done"], len(seen) / others, row["psnr_gain"], following["action_id"] in seen]


def measured(values: np.ndarray) -> Row:
    """Of (seeds, clips, actions): mean, its interval (None of one clip) and each seed's mean."""
    seeds, clips, _ = values.shape
    generator = np.random.default_rng(stable_seed(SEED, "seeds and clips", seeds, clips))
    seed = generator.integers(seeds, size=(RESAMPLES, seeds, 1))
    clip = generator.integers(clips, size=(RESAMPLES, seeds, clips))
    resampled = np.nanmean(values[seed, clip], axis=(1, 2, 3))
    interval = percentiles(resampled) if seeds * clips > 1 else None
    each = np.nanmean(values, axis=(1, 2)).tolist()
    return {"mean": float(np.nanmean(values)), "ci95": interval, "seeds": each}


def compared(first: np.ndarray, second: np.ndarray) -> Row:
    """Like `measured`, of what `second` has more than `first` on the same frames, with p."""
    values = second - first
    clips = np.repeat(np.arange(values[..., 0].size), values.shape[-1])
    return {**measured(values), "p": sign_flip_p(np.nan_to_num(values).ravel(), clips)}


def reached(folders: Folders, name: str) -> Row:
    """Right descriptions of the runs, and figures of the frames scored as `name`."""
    files = [folder / "scores" / "descriptions.json" for folder in folders]
    right = [read_json(file)["object_hand_target"] for file in files]
    frames = read_frames(folders, name)
    row: Row = {"frames": int(np.isfinite(frames["done"]).sum()), "right": right}
    return row | {figure: measured(frames[figure]) for figure in FIGURES[:3]}


def paired(folders: Folders, pairs: Iterable[Sequence[str]]) -> list[Row]:
    """What the second name of each pair has more than the first, frame by frame."""
    rows = []
    for pair in pairs:
        first, second = (read_frames(folders, name) for name in pair)
        more = {figure: compared(first[figure], second[figure]) for figure in ("done", "gain")}
        rows.append({"from": pair[0], "to": pair[1], **more})
    return rows


def listened(folders: Folders, variants: Iterable[str], swaps: Iterable[str]) -> list[Row]:
    """What frames show where a part of what stage 2 is told is another action's (mini.swapped)."""
    rows = []
    for variant, swap in product(variants, ["nothing", *swaps]):
        name = variant if swap == "nothing" else f"{variant}-{swap}"
        whole, frames = read_frames(folders, variant), read_frames(folders, name)
        figures = {figure: measured(frames[figure]) for figure in ("done", "other done")}
        lost = compared(whole["done"], frames["done"])
        rows.append({"told": variant, "swapped": swap, **figures, "lost": lost})
    return rows


def markdown(made: Mapping[str, Sequence[Row]]) -> str:
    """The tables by their names, as tables.md.j2 writes them."""
    from jinja2 import Environment, StrictUndefined  # slow to import

    text = Path(__file__).with_suffix(".md.j2").read_text(encoding="utf-8")
    settings: dict[str, Any] = {
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    return Environment(**settings).from_string(text).render(made)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Done and gain against pairs, a line for each number of steps."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(9, 4), layout="constrained")
    for name, place, unit in (("done", 121, ""), ("gain", 122, " (dB)")):
        axes = figure.add_subplot(place, xlabel="pairs", xscale="log", ylabel=name + unit)
        axes.set_xticks(sizes := sorted({row["pairs"] for row in rows}), map(str, sizes))
        for number, steps in enumerate(dict.fromkeys(row["steps"] for row in rows)):
            line = {row["pairs"]: row[name] for row in rows if row["steps"] == steps}
            across = np.array([*line]) * 1.01**number  # so that bars stand side by side
            middle = np.array([found["mean"] for found in line.values()])
            ends = np.array([found["ci95"] or [np.nan] * 2 for found in line.values()]).T
            look: dict[str, Any] = {"fmt": "o-", "capsize": 2, "label": f"{steps} steps"}
            axes.errorbar(across, middle, np.abs(ends - middle), **look)
        axes.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
