"""Texts of a server that answers from templates, or wrongly: what is asked, kept and left out."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from chat_server import BODIES, KEY, TEXTS, described, serving
from other_process import PROJECT
from PIL import Image
from small_dataset import write_split
from small_describer import DATASET, describe_words, feature_words
from vllm_tiny import write_released

from egogen import layout
from egogen.actions import read_actions
from egogen.errors import run_command
from egogen.labels import question
from egogen.seeds import stable_seed
from llava.describing.results import chunk_files, merge_results
from llava.eval.run_llava_in_loop import main

FIRST = "ego4d-val-clip0/0"
CLIPS, ACTIONS = 3, 2
COUNT = CLIPS * ACTIONS


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_split(root, DATASET, "val", clips=CLIPS, actions=ACTIONS)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def line(root, server, tmp_path):
    """The command, texts only, one question after the other; retries are left to the test."""

    def words(*more: object, address: str = server.url()) -> list[str]:
        words = describe_words(root, tmp_path, "--engine", "openai", "--base-url", address)
        words += ["--model", "m", "--text-only", "--concurrency", "1", "--retries", "0"]
        return words + [str(word) for word in more]

    return words


def texts(out: Path) -> dict[str, str]:
    merged = merge_results(chunk_files(out / "chunks" / "val"))
    return {
        f"{clip}/{action}": fields["description"]
        for clip, actions in merged.items()
        for action, fields in actions.items()
    }


def sent_frame(body: dict) -> Image.Image:
    head, data = body["messages"][-1]["content"][0]["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def refused(capsys, command: list[str], *said: str) -> None:
    """One line, exit 2, no record of anything."""
    with pytest.raises(SystemExit) as stopped:
        run_command(main, command)
    printed = "".join(capsys.readouterr())
    lines = [text for text in printed.splitlines() if text.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1, printed
    assert all(word in lines[0] for word in said) and KEY not in printed, printed


# --- what is asked


def test_frame_and_question_go_there(root, server, line, tmp_path, capsys):
    assert main(line("--max-new-tokens", "30", "--top-k", "9")) == 0
    frames = layout.frame_folder(root, DATASET, "val")
    entries = read_actions(layout.action_file(root, DATASET, "val"))
    for body, entry in zip(server.asked, entries, strict=True):
        (message,) = body["messages"]
        text = message["content"][1]
        assert np.array_equal(sent_frame(body), Image.open(frames / entry.image_0))
        assert text == {"type": "text", "text": question(f"pick up thing {entry.action_id}")}
        seed = stable_seed(42, entry.clip, entry.action_id) % 2**31
        fields = {"model": "m", "temperature": 0.2, "max_tokens": 30, "top_k": 9, "seed": seed}
        assert {name: body[name] for name in fields} == fields and len(body) == len(fields) + 1
    assert server.keys == [KEY] * COUNT
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert KEY not in "".join([*capsys.readouterr(), *(path.read_text() for path in files)])
    assert list(texts(tmp_path).values()) == [described(asked) for asked in server.questions()]


def test_frames_are_made_square_where_asked(root, server, line):
    assert main(line("--image-size", "32")) == 0
    assert {sent.size for sent in map(sent_frame, server.asked)} == {(32, 32)}


def test_greedy_and_more_fields(server, line):
    assert main(line("--temperature", "0", "--request", '{"max_tokens": null, "min_p": 0.1}')) == 0
    assert {"temperature", "min_p", "seed"} < set(server.asked[0])
    assert not {"max_tokens", "top_k"} & set(server.asked[0])


@pytest.mark.parametrize("batch", [1, 8])
def test_so_many_are_asked_at_once(server, line, batch):
    """Each answer waits for the other questions: with fewer at once there would be none."""
    server.together = threading.Barrier(3)
    assert main(line("--concurrency", "3", "--batch-size", batch)) == 0
    assert server.most == 3


def test_no_more_are_asked_at_once(server, line):
    server.delay = 0.02
    assert main(line("--batch-size", "8")) == 0
    assert server.most == 1


# --- answers that are none


SAID = {"nothing": "is empty", "blank": "is empty", "null": "is empty", "tools": "is empty"}
SAID |= {"refusal": "refuses", "filter": "(content_filter)", "half": "holds"}
SAID |= {"thought": "<think", "400": "max_tokens is not supported", "403": "not for you"}
SAID |= {"500": "500", "cut": "Connection error", "number": "choices[0].message.content"}
SAID |= dict.fromkeys(BODIES, "choices[0].message.content")


@pytest.mark.parametrize("fault", SAID)
def test_a_question_without_a_text_is_named_and_left_out(server, line, tmp_path, capsys, fault):
    """The first one, when nothing is known of the server yet; the others go on."""
    server.faults = [fault]
    assert main(line()) == 1
    said = [text for text in capsys.readouterr().err.splitlines() if "not described" in text]
    assert len(said) == 1 and FIRST in said[0] and SAID[fault] in said[0]
    assert len(texts(tmp_path)) == COUNT - 1 and FIRST not in texts(tmp_path)
    asked = len(server.asked)
    assert main(line()) == 0  # the same command asks for that one alone
    assert len(server.asked) == asked + 1 and FIRST in texts(tmp_path)


def test_what_is_cut_at_the_limit_is_kept(server, line, tmp_path):
    """As a text that the model writes here."""
    server.faults = ["tokens"]
    assert main(line()) == 0
    assert texts(tmp_path)[FIRST] == described(server.questions()[0])


@pytest.mark.parametrize(
    "answer",
    ["<think>Hm.</think>\n\n A mug,\n“red”. ", "Hm.</think>A mug,\n“red”.", [
        {"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A mug,\n“red”."}]],
)  # fmt: skip
def test_a_text_is_kept_as_it_is(server, line, tmp_path, monkeypatch, answer):
    """Without the thoughts before it and the space around it."""
    monkeypatch.setitem(TEXTS, "own", answer)
    server.faults = ["own"]
    assert main(line()) == 0
    assert texts(tmp_path)[FIRST] == "A mug,\n“red”."


def test_faults_that_pass(server, line, tmp_path):
    server.faults = ["429", "500", "503", "cut", "", "500"]
    assert main([*line(), "--retries", "4"]) == 0
    assert len(server.asked) == COUNT + 5 and len(texts(tmp_path)) == COUNT


def test_all_that_is_left_is_always_refused(server, line, tmp_path, capsys):
    """By a process that has had no answer yet: a plain picture shows that the server is well."""
    server.faults = ["", *["400"] * (COUNT - 1)]
    assert main(line()) == 1
    server.faults = ["400", "", *["400"] * (COUNT - 2)]
    assert main(line()) == 1
    assert capsys.readouterr().err.count("not described") == 2 * (COUNT - 1)
    assert len(texts(tmp_path)) == 1


# --- servers that are none


@pytest.mark.parametrize("fault", ["400", "401", "403", "404", "500", "html", "nonsense", "cut"])
def test_a_server_that_never_answers(server, line, tmp_path, capsys, fault):
    refused(capsys, line(address=server.url(fault)), "--base-url: no answer")
    assert len(server.asked) <= 4 and not list(tmp_path.rglob("*.json*"))
    assert main(line()) == 0  # nothing that was wrong is recorded


def test_nobody_there(line, tmp_path, capsys):
    refused(capsys, line(address="http://127.0.0.1:9/v1"), "--base-url", "Connection error")
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_server_that_stops_answering(server, line, tmp_path, capsys, batch):
    """What it has answered is kept, whatever the batch; the same command goes on."""
    server.faults = ["", "", "", *["500"] * 9]
    refused(capsys, line("--batch-size", batch), "--base-url: no answer (500")
    assert len(server.asked) == 6
    server.faults = []
    assert main(line("--batch-size", batch)) == 0
    assert len(server.asked) == 6 + COUNT - 3 and len(texts(tmp_path)) == COUNT


def test_answers_beside_the_failing_one_are_kept(root, server, line, tmp_path, capsys):
    server.faults = ["", "401"]
    server.together = threading.Barrier(COUNT)
    refused(capsys, line("--concurrency", COUNT), "--base-url", "401")
    server.together = None
    asked = len(server.asked)
    assert main(line()) == 0
    assert len(server.asked) - asked < COUNT


def test_stopped_while_the_server_hangs(server, line):
    """Ctrl-C waits for no answer."""
    server.faults = ["slow"] * COUNT
    command = [sys.executable, "-m", "llava.eval.run_llava_in_loop", *line("--concurrency", "3")]
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT / 'vllm'}"}
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stderr=subprocess.DEVNULL, preexec_fn=heeds
    )
    until = time.monotonic() + 60
    while len(server.asked) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(20) == 130 and len(server.asked) == 3


# --- going on


def test_what_is_finished_is_not_asked_again(server, line, tmp_path):
    assert main(line()) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(line(address=f"{server.url()}/")) == 0  # the same server
    assert len(server.asked) == COUNT
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_batches_chunks_and_concurrency_change_nothing(root, server, line, tmp_path):
    assert main(line()) == 0
    asked = {json.dumps(body, sort_keys=True) for body in server.asked}
    expected = texts(tmp_path)
    server.asked.clear()
    for number in (1, 2):
        command = line("--num-chunks", 2, "--chunk-idx", number, "--batch-size", 3)
        command[command.index("--save-path") + 1] = str(tmp_path / "other" / "chunks" / "val")
        assert main([*command, "--concurrency", "4"]) == 0
    assert {json.dumps(body, sort_keys=True) for body in server.asked} == asked
    assert texts(tmp_path / "other") == expected


def test_two_chunks_at_once(server, line, tmp_path):
    """As two tasks of an array: an answer waits until both have asked."""
    server.together = threading.Barrier(2)
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT / 'vllm'}"}
    command = [sys.executable, "-m", "llava.eval.run_llava_in_loop"]
    tasks = [
        subprocess.Popen([*command, *line("--num-chunks", 3, "--chunk-idx", k)], env=environment)
        for k in (1, 2)
    ]
    assert [task.wait(100) for task in tasks] == [0, 0] and server.most == 2
    server.together = None
    assert main(line("--num-chunks", 3, "--chunk-idx", 3)) == 0
    assert len(server.asked) == COUNT == len(texts(tmp_path))


# --- origins


CHANGED = {
    "served_model": ["--model", "other"],
    "temperature": ["--temperature", "0"],
    "request": ["--request", '{"top_p": 1}'],
    "max_new_tokens": ["--max-new-tokens", "9"],
    "server": [],
}


@pytest.mark.parametrize("name", CHANGED)
def test_texts_of_two_servers_are_not_mixed(server, line, capsys, name):
    assert main(line()) == 0
    address = server.url("v1").replace("/v1/", "/more/") if name == "server" else server.url()
    refused(capsys, line(*CHANGED[name], address=address), "made_by.json", f"made with {name} ")
    assert len(server.asked) == COUNT
    assert main(line()) == 0


def test_server_and_local_texts_are_not_mixed(root, server, weights, tmp_path, capsys):
    """Neither in results nor in stores, whichever was there first."""
    local = ["--model-path", weights, "--max-new-tokens", "2"]
    served = [*local, "--engine", "openai", "--base-url", server.url(), "--model", "m"]
    commands = {}
    for name, words in (("local", local), ("served", served)):
        out = tmp_path / name
        commands[name] = describe_words(root, out, *words, *feature_words(out))
        assert main(commands[name]) == 0
    assert len(server.asked) == COUNT
    assert {sent.size for sent in map(sent_frame, server.asked)} == {(224, 224)}, "as the weights"
    for first, (name, command) in zip(("served", "local"), commands.items(), strict=True):
        files = {"--save-path": "made_by", "--save-text-feature-path": "feature_info"}
        for flag, file in files.items():
            mixed, there = list(command), commands[first]
            mixed[mixed.index(flag) + 1] = there[there.index(flag) + 1]
            if flag != "--save-path":  # results of its own kind, elsewhere
                mixed[mixed.index("--save-path") + 1] = str(tmp_path / f"new {name}" / "val")
            refused(capsys, mixed, f"{file}.json", "made with sampling")
    assert len(server.asked) == COUNT
    assert main(commands["served"]) == main(commands["local"]) == 0


def test_a_password_in_the_address_is_not_recorded(server, line, tmp_path):
    address = server.url().replace("//", "//me:secret@")
    assert main(line(address=address)) == 0
    record = json.loads((tmp_path / "chunks" / "val" / "made_by.json").read_text())
    assert record["server"] == server.url().removeprefix("http://")


def test_texts_without_room_in_the_weights(root, server, weights, tmp_path, capsys, monkeypatch):
    """They are named, the others get their features."""
    monkeypatch.setitem(TEXTS, "own", "The right hand lifts it. " * 2000)
    server.faults = ["own"]
    words = ["--model-path", weights, "--engine", "openai", "--base-url", server.url()]
    words += ["--model", "m", "--concurrency", "1", *feature_words(tmp_path)]
    assert main(describe_words(root, tmp_path, *words)) == 1
    said = capsys.readouterr().err
    assert f"not described: entry {FIRST}: " in said and "expected at most" in said
    assert len(list((tmp_path / "text").rglob("*.npy"))) == COUNT - 1
