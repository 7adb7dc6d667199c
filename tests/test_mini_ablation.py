"""Runs of several seeds: their tables, inputs of another action, an ablation and a scale law."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from other_process import held
from PIL import Image

from egogen import write_json
from egogen.features.store import INFO_FILE, open_store, record_store, write_feature
from metrics.intervals import clip_numbers, compare_columns, percentiles, resampled_means
from mini import swapped, tables
from mini.run import PIPELINE, PRESETS, VARIANTS, Run, main
from mini.world.write import plan

ROOT = Path(__file__).parents[1]
FULL = "description_image_text"


def row(clip, action, done, others_done=(), gain=1.0):
    facts = {"clip": clip, "action_id": str(action), "done": done, "psnr_gain": gain}
    return {**facts, "others_done": [*map(str, others_done)], "others": 2}


def write_run(folder, right=1.0, **scores):
    write_json(folder / "scores" / "descriptions.json", {"object_hand_target": right})
    for name, rows in scores.items():
        write_json(folder / "scores" / f"{name}.json", {"rows": rows})
    return folder


def drawn_rows(seed, share, clips=30):
    """Rows of a run in which so many frames are done; those of a clip go together."""
    random = np.random.default_rng(seed)
    for clip in range(clips):
        mood = random.normal(0, 0.2)
        for action in range(3):
            gain = random.normal(5)
            yield row(f"{seed}-{clip}", action, bool(random.random() < share + mood), gain=gain)


@pytest.fixture
def runs(tmp_path):
    """Three runs, of which `second` is better in all."""
    return [
        write_run(
            tmp_path / f"run{seed}",
            right=1 - seed / 10,
            first=[*drawn_rows(seed, 0.5 + seed / 10)],
            second=[*drawn_rows(seed, 0.7 + seed / 10)],
        )
        for seed in range(3)
    ]


def test_figures_of_a_run(tmp_path):
    """By hand: two clips, the second with an action less, one frame without a gain."""
    rows = [row("a", 0, True, [1]), row("a", 1, False, [0], gain=None), row("a", 2, True, [0, 1])]
    rows += [row("b", 0, False, gain=4.0), row("b", 1, True, [0], gain=-2.0)]
    found = tables.reached([write_run(tmp_path, right=0.75, x=rows)], "x")
    assert found["frames"] == 5 and found["right"] == [0.75]
    assert found["done"]["mean"] == pytest.approx(3 / 5)
    assert found["other"]["mean"] == pytest.approx((1 + 1 + 2 + 0 + 1) / 10)
    assert found["gain"]["mean"] == pytest.approx((1 + 1 + 4 - 2) / 4)
    frames = tables.read_frames([tmp_path], "x")
    # The next action: 1 of 0, 2 of 1, 0 of 2; in the other clip each other's.
    expected = [[[1, 0, 1], [0, 1, np.nan]]]
    assert np.array_equal(frames["other done"], expected, equal_nan=True)


def test_intervals_of_one_seed_are_those_of_its_clips(runs):
    frames = tables.read_frames(runs[:1], "first")
    values, clips = frames["gain"].ravel(), np.repeat(np.arange(30), 3)
    expected = percentiles(resampled_means(values, clip_numbers(clips)))
    assert tables.measured(frames["gain"])["ci95"] == pytest.approx(expected, abs=0.03)


def test_intervals_know_that_seeds_differ(runs):
    """Equal frames in each seed: clips alone would say that there is nothing to doubt."""
    values = np.broadcast_to(np.array([0.2, 0.5, 0.8])[:, None, None], (3, 40, 3))
    found = tables.measured(values)
    assert found["mean"] == pytest.approx(0.5) and found["seeds"] == pytest.approx([0.2, 0.5, 0.8])
    low, high = found["ci95"]
    assert 0.2 <= low < 0.35 and 0.65 < high <= 0.8
    assert tables.measured(values[:1])["ci95"] == pytest.approx([0.2, 0.2])
    assert tables.measured(values[:1, :1])["ci95"] is None  # of one clip nobody knows


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Worlds of three seeds whose means and clips are drawn: in how many the interval holds it."""
    random, worlds = np.random.default_rng(0), 60
    held_it = 0
    for _ in range(worlds):
        seeds = random.normal(0, 0.5, (3, 1, 1))
        values = seeds + random.normal(0, 2, (3, 20, 1)) + random.normal(0, 1, (3, 20, 3))
        low, high = tables.measured(values)["ci95"]
        held_it += low <= 0 <= high
    assert held_it / worlds >= 0.85


def test_pairs_are_compared_as_metrics_do(runs):
    [found] = tables.paired(runs, [("first", "second")])
    rows = [json.loads((run / "scores" / "first.json").read_text())["rows"] for run in runs]
    others = [json.loads((run / "scores" / "second.json").read_text())["rows"] for run in runs]
    first, second = sum(rows, []), sum(others, [])
    for figure, key in (("done", "done"), ("gain", "psnr_gain")):
        columns = ([x[key] for x in part] for part in (first, second))
        known = compare_columns(figure, *columns, [x["clip"] for x in first], up=True)
        assert found[figure]["mean"] == pytest.approx(known.difference)
        assert found[figure]["p"] == pytest.approx(known.p_value, abs=0.005)
    assert found["done"]["mean"] > 0.1 and found["done"]["p"] < 0.05
    assert len(found["done"]["seeds"]) == 3
    [same] = tables.paired(runs, [("first", "first")])
    assert same["gain"]["mean"] == 0 and same["gain"]["p"] == 1


def test_who_is_listened_to(tmp_path):
    """Frames with the other's prompt show the other action; with its features, their own."""
    own = [row(clip, k, True) for clip in "abcd" for k in range(3)]
    other = [row(clip, k, False, [(k + 1) % 3]) for clip in "abcd" for k in range(3)]
    run = write_run(tmp_path, **{"v": own, "v-prompt": other, "v-text_features": own})
    nothing, prompt, text = tables.listened([run], ["v"], ["prompt", "text_features"])
    assert [x["swapped"] for x in (nothing, prompt, text)] == ["nothing", "prompt", "text_features"]
    for found, done in ((nothing, 1), (prompt, 0), (text, 1)):
        assert found["done"]["mean"] == done and found["other done"]["mean"] == 1 - done
        assert found["lost"]["mean"] == done - 1
    assert prompt["lost"]["p"] == pytest.approx(2 / 2**4) and text["lost"]["p"] == 1


def test_markdown_and_plot(runs, tmp_path):
    found = tables.reached(runs, "first")
    text = tables.markdown({"rows": [{"told": "first", **found}]})
    head, rule, line = text.splitlines()[:3]
    assert head.count("|") == rule.count("|") == line.count("|") == 8
    mean, (low, high) = found["done"]["mean"], found["done"]["ci95"]
    assert f"| {100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f}) |" in line
    assert "| `first` | 100.0, 90.0, 80.0 % |" in line and "dB" in line
    more = {"compared": tables.paired(runs, [("first", "second")])}
    more["listened"] = tables.listened(runs, ["first"], [])
    whole = tables.markdown({"rows": [{"told": "first", **found}], **more})
    assert "| `first` | `second` | +" in whole and "points (+" in whole
    assert "| `first` | nothing |" in whole and "None" not in whole
    sizes = [(600, 300), (600, 900), (1200, 300), (1200, 900)]
    rows = [{"pairs": pairs, "steps": steps, **found} for pairs, steps in sizes]
    assert tables.markdown({"rows": rows}).splitlines()[5].startswith("| 1200 | 900 | 100.0, 90.0")
    tables.plot(rows, tmp_path / "scale.png")
    assert Image.open(tmp_path / "scale.png").width > 1000


@pytest.fixture
def described(tmp_path):
    """What stage 1 leaves of two clips: texts, and features that say whose they are."""
    folder, number = tmp_path / "run", 0
    actions: dict[str, dict] = {"a": {}, "b": {}}
    for clip, entries in actions.items():
        for k in "012":
            frames = {"image_0": f"{clip}/{k}/s.jpg", "image_1": f"{clip}/{k}/t.jpg"}
            entries[k] = {**frames, "action": f"label {clip}{k}", "text": f"says {clip}{k}"}
            write_feature(folder / "text", frames["image_0"], np.full((2, 4), number))
            write_feature(folder / "image", frames["image_0"], np.full((2, 4), ord(clip)))
            number += 1
    for name in ("text", "image"):
        record_store(folder / name, name, "released", {"width": 4}, None)
    write_json(folder / "actions.json", actions)
    return folder


def swap(folder, out):
    words = ["--actions", folder / "actions.json", "--text", folder / "text"]
    swapped.main([*map(str, words), "--image", str(folder / "image"), "--out", str(out)])


def test_inputs_of_another_action(described, tmp_path):
    swap(described, described / "swapped")
    swap(described, described / "swapped")  # again, as after a kill
    moved = described.rename(tmp_path / "moved")
    given = json.loads((moved / "swapped" / "actions.json").read_text())
    texts, images = (open_store(moved / "swapped" / name) for name in ("text", "image"))
    for number, (clip, k) in enumerate((clip, k) for clip in "ab" for k in range(3)):
        fields, other = given[clip][str(k)], (k + 1) % 3
        assert fields["image_0"] == f"{clip}/{k}/s.jpg" and fields["image_1"] == f"{clip}/{k}/t.jpg"
        assert fields["text"] == f"says {clip}{other}"
        assert fields["action"] == f"label {clip}{other}"
        assert (texts.read(fields["image_0"]) == number - k + other).all()
        assert (images.read(fields["image_0"]) == ord({"a": "b", "b": "a"}[clip])).all()
    record = json.loads((moved / "swapped" / "text" / INFO_FILE).read_text())
    assert record["width"] == 4


def test_sizes_of_a_scale_have_the_same_val_clips():
    request = {"seed": 3, "val_pairs": 12, "actions_per_clip": 3, "datasets": ["ego4d"]}
    plans = [plan({**request, "pairs": pairs}) for pairs in (24, 48)]
    val = [[clip.entries() for clip in found["ego4d", "val"]] for found in plans]
    assert val[0] == val[1]
    train = [found["ego4d", "train"] for found in plans]
    assert train[1][: len(train[0])] == train[0]  # more pairs are more of the same


def test_the_plan_of_run_yaml():
    """Rows, pairs and swaps name each other; presets say the sizes of a scale law."""
    assert [*VARIANTS] == [
        "label",
        "label_image_text",
        "description",
        "description_image",
        "description_text",
        "description_image_text",
    ]
    neighbours = {*zip(VARIANTS, [*VARIANTS][1:], strict=False)}
    named = {tuple(pair) for pair in PIPELINE["compared"]}
    assert neighbours <= named and ("description", FULL) in named
    assert {name for pair in named for name in pair} == {*VARIANTS}
    assert {*PIPELINE["listeners"]} <= {*VARIANTS}
    assert all(" " not in name for name in PIPELINE["swaps"])  # they are names of files
    assert all(preset["scale_pairs"] and preset["scale_steps"] for preset in PRESETS.values())


def test_variants_do_not_follow_from_each_other(tmp_path):
    """A second variant is not done again because of a first one, and its own steps follow it."""

    def go(variants, stale=()):
        run, done = Run(tmp_path, {}), []
        run.step("data", [tmp_path / "data"], [["touch", str(tmp_path / "data")]])
        described = run.before
        for variant in variants:
            run.before = described
            for name in (variant, f"{variant} frames"):
                before = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
                line = ["sh", "-c", 'echo "$1" >> "$0"; touch "$2"', str(tmp_path / "log"), name]
                run.step(name, [tmp_path / name], [[*line, str(tmp_path / name)]])
                done += (tmp_path / "log").read_text().removeprefix(before).split("\n")[:-1]
        return done

    assert go(["b"]) == ["b", "b frames"]
    assert go(["a", "b"]) == ["a", "a frames"]
    (tmp_path / "a").unlink()
    assert go(["a", "b"]) == ["a", "a frames"]


@pytest.fixture
def typed(monkeypatch):
    """What runs type, {step: command lines}. In place of networks, a step leaves an empty folder of
    frames, or scores of frames that are all right."""
    lines: dict[str, list[list[str]]] = {}

    def stand_in(name, commands):
        lines.setdefault(name, []).extend(map(list, commands))
        words = commands[0]
        if "metrics/inference.py" in words:
            ckpt = Path(words[words.index("--ckpt") + 1])
            (ckpt.with_suffix("") / "settings" / "images").mkdir(parents=True)
        elif "--descriptions" in words:
            write_json(Path(words[-1]), {"object_hand_target": 1.0})
        elif "--gen-path" in words:
            rows = [row(clip, k, True) for clip in "ab" for k in range(3)]
            write_json(Path(words[-1]), {"rows": rows})

    monkeypatch.setattr("mini.run.run_commands", stand_in)
    return lines


def value(line, flag):
    """What the overrides of a command line say; later ones win."""
    return [word.split("=", 1)[1] for word in line if word.startswith(f"{flag}=")][-1]


PARTS = {  # of what stage 2 is told: the key in files, and the name where it is another action's
    "prompt": ("edit_path", "actions.json"),
    "text_features": ("additional_cond_path.llava_text", "text"),
    "image_features": ("additional_cond_path.llava_image", "image"),
}


def test_what_an_ablation_types(typed, tmp_path, capsys):
    """Frames of swapped inputs differ from the variant's own in what is swapped alone."""
    out, run = tmp_path / "a run", tmp_path / "a run3"
    main(["tiny", "--seed", "3", "--out", str(run)])
    whole = {*typed}
    typed.clear()
    words = ["ablation", "--preset", "tiny", "--seeds", "3", "--out", str(out)]
    main(words)
    assert not whole & {*typed}  # it goes on from that run
    assert f"training of {FULL}" in whole and "training of label_image_text" in typed
    for variant, key in ((FULL, "llava_forecast_finetune"), ("label_image_text", "action")):
        folder = run / "swapped" / variant
        for swap in PIPELINE["swaps"]:
            chunks = typed[f"frames of {variant} with another {swap}"]
            assert [line[-1] for line in chunks] == ["1", "2"]
            assert value(chunks[0], "data.params.text_prompt_key") == key
            assert value(chunks[0], "model.params.conditioner.variant") == "both"
            assert chunks[0][chunks[0].index("--ckpt") + 1] == str(folder / f"{swap}.ckpt")
            for part, (flag, name) in PARTS.items():
                found = Path(value(chunks[0], f"data.params.{flag}"))
                assert (found == folder / name) == (part in swap.split("_and_"))
    assert (tmp_path / "a run_ablation.md").read_text() in capsys.readouterr().out
    typed.clear()
    main(words)
    main(["tiny", "--seeds", "3", "--out", str(out)])
    assert not typed  # what has been done is not done again, and the folder is the same


def test_what_a_scale_law_types(typed, tmp_path):
    main(["scale", "--preset", "tiny", "--seeds", "0", "1", "--out", str(tmp_path / "a")])
    assert len(typed["dataset"]) == len(typed["tuning of stage 1"]) == 4  # seeds, numbers of pairs
    assert [line[line.index("--pairs") + 1] for line in typed["dataset"]] == ["12", "24"] * 2
    for steps in (1, 2):
        lines = typed[f"training of {FULL}_{steps}"]
        folders = [line[line.index("--logdir") + 1] for line in lines]
        assert folders == [str(tmp_path / f"a{s}/pairs{n}/logs") for s in (0, 1) for n in (12, 24)]
        assert {value(line, "lightning.trainer.max_steps") for line in lines} == {str(steps)}
    found = json.loads((tmp_path / "a_scale.json").read_text())
    sizes = [(row["pairs"], row["steps"]) for row in found["rows"]]
    assert sizes == [(12, 1), (12, 2), (24, 1), (24, 2)] and found["seeds"] == [0, 1]
    assert Image.open(tmp_path / "a_scale.png").width > 1000


def test_a_folder_holds_one_seed(typed, tmp_path):
    """Without --seeds it is the one named, as ever; with them it has the seed's number behind."""
    main(["tiny", "--seed", "5", "--out", str(tmp_path / "a")])
    main(["ablation", "--seed", "5", "--preset", "tiny", "--out", str(tmp_path / "a")])
    main(["tiny", "--seeds", "5", "6", "--out", str(tmp_path / "a")])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a", "a5", "a6", "a_ablation.json", "a_ablation.md"]
    seeds = [line[line.index("--seed") + 1] for line in typed["dataset"]]
    assert seeds == ["5", "5", "6"]


def call(*words, timeout=1800):
    line = [sys.executable, "mini/run.py", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def test_a_folder_is_one_command_s(tmp_path):
    """Also where the folder is that of a seed."""
    for folder, words in ((tmp_path / "a", ["full"]), (tmp_path / "a7", ["scale", "--seeds", 7])):
        with held(folder / ".lock"):
            done = call(*words, "--out", tmp_path / "a")
        assert done.returncode == 2
        assert done.stderr.splitlines() == [f"error: {folder}: another process is running here"]
        assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_ablation_and_a_scale_law(tmp_path):
    """All steps of both at the smallest size, on the data of a whole run that was there before."""
    out = tmp_path / "a run"
    assert call("tiny", "--seed", 1, "--out", f"{out}1").returncode == 0
    words = ["ablation", "--preset", "tiny", "--seeds", 1, "--out", out]
    done = call(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== dataset" not in done.stdout and f"== training of {FULL}" not in done.stdout
    assert "== training of label_image_text" in done.stdout
    found = json.loads((tmp_path / "a run_ablation.json").read_text())
    assert [row["told"] for row in found["rows"]] == [*VARIANTS] and found["seeds"] == [1]
    assert len(found["compared"]) == len(PIPELINE["compared"])
    assert len(found["listened"]) == 2 * (1 + len(PIPELINE["swaps"]))
    assert (tmp_path / "a run_ablation.md").read_text() in done.stdout
    frames = Path(f"{out}1") / "swapped" / FULL
    made = {swap: sorted((frames / swap).glob("*/images/*/*/*")) for swap in PIPELINE["swaps"]}
    assert all(len(paths) == PRESETS["tiny"]["val_pairs"] for paths in made.values())
    assert "\n==" not in call(*words).stdout  # all is done
    assert "\n==" not in call("tiny", "--seed", 1, "--out", f"{out}1").stdout
    done = call("scale", "--preset", "tiny", "--seeds", 1, "--out", tmp_path / "scale")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "scale_scale.json").read_text())["rows"]
    sizes = [(row["pairs"], row["steps"]) for row in rows]
    assert sizes == [(12, 1), (12, 2), (24, 1), (24, 2)]
    assert Image.open(tmp_path / "scale_scale.png").width > 1000
