"""JSON files as editors, shells and truncated answers leave them, read by one reader."""

import json

import pytest

from egogen.atomic import parse_json, read_json, read_object, write_json
from egogen.errors import EgoGenError
from metrics.reporting.data import read_curve

TEXT = '{"clip": {"0": {"action": "öffne 😀"}}}'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_taken(tmp_path, encoding):
    (tmp_path / "x.json").write_bytes(TEXT.encode(encoding))
    assert read_json(tmp_path / "x.json") == json.loads(TEXT)


def test_half_of_an_emoji_is_one_unknown_letter():
    text = (
        rb'["\ud83d", "a\ude00b", "\ud83d\ude00", "\\ud83d", "\ud83d\ud83d\ude00", "\u00e9\u0000"]'
    )
    found = parse_json(text, "x")
    assert found == ["\ufffd", "a\ufffdb", "😀", r"\ud83d", "\ufffd😀", "é\0"]
    assert parse_json(rb'{"\ud83d": 1}', "x") == {"\ufffd": 1}
    with pytest.raises(EgoGenError, match="x: key '\ufffd' stands twice"):
        parse_json(rb'{"\ud83d": 1, "\ud83e": 2}', "x")


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000]
)
def test_what_is_no_number_is_named_by_its_entry(number):
    text = '{"clip": {"0": {"n": [1.5, -2, 1e3, %s]}}}'
    with pytest.raises(EgoGenError, match=f"x: entry clip/0/n/3: {number[:40]}.*expected a finite"):
        parse_json((text % number).encode(), "x")
    whole = parse_json((text % ("9" * 300)).encode(), "x")["clip"]["0"]["n"]
    assert whole == [1.5, -2, 1000.0, int("9" * 300)] and isinstance(whole[1], int)


def test_only_what_is_wanted_of_objects_is_kept(tmp_path):
    write_json(tmp_path / "x.json", {"a": [{"b": 1, "c": {"b": 2}}, {}], "c": 3})

    def keep(entry: dict) -> dict:
        return {name: value for name, value in entry.items() if name in "ab"}

    assert read_object(tmp_path / "x.json", keep=keep) == {"a": [{"b": 1}, {}]}
    (tmp_path / "x.json").write_text('{"c": 1, "c": 2}')
    with pytest.raises(EgoGenError, match="key 'c' stands twice"):
        read_object(tmp_path / "x.json", keep=keep)


def test_nesting_that_could_not_be_written_back_is_refused(tmp_path):
    write_json(tmp_path / "x.json", parse_json(b"[" * 100 + b"]" * 100, "x"))
    for depth in (101, 900):
        with pytest.raises(EgoGenError, match="x: not valid JSON"):
            parse_json(b'{"a":[' * depth + b"]}" * depth, "x")


def test_the_log_of_a_run_that_diverged_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo'
    )
    history = '{"log_history": [{"step": 1, "loss": 2.0}, {"step": 2, "grad_norm": NaN}]}'
    (tmp_path / "trainer_state.json").write_text(history)
    for name in ("a.jsonl", "trainer_state.json"):
        assert read_curve(tmp_path / name, "x").lines == {"training": [(1, 2.0)]}


def test_bytes_that_are_no_text_are_written_with_backslashes(tmp_path):
    write_json(tmp_path / "x.json", {"image": "photo\udcff.jpg"})  # as the system names such files
    assert read_json(tmp_path / "x.json") == {"image": "photo\ufffd.jpg"}
