"""Bad input of `python -m egogen.curate`: examples, metadata, journals, servers, a row each."""

from __future__ import annotations

import json
from pathlib import Path

from bad_input_damage import Case, Damage, edited, gone, put, untouched
from chat_server import beside

from egogen.curate.__main__ import main

CLIP = "ego4d-val-clip0"
SIZES, OWN, ACTIONS = "ego4d_metadata.json", "own.yaml", "ego4d_val.json"
LINE = "{root} --name ego4d --split val --out {root}/out/talk.json --base-url {chat} --model m "
LINE += "--retries 0 --concurrency 1"


curate = beside(main)


def boxes(value: object, **fields: object) -> Damage:
    """The metadata with these boxes of the first action."""
    return edited(SIZES, lambda c: c[CLIP].update({"actions": {"0": value}, **fields}))


def journal(*lines: str) -> Damage:
    def damage(root: Path) -> None:
        (root / "out").mkdir()
        (root / "out" / "talk.json.journal").write_text("".join(f"{line}\n" for line in lines))

    return damage


def made_by(text: str) -> Damage:
    def damage(root: Path) -> None:
        (root / "out").mkdir()
        (root / "out" / "talk.json.made_by.json").write_text(text)

    return damage


ROW = "[{action: open it, description: It is opened.}]"
EXAMPLES = [
    Case(
        "curate",
        f"examples: {what}",
        put(OWN, text),
        (OWN, said),
        more=f"--examples {{root}}/{OWN}",
    )
    for what, text, said in (
        ("empty", "", "'system'"),
        ("no YAML", "system: [", "'examples'"),
        ("not UTF-8", b"system: \xff", "YAML"),
        ("a list", "- a", "'system'"),
        ("no system text", f"examples: {ROW}", "system"),
        ("system is a list", f"system: [a]\nexamples: {ROW}", "'system'"),
        ("no examples", "system: a\nexamples: []", "no examples"),
        ("one is a text", "system: a\nexamples: [b]", "example 1"),
        ("no description", "system: a\nexamples: [{action: open it}]", "description"),
        ("an empty one", "system: a\nexamples: [{action: b, description: ' '}]", "an empty text"),
        ("action is yes", "system: a\nexamples: [{action: yes, description: b}]", "example 1"),
        ("misspelt key", f"system: a\nexamples: {ROW[:-2]}, object: c}}]", "also object"),
        ("boxes are a list", f"system: a\nexamples: {ROW[:-2]}, objects: [1]}}]", "left, top"),
        ("box of a text", f"system: a\nexamples: {ROW[:-2]}, objects: {{a: [b]}}}}]", "example 1"),
        ("a payload", "!!python/object/apply:os.mkdir [executed]", OWN),
    )
] + [Case("curate", "examples: missing", untouched, ("none.yaml",), more="--examples none.yaml")]
METADATA = [
    Case("curate", f"boxes: {what}", damage, (f"{CLIP}/0", "bbox"))
    for what, damage in (
        ("a text", boxes("mug")),
        ("three numbers", boxes({"object": "mug", "bbox": [1, 2, 3]})),
        ("texts", boxes({"object": "mug", "bbox": ["a", "b", "c", "d"]})),
        ("no object", boxes([{"bbox": [1, 2, 3, 4]}])),
        ("object is a number", boxes({"object": 3, "bbox": [1, 2, 3, 4]})),
        ("width is 0", boxes({"object": "mug", "bbox": [1, 2, 3, 4]}, width=0)),
        ("no width", boxes({"object": "mug", "bbox": [1, 2, 3, 4]}, width=None)),
    )
] + [Case("curate", "metadata is a list", put(SIZES, "[]"), (SIZES, "object of clips"))]
KEPT = [
    Case("curate", "journal is no JSON", journal("{"), ("talk.json.journal: line 1", "JSON")),
    Case("curate", "journal of objects", journal('["a", "b", "c", ""]', "{}"), ("line 2", "entry")),
    Case("curate", "journal of numbers", journal('["a", "b", 3, ""]'), ("line 1", "text")),
    Case("curate", "record is a list", made_by("[]"), ("made_by.json", "object")),
    Case(
        "curate", "other model", made_by(json.dumps({"model": "a"})), ("made_by.json", "expected")
    ),
]
SERVERS = [
    Case(
        "curate",
        f"server: {fault}",
        untouched,
        ("--base-url", said),
        more=f"--base-url {{chat:{fault}}}",
    )
    for fault, said in (
        ("400", "max_tokens is not supported"),
        ("401", "Incorrect API key provided: ***"),
        ("403", "not for you"),
        ("404", '"no such model", "type": "t", "code": null}}); expected a server up to /v1'),
        ("429", "429"),
        ("500", "500"),
        ("cut", "Connection error"),
        ("html", 'found "<html>Welcome'),
        ("nonsense", "choices[0].message.content"),
        ("choices", "choices[0].message.content"),
        ("array", "choices[0].message.content"),
        ("number", "choices[0].message.content"),
    )
] + [
    Case(
        "curate",
        f"server: {fault}",
        untouched,
        (f"{CLIP}/0", said),
        1,
        f"--base-url {{chat:{fault}}}",
    )
    for fault, said in (("sorry", "refuses"), ("nothing", "empty"), ("other", "name thing"))
]
ADDRESSES = [
    Case("curate", f"address {url}", untouched, ("--base-url", said), more=f"--base-url {url}")
    for url, said in (
        ("http://127.0.0.1:1/v1", "Connection error"),
        ("localhost:8000/v1", "expected http"),
        ("ftp://localhost/v1", "expected http"),
        ("http:///v1", "expected http"),
        ("http://localhost:99999/v1", "expected http"),
        ("http://[::1/v1", "expected http"),
    )
]
OPTIONS = [
    Case("curate", f"option {more}", untouched, (said,), more=more)
    for more, said in (
        ("--concurrency 0", "concurrency"),
        ("--retries -1", "retries"),
        ("--limit 0", "limit"),
        ("--timeout nan", "timeout"),
        ("--requests-per-minute 0", "requests_per_minute"),
        ("--request [1]", "--request"),
        ("--request {", "--request"),
        ("--key action", "--key"),
        ("--name ego5d", "ego5d"),
        ("--model ''", "--model"),
        ("--out {root}/ego4d_val.json", "in use"),
        ("--actions-output {root}/ego4d_metadata.json", "in use"),
        ("--actions-output {root}/out/talk.json", "in use"),
        ("--out {root}", "is a folder"),
        ("--from-column gpt", "no entry has a text 'gpt'"),
        ("--split train --name epickitchen", "epickitchen_train.json"),
    )
] + [
    Case("curate", "no action file", gone(ACTIONS), (ACTIONS,)),
    Case(
        "curate",
        "no label",
        edited(ACTIONS, lambda c: c[CLIP]["0"].pop("action") and c),
        ("action",),
    ),
]
CURATING = [*EXAMPLES, *METADATA, *KEPT, *SERVERS, *ADDRESSES, *OPTIONS]
