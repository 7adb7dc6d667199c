"""Scoring generated frames and descriptions of a mini dataset."""

import json
import shutil

import pytest

from egogen import EgoGenError
from egogen.actions import DESCRIPTION_KEY, read_actions
from egogen.layout import action_file, frame_folder
from mini.__main__ import main as make
from mini.oracle.score import main, read_truth, score_descriptions


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("score") / "data"
    make([str(root), "--pairs", "24", "--val-pairs", "12", "--datasets", "ego4d"])
    return root


def generate(root, folder, choose):
    """Lay pictures into `folder` as generation does: `choose(entry, clip entries)` -> path."""
    entries = read_actions(action_file(root, "ego4d", "val"))
    for entry in entries:
        siblings = [other for other in entries if other.clip == entry.clip]
        path = folder / entry.image_1
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(frame_folder(root, "ego4d", "val") / choose(entry, siblings), path)
    return folder


def score(root, folder, out):
    argv = ["--dataset-root", str(root), "--name", "ego4d", "--gen-path", str(folder)]
    return main([*argv, "--out", str(out)]), json.loads(out.read_text()) if out.exists() else None


def test_true_frames_score_full(root, tmp_path):
    folder = generate(root, tmp_path / "images", lambda entry, _: entry.image_1)
    code, result = score(root, folder, tmp_path / "score.json")
    assert code == 0
    assert (result["count"], result["done_rate"], result["other_action_rate"]) == (12, 1.0, 0.0)
    assert result["psnr_changed"] == 100 and result["psnr_gain"] > 50
    assert result["missing"] == [] and len(result["rows"]) == 12
    assert sum(verb["count"] for verb in result["by_verb"].values()) == 12


def test_copied_sources_gain_nothing(root, tmp_path):
    folder = generate(root, tmp_path / "images", lambda entry, _: entry.image_0)
    _, result = score(root, folder, tmp_path / "score.json")
    assert (result["done_rate"], result["other_action_rate"]) == (0.0, 0.0)
    assert result["psnr_gain"] == 0 and 5 < result["psnr_copy"] < 25
    assert all(row["why_not"] for row in result["rows"])


def test_frames_of_another_action_are_found_out(root, tmp_path):
    def neighbour(entry, siblings):
        return siblings[(siblings.index(entry) + 1) % len(siblings)].image_1

    folder = generate(root, tmp_path / "images", neighbour)
    _, result = score(root, folder, tmp_path / "score.json")
    assert result["done_rate"] == 0.0
    assert result["other_action_rate"] == 0.5  # one of the two siblings of each


def test_missing_frames_are_named(root, tmp_path, capsys):
    folder = generate(root, tmp_path / "images", lambda entry, _: entry.image_1)
    entry = read_actions(action_file(root, "ego4d", "val"))[3]
    (folder / entry.image_1).unlink()
    code, result = score(root, folder, tmp_path / "score.json")
    assert code == 1
    assert result["missing"] == [entry.key] and result["count"] == 11
    assert entry.key in capsys.readouterr().out
    with pytest.raises(EgoGenError, match="none of the 12 frames"):
        score(root, tmp_path / "nothing", tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_descriptions_are_scored_fact_by_fact(root):
    truth = read_truth(root, "ego4d")
    entries = read_actions(action_file(root, "ego4d", "val"))
    texts = {}
    for entry in entries:
        texts.setdefault(entry.clip, {})[entry.action_id] = entry.texts[DESCRIPTION_KEY]
    result = score_descriptions(truth, texts)
    assert result["count"] == 12
    assert all(result[name] == 1.0 for name in ("verb", "object", "hand", "all"))
    swap = {"left": "right", "right": "left"}
    wrong = {
        clip: {
            key: " ".join(swap.get(word, word) for word in text.split())
            for key, text in actions.items()
        }
        for clip, actions in texts.items()
    }
    result = score_descriptions(truth, wrong)
    assert (result["object"], result["hand"], result["all"]) == (1.0, 0.0, 0.0)
    with pytest.raises(EgoGenError, match="no such action"):
        score_descriptions(truth, {"nowhere": {"0": "text"}})


def test_a_root_without_truth_is_named(root, tmp_path):
    with pytest.raises(EgoGenError, match=r"ego4d_truth\.json: no such file"):
        read_truth(tmp_path, "ego4d")
