"""The whole evaluation: choose metrics, check every frame, then measure one after the other."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from egogen.errors import EgoGenError
from metrics.frame_pairs import Population, find_pairs, source_folder
from metrics.registry import METRICS, Metric, Settings, choose
from metrics.results import METRIC_FILE, Results, default_folder, load


def runnable(names: str | None, settings: Settings, has_source: bool) -> list[Metric]:
    """The metrics to compute; what cannot be is an error if asked for, else named as skipped."""
    chosen = choose(names) if names is not None else list(METRICS.values())
    found, errors = [], []
    for metric in chosen:
        obstacle = metric.obstacle(settings, has_source)
        if obstacle is None:
            found.append(metric)
        elif names is not None:
            errors.append(f"--metrics {metric.name}: {obstacle}")
        else:
            print(f"skipped: {metric.title} ({metric.name}) {obstacle}")
    if errors:
        raise EgoGenError(" | ".join(errors))
    return found


def _digest(path: Path) -> str:
    """Content of a file, or of every file of a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check(
    gen_path: str | os.PathLike,
    gt_path: str | os.PathLike,
    edit_file: str | os.PathLike,
    llava_key: str,
    settings: Settings,
    allow_missing: bool,
) -> Population:
    """Every file read once, every problem printed; raises unless the rest may be measured."""
    population = find_pairs(gen_path, gt_path, edit_file, settings.workers)
    for line in population.notes:
        print(line)
    for problem in population.problems:
        print(f"problem: {problem}")
    found = {key for pair in population.pairs for key in pair.entry.texts}
    if population.pairs and llava_key not in found:
        raise EgoGenError(
            f"{edit_file}: no entry has field {llava_key!r} (--llava_key), "
            f"expected one of: {', '.join(sorted(found))}"
        )
    count = len(population.problems)
    if count and not allow_missing:
        raise EgoGenError(
            f"{gen_path}: {count} problems, named above; nothing was measured, "
            "--allow-missing measures the rest"
        )
    if not population.pairs:
        raise EgoGenError(f"{gen_path}: no frame can be measured, expected at least one")
    return population


def evaluate(
    gen_path: str | os.PathLike,
    gt_path: str | os.PathLike,
    edit_file: str | os.PathLike,
    settings: Settings,
    *,
    llava_key: str,
    names: str | None = None,
    out: str | os.PathLike | None = None,
    allow_missing: bool = False,
) -> Results:
    """Measure and write metric.json, per_sample.csv and inputs.json into `out`.

    Metrics that an earlier run computed from the same frames, weights and settings are kept.
    Raises EgoGenError before anything is computed when a frame is not in order (unless
    `allow_missing`), or when a metric was named that cannot be computed here.
    """
    metrics = runnable(names, settings, source_folder(gt_path) is not None)
    population = check(gen_path, gt_path, edit_file, llava_key, settings, allow_missing)
    results = load(out or default_folder(gen_path), population.pairs, population.identity)
    results.overall["samples"] = len(population.pairs)
    results.overall["problems"] = len(population.problems)
    for metric in metrics:
        identity = {
            "frames": population.identity,
            "dataset": settings.dataset,
            "weights": {path.name: _digest(path) for path in metric.weight_files(settings)},
        }
        if results.holds(metric.name, identity):
            print(f"kept: {metric.title} ({metric.name}), computed earlier from the same files")
            continue
        results.add(metric.name, identity, metric.measure(population.pairs, settings))
    results.write()
    for key, value in results.overall.items():
        print(f"{key:24} {'-' if value is None else round(value, 4)}")
    print(f"written: {results.folder / METRIC_FILE}")
    return results
