"""The mini dataset: released layout, determinism, resume, labels and descriptions."""

import hashlib
import json
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

from egogen import EgoGenError
from egogen.actions import DESCRIPTION_KEY, read_actions, read_clip_sizes
from egogen.labels import clean_label
from egogen.layout import GROUND_TRUTH, action_file, frame_folder, metadata_file
from mini.__main__ import main
from mini.world.clips import Clip
from mini.world.kinds import KINDS
from mini.world.texts import parse_description, place_words
from mini.world.write import conversations_file, truth_file

cleaned = partial(clean_label, dataset="ego4d")  # as conversations ask
# Of test_what_a_seed_stands_for_does_not_change: other values mean another world for each seed.
TEXTS = "bdb1fbed3496a4a0204f1263d71555b0ebdd4e8935e168aa73b00851c55fed4a"
THUMBNAILS = [
    [140, 146, 118, 128, 137, 125],
    [142, 147, 118, 124, 137, 125],
    [140, 146, 118, 128, 137, 125],
    [140, 146, 133, 128, 137, 108],
    [140, 146, 118, 128, 137, 125],
    [145, 146, 118, 121, 137, 125],
]
STORED = {
    (1920, 1080): {"ego4d": (455, 256), "epickitchen": (456, 256)},
    (1440, 1080): {"ego4d": (341, 256)},
}


def make(root, *extra, pairs=24, seed=0):
    assert main([str(root), "--pairs", str(pairs), "--seed", str(seed), *extra]) == 0
    return root


def files(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("mini") / "data")


@pytest.fixture(scope="module")
def clips():
    return [
        Clip(3, dataset, "train", i, 3, 3)
        for dataset in ("ego4d", "epickitchen")
        for i in range(60)
    ]


@pytest.mark.parametrize("dataset", ["ego4d", "epickitchen"])
def test_layout_is_the_released_one(root, dataset):
    sizes = read_clip_sizes(metadata_file(root, dataset))
    pairs = 0
    for split in ("train", "val"):
        entries = read_actions(action_file(root, dataset, split), ("action", DESCRIPTION_KEY))
        pairs += len(entries)
        for entry in entries:
            before, after = (
                frame_folder(root, dataset, split) / name for name in (entry.image_0, entry.image_1)
            )
            assert entry.image_0.startswith(f"{entry.clip}/{entry.action_id}/frame_")
            assert int(before.stem[6:]) < int(after.stem[6:])
            for path in (before, after):
                with Image.open(path) as picture:
                    assert picture.size == STORED[sizes[entry.clip]][dataset]
            assert before.read_bytes() != after.read_bytes()
            copy = frame_folder(root, dataset, GROUND_TRUTH) / entry.image_1
            assert copy.exists() == (split == "val")
            if split == "val":
                assert copy.read_bytes() == after.read_bytes()
    assert pairs == 12


def test_actions_of_a_clip_share_their_source_and_differ_in_outcome(root):
    entries = read_actions(action_file(root, "ego4d", "train"))
    folder = frame_folder(root, "ego4d", "train")
    first = [entry for entry in entries if entry.clip == entries[0].clip]
    assert [entry.action_id for entry in first] == ["0", "1", "2"]
    assert len({(folder / entry.image_0).read_bytes() for entry in first}) == 1
    assert len({(folder / entry.image_1).read_bytes() for entry in first}) == 3


def test_metadata_and_truth_describe_every_action(root):
    for dataset in ("ego4d", "epickitchen"):
        metadata = json.loads(metadata_file(root, dataset).read_text())
        truth = json.loads(truth_file(root, dataset).read_text())
        assert metadata.keys() == truth.keys()
        for clip, fields in truth.items():
            meta = metadata[clip]
            assert meta["actions"].keys() == fields["actions"].keys()
            for action_id, action in fields["actions"].items():
                x, y, width, height = meta["actions"][action_id]["bbox"]
                assert 0 <= x < x + width <= meta["width"] + 1
                assert 0 <= y < y + height <= meta["height"] + 1
                assert action["object"] in fields["scene"]["things"]


def test_conversations_ask_with_the_cleaned_label(root):
    entries = read_actions(action_file(root, "ego4d", "train"))
    rows = json.loads(conversations_file(root, "ego4d").read_text())
    assert [row["image"] for row in rows] == [entry.image_0 for entry in entries]
    assert len({row["id"] for row in rows}) == len(rows)
    for row, entry in zip(rows, entries, strict=True):
        human, gpt = row["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        asked = f"How does the person properly {cleaned(entry.label)} that is displayed"
        assert human["value"] == f"<image>\n{asked} in the video frame?"
        assert gpt["value"] == entry.texts[DESCRIPTION_KEY]


def test_same_seed_same_bytes_with_any_number_of_workers(root, tmp_path):
    assert files(make(tmp_path / "two", "--workers", "2")) == files(root)
    other = files(make(tmp_path / "other", pairs=12, seed=1))
    assert not {name for name in other if name.endswith(".jpg")} & files(root).keys()


def test_clips_do_not_depend_on_the_number_of_pairs(root, tmp_path):
    small = files(make(tmp_path / "small", "--val-pairs", "6", pairs=15))
    large = files(root)
    pictures = [name for name in small if name.endswith(".jpg")]
    assert len(pictures) == 2 * 15 + 6
    assert all(large[name] == small[name] for name in pictures)


def test_a_second_run_makes_only_what_is_missing(root, tmp_path):
    again = make(tmp_path / "data")
    folder = frame_folder(again, "ego4d", "train")
    lost, kept = sorted(folder.rglob("*.jpg"))[0], sorted(folder.rglob("*.jpg"))[-1]
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    make(again)
    assert files(again) == files(root)
    assert kept.stat().st_mtime_ns == stamp


def test_another_request_in_the_same_folder_is_refused(root, tmp_path):
    with pytest.raises(EgoGenError, match=r"mini\.json.*another folder"):
        main([str(root), "--pairs", "24", "--seed", "5"])
    (tmp_path / "EgoGen").mkdir()
    with pytest.raises(EgoGenError, match="holds a dataset but no mini.json"):
        main([str(tmp_path), "--pairs", "24"])
    with pytest.raises(EgoGenError, match="empty split"):
        main([str(tmp_path / "few"), "--pairs", "2", "--val-pairs", "1"])
    assert not (tmp_path / "few").exists()


def test_descriptions_state_the_facts_and_can_be_read_back(clips):
    words, verbs, kinds = set(), set(), set()
    for clip in clips:
        truth = clip.truth()["actions"]
        for action_id, entry in clip.entries().items():
            text, action = entry[DESCRIPTION_KEY], truth[action_id]
            said = parse_description(text)
            expected = {name: action[name] for name in ("verb", "object", "hand", "target")}
            assert said == {**expected, "place": action["where"]}
            assert 30 <= len(text.split()) <= 46
            assert KINDS[action["object"]].colour in text
            words |= set(re.findall(r"[a-z]+", text.lower()))
            verbs.add(action["verb"])
            kinds |= clip.truth()["scene"]["things"].keys()
    assert len(words) < 250
    assert verbs == {"pick up", "open", "close", "put", "pour", "cut", "wash"}
    assert kinds == KINDS.keys()


def test_parsing_survives_any_text():
    assert set(parse_description("").values()) == {None}
    said = parse_description("The  person PUTS the apple; the left hand, the bowl, the bowl")
    assert (said["verb"], said["object"], said["hand"], said["target"]) == (
        "put", "apple", "left", "bowl",
    )  # fmt: skip


def test_labels_have_the_styles_of_the_datasets(clips):
    for clip in clips:
        for entry in clip.entries().values():
            label = entry["action"]
            assert label.startswith("#C C ") == (clip.dataset == "ego4d")
            assert re.match(
                r"(pick|take|open|close|put|place|pour|cut|slice|wash|clean)\b", cleaned(label)
            )
    assert cleaned("#C C picks up the mug") == "pick up the mug"
    assert cleaned("put apple into bowl") == "put apple into bowl"


def test_hands_act_on_their_own_side_and_half_of_the_scenes_begin_with_a_full_hand(clips):
    full = 0
    for clip in clips:
        things = clip.scene.state.things
        full += any(thing.held for thing in things.values())
        for action in clip.scene.actions:
            spot = things[action.target or action.object]
            assert (spot.x < 0.5) == (action.hand == "left")
            assert abs(spot.x - 0.5) > 0.04
            assert action.hand in place_words(spot)
    assert 0.35 < full / len(clips) < 0.85


def test_what_a_seed_stands_for_does_not_change(root):
    """Texts and truth to the byte; frames to a grey level of their thumbnails, for JPEG and floats
    differ a little between libraries and processors.
    """
    texts = {name: data for name, data in files(root).items() if name.endswith(".json")}
    digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()
    assert digest == TEXTS
    paths = sorted(frame_folder(root, "ego4d", "val").rglob("*.jpg"))
    for path, known in zip(paths, THUMBNAILS, strict=True):
        small = Image.open(path).convert("L").resize((3, 2), Image.Resampling.BOX)
        assert np.abs(np.asarray(small, int).ravel() - known).max() <= 1, path


def test_names_of_clips_are_unique():
    for dataset, form in (
        ("ego4d", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        ("epickitchen", r"P\d\d_\d\d+"),
    ):
        names = [
            Clip(0, dataset, split, i, 3, 3).name for split in ("train", "val") for i in range(500)
        ]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(form, name) for name in names)


def test_the_command_says_how_it_is_used(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m mini" in capsys.readouterr().out
