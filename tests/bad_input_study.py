"""What `metrics/study.py` refuses: runs, keys and files of votes, a row each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from bad_input_damage import Case, cut, edited, gone, marked, put, untouched

from metrics import study

MAKE = "make {root}/run {root}/run2 --dataset-root {root} --count 3 --checks 1"
ENTRIES = {
    "study make": (study.main, f"{MAKE} --out {{root}}/out"),
    "study count": (
        study.main,
        "count {root}/study/votes/anna.json {root}/study/votes/ben.json --out {root}/out.json",
    ),
}
KEY, VOTES, OTHER = "study/key.json", "study/votes/ben.json", "study/votes/anna.json"


def write_study(root: Path) -> None:
    """A second run that is like the first, a study of both and the votes of two raters."""
    shutil.copytree(root / "run", root / "run2")
    study.main(f"{MAKE} --out {{root}}/study".format(root=root).split())
    key = json.loads((root / KEY).read_text())
    for rater, path in (("anna", OTHER), ("ben", VOTES)):
        answers = {}
        for number, item in key["items"].items():
            answers[number] = item["right"] or next(iter(item["names"]))
        votes = {"study": key["study"], "rater": rater, "browser": rater, "answers": answers}
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(json.dumps(votes))


def answer(choice: object) -> Callable[[dict], None]:
    return lambda votes: votes["answers"].update({next(iter(votes["answers"])): choice})


def field(**fields: object) -> Callable[[dict], None]:
    return lambda votes: votes.update(fields)


def a_check_failed(root: Path) -> None:
    checks = [x for x, one in json.loads((root / KEY).read_text())["items"].items() if one["right"]]
    for path in (VOTES, OTHER):
        edited(path, lambda votes: votes["answers"].update(dict.fromkeys(checks)))(root)


def a_frame_is_gone(root: Path) -> None:
    shutil.rmtree(root / "run2/images")
    (root / "run2/images").mkdir()


STUDY = [
    *(
        Case("study count", what, damage, ("ben.json", *said))
        for what, damage, said in (
            ("no such file", gone(VOTES), ("no such file",)),
            ("not JSON", put(VOTES, "<html>"), ("not valid JSON",)),
            ("cut short", cut(VOTES), ("not valid JSON",)),
            ("empty", put(VOTES, ""), ("not valid JSON",)),
            ("a list", put(VOTES, "[]"), ("expected an object",)),
            ("an object of nothing", put(VOTES, "{}"), ("expected the votes of a rater",)),
            ("another study", edited(VOTES, field(study="0")), ("in study ",)),
            ("answers are a list", edited(VOTES, field(answers=[])), ("expected the votes",)),
            ("unknown question", edited(VOTES, field(answers={"x": None})), ("entry 'x'",)),
            ("frame out of range", edited(VOTES, answer("9")), ("'9': no frame of it",)),
            ("a place for a frame", edited(VOTES, answer(1)), ("1: no frame of it",)),
            ("choice is a list", edited(VOTES, answer([])), ("[]: no frame of it",)),
            ("no rater", edited(VOTES, field(rater=None)), ("field 'rater'",)),
            ("rater is a path", edited(VOTES, field(rater="../a")), ("field 'rater'",)),
            ("huge", put(VOTES, '{"answers": {"' + "x" * 9_000_000), ("not valid JSON",)),
            ("huge choice", edited(VOTES, answer("x" * 9_000_000)), ("no frame of it",)),
            ("a number that is none", put(VOTES, '{"study": NaN}'), ("NaN",)),
            ("a key twice", put(VOTES, '{"a": 1, "a": 2}'), ("stands twice",)),
        )
    ),
    Case(
        "study count",
        "one rater in two browsers",
        edited(VOTES, field(rater="anna")),
        ("ben.json", "'anna'", "another file"),
    ),
    Case("study count", "all failed a check", a_check_failed, ("no rater is left of 2 files",)),
    Case("study count", "key is gone", gone(KEY), ("key.json: no such file",)),
    Case("study count", "key is not JSON", put(KEY, "key"), ("key.json",)),
    Case("study count", "key is another's", put(KEY, '{"a": 1}'), ("the key of a study",)),
    Case("study count", "byte order marks", marked, (), 0),
    Case("study make", "a run alone", untouched, ("expected 2 to 9",), more="--names a"),
    Case("study make", "a name twice", untouched, ("expected 2 to 9",), more="--names a a"),
    Case("study make", "no samples", untouched, ("at least 1 frame",), more="--count 0"),
    Case("study make", "checks below 0", untouched, ("at least 0 checks",), more="--checks -1"),
    Case("study make", "frames of none", a_frame_is_gone, ("run2/images", "in all of them")),
    Case("study make", "frame is a text", put("run/images/*/*/*.jpg", "x"), ("frame", ".jpg")),
    Case("study make", "source is a text", put("EgoGen/ego4d.fho/val/*/0/*10.jpg", "x"), (".jpg",)),
    Case("study make", "no action file", gone("ego4d_val.json"), ("ego4d_val.json",)),
    Case(
        "study make",
        "a study is there",
        untouched,
        ("key.json", "another --out"),
        more="--out {root}/study",
    ),
    Case("study make", "no such dataset", untouched, ("dataset",), more="--dataset ego5d"),
]
