"""A describer defined here, without any network, goes through stage 1's loop, stores and merge."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_dataset import write_split

from egogen import layout
from egogen.errors import EXIT_INCOMPLETE, EgoGenError
from egogen.features.projector import Projector
from egogen.features.store import open_store, read_info
from egogen.seeds import stable_seed
from llava.describing import loop
from llava.describing.describer import Describer, Description, Feature
from llava.describing.job import Job
from llava.describing.loop import run
from llava.describing.results import check_complete, chunk_files, merge_results, with_descriptions

DATASET, ROWS, INPUT, WIDTH = "ego4d", 4, 3, 8


def depth_projector() -> Projector:
    weight = torch.arange(WIDTH * INPUT).reshape(WIDTH, INPUT) / 10
    return Projector({"linear_1.weight": weight, "linear_1.bias": torch.ones(WIDTH)}, "test")


class Depth:
    """Texts from question and seed; brightness of the image as "depth"; "words" of any number."""

    name = "depth model"
    features = {"depth": Feature(WIDTH, ROWS, depth_projector), "words": Feature(2)}

    def __init__(self, version="1", fails_at=None):
        self.provenance = {"model": version}
        self.seen: list[tuple[str, str]] = []
        self.fails_at = fails_at

    def too_long(self, question, name):
        return "no room" if name == self.fails_at else ""

    def describe(self, images, questions, *, seeds, names):
        self.seen += names
        made = []
        for image, question, seed, _name in zip(images, questions, seeds, names, strict=True):
            inputs = np.full((ROWS, INPUT), np.asarray(image).mean() / 255, np.float16)
            depth = depth_projector()(torch.from_numpy(inputs)).half().numpy()
            words = np.ones((len(question.split()), 2), np.float16)
            features = {"depth": depth, "words": words}
            made.append(Description(f"{question} {seed % 97}", features, {"depth": inputs}))
        return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_split(root, DATASET, "val", clips=3, actions=2)
    return root


def job(root, out, **options) -> Job:
    return Job(
        image_dir=layout.frame_folder(root, DATASET, "val"),
        action_label=layout.action_file(root, DATASET, "val"),
        dataset=DATASET,
        save_path=out / "tiny" / "val",
        feature_paths={"depth": out / "depth", "words": out / "words"},
        query="How to {}?",
        **options,
    )


def outcome(root, out):
    label = layout.action_file(root, DATASET, "val")
    merged = merge_results(chunk_files(out / "tiny" / "val"))
    entries = check_complete(merged, label)
    described = with_descriptions(label, merged, "depth_text")
    rows = [open_store(out / kind).read(e.image_0) for kind in ("depth", "words") for e in entries]
    return described, rows


@pytest.mark.parametrize("form", ["released", "compact"])
def test_another_describer_is_run_stored_and_merged(root, tmp_path, form):
    describer: Describer = Depth()
    for chunk in (1, 2):
        options = {"num_chunks": 2, "chunk_idx": chunk, "batch_size": 3, "feature_layout": form}
        assert run(job(root, tmp_path, **options), describer) == 0
    described, rows = outcome(root, tmp_path)
    assert [len(found) for found in rows] == [ROWS] * 6 + [6] * 6
    for clip, actions in described.items():
        for action, fields in actions.items():
            seed = stable_seed(42, clip, action) % 97
            assert fields["depth_text"] == f"How to pick up thing {action}? {seed}"
            image_0 = fields["image_0"]
            stored = open_store(tmp_path / "depth").stored(image_0)
            assert stored.shape == ((ROWS, WIDTH) if form == "released" else (ROWS, INPUT))
            assert open_store(tmp_path / "depth").shape(image_0) == (ROWS, WIDTH)
    info = read_info(tmp_path / "depth")
    assert (info["kind"], info["model"], info["width"], info["rows"]) == ("depth", "1", WIDTH, ROWS)
    info = read_info(tmp_path / "words")
    assert (info["kind"], info["width"]) == ("words", 2) and "rows" not in info


def test_provenance_with_a_tuple_is_known_again(root, tmp_path):
    for _ in range(2):
        assert run(job(root, tmp_path), Depth(version=("1", ("a", 2)))) == 0
    with pytest.raises(EgoGenError, match="was made with model"):
        run(job(root, tmp_path), Depth(version=("1", ("a", 3))))


def test_layouts_of_another_describer_hold_the_same(root, tmp_path):
    found = {}
    for form in ("released", "compact"):
        run(job(root, tmp_path / form, feature_layout=form), Depth())
        found[form] = outcome(root, tmp_path / form)
    assert found["released"][0] == found["compact"][0]
    for one, other in zip(found["released"][1], found["compact"][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3)


def test_another_describer_continues_where_it_was_killed(root, tmp_path, monkeypatch):
    written, real = 0, loop.append_results

    def dying(*arguments):
        nonlocal written
        written += 1
        if written == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "append_results", dying)
        with pytest.raises(KeyboardInterrupt):
            run(job(root, tmp_path / "killed", batch_size=2), Depth())
    again = Depth()
    assert run(job(root, tmp_path / "killed", batch_size=2), again) == 0
    assert len(again.seen) == 4  # of six: one batch had its texts
    run(job(root, tmp_path / "plain"), Depth())
    killed, plain = outcome(root, tmp_path / "killed"), outcome(root, tmp_path / "plain")
    assert killed[0] == plain[0]
    for one, other in zip(killed[1], plain[1], strict=True):
        assert np.array_equal(one, other)
    idle = Depth()
    assert run(job(root, tmp_path / "killed"), idle) == 0 and not idle.seen


def test_what_another_describer_refuses_is_named(root, tmp_path, capsys):
    first = next(iter(json.loads(layout.action_file(root, DATASET, "val").read_text())))
    code = run(job(root, tmp_path), Depth(fails_at=(first, "0")))
    assert code == EXIT_INCOMPLETE
    assert f"not described: entry {first}/0: no room" in capsys.readouterr().err


def test_results_of_two_describers_are_not_mixed(root, tmp_path):
    run(job(root, tmp_path), Depth())
    with pytest.raises(EgoGenError, match="made with model '1', expected '2'"):
        run(job(root, tmp_path), Depth("2"))


def test_a_feature_that_no_describer_makes(root, tmp_path):
    asked = Job(**{**vars(job(root, tmp_path)), "feature_paths": {"pose": tmp_path / "pose"}})
    with pytest.raises(EgoGenError, match="makes no feature 'pose', expected one of depth, words"):
        run(asked, Depth())
    assert not list(tmp_path.rglob("*.*"))


def test_the_loop_knows_no_model():
    """Neither it nor what merges results loads the libraries of models, which take seconds."""
    code = "import sys; import llava.describing.loop; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
