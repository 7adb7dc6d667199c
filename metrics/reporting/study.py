"""A blind study: people choose among the frames of several runs (docs/study.md).

index.html shows frames under drawn names; which run made which stands in key.json alone.
"""

import argparse
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations, zip_longest
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from egogen import ActionEntry, EgoGenError, inside, layout, listed, read_actions, stable_seed
from egogen.atomic import parse_json, read_object, write_json, write_text
from egogen.labels import clean_label
from egogen.settings import setting
from metrics.frame_pairs import frame_file
from metrics.intervals import RESAMPLES, draws, percentiles
from metrics.reporting.data import verb_of
from metrics.reporting.runs import INSIDE

PAGE, KEY, IMAGES = "index.html", "key.json", "images"
NAME = "[a-z0-9][a-z0-9_-]{0,63}"  # of raters, and so of files
MOST_BYTES = 2**20  # that a rater sends


def named_runs(paths: Sequence[Path], names: Sequence[str] | None) -> dict[str, Path]:
    """{name: folder of frames}: `images` of a run's folder, or the path itself; 2 to 9, as keys."""
    full = [Path(os.path.abspath(path)) for path in paths]
    homes = [path.parent if path.name in (*INSIDE, IMAGES) else path for path in full]
    named = names or [home.name for home in homes]
    if not 2 <= len(set(named)) == len(named) == len(paths) <= 9:
        raise EgoGenError(f"runs {listed(named)}: expected 2 to 9, a name for each (--names)")
    found = [home / IMAGES if (home / IMAGES).is_dir() else home for home in homes]
    return dict(zip(named, found, strict=True))


def in_turn(entries: Sequence[ActionEntry], seed: int) -> list[ActionEntry]:
    """Shuffled so that the first ones have all verbs in shares as equal as can be."""
    by_verb = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: stable_seed(seed, entry.key)):
        by_verb[verb_of(entry.label)].append(entry)
    return [entry for turn in zip_longest(*by_verb.values()) for entry in turn if entry]


def make(options: argparse.Namespace) -> int:
    """The command. A check has the true frame among those of other clips: who looks finds it."""
    runs, seed, out = named_runs(options.runs, options.names), options.seed, options.out
    if options.count < 1 or options.checks < 0:
        raise EgoGenError("--count, --checks: expected at least 1 frame and at least 0 checks")
    if (out / KEY).exists():
        raise EgoGenError(f"{out / KEY}: belongs to a study and its votes, expected another --out")
    root = options.dataset_root or setting("LEGO_DATASET")
    frames = layout.frame_folder(root, options.dataset, options.split)
    edit_file = options.edit_file or layout.action_file(root, options.dataset, options.split)
    entries = in_turn(read_actions(edit_file), seed)
    asked: list[tuple[ActionEntry, dict[str, Path], str]] = []  # what of, choices, the right one
    for entry in entries:
        made = {name: frame_file(folder, entry.image_1) for name, folder in runs.items()}
        asked += [(entry, made, "")] if all(path.exists() for path in made.values()) else []
    if not asked:
        places = listed([str(folder) for folder in runs.values()])
        raise EgoGenError(f"{places}: no clip/action/frame.jpg of {edit_file} is in all of them")
    spare, asked = asked[options.count :] or asked, asked[: options.count]
    for entry, *_ in spare[: options.checks]:
        others = in_turn([e for e in entries if e.clip != entry.clip], stable_seed(seed, entry.key))
        pool = [entry, *others[: len(runs) - 1]]
        if len(pool) < len(runs):
            raise EgoGenError(f"{edit_file}: too few clips for attention checks, use --checks 0")
        asked.append((entry, {e.key: inside(frames, e.image_1) for e in pool}, entry.key))
    from metrics.reporting.html import image_uri, render  # slow to import

    key: dict[str, Any] = {"study": secrets.token_hex(8), "runs": list(runs), "items": {}}
    items: list[dict[str, Any]] = []
    for entry, choices, right in asked:
        number, names = secrets.token_hex(8), {secrets.token_hex(8): name for name in choices}
        found = next((x for x in names if names[x] == right), None)
        key["items"][number] = {"sample": entry.key, "right": found, "names": names}
        source = inside(frames, entry.image_0)
        item = {"id": number, "action": clean_label(entry.label, "ego4d") or entry.label}
        # All in the size of the source: no run is known by its own.
        shown = sorted((x, image_uri(choices[names[x]], source)) for x in names)
        items.append({**item, "source": image_uri(source), "frames": shown})
    items.sort(key=lambda item: item["id"])  # an order that says nothing
    content = {"study": key["study"], "endpoint": options.endpoint, "items": items}
    write_text(out / PAGE, render("study.html.j2", content=content))
    write_json(out / KEY, key)
    print(f"written: {out / PAGE}, {len(items)} questions; {out / KEY}, which stays with you")
    return 0


def read_key(folder: Path) -> dict[str, Any]:
    key = read_object(folder / KEY)
    if not {"study", "runs", "items"} <= key.keys():
        raise EgoGenError(f"{folder / KEY}: expected the key of a study, as make writes it")
    return key


def check_votes(votes: Any, where: object, key: dict[str, Any]) -> dict[str, Any]:
    """What the page of this study writes for a rater. Raises EgoGenError for anything else."""
    known = {item: (None, *one["names"]) for item, one in key["items"].items()}
    found = votes if isinstance(votes, dict) else {}
    if found.get("study") != key["study"] or not isinstance(found.get("answers"), dict):
        raise EgoGenError(f"{where}: expected the votes of a rater in study {key['study']}")
    for name in ("rater", "browser"):
        if not isinstance(votes.get(name), str) or not re.fullmatch(NAME, votes[name]):
            raise EgoGenError(f"{where}: field {name!r}: expected a name of a-z, 0-9, - and _")
    for item, choice in votes["answers"].items():
        if choice not in known.get(item, ()):
            raise EgoGenError(f"{where}: entry {item[:40]!r}: {choice!r:.40}: no frame of it")
    return votes


def serve(options: argparse.Namespace) -> int:
    """The command: show the page, and write what raters send to votes/RATER.json."""
    folder, key, lock = options.study, read_key(options.study), Lock()

    class Handler(SimpleHTTPRequestHandler):
        timeout = 30  # seconds that a connection may say nothing

        def translate_path(self, path: str) -> str:
            """The page; of all that else lies on the disk nothing."""
            return str(folder / PAGE) if path.partition("?")[0] == "/" else ""

        def end_headers(self) -> None:
            self.send_header("Access-Control-Allow-Origin", "*")  # for a page that lies elsewhere
            super().end_headers()

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")[:8]
            if not size.isdecimal() or int(size) > MOST_BYTES:
                return self.send_error(413)
            try:
                votes = check_votes(parse_json(self.rfile.read(int(size)), "votes"), "votes", key)
            except EgoGenError as error:
                return self.send_error(400, explain=str(error))
            path = folder / "votes" / f"{votes['rater']}.json"
            with lock:  # a name belongs to the browser that took it first
                if path.exists() and read_object(path).get("browser") != votes["browser"]:
                    return self.send_error(409)
                write_json(path, votes)
            self.send_response(204)
            self.end_headers()

    try:
        server = ThreadingHTTPServer((options.host, options.port), Handler)
    except (OSError, OverflowError) as error:
        raise EgoGenError(f"--host {options.host} --port {options.port}: {error}") from None
    print(f"the study: http://{options.host}:{server.server_port}/", flush=True)
    server.serve_forever()
    return 0


def agreement(counts: np.ndarray) -> float | None:
    """Fleiss' kappa of votes (samples, choices), of raters that need not be equally many."""
    rated = counts[counts.sum(axis=1) > 1]
    sizes, chance = rated.sum(axis=1), ((rated.sum(axis=0) / max(1, rated.sum())) ** 2).sum()
    alike = (rated * (rated - 1)).sum(axis=1) / (sizes * (sizes - 1))
    return float((alike.mean() - chance) / (1 - chance)) if 0 < chance < 1 else None


def tally(key: dict[str, Any], sheets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the votes, as [share, interval], and the votes of each sample; checks are none.

    Intervals draw raters and samples, both with replacement (Owen 2007), two at least of each.
    """
    runs, items = key["runs"], {id: one for id, one in key["items"].items() if not one["right"]}
    samples = {item: place for place, item in enumerate(items)}
    votes = np.zeros((len(sheets), len(samples), len(runs) + 1))  # the last choice: none
    for of_rater, sheet in zip(votes, sheets, strict=True):
        for item in sheet["answers"].keys() & items.keys():
            run = items[item]["names"].get(sheet["answers"][item])
            of_rater[samples[item], runs.index(run) if run else -1] = 1
    by_sample, total = votes.sum(axis=0), votes.sum(axis=(0, 1))
    raters, shown = (draws(votes.shape[axis], RESAMPLES, "rs"[axis]) for axis in (0, 1))
    spread = np.einsum("dr,rsk,ds->dk", raters, votes, shown, optimize=True)

    def share(one: int, of: Sequence[int]) -> list:
        found = spread[spread[:, of].sum(axis=1) > 0] if min(votes.shape) > 1 else spread[:0]
        whole, ends = total[of].sum(), percentiles(found[:, one] / found[:, of].sum(axis=1))
        return [float(total[one] / whole) if whole else None, ends]

    every, pairs = range(len(runs) + 1), combinations(range(len(runs)), 2)
    counts = [dict(zip(runs, map(int, row), strict=False)) for row in by_sample]
    return {
        "votes": int(total.sum()),
        "share": {run: share(n, every) for n, run in enumerate([*runs, "(none)"])},
        "win": {run: share(n, every[:-1]) for n, run in enumerate(runs)},
        "pairs": {f"{runs[a]} over {runs[b]}": share(a, [a, b]) for a, b in pairs},
        "kappa": agreement(by_sample),
        "samples": {items[item]["sample"]: counts[place] for item, place in samples.items()},
    }


def count(options: argparse.Namespace) -> int:
    """The command. Raters who failed more than --may-fail checks are left out, and named."""
    near = Path(os.path.abspath(options.votes[0])).parents
    folder = options.study or next((p for p in near[:2] if (p / KEY).exists()), near[0])
    key, sheets = read_key(folder), {}
    for path in options.votes:
        sheet = check_votes(read_object(path), path, key)
        first = sheets.setdefault(sheet["rater"], sheet)
        if first["browser"] != sheet["browser"]:
            raise EgoGenError(f"{path}: rater {sheet['rater']!r}: another file has one, rename it")
        if first is not sheet:
            print(f"note: {path}: another file of {sheet['rater']}; the longer one counts")
            sheets[sheet["rater"]] = max(first, sheet, key=lambda one: len(one["answers"]))
    checks = {item: one["right"] for item, one in key["items"].items() if one["right"]}
    for rater, answers in [(rater, sheet["answers"]) for rater, sheet in sheets.items()]:
        failed = sum(answers.get(item, right) != right for item, right in checks.items())
        if failed > options.may_fail:
            print(f"left out: {rater}, who failed {failed} attention checks")
            del sheets[rater]
    if not sheets:
        raise EgoGenError(f"{folder}: no rater is left of {len(options.votes)} files")
    found = {"raters": sorted(sheets), **tally(key, list(sheets.values()))}
    kappa = "-" if found["kappa"] is None else f"{found['kappa']:.2f}"
    print(f"{len(sheets)} raters, {found['votes']} votes, Fleiss' kappa {kappa}")
    for part in ("share", "win", "pairs"):
        for name, (value, ends) in found[part].items():
            shown = "-" if value is None else f"{100 * value:.1f} %"
            interval = f"(95 %: {100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
            print(f"{part:6}{shown:>8}  {name} {interval}".rstrip())
    write_json(options.out or folder / "votes.json", found)
    return 0
