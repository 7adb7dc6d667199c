"""The journal of a chunk: what lies on the disk while it is described, and after a kill."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from small_dataset import write_split

from egogen import layout
from egogen.errors import EgoGenError
from llava.describing.decoding import writing_settings
from llava.describing.describer import Description, Feature
from llava.describing.job import Decoding, Job
from llava.describing.loop import run
from llava.describing.results import (
    check_complete,
    chunk_files,
    journal_of,
    merge_results,
    read_results,
    result_file,
)
from llava.describing.texts import given_texts

CLIPS, ACTIONS, BATCH = 4, 2, 2


class Sayer:
    """Says "<clip> <action> é" and shows `seen` what it is asked for, just before it answers."""

    name, features = "sayer", {"mark": Feature(2, 1)}

    def __init__(self, seen=lambda names: None):
        self.seen, self.provenance, self.asked = seen, {"model": "1"}, []

    def too_long(self, question, name):
        return ""

    def describe(self, images, questions, *, seeds, names):
        self.seen(names)
        self.asked += names
        mark = {"mark": np.ones((1, 2), np.float16)}
        return [Description(f"{clip} {action} é", mark) for clip, action in names]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_split(root, "ego4d", "val", clips=CLIPS, actions=ACTIONS)
    return root


def job(root, out, **options) -> Job:
    return Job(
        image_dir=layout.frame_folder(root, "ego4d", "val"),
        action_label=layout.action_file(root, "ego4d", "val"),
        dataset="ego4d",
        save_path=out / "tiny" / "val",
        feature_paths={"mark": out / "mark"},
        batch_size=BATCH,
        **options,
    )


def chunk(out, number=1):
    return result_file(out / "tiny" / "val", number)


@pytest.fixture(scope="module")
def published(root, tmp_path_factory):
    """The result file of an undisturbed run."""
    out = tmp_path_factory.mktemp("plain")
    assert run(job(root, out), Sayer()) == 0
    return chunk(out).read_bytes()


def kill_in_batch(number: int, root, out) -> None:
    """A process of its own describes, and is killed as it begins batch `number`."""

    def dying():
        begun = 0

        def count(names):
            nonlocal begun
            begun += 1
            if begun == number:
                os.kill(os.getpid(), signal.SIGKILL)

        run(job(root, out), Sayer(count))

    process = multiprocessing.get_context("fork").Process(target=dying)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_the_released_form_is_written_twice_however_many_batches(root, tmp_path, published):
    held = []

    def look(names):
        lines = journal_of(chunk(tmp_path)).read_text().splitlines() if held else []
        held.append((chunk(tmp_path).read_text(), len(lines)))

    assert run(job(root, tmp_path), Sayer(look)) == 0
    assert held == [("{}\n", BATCH * number) for number in range(CLIPS * ACTIONS // BATCH)]
    assert chunk(tmp_path).read_bytes() == published
    assert not journal_of(chunk(tmp_path)).exists()


def test_published_bytes_are_those_of_before(root, published):
    content = json.loads(layout.action_file(root, "ego4d", "val").read_text())
    expected = {
        clip: {
            action: {
                "original action": fields["action"],
                "action": f"pick up thing {action}",
                "description": f"{clip} {action} é",
            }
            for action, fields in actions.items()
        }
        for clip, actions in content.items()
    }
    text = json.dumps(expected, indent=4, ensure_ascii=False) + "\n"
    assert published == text.encode()


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_killed_run_loses_the_batch_in_hand(root, tmp_path, published, batch):
    kill_in_batch(batch, root, tmp_path)
    assert sum(map(len, read_results(chunk(tmp_path)).values())) == BATCH * (batch - 1)
    again = Sayer()
    assert run(job(root, tmp_path), again) == 0
    assert len(again.asked) == CLIPS * ACTIONS - BATCH * (batch - 1)
    assert chunk(tmp_path).read_bytes() == published
    assert not journal_of(chunk(tmp_path)).exists()


@pytest.mark.parametrize(
    "torn", [b'{"ego4d-val-clip1": {"1"', b"\0" * 40, b"\0" * 9 + b"\n", b"3\n"]
)
def test_a_torn_end_of_the_journal_is_left_out(root, tmp_path, published, torn):
    kill_in_batch(3, root, tmp_path)
    with open(journal_of(chunk(tmp_path)), "ab") as file:
        file.write(torn)
    again = Sayer()
    assert run(job(root, tmp_path), again) == 0
    assert len(again.asked) == CLIPS * ACTIONS - 2 * BATCH
    assert chunk(tmp_path).read_bytes() == published


def test_killed_again_and_again(root, tmp_path, published):
    for _ in range(3):
        kill_in_batch(2, root, tmp_path)  # one batch further each time
    again = Sayer()
    assert run(job(root, tmp_path), again) == 0
    assert len(again.asked) == BATCH and chunk(tmp_path).read_bytes() == published


def test_killed_between_publishing_and_the_end_of_the_journal(root, tmp_path, published):
    kill_in_batch(3, root, tmp_path)
    journal = journal_of(chunk(tmp_path)).read_bytes()
    run(job(root, tmp_path), Sayer())
    journal_of(chunk(tmp_path)).write_bytes(journal)
    assert read_results(chunk(tmp_path)) == json.loads(published)
    again = Sayer()
    assert run(job(root, tmp_path), again) == 0 and not again.asked
    assert chunk(tmp_path).read_bytes() == published
    assert not journal_of(chunk(tmp_path)).exists()


def test_half_finished_folders_of_before(root, tmp_path, published):
    """They have a result file that holds what was done, and no journal."""
    kill_in_batch(3, root, tmp_path)
    half = read_results(chunk(tmp_path))
    journal_of(chunk(tmp_path)).unlink()
    chunk(tmp_path).write_text(json.dumps(half, indent=4, ensure_ascii=False) + "\n")
    again = Sayer()
    assert run(job(root, tmp_path), again) == 0
    assert len(again.asked) == CLIPS * ACTIONS - 2 * BATCH
    assert chunk(tmp_path).read_bytes() == published


def test_a_removed_result_file_begins_anew(root, tmp_path, published):
    kill_in_batch(3, root, tmp_path)
    chunk(tmp_path).unlink()
    again = Sayer()
    assert run(job(root, tmp_path), again) == 0
    assert len(again.asked) == CLIPS * ACTIONS and chunk(tmp_path).read_bytes() == published


def test_an_entry_whose_feature_is_lost_is_made_again(root, tmp_path, published):
    kill_in_batch(3, root, tmp_path)
    lost = sorted((tmp_path / "mark").rglob("*.npy"))[0]
    lost.write_bytes(lost.read_bytes()[:20])
    again = Sayer()
    assert run(job(root, tmp_path), again) == 0
    assert len(again.asked) == CLIPS * ACTIONS - 2 * BATCH + 1
    assert chunk(tmp_path).read_bytes() == published


def test_merging_an_unfinished_chunk_is_refused(root, tmp_path):
    kill_in_batch(3, root, tmp_path)
    merged = merge_results(chunk_files(tmp_path / "tiny" / "val"))
    with pytest.raises(EgoGenError, match="4 of 8 entries are not described: ego4d-val-clip2/0,"):
        check_complete(merged, layout.action_file(root, "ego4d", "val"))


def test_chunk_10_comes_after_chunk_2(root, tmp_path):
    """In the merged file too, which keeps the order of the action file."""
    content = json.loads(layout.action_file(root, "ego4d", "val").read_text())
    (entry,) = {json.dumps(content["ego4d-val-clip0"]["0"])}
    many = {f"clip{number:02d}": {"0": json.loads(entry)} for number in range(11)}
    for number, clip in enumerate(many):
        many[clip]["0"]["image_0"] = f"ego4d-val-clip{number % 4}/0/frame_000010.jpg"
    path = tmp_path / "ego4d_val.json"
    path.write_text(json.dumps(many))
    for number in range(1, 12):
        options = job(root, tmp_path, num_chunks=11, chunk_idx=number)
        assert run(replace(options, action_label=path, feature_paths={}), Sayer()) == 0
    files = chunk_files(tmp_path / "tiny" / "val")
    assert [file.name for file in files] == [f"tiny_{number}.json" for number in range(1, 12)]
    assert list(merge_results(files)) == list(many)


CHANGED = {
    "seed": 43,
    "query": "What is {}?",
    "label_style": "released",
    "num_chunks": 2,
}


@pytest.mark.parametrize("name", CHANGED)
def test_results_made_with_something_else_are_refused(root, tmp_path, name):
    run(job(root, tmp_path), Sayer())
    before = chunk(tmp_path).read_bytes()
    with pytest.raises(EgoGenError, match=name):
        run(job(root, tmp_path, **{name: CHANGED[name]}), Sayer())
    assert chunk(tmp_path).read_bytes() == before


def test_results_and_features_of_another_origin_are_refused(root, tmp_path):
    """Such as another model, temperature or description, which all are in the provenance."""
    run(job(root, tmp_path), Sayer())
    other = Sayer()
    other.provenance = {"model": "2"}
    for options in (job(root, tmp_path), replace(job(root, tmp_path), save_path=None)):
        with pytest.raises(EgoGenError, match="model '1', expected '2'"):
            run(options, other)
    assert not other.asked


TEXTS = {("a", "0"): "The hand lifts it.", ("a", "1"): "It falls."}


def test_all_that_decides_a_text_is_in_its_origin():
    plain = writing_settings(Decoding())
    for name, value in {"temperature": 0.3, "top_k": 49, "max_new_tokens": 1023}.items():
        changed = writing_settings(replace(Decoding(), **{name: value}))
        assert {key for key in plain if plain[key] != changed[key]} == {name}
    given = given_texts(TEXTS).origin
    assert given_texts(dict(reversed(TEXTS.items()))).origin == given
    others = (
        {**TEXTS, ("a", "1"): "It falls"},
        {("a", "0"): TEXTS["a", "1"], ("a", "1"): TEXTS["a", "0"]},
        {("a", "0"): TEXTS["a", "0"]},
        {("b", "0"): TEXTS["a", "0"], ("a", "1"): TEXTS["a", "1"]},
    )
    assert all(given_texts(other).origin != given for other in others)
