"""Curation by a server that answers from templates, or wrongly: what is asked, kept and written."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import BODIES, KEY, STATUSES, described, serving
from other_process import PROJECT, held
from PIL import Image
from small_dataset import write_dataset

from egogen import layout
from egogen.actions import DESCRIPTION_KEY
from egogen.curate.__main__ import main
from egogen.errors import EgoGenError, run_command
from egogen.labels import question
from llava.train.data import read_conversations

FIRST = "ego4d-train-clip0/0"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as running:
        yield running


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "data", splits=("train",))


def line(root: Path, server, *more: str, out: str = "out.json") -> list[str]:
    words = [root, "--name", "ego4d", "--out", root / out, "--base-url", server.url()]
    return [str(word) for word in (*words, "--model", "m", "--retries", "3", *more)]


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def texts(path: Path) -> list[str]:
    return [row["conversations"][1]["value"] for row in json.loads(path.read_text())]


# --- what is asked, what is written


def test_conversations_as_stage_1_reads_them(root, server, capsys):
    (root / "sub").mkdir()
    assert (
        main(line(root, server, "--actions-output", str(root / "sub/a.json"), "--key", "new")) == 0
    )
    (first, *others) = rows = read_conversations(root / "out.json")
    assert [row.name for row in rows] == [f"ego4d_{k:06d}" for k in range(4)]
    asked = f"<image>\n{question('pick up thing 0')}"
    assert first.turns == (asked, described("Action: pick up thing 0"))
    assert (layout.frame_folder(root, "ego4d", "train") / first.image).is_file()
    before = json.loads(layout.action_file(root, "ego4d", "train").read_text())
    after = json.loads((root / "sub/a.json").read_text())
    assert [fields.pop("new") for actions in after.values() for fields in actions.values()] == [
        row.turns[1] for row in rows
    ]
    assert after == before and len(others) == 3
    (body, *_) = server.asked
    assert {message["role"] for message in body["messages"]} == {"system", "user", "assistant"}
    assert body["temperature"] == 0 and len({asked["seed"] for asked in server.asked}) == 4
    assert server.keys == [KEY] * 4
    assert [path for path in root.rglob("*") if path.is_file() and KEY in read(path)] == []
    assert KEY not in "".join(capsys.readouterr())


def read(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


def test_more_fields_of_a_request(root, server):
    request = {"max_tokens": None, "max_completion_tokens": 9, "temperature": 1}
    main(line(root, server, "--request", json.dumps(request), "--limit", "1"))
    (body,) = server.asked
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["temperature"]) == (9, 1)


def test_boxes_of_the_source_frame(root, server):
    boxes = {
        "0": {"object": "thing", "bbox": [45, 26, 45, 52]},
        "1": [
            {"frame": "target", "object": "thing", "bbox": [0, 0, 1, 1]},
            {"frame": "source", "object": "other_thing_(thing,_item)", "bbox": [405, 0, 90, 260]},
            {"frame": "source", "object": "left_hand", "bbox": [-9, 0, 54, 26]},
        ],
    }
    edit(
        layout.metadata_file(root, "ego4d"),
        lambda content: content["ego4d-train-clip0"].update(actions=boxes),
    )
    assert main(line(root, server, "--concurrency", "1")) == 0
    assert server.questions()[:3] == [
        "Action: pick up thing 0\nObjects: thing (10, 10, 20, 30)",
        "Action: pick up thing 1\nObjects: other thing (90, 0, 100, 100), left hand (0, 0, 10, 10)",
        "Action: pick up thing 0",
    ]
    assert "thing on the left" in texts(root / "out.json")[0]


def test_no_metadata_is_needed(root, server):
    layout.metadata_file(root, "ego4d").unlink()
    assert main(line(root, server)) == 0


def test_frames_are_sent(root, server, capsys):
    frames = layout.frame_folder(root, "ego4d", "train")
    path = frames / "ego4d-train-clip0/0/frame_000010.jpg"
    Image.open(path).resize((2000, 1000)).save(path)
    (frames / "ego4d-train-clip1/1/frame_000010.jpg").unlink()
    assert main(line(root, server, "--images", "--concurrency", "1")) == 1
    said = capsys.readouterr().err
    assert said.count("not curated") == 1 and "clip1/1" in said and "no such image" in said
    image, text = server.asked[0]["messages"][-1]["content"]
    head, data = image["image_url"]["url"].split(",")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and sent.size == (768, 384)
    assert text == {"type": "text", "text": "Action: pick up thing 0"}
    assert len(texts(root / "out.json")) == 3


def test_a_label_without_an_action(root, server, capsys):
    def change(content):
        content["ego4d-train-clip0"]["1"]["action"] = "#C C"

    edit(layout.action_file(root, "ego4d", "train"), change)
    assert main(line(root, server)) == 1
    assert "clip0/1: its label names no action" in capsys.readouterr().err
    rows = json.loads((root / "out.json").read_text())
    assert [row["id"][-1] for row in rows] == ["0", "2", "3"] and len(server.asked) == 3


def test_at_most_so_many_a_minute(root, server):
    main(line(root, server, "--requests-per-minute", "600"))
    assert server.times[-1] - server.times[0] >= 0.2  # three waits of 0.1 s


# --- servers that answer wrongly


def test_faults_that_pass(root, server):
    server.faults = ["429", "500", "503", "cut", "nonsense", "sorry", "", "html", "short"]
    assert main(line(root, server, "--concurrency", "1", "--retries", "4")) == 0
    assert len(server.asked) == 12
    calm = line(root, server, out="calm.json")
    assert main(calm) == 0
    assert texts(root / "out.json") == texts(root / "calm.json")


def test_retry_after_is_honoured(root, server):
    server.faults = ["429"]
    assert main(line(root, server, "--limit", "1")) == 0
    assert server.times[1] - server.times[0] >= 0.2


SAID = {
    "short": "5 characters",
    "long": "3464 characters",
    "sorry": "refuses",
    "machine": "refuses",
}
SAID |= {"refusal": "refuses", "tokens": "length", "filter": "content_filter", "half": "holds"}
SAID |= {
    "nothing": "empty",
    "blank": "empty",
    "null": "empty",
    "control": "holds",
    "mark": "<image>",
}
SAID |= {"other": "does not name thing"}


@pytest.mark.parametrize("fault", SAID)
def test_a_bad_answer_is_named_and_never_written(root, server, capsys, fault):
    server.faults = [fault] * 3
    command = line(root, server, "--concurrency", "1")
    assert main(command) == 1
    named = [text for text in capsys.readouterr().err.splitlines() if "not curated" in text]
    assert len(named) == 1 and FIRST in named[0] and SAID[fault] in named[0]
    written = (root / "out.json").read_bytes()
    assert len(texts(root / "out.json")) == 3 and len(server.asked) == 6
    assert "An earlier answer is of no use" in server.questions()[1]
    assert main(command) == 1  # it is known, and asked no more
    assert len(server.asked) == 6 and (root / "out.json").read_bytes() == written


@pytest.mark.parametrize("fault", [*BODIES, "number", "list", "400", "403", "500", "cut"])
def test_a_question_without_an_answer_is_asked_the_next_time(root, server, capsys, fault):
    server.faults = [fault] * 3
    command = line(root, server, "--concurrency", "1")
    command[command.index("--retries") + 1] = "0" if fault in ("cut", "500", "400", "403") else "2"
    server.faults = server.faults[: 1 if command[command.index("--retries") + 1] == "0" else 3]
    assert main(command) == 1
    named = [text for text in capsys.readouterr().err.splitlines() if "not curated" in text]
    assert len(named) == 1 and FIRST in named[0]
    assert len(texts(root / "out.json")) == 3
    asked = len(server.asked)
    assert main(command) == 0
    assert len(server.asked) == asked + 1 and len(texts(root / "out.json")) == 4


def test_a_slow_server(root, server, capsys):
    server.faults = ["slow"]
    assert main([*line(root, server), "--retries", "0", "--timeout", "2"]) == 1
    assert "timed out" in capsys.readouterr().err
    assert len(texts(root / "out.json")) == 3


def test_the_key_is_not_repeated(root, server, capsys):
    command = line(root, server)
    command[command.index(server.url())] = server.url("401")
    with pytest.raises(SystemExit) as stopped:
        run_command(main, command)
    said = "".join(capsys.readouterr())
    assert stopped.value.code == 2 and "401" in said and KEY not in said
    assert len(server.asked) <= 4 and not (root / "out.json").exists()


def test_no_part_of_the_key_is_repeated(root, server, capsys, monkeypatch):
    """Nor where a long answer is cut."""
    monkeypatch.setitem(STATUSES, "401", "x" * 365 + "{key}")
    command = line(root, server)
    command[command.index(server.url())] = server.url("401")
    with pytest.raises(SystemExit):
        run_command(main, command)
    assert KEY[:6] not in "".join(capsys.readouterr())


def test_a_server_that_stops_answering(root, server):
    server.faults = ["", "", *["500"] * 9]
    command = line(root, server, "--concurrency", "1")
    command[command.index("--retries") + 1] = "0"
    edit(
        layout.action_file(root, "ego4d", "train"),
        lambda content: content.update(more=content["ego4d-train-clip0"]),
    )
    with pytest.raises(EgoGenError, match="--base-url: no answer .500"):
        main(command)
    assert not (root / "out.json").exists() and len(server.asked) == 5
    server.faults = []
    assert main(command) == 0 and len(server.asked) == 9


def test_questions_that_are_always_refused_keep_no_others_back(root, server, capsys):
    server.faults = ["", *["400"] * 3]
    command = line(root, server, "--concurrency", "1")
    assert main(command) == 1
    server.faults = ["400"] * 3
    assert main(command) == 1
    assert capsys.readouterr().err.count("not curated") == 6
    assert len(texts(root / "out.json")) == 1


# --- going on


def test_order_and_concurrency_change_nothing(root, server):
    server.faults = ["500", "429"]
    server.delay = 0.05
    main(line(root, server, out="many.json"))
    main(line(root, server, "--concurrency", "1", out="one.json"))
    assert (root / "many.json").read_bytes() == (root / "one.json").read_bytes()
    first, second = (
        {asked["messages"][-1]["content"] + str(asked["seed"]) for asked in half}
        for half in (server.asked[:-4], server.asked[-4:])
    )
    assert first == second


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle(root, server, number):
    main(line(root, server, out="calm.json"))
    server.asked.clear()
    server.delay = 0.3
    command = [sys.executable, "-m", "egogen.curate", *line(root, server, "--concurrency", "1")]
    # What is run in the background begins with Ctrl-C ignored.
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL, preexec_fn=heeds)
    until = time.monotonic() + 60
    while len(server.asked) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, number)
    assert process.wait(30) != 0
    assert not (root / "out.json").exists()
    journal = root / "out.json.journal"
    kept = len(journal.read_text().splitlines())
    assert kept >= 2
    with open(journal, "ab") as file:  # as a kill within a line leaves it
        file.write(b'["ego4d-train-cl')
    server.delay = 0
    server.asked.clear()
    assert main(line(root, server, "--concurrency", "1")) == 0
    assert len(server.asked) == 4 - kept
    assert (root / "out.json").read_bytes() == (root / "calm.json").read_bytes()
    assert len(journal.read_text().splitlines()) == 4


def test_a_changed_label_is_asked_again(root, server):
    main(line(root, server))

    def change(content):
        content["ego4d-train-clip0"]["1"]["action"] = "#C C opens the jar"

    edit(layout.action_file(root, "ego4d", "train"), change)
    assert main(line(root, server)) == 0
    assert server.questions()[4:] == ["Action: open the jar"]
    assert "open the jar" in texts(root / "out.json")[1]


def test_a_part_first(root, server):
    main(line(root, server, out="calm.json"))
    assert main(line(root, server, "--limit", "2")) == 0
    assert len(texts(root / "out.json")) == 2
    assert main(line(root, server)) == 0
    assert len(server.asked) == 8
    assert (root / "out.json").read_bytes() == (root / "calm.json").read_bytes()


@pytest.mark.parametrize(
    "more", ["--model other", "--seed 1", "--images", '--request {"top_p":1}', "--examples {}"]
)
def test_answers_of_another_origin_are_refused(root, server, more):
    main(line(root, server))
    own = root / "own.yaml"
    own.write_text("system: Say it.\nexamples: [{action: open it, description: It is opened.}]\n")
    with pytest.raises(EgoGenError, match="made_by.json: what is here was made with"):
        main([*line(root, server), *more.replace("{}", str(own)).split()])
    assert len(server.asked) == 4


def test_two_at_once(root, server):
    with (
        held(root / ".out.json.lock"),
        pytest.raises(EgoGenError, match="another process is curating here"),
    ):
        main(line(root, server))
    assert server.asked == []


# --- without a server


def test_a_dry_run_asks_nothing(root, capsys):
    assert main([str(root), "--name", "ego4d", "--dry-run", "--images"]) == 0
    printed = capsys.readouterr().out
    messages, end = json.JSONDecoder().raw_decode(printed)
    assert [message["role"] for message in messages[:3]] == ["system", "user", "assistant"]
    assert messages[-1] == {"role": "user", "content": "Action: pick up thing 0"}
    assert "4 requests; an estimate" in printed[end:] and "4 images" in printed[end:]
    assert sorted(path.name for path in root.iterdir()) == [
        "EgoGen",
        "ego4d_metadata.json",
        "ego4d_train.json",
    ]


def test_descriptions_that_are_there(root, capsys):
    def change(content):
        content["ego4d-train-clip0"]["1"].pop(DESCRIPTION_KEY)
        content["ego4d-train-clip1"]["0"][DESCRIPTION_KEY] = "It holds\x00."
        content["ego4d-train-clip1"]["1"][DESCRIPTION_KEY] = " Two\nlines. "

    edit(layout.action_file(root, "ego4d", "train"), change)
    out = str(root / "out.json")
    command = [str(root), "--name", "ego4d", "--out", out, "--from-column"]
    assert main([*command, "description"]) == 1
    said = capsys.readouterr().err
    assert "clip0/1: its text is empty" in said and "clip1/0: its text holds" in said
    assert texts(root / "out.json") == ["The right hand picks up thing 0 of clip 0.", "Two lines."]
    assert main([*command, DESCRIPTION_KEY]) == 1
    with pytest.raises(EgoGenError, match="no entry has a text 'gpt'"):
        main([*command, "gpt"])
    assert sorted(path.name for path in root.glob("*out*")) == ["out.json"]
