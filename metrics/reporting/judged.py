"""What a vision model says of frames without targets, and how far an oracle or people agree.

Questions, their version and how answers are read stand in judge.yaml. Replies as they came and
their readings lie in the journal that `egogen.served.ask_all` keeps.
"""

import hashlib
import json
import re
import sys
from argparse import Namespace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from egogen import actions, atomic, errors, jobs, labels, served
from metrics import evaluate, frame_pairs, intervals, results
from metrics.registry import Measured, finite_mean

RULES = yaml.safe_load(Path(__file__).with_name("judge.yaml").read_text("utf-8"))
WORDING = f"{RULES['version']} {hashlib.sha256(json.dumps(RULES).encode()).hexdigest()[:8]}"
QUESTIONS, READ = RULES["questions"], re.compile(RULES["read"], re.IGNORECASE | re.VERBOSE)
VALUES = {"yes": 1.0, "no": 0.0}


async def _ask(server: served.Server, about: tuple[list[Path], str]) -> tuple[str, str]:
    """(source and generated frame, question) -> the reply; "yes", "no" or what is wrong with it."""
    asked = served.message(about[1], *map(served.shown, about[0]), compress_level=1)
    reply = await server.reply([asked], {"temperature": 0, "max_tokens": RULES["tokens"]})
    text, problem = served.said(reply)
    found = {"yes" if yes else "no" for yes, _ in READ.findall(text)}
    if len(found) == 1 and problem in ("", "was ended by the server (length)"):  # behind the answer
        return reply, found.pop()
    return reply, problem or f"says neither yes nor no: {text[:80]!r}"


def questions(args: Namespace) -> tuple[dict[served.Key, Any], list[str], list[str]]:
    """What `_ask` is given, its frames (clip/action), a line for each frame that is left out.

    Questions are known by the content of label and frames: where that changed, they are new.
    """
    entries, left_out = actions.scan_actions(args.edit_file)
    asked: dict[served.Key, Any] = {}
    for entry in jobs.track(entries[: args.limit], len(entries[: args.limit]), "read", "frames"):
        places = (args.source_path, entry.image_0), (args.gen_path, entry.image_1)
        phrase = labels.clean_label(" ".join(entry.label.split()), "ego4d")  # reads both styles
        try:
            paths = [frame_pairs.frame_file(Path(folder), name) for folder, name in places]
            content = [phrase.encode(), *(served.shown(path).tobytes() for path in paths)]
            if not phrase:
                raise errors.EgoGenError("its label names no action")
        except errors.EgoGenError as error:
            left_out.append(f"entry {entry.key}: {error}")
            continue
        digest = hashlib.sha256(b"\0".join(content)).hexdigest()[:16]
        for name, text in QUESTIONS.items():
            text = labels.question(phrase, RULES["asked"] + text)
            asked[entry.key, f"{name} {digest}"] = paths, text
    if not asked:
        raise errors.EgoGenError(f"{args.gen_path}: no frame to judge ({', '.join(left_out[:1])})")
    return asked, list(dict.fromkeys(key for key, _ in asked)), left_out


def read_others(args: Namespace, keys: list[str]) -> dict[str, list[float]]:
    """{"oracle": 1 for done, "votes": 1 for most votes} of frames, nan where they say nothing."""
    found: dict[str, dict[str, float]] = {}
    run = args.run or results.default_folder(args.gen_path).parent.name
    try:
        if path := args.oracle:
            rows = atomic.read_object(path)["rows"]
            found["oracle"] = {f"{row['clip']}/{row['action_id']}": row["done"] / 1 for row in rows}
        if path := args.votes:
            samples = atomic.read_object(path)["samples"]
            leads = {key: v.pop(run) - max(v.values()) for key, v in samples.items()}
            found["votes"] = {key: float(x > 0) if x else nan for key, x in leads.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        form = f"'rows' of mini.oracle.score, or 'samples' of study.py count that name {run}"
        raise errors.EgoGenError(f"{path}: expected {form} ({error!r})") from None
    for name, path in (("oracle", args.oracle), ("votes", args.votes)):
        if path and not found[name].keys() & set(keys):
            raise errors.EgoGenError(f"{path}: says nothing of these frames: {keys[0]} ...")
    return {name: [known.get(key, nan) for key in keys] for name, known in found.items()}


def judge(args: Namespace) -> int:
    """Ask what has no answer yet; write judge.json, judge.csv into `--out`, print the figures."""
    asked, keys, left_out = questions(args)
    clips, others = [key.partition("/")[0] for key in keys], read_others(args, keys)
    out = (args.out or results.default_folder(args.gen_path).with_name("judge")) / "judge.json"
    made_by = {"model": args.model, "request": args.request, "wording": WORDING}
    answers, failures = served.ask_all(args, out, made_by, asked, _ask, "judging", "questions")
    read = {(key, name.split()[0]): reading for (key, name), (_, reading) in answers.items()}
    odd = [f"entry {key}: {name}: it {x}" for (key, name), x in read.items() if x not in VALUES]
    rows = [[key, *(read.get((key, name), "") for name in QUESTIONS)] for key in keys]
    atomic.write_csv(out.with_suffix(".csv"), [["sample", *QUESTIONS], *rows])
    values = np.array([[VALUES.get(reading, nan) for reading in row[1:]] for row in rows])
    columns = dict(zip(QUESTIONS, values.T.tolist(), strict=True))
    # No where one answer is no, unknown (nan) where one cannot be read.
    columns["all"] = np.where((values == 0).any(axis=1), 0, values.mean(axis=1)).tolist()
    kappas, numbers = {}, intervals.clip_numbers(clips)
    for name, theirs in others.items():
        mine = np.array(columns["done" if name == "oracle" else "all"])
        parts = np.where(np.isnan(mine + theirs), nan, [mine == theirs, mine, theirs])
        columns[f"{name}_accuracy"] = parts[0].tolist()
        with np.errstate(all="ignore"):  # nan where neither of both ever varies
            means = (np.nansum(part) / np.isfinite(part).sum() for part in parts)
            drawn = (intervals.resampled_means(part, numbers) for part in parts)
            same, one, two = map(np.append, drawn, means)
            *drawn, value = 1 - (1 - same) / (one + two - 2 * one * two)  # Cohen 1960
        interval = intervals.percentiles(np.array(drawn)[np.isfinite(drawn)])
        kappas |= {f"{name}_kappa": finite_mean([value]), f"{name}_kappa_ci95": interval}
    overall = {name: finite_mean(column) for name, column in columns.items()}
    bars = intervals.intervals(Measured(overall, columns), clips)[0]
    counts = {"samples": len(keys), "problems": len(left_out + failures), "unreadable": len(odd)}
    atomic.write_json(out, made_by | counts | overall | kappas | bars)
    print(f"{evaluate.table(counts | overall | kappas | bars)}\nwritten: {out}")
    for line in left_out + failures + odd:
        print(f"not judged: {line}", file=sys.stderr)
    return errors.EXIT_INCOMPLETE if left_out + failures + odd else 0
