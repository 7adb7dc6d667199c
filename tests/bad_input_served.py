"""Bad input of describing with a server's texts: flags, addresses, servers, origins, a row each."""

from __future__ import annotations

import json
from pathlib import Path

from bad_input_damage import Case, Damage, edited, gone, put, untouched
from chat_server import beside

from llava.eval.run_llava_in_loop import main

CLIP, ACTIONS = "ego4d-val-clip0", "ego4d_val.json"
SOURCE = f"EgoGen/ego4d.fho/val/{CLIP}/0/frame_000010.jpg"
LINE = "--image-dir {root}/EgoGen/ego4d.fho/val --action-label {root}/ego4d_val.json "
LINE += "--save-path {root}/out/chunks --engine openai --base-url {chat} --model m --text-only "
LINE += "--retries 0 --concurrency 1"


describe = beside(main)


def made_by(**fields: object) -> Damage:
    """Results that something else made."""

    def damage(root: Path) -> None:
        (root / "out" / "chunks").mkdir(parents=True)
        record = {"num_chunks": 1, "sampling": "server", **fields}
        (root / "out" / "chunks" / "made_by.json").write_text(json.dumps(record))

    return damage


def row(what: str, said: tuple[str, ...], more: str = "", damage=untouched, code: int = 2) -> Case:
    return Case("describe served", what, damage, said, code, more)


FLAGS = [
    row(f"option {more}", (said,), more)
    for more, said in (
        ("--engine local", "--base-url, --model (not -path): expected all or none"),
        ("--base-url ''", "expected all or none"),
        ("--model ''", "(not -path)"),
        ("--engine vllm", "invalid choice"),
        ("--save-text-feature-path {root}/out/text", "--text-only: expected --engine openai, and"),
        ("--save-image-feature-path {root}/out/image", "no folders of features"),
        ("--concurrency 0", "concurrency"),
        ("--retries -1", "retries"),
        ("--timeout nan", "timeout"),
        ("--requests-per-minute 0", "requests_per_minute"),
        ("--request [1]", "--request: expected a JSON object"),
        ("--request {", "--request"),
        ("--temperature -1", "--temperature"),
        ("--chunk-idx 2", "chunk index 2"),
    )
]
ADDRESSES = [
    row(f"address {url}", ("--base-url", said), f"--base-url {url}")
    for url, said in (
        ("http://127.0.0.1:9/v1", "Connection error"),
        ("localhost:8000/v1", "expected http"),
        ("http:///v1", "expected http"),
        ("http://localhost:99999/v1", "expected http"),
    )
]
SERVERS = [
    row(f"server: {fault}", ("--base-url: no answer", said), f"--base-url {{chat:{fault}}}")
    for fault, said in (
        ("400", "max_tokens is not supported"),
        ("401", "Incorrect API key provided: ***"),
        ("403", "not for you"),
        ("404", "expected a server up to /v1 that knows model and key"),
        ("429", "429"),
        ("500", "500"),
        ("cut", "Connection error"),
        ("html", 'found "<html>Welcome'),
        ("choices", "choices[0].message.content"),
        ("bytes", "choices[0].message.content"),
        ("deep", "choices[0].message.content"),
        ("number", "choices[0].message.content"),
    )
]
ANSWERS = [
    row(f"answers: {fault}", (f"{CLIP}/0", said), f"--base-url {{chat:{fault}}}", code=1)
    for fault, said in (
        ("nothing", "the server's answer is empty"),
        ("tools", "the server's answer is empty"),
        ("refusal", "refuses"),
        ("filter", "content_filter"),
        ("thought", "<think"),
        ("half", "holds"),
    )
]
OTHERS = [
    row("no action file", (ACTIONS,), damage=gone(ACTIONS)),
    row("actions are no JSON", (ACTIONS,), damage=put(ACTIONS, "{")),
    row("a frame is missing", (SOURCE,), damage=gone(SOURCE), code=1),
    row(
        "a label without an action",
        (f"{CLIP}/0", "names no action"),
        damage=edited(ACTIONS, lambda c: c[CLIP]["0"].update(action="#C C") or c),
        code=1,
    ),
    row("texts of another server", ("made_by.json", "server"), damage=made_by(server="x")),
    row("texts of the model here", ("sampling",), damage=made_by(sampling="per-sample")),
]
SERVED = [*FLAGS, *ADDRESSES, *SERVERS, *ANSWERS, *OTHERS]
SERVED += [
    Case("describe", "no weights", untouched, ("--model-path: expected",), more="--model-path ''"),
    Case("describe", "texts alone", untouched, ("--text-only: exp",), more="--text-only"),
    Case("describe", "a server's model", untouched, ("all or none",), more="--model m"),
]
