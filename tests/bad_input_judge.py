"""Bad input of `metrics/judge.py`: frames, answers kept, scores, votes, servers, a row each."""

from __future__ import annotations

import json
from pathlib import Path

from bad_input_damage import Case, Damage, edited, gone, put, untouched
from chat_server import beside

from metrics.judge import main

CLIP, ACTIONS = "ego4d-val-clip0", "ego4d_val.json"
FRAMES = "{root}/EgoGen/ego4d.fho/val"
FRAME, SOURCE = "run/images/ego4d-val-clip0/0/frame_000020.jpg", f"{CLIP}/0/frame_000010.jpg"
LINE = f"--gen_path {{root}}/run/images --source-path {FRAMES} --edit_file {{root}}/{ACTIONS} "
LINE += "--out {root}/out --base-url {chat:yes} --model m --retries 0 --concurrency 1"
OWN = "own.json"


judge = beside(main)


def row(what: str, said: tuple[str, ...], more: str = "", damage=untouched, code: int = 2) -> Case:
    return Case("judge", what, damage, said, code, more)


def kept(name: str, text: str) -> Damage:
    def damage(root: Path) -> None:
        (root / "out").mkdir()
        (root / "out" / f"judge.json.{name}").write_text(text)

    return damage


def votes(samples: object) -> Damage:
    return put(OWN, json.dumps({"samples": samples}))


def rows(content: object) -> Damage:
    return put(OWN, json.dumps({"rows": content}))


DONE = {"clip": CLIP, "action_id": "0", "done": True}
OPTIONS = [
    row(f"option {more}", (said,), more)
    for more, said in (
        ("--limit 0", "limit"),
        ("--concurrency 0", "concurrency"),
        ("--retries -1", "retries"),
        ("--timeout nan", "timeout"),
        ("--request [1]", "--request: expected a JSON object"),
        ("--model ''", "--base-url and --model"),
        ("--gen_path none", "none: no frame to judge"),
        ("--source-path none", "no such image"),
        ("--edit_file none.json", "none.json: no such file"),
        ("--oracle none.json", "none.json: no such file"),
        ("--votes none.json", "none.json: no such file"),
    )
]
FILES = [
    row(
        "no frames",
        ("no frame to judge", FRAME),
        damage=lambda root: [path.unlink() for path in (root / "run/images").rglob("*.jpg")],
    ),
    row("a frame is missing", (f"{CLIP}/0", FRAME), damage=gone(FRAME), code=1),
    row("a frame is no picture", (f"{CLIP}/0", FRAME), damage=put(FRAME, "x"), code=1),
    row("a source is missing", (SOURCE,), damage=gone(f"{FRAMES[7:]}/{SOURCE}"), code=1),
    row("actions are no JSON", (ACTIONS, "JSON"), damage=put(ACTIONS, "{")),
    row(
        "a frame leaves",
        ("image_1", "leaves"),
        damage=edited(ACTIONS, lambda c: c[CLIP]["0"].update(image_1="../x.jpg") or c),
        code=1,
    ),
    row(
        "a label without an action",
        (f"{CLIP}/0", "names no action"),
        damage=edited(ACTIONS, lambda c: c[CLIP]["0"].update(action="#C C") or c),
        code=1,
    ),
    row("journal is no JSON", ("judge.json.journal: line 1",), damage=kept("journal", "{\n")),
    row("journal of others", ("line 1", "entry"), damage=kept("journal", '["a", 1, "", ""]\n')),
    row("another model", ("made_by.json", "model"), damage=kept("made_by.json", '{"model": "a"}')),
]
OTHERS = [
    row(f"{flag}: {what}", (OWN, said), f"--{flag} {{root}}/{OWN}", damage)
    for flag, what, damage, said in (
        ("oracle", "no JSON", put(OWN, "{"), "JSON"),
        ("oracle", "a list", put(OWN, "[]"), "object"),
        ("oracle", "no rows", put(OWN, '{"samples": {}}'), "'rows'"),
        ("oracle", "rows are texts", rows(["a"]), "'rows'"),
        ("oracle", "no action", rows([{"clip": CLIP, "done": True}]), "action_id"),
        ("oracle", "done is a text", rows([{**DONE, "done": "yes"}]), "'rows'"),
        ("oracle", "done is null", rows([{**DONE, "done": None}]), "'rows'"),
        ("oracle", "other frames", rows([{**DONE, "clip": "other"}]), "nothing of these frames"),
        ("oracle", "no frames", rows([]), "nothing of these frames"),
        ("votes", "no JSON", put(OWN, "{"), "JSON"),
        ("votes", "no samples", put(OWN, "{}"), "'samples'"),
        ("votes", "samples are a list", votes([1]), "'samples'"),
        ("votes", "votes are a number", votes({f"{CLIP}/0": 3}), "'samples'"),
        ("votes", "votes are texts", votes({f"{CLIP}/0": {"run": "a", "b": "c"}}), "'samples'"),
        ("votes", "other runs", votes({f"{CLIP}/0": {"a": 1, "b": 2}}), "run"),
        ("votes", "other frames", votes({"c/0": {"run": 1, "b": 2}}), "nothing of these frames"),
    )
]
SERVERS = [
    row(f"server: {fault}", ("--base-url: no answer", said), f"--base-url {{chat:{fault}}}")
    for fault, said in (
        ("400", "max_tokens is not supported"),
        ("401", "Incorrect API key provided: ***"),
        ("404", "expected a server up to /v1 that knows model and key"),
        ("429", "429"),
        ("500", "500"),
        ("html", 'found "<html>Welcome'),
        ("choices", "choices[0].message.content"),
        ("deep", "choices[0].message.content"),
    )
] + [
    row(
        f"answers: {fault}", (f"{CLIP}/0: done: it {said}",), f"--base-url {{chat:{fault}}}", code=1
    )
    for fault, said in (
        ("nothing", "is empty"),
        ("refusal", "refuses"),
        ("filter", "was ended by the server"),
        ("thought", "holds"),
        ("half", "holds"),
        ("sorry", "says neither yes nor no"),
    )
]
ADDRESSES = [
    row(f"address {url}", ("--base-url", said), f"--base-url {url}")
    for url, said in (
        ("http://127.0.0.1:9/v1", "Connection error"),
        ("localhost:8000/v1", "expected http"),
        ("http://localhost:99999/v1", "expected http"),
    )
]
JUDGING = [*OPTIONS, *FILES, *OTHERS, *SERVERS, *ADDRESSES]
