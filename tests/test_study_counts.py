"""Votes are counted: shares, intervals, agreement, files that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from test_study import RUNS, command, items, read, world, write_votes  # noqa: F401

from egogen.errors import run_command
from metrics import study
from metrics.reporting.study import agreement, tally


def test_shares_are_those_of_arithmetic_by_hand(world, tmp_path, capsys):  # noqa: F811
    one, other = RUNS
    files = [
        write_votes(world, tmp_path, "anna", [one, one, None]),
        write_votes(world, tmp_path, "ben", [one, other, other]),
        write_votes(world, tmp_path, "carl", [other, other, other], fail=True),
    ]
    assert command("count", *files, "--study", world / "out", "--out", tmp_path / "v.json") == 0
    found, printed = read(tmp_path / "v.json"), capsys.readouterr().out
    assert "left out: carl, who failed 1 attention checks" in printed
    assert found["raters"] == ["anna", "ben"] and found["votes"] == 6
    assert {name: value for name, (value, _) in found["share"].items()} == {
        one: 3 / 6,
        other: pytest.approx(2 / 6),
        "(none)": pytest.approx(1 / 6),
    }
    assert [value for value, _ in found["win"].values()] == pytest.approx([3 / 5, 2 / 5])
    ((value, ends),) = found["pairs"].values()
    assert value == pytest.approx(3 / 5) and ends[0] <= value <= ends[1]
    assert f"60.0 %  {one} over {other} (95 %: {100 * ends[0]:.1f} to" in printed
    # Agreement 1, 0 and 0 in the samples; of chance (9 + 4 + 1) / 36.
    assert found["kappa"] == pytest.approx((1 / 3 - 14 / 36) / (1 - 14 / 36))
    samples = [item["sample"] for _, _, item in items(world)]
    assert found["samples"] == {
        samples[0]: {one: 2, other: 0},
        samples[1]: {one: 1, other: 1},
        samples[2]: {one: 0, other: 1},
    }
    words = ("count", *files, "--study", world / "out", "--out", tmp_path / "v.json")
    assert command(*words, "--may-fail", 1) == 0
    assert read(tmp_path / "v.json")["raters"] == ["anna", "ben", "carl"]


def test_the_key_is_found_above_the_votes(world, capsys):  # noqa: F811
    path = write_votes(world, world / "out/votes", "mia", [RUNS[0]])
    try:
        assert command("count", path) == 0
        assert read(world / "out/votes.json")["share"][RUNS[0]] == [1.0, None]  # one rater
    finally:
        path.unlink()
        (world / "out/votes.json").unlink()


def test_two_files_of_a_rater(world, tmp_path, capsys):  # noqa: F811
    first = write_votes(world, tmp_path, "nina", [RUNS[0]])
    longer = write_votes(world, tmp_path / "b", "nina", [RUNS[1], RUNS[1]])
    for files in ((first, longer), (longer, first)):
        out = tmp_path / "v.json"
        assert command("count", *files, "--study", world / "out", "--out", out) == 0
        assert read(out)["votes"] == 2 and "another file of nina" in capsys.readouterr().out
    other = write_votes(world, tmp_path / "c", "nina", [RUNS[1]], browser="x")
    with pytest.raises(SystemExit) as stopped:
        run_command(study.main, ["count", str(first), str(other), f"--study={world / 'out'}"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and str(other) in error and "nina" in error


def made_up(votes: np.ndarray) -> dict:
    """`tally` of votes (raters, samples) for run 0, 1 or none (2)."""
    runs = ["a", "b"]
    key_items = {
        f"q{n}": {"sample": f"s{n}", "right": None, "names": {f"{n}a": "a", f"{n}b": "b"}}
        for n in range(votes.shape[1])
    }
    sheets = [
        {"answers": {f"q{n}": (f"{n}a", f"{n}b", None)[vote] for n, vote in enumerate(row)}}
        for row in votes
    ]
    return tally({"runs": runs, "items": key_items}, sheets)


@pytest.mark.parametrize("turned", [False, True])
def test_intervals_are_over_raters_and_over_samples(turned):
    """Ten raters (or samples) of one mind each: as uncertain as ten votes, not as 600."""
    votes = np.repeat(np.array([0, 1] * 5)[:, None], 60, axis=1)
    share, (low, high) = made_up(votes.T if turned else votes)["win"]["a"]
    assert share == 0.5 and 0.5 < high - low < 0.75  # 2 * 1.96 * sqrt(0.25 / 10) = 0.62
    independent = np.random.default_rng(1).integers(0, 2, (60, 60))
    low, high = made_up(independent)["win"]["a"][1]
    assert high - low < 0.08


def test_fleiss_kappa_is_that_of_his_paper():
    """Fleiss 1971 by the table that statistics books print: ten subjects, fourteen raters."""
    table = """0 0 0 0 14;0 2 6 4 2;0 0 3 5 6;0 3 9 2 0;2 2 8 1 1;7 7 0 0 0;3 2 6 3 0;2 5 3 2 2
    ;6 5 2 1 0;0 2 2 3 7"""
    counts = np.array([row.split() for row in table.split(";")], dtype=float)
    assert agreement(counts) == pytest.approx(0.210, abs=5e-4)
    assert agreement(np.array([[1.0, 0.0]])) is None
    assert agreement(np.array([[2.0, 0.0]])) is None


def test_bad_servers_are_one_line(world, tmp_path, capsys):  # noqa: F811
    cases = [
        (["--study", tmp_path], "key.json: no such file"),
        (["--study", world / "out", "--port", 99999], "--port 99999"),
        (["--study", world / "out", "--host", "256.0.0.1"], "256.0.0.1"),
    ]
    for more, said in cases:
        with pytest.raises(SystemExit) as stopped:
            run_command(study.main, ["serve", *map(str, more)])
        error = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and "\n" not in error and said in error
