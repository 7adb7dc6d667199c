"""A judge without targets: what a served model is asked, how it is read, what is kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import model_families
import pytest
from chat_server import KEY, question_of, serving
from judge_runs import asked_of, figures, line, readings
from other_process import PROJECT
from PIL import Image
from real_server import serving_folder
from small_dataset import write_dataset, write_split

from egogen import layout
from egogen.actions import read_actions
from egogen.errors import EgoGenError
from egogen.frames import read_rgb
from metrics.judge import main
from metrics.reporting import judged

FIRST = "ego4d-val-clip0/0"
NAMES = ("done", "scene_kept", "hands")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as running:
        running.answer_to = lambda body: "Yes."
        yield running


@pytest.fixture
def root(tmp_path):
    """Four frames of two clips; what was generated is what is true."""
    root = write_dataset(tmp_path / "data", splits=("val",))
    truth = layout.frame_folder(root, "ego4d", layout.GROUND_TRUTH)
    shutil.copytree(truth, root / "run/images")
    return root


# --- what is asked, what is written


def test_each_question_comes_with_both_frames(root, server, capsys):
    assert main(line(root, server, "--concurrency", "1")) == 0
    entries = read_actions(layout.action_file(root, "ego4d", "val"))
    assert len(server.asked) == 3 * len(entries) == 12
    for number, body in enumerate(server.asked):
        entry = entries[number // 3]
        name, (source, generated), text = asked_of(body)
        assert name == NAMES[number % 3] and body["temperature"] == 0
        assert f"next: pick up thing {entry.action_id}.\n" in text
        assert "yes or no" in text and len(body["messages"]) == 1
        frames = layout.frame_folder(root, "ego4d", "val")
        for image, path in ((source, entry.image_0), (generated, entry.image_1)):
            assert image.format == "PNG" and image.tobytes() == read_rgb(frames / path).tobytes()
    found = figures(root)
    assert [found[key] for key in ("samples", "problems", "unreadable")] == [4, 0, 0]
    assert {found[key] for key in (*NAMES, "all")} == {1.0} and found["all_ci95"] == [1, 1]
    assert found["model"] == "m" and found["wording"].startswith(f"{judged.RULES['version']} ")
    said = capsys.readouterr()
    assert "done                              1.0   95 %: 1.0000 to 1.0000" in said.out
    files = [path.read_bytes() for path in (root / "run/judge").iterdir()]
    assert not said.err.count("not judged") and not any(KEY.encode() in data for data in files)


def test_large_frames_are_sent_smaller(root, server):
    for path in (root / "run/images").rglob("*.jpg"):
        Image.open(path).resize((2000, 1000)).save(path)
    assert main(line(root, server, "--limit", 1)) == 0 and len(server.asked) == 3
    assert [image.size for image in asked_of(server.asked[0])[1]] == [(45, 26), (768, 384)]


def test_shares_by_hand(root, server):
    """Of four frames: one without the action, one whose hands cannot be read, one with neither."""
    said = iter(["yes", "yes", "yes", "no", "yes", "yes", "yes", "yes", "ja", "no", "yes", "oui"])
    server.answer_to = lambda body: next(said)
    assert main(line(root, server, "--concurrency", "1")) == 1
    found = figures(root)
    assert [found[key] for key in (*NAMES, "all")] == [0.5, 1, 1, pytest.approx(1 / 3)]
    assert found["unreadable"] == 2 and found["samples"] == 4
    assert found["done_ci95"] == [0.5, 0.5], "either clip has one of two"


READINGS = {
    "yes": "Yes.|YES|yes, because the hand holds it|**Yes**|'yes'|Yes - it does|Yes!|True|"
    'Yes the mug is held|{"answer": "yes"}|{"answer": true}|yes\nIt is seen.|Answer: yes|'
    "The answer is **yes**.|<think>No. Or no?</think>\n\nYes|"
    '```json\n{"reason": "No hand is bad", "answer": "Yes"}\n```',
    "no": "No.|no, it is not|No\n|{'answer': 'no'}|Final answer: No|no because of the hand|(no)|"
    'False|<think>yes</think>no|{"done": false}|No, and the mug is gone',
    "": "ja|oui|да|はい|No hands are seen|Yes and no|yes/no|Yes or no?|No-one|not sure|maybe|none|"
    'I see|{"done": true, "kept": false}|Yes. Final answer: no|yesterday|The scene is kept|N/A',
}


def test_how_answers_are_read(root, server, capsys):
    """Each in both cases of a row of its own; what cannot be read is named and counted."""
    table = [(text, value) for value, row in READINGS.items() for text in row.split("|")]
    write_split(root, "ego4d", "val", clips=4, actions=4)
    shutil.rmtree(root / "run/images")
    truth = layout.frame_folder(root, "ego4d", layout.GROUND_TRUTH)
    shutil.copytree(truth, root / "run/images")
    waiting = iter(table)
    server.answer_to = lambda body: next(waiting, ("yes", ""))[0]
    assert len(table) <= 48 and main(line(root, server, "--concurrency", "1")) == 1
    found = [cell for row in readings(root).values() for cell in row.values()][: len(table)]
    for (text, value), cell in zip(table, found, strict=True):
        assert cell == value or not value and cell.startswith("says neither yes nor no: "), text
    errors = [row for row in capsys.readouterr().err.splitlines() if "not judged" in row]
    odd = len(READINGS[""].split("|"))
    assert len(errors) == odd == figures(root)["unreadable"]
    assert (
        errors[0].startswith("not judged: entry ego4d-val-clip2/1: done: ") and "'ja'" in errors[0]
    )


def test_every_reply_is_kept_as_it_came(root, server):
    server.answer_to = lambda body: "Yes, the hand holds it \N{SNOWMAN}"
    main(line(root, server))
    rows = (root / "run/judge/judge.json.journal").read_text().splitlines()
    assert len(rows) == 12
    for entry, name, reply, reading in map(json.loads, rows):
        content = json.loads(reply)["choices"][0]["message"]["content"]
        assert content == "Yes, the hand holds it \N{SNOWMAN}" and reading == "yes"
        assert entry in readings(root) and name.split()[0] in NAMES


def test_more_fields_of_a_request(root, server):
    assert main(line(root, server, "--limit", 1, "--request", '{"max_tokens": null, "n": 1}')) == 0
    assert "max_tokens" not in server.asked[0] and server.asked[0]["n"] == 1


# --- going on


def test_killed_in_the_middle(root, server):
    server.answer_to = lambda body: "no" if "clip1" in question_of(body) else "yes"
    main(line(root, server, out="calm"))
    server.asked.clear()
    server.delay = 0.3
    command = [sys.executable, "metrics/judge.py", *line(root, server, "--concurrency", "1")]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(server.asked) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(30) != 0 and not (root / "run/judge/judge.json").exists()
    journal = root / "run/judge/judge.json.journal"
    kept = len(journal.read_text().splitlines())
    assert kept >= 3
    with open(journal, "ab") as file:  # as a kill within a line leaves it
        file.write(b'["ego4d-val-cl')
    server.delay = 0
    server.asked.clear()
    assert main(line(root, server)) == 0 and len(server.asked) == 12 - kept
    for name in ("judge.json", "judge.csv"):
        assert (root / "run/judge" / name).read_bytes() == (root / "calm" / name).read_bytes()
    server.asked.clear()
    assert main(line(root, server)) == 0 and server.asked == []


def test_what_changed_is_asked_again(root, server):
    main(line(root, server))
    server.asked.clear()
    frame = sorted((root / "run/images").rglob("*.jpg"))[3]
    Image.new("RGB", (45, 26), "red").save(frame)
    path = layout.action_file(root, "ego4d", "val")
    content = json.loads(path.read_text())
    content["ego4d-val-clip0"]["0"]["action"] = "#C C opens the jar"
    path.write_text(json.dumps(content))
    server.answer_to = lambda body: "no"
    assert main(line(root, server, "--concurrency", "1")) == 0
    assert len(server.asked) == 6 and "next: open the jar." in server.questions()[0]
    assert [row["done"] for row in readings(root).values()] == ["no", "yes", "yes", "no"]
    frame.unlink()
    assert main(line(root, server)) == 1 and len(server.asked) == 6
    assert figures(root)["samples"] == 3


@pytest.mark.parametrize("more", [("--model", "other"), ("--request", '{"top_p": 1}'), ()])
def test_answers_of_another_origin_are_refused(root, server, monkeypatch, more):
    main(line(root, server))
    if not more:
        monkeypatch.setattr(judged, "WORDING", "another")
    with pytest.raises(EgoGenError, match="made_by.json: what is here was made with"):
        main(line(root, server, *more))
    assert len(server.asked) == 12


# --- servers and frames that are not in order


def test_faults_that_pass(root, server):
    server.faults = ["429", "500", "503", "cut"]
    assert main([*line(root, server, "--concurrency", "1"), "--retries", "4"]) == 0
    assert len(server.asked) == 16 and figures(root)["done"] == 1


@pytest.mark.parametrize("fault", ["400", "500", "html", "number"])
def test_a_question_without_an_answer_is_asked_the_next_time(root, server, capsys, fault):
    server.faults = ["", fault]
    assert main(line(root, server, "--concurrency", "1")) == 1
    assert capsys.readouterr().err.count(f"not judged: entry {FIRST}: ") == 1
    assert readings(root)[FIRST] == {"done": "yes", "scene_kept": "", "hands": "yes"}
    assert figures(root)["problems"] == 1
    assert main(line(root, server)) == 0 and len(server.asked) == 13
    assert readings(root)[FIRST]["scene_kept"] == "yes" and figures(root)["problems"] == 0


@pytest.mark.parametrize(
    "fault, said",
    [("refusal", "refuses"), ("nothing", "is empty"), ("filter", "content_filter")]
    + [("thought", "holds '<think'"), ("sorry", "says neither")],
)
def test_a_refusal_is_no_answer(root, server, capsys, fault, said):
    server.faults = [fault]
    assert main(line(root, server, "--concurrency", "1")) == 1
    (row,) = [row for row in capsys.readouterr().err.splitlines() if "not judged" in row]
    assert f"entry {FIRST}: done: it " in row and said in row
    assert main(line(root, server)) == 1 and len(server.asked) == 12


def test_what_comes_behind_an_answer_may_be_cut(root, server):
    server.faults = ["tokens"]
    assert main(line(root, server, "--concurrency", "1")) == 0


def test_a_server_that_stops_answering(root, server):
    server.faults = ["", "", *["500"] * 9]
    with pytest.raises(EgoGenError, match="--base-url: no answer .500"):
        main(line(root, server, "--concurrency", "1"))
    assert not (root / "run/judge/judge.json").exists() and len(server.asked) == 5
    server.faults = []
    assert main(line(root, server)) == 0 and len(server.asked) == 15


def test_frames_that_cannot_be_read_are_left_out(root, server, capsys):
    missing, odd, *_ = sorted((root / "run/images").rglob("*.jpg"))
    missing.unlink()
    odd.write_bytes(b"no picture")
    path = layout.action_file(root, "ego4d", "val")
    content = json.loads(path.read_text())
    content["ego4d-val-clip1"]["0"]["action"] = "#C C"
    path.write_text(json.dumps(content))
    assert main(line(root, server)) == 1 and len(server.asked) == 3
    said = capsys.readouterr().err
    for part in (f"{missing}: no such image", f"{odd}: unreadable", "its label names no action"):
        assert said.count(part) == 1
    assert (figures(root)["samples"], figures(root)["problems"]) == (1, 3)


def test_a_real_server_takes_two_images(root, tmp_path):
    """Of a model with random weights: nothing can be read of what it says."""
    model_families.write("qwen2_5_vl", tmp_path / "model")
    with serving_folder(tmp_path / "model", tmp_path / "log.txt") as address:
        words = line(root, SimpleNamespace(url=lambda: address), "--limit", 1)
        words[words.index("m")] = str(tmp_path / "model")
        assert main([*words, "--request", '{"max_tokens": 3}']) == 1
    assert figures(root)["unreadable"] == 3 and figures(root)["problems"] == 0
