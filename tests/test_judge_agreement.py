"""How far a judge agrees with the oracle of the mini world and with people's votes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from chat_server import KEY, serving
from judge_runs import asked_of, figures, line
from PIL import Image
from small_dataset import write_dataset

from egogen import layout
from egogen.actions import read_actions
from egogen.frames import read_rgb
from egogen.labels import clean_label
from metrics.judge import main
from mini.__main__ import main as make_mini
from mini.oracle.oracle import judge as oracle
from mini.oracle.reading import read_image
from mini.oracle.score import main as score
from mini.oracle.score import read_truth


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


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A rendered dataset; every second frame shows its action, the others are copied."""
    root = tmp_path_factory.mktemp("world") / "data"
    make_mini([str(root), "--pairs", "24", "--val-pairs", "12", "--datasets", "ego4d"])
    frames = layout.frame_folder(root, "ego4d", "val")
    for number, entry in enumerate(read_actions(layout.action_file(root, "ego4d", "val"))):
        path = root / "run/images" / entry.image_1
        path.parent.mkdir(parents=True)
        shutil.copy(frames / (entry.image_1, entry.image_0)[number % 2], path)
    argv = ["--dataset-root", root, "--name", "ego4d", "--gen-path", root / "run/images"]
    assert score([str(word) for word in (*argv, "--out", root / "score.json")]) == 0
    return root


class Seeing:
    """Answers by what is seen in the two images alone, by the oracle's rule."""

    def __init__(self, root: Path):
        truth, self.actions = read_truth(root, "ego4d"), {}
        frames = layout.frame_folder(root, "ego4d", "val")
        for entry in read_actions(layout.action_file(root, "ego4d", "val")):
            phrase = clean_label(entry.label, "ego4d")
            source = digest(read_rgb(frames / entry.image_0))
            self.actions[source, phrase] = truth[entry.clip]["actions"][entry.action_id]

    def __call__(self, body: dict) -> str:
        name, (source, generated), text = asked_of(body)
        phrase = text.partition("action next: ")[2].partition(".\n")[0]
        if name != "done":
            return "yes"
        own = self.actions[digest(source), phrase]
        done, why = oracle(read_image(source), read_image(generated), own)
        return "Yes." if done else f"No, {why}"


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def test_a_judge_that_sees_agrees_with_the_oracle(world, server, capsys):
    server.answer_to = Seeing(world)
    assert main(line(world, server, "--oracle", world / "score.json", out="seeing")) == 0
    found = figures(world, "seeing")
    assert found["done"] == json.loads((world / "score.json").read_text())["done_rate"] == 0.5
    assert (found["oracle_accuracy"], found["oracle_kappa"]) == (1, 1)
    assert found["oracle_kappa_ci95"] == [1, 1] == found["oracle_accuracy_ci95"]
    assert "oracle_kappa                      1.0   95 %: 1.0000" in capsys.readouterr().out


def test_a_coin_agrees_by_chance(world, server):
    """Half yes where the action is done, and where it is not."""
    seeing, count = Seeing(world), {"Yes.": 0, "No": 0}

    def coin(body: dict) -> str:
        truth = seeing(body).partition(",")[0]
        count[truth] = count.get(truth, 0) + 1
        return "yes" if count[truth] % 2 else "no"

    server.answer_to = coin
    assert main(line(world, server, "--oracle", world / "score.json", out="coin")) == 0
    found = figures(world, "coin")
    low, high = found["oracle_kappa_ci95"]
    assert found["oracle_accuracy"] == 0.5 and found["oracle_kappa"] == pytest.approx(0)
    assert -1 <= low < 0 < high <= 1
    server.answer_to = lambda body: "yes"  # whoever always says the same
    assert main(line(world, server, "--oracle", world / "score.json", out="always")) == 0
    assert figures(world, "always")["oracle_kappa"] == pytest.approx(0)


def test_kappa_by_hand(root, server, tmp_path):
    """Judge yes yes no no, oracle yes no no no: 3 of 4 equal, 1/2 by chance."""
    keys = [entry.key for entry in read_actions(layout.action_file(root, "ego4d", "val"))]
    rows = [dict(zip(("clip", "action_id"), key.split("/"), strict=True)) for key in keys]
    for row, done in zip(rows, (True, False, False, False), strict=True):
        row["done"] = done
    (tmp_path / "score.json").write_text(json.dumps({"rows": rows}))
    said = iter([answer for done in ("yes", "yes", "no", "no") for answer in (done, "yes", "yes")])
    server.answer_to = lambda body: next(said)
    command = line(root, server, "--concurrency", "1", "--oracle", tmp_path / "score.json")
    assert main(command) == 0
    found = figures(root)
    assert found["oracle_accuracy"] == 0.75 and found["oracle_kappa"] == pytest.approx(0.5)
    (tmp_path / "score.json").write_text(json.dumps({"rows": rows[2:]}))  # both say no alone
    assert main(command) == 0
    assert figures(root)["oracle_accuracy"] == 1 and figures(root)["oracle_kappa"] is None


def test_agreement_with_votes(root, server, tmp_path, capsys):
    """Won, lost, tied and no votes at all: the last two say nothing."""
    keys = [entry.key for entry in read_actions(layout.action_file(root, "ego4d", "val"))]
    votes = ({"run": 3, "other": 1}, {"run": 1, "other": 2}, {"run": 2, "other": 2})
    samples = dict(zip(keys, (*votes, {"run": 0, "other": 0}), strict=True))
    (tmp_path / "votes.json").write_text(json.dumps({"samples": samples}))
    said = iter(["yes", "yes", "yes", "yes", "no", "yes", *["no"] * 6])
    server.answer_to = lambda body: next(said)
    command = line(root, server, "--concurrency", "1", "--votes", tmp_path / "votes.json")
    assert main(command) == 0
    found = figures(root)
    assert (found["votes_accuracy"], found["votes_kappa"]) == (1, pytest.approx(1))
    assert main([*command, "--run", "other"]) == 0
    assert (figures(root)["votes_accuracy"], figures(root)["votes_kappa"]) == (0, pytest.approx(-1))
    assert np.isfinite(figures(root)["votes_accuracy_ci95"]).all() and len(server.asked) == 12
