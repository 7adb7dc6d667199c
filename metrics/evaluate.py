"""The evaluation: choose metrics, check every frame, then measure one metric after the other."""

import hashlib
from argparse import Namespace
from dataclasses import replace

from egogen.devices import usable_device
from egogen.errors import EgoGenError
from metrics.frame_pairs import Population, find_pairs, source_folder
from metrics.intervals import SUFFIX, intervals
from metrics.registry import METRICS, Metric, Settings, choose
from metrics.results import METRIC_FILE, Part, content_digest, default_folder, load


def runnable(names: str | None, settings: Settings, source: bool) -> tuple[list[Metric], list[str]]:
    """(metrics to compute, errors).

    One that cannot be computed is an error if it was asked for by name, else a line says so.
    """
    chosen = choose(names) if names is not None else list(METRICS.values())
    found, errors = [], []
    for metric in chosen:
        obstacle = metric.obstacle(settings, source)
        if obstacle is None:
            found.append(metric)
        elif names is not None:
            errors.append(f"--metrics {metric.name}: {obstacle}")
        else:
            print(f"skipped: {metric.title} ({metric.name}) {obstacle}")
    return found, errors


def identity_of(metric: Metric, population: Population, settings: Settings) -> dict:
    """All that the metric's values depend on; when it differs, they are computed again."""
    identity = {
        "frames": population.identity,
        "dataset": settings.dataset,
        "weights": {path.name: content_digest(path) for path in metric.weight_files(settings)},
    }
    if metric.needs_source:
        identity["sources"] = population.source_identity
    if metric.needs_text:
        texts = [pair.entry.texts[settings.llava_key] for pair in population.pairs]
        identity["texts"] = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return identity


def evaluate(options: Namespace, settings: Settings) -> None:
    """Measure and write the files of `metrics.results`; `options` are the command's flags.

    Metrics that an earlier run computed from the same frames, weights and settings are kept.
    Raises EgoGenError before anything is computed when a frame is not in order (unless
    `allow_missing`), or when a metric was named that cannot be computed here.
    """
    gen_path, gt_path = options.gen_path, options.gt_path
    sources = options.source_path or source_folder(gt_path)
    metrics, errors = runnable(options.metrics, settings, sources is not None)
    look, places = any(m.needs_source for m in metrics), (gen_path, gt_path, options.edit_file)
    population = find_pairs(*places, settings.workers, sources, look, settings.llava_key)
    for line in (*population.notes, *(f"problem: {problem}" for problem in population.problems)):
        print(line)
    if population.problems and not options.allow_missing:
        how = "named above; nothing was measured, --allow-missing measures the rest"
        errors.append(f"{gen_path}: {len(population.problems)} problems, {how}")
    elif not population.pairs:
        errors.append(f"{gen_path}: no frame can be measured, expected at least one")
    if errors:
        raise EgoGenError(" | ".join(errors))
    settings = replace(settings, device=str(usable_device(settings.device)))
    results = load(options.out or default_folder(gen_path), population.pairs, population.identity)
    results.counts = {"samples": len(population.pairs), "problems": len(population.problems)}
    clips = [pair.entry.clip for pair in population.pairs]
    for number, metric in enumerate(metrics, start=1):
        identity = identity_of(metric, population, settings)
        if results.holds(metric.name, identity):
            print(f"kept: {metric.title} ({metric.name}), computed earlier from the same files")
            continue
        print(f"metric {number} of {len(metrics)}: {metric.title} ({metric.name})", flush=True)
        found = metric.measure(population.pairs, settings)
        known = identity, found.overall, found.columns
        results.add(metric.name, Part(*known, *intervals(found, clips), found.documents))
    results.write()
    print(table(results.counts | results.merged("overall") | results.merged("intervals")))
    print(f"written: {results.folder / METRIC_FILE}")


def table(figures: dict) -> str:
    """One line a figure of metric.json, with its interval."""
    lines = []
    for key, value in [item for item in figures.items() if not item[0].endswith(SUFFIX)]:
        interval = figures.get(key + SUFFIX)
        text = "-" if value is None else str(round(value, 4))
        spread = f"   95 %: {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        lines.append(f"{key:24} {text:>12}{spread}")
    return "\n".join(lines)
