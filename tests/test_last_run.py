"""The table of the long tests' last runs, written by real runs of pytest in a small folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "[pytest]\naddopts = -p last_run -p no:cacheprovider -m 'not slow'\nmarkers = slow(part)\n"
)
TESTS = """
import os, pytest

CHAIN = pytest.mark.slow("chain | of links")

def test_quick():
    pass

@CHAIN
def test_link():
    pass

@CHAIN
@pytest.mark.parametrize("number", [1, 2])
def test_other_links(number, record_property):
    record_property("remark", "12 kills")
    assert number < int(os.environ.get("STRONG", 2))

@pytest.mark.slow
def test_page():
    pytest.skip("no browser\\nhere")

@pytest.mark.slow("death")
def test_that_ends_its_process():
    os._exit(int(os.environ.get("DIES", 1)))
"""
ALIVE = ("-k", "not process")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_links.py").write_text(TESTS)
    return tmp_path


def run(folder: Path, *words: str, **environment: str) -> dict[str, list[str]]:
    """Run pytest -> the table: part -> the other cells of its row."""
    packages = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    line = [sys.executable, "-m", "pytest", "-q", *words]
    done = subprocess.run(
        line, cwd=folder, env=os.environ | packages | environment, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    path = folder / "docs" / "last_run.md"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert all(len(row) == 6 for row in rows), rows
    return {row[0]: row[1:] for row in rows[1:]}


def outcomes(rows: dict[str, list[str]]) -> dict[str, str]:
    return {part: cells[0] for part, cells in rows.items()}


@pytest.mark.parametrize("processes", [(), ("-n", "2")])
def test_a_row_a_part(folder, processes):
    assert outcomes(run(folder, "-m", "slow", *ALIVE, *processes)) == {
        "chain of links": "1 failed (test_other_links[2]), 2 passed (12 kills)",
        "test_links": "1 skipped (no browser here)",
    }


def test_other_rows_stay(folder):
    before = run(folder, "-m", "slow", *ALIVE)
    after = run(folder, "-m", "slow", "-k", "link and not page and not process", STRONG="3")
    assert after.pop("chain of links")[0] == "3 passed (12 kills)"
    assert after == {"test_links": before["test_links"]}


def test_a_selection_says_so(folder):
    assert outcomes(run(folder, "-m", "slow", "-k", "other")) == {
        "chain of links": "1 failed (test_other_links[2]), 1 passed (12 kills); 2 of its 3 tests"
    }
    assert outcomes(run(folder, "-m", "slow", "test_links.py::test_link")) == {
        "chain of links": "1 passed; tests asked for by name"
    }


@pytest.mark.parametrize("words", [(), ("-m", "not slow"), ("-m", ""), ("--co", "-m", "slow")])
def test_not_asked_for(folder, words):
    assert run(folder, *words, *ALIVE) == {}


def test_a_process_that_dies(folder):
    """Its own tests before the end keep their rows, the one that it died in has failed."""
    found = outcomes(run(folder, "-m", "slow", "-n", "1", STRONG="3"))
    assert found["death"] == "1 failed (test_that_ends_its_process)"
    assert found["chain of links"] == "3 passed (12 kills)"


def git(folder: Path, *words: str) -> str:
    line = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-C", str(folder), *words]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_date_and_machine(folder):
    words = ("-m", "slow", "-k", "test_link and not other and not page and not process")
    assert run(folder, *words)["chain of links"][2] == "unknown"
    git(folder, "init", "-q")
    git(folder, "add", "pytest.ini", "test_links.py")
    git(folder, "commit", "-qm", "x")
    number = git(folder, "rev-parse", "--short", "HEAD")
    _, seconds, commit, date, machine = run(folder, *words)["chain of links"]
    assert commit == number  # that the table itself has changed does not count
    assert seconds.isdigit() and len(date) == 10 and f"{os.cpu_count()} cores, torch 2." in machine
    (folder / "test_links.py").write_text(TESTS + "\n")
    assert run(folder, *words)["chain of links"][2] == f"{number}+"
    (folder / "inner").mkdir()
    for name in ("pytest.ini", "test_links.py", "docs"):
        (folder / name).rename(folder / "inner" / name)
    assert run(folder / "inner", *words)["chain of links"][2] == "unknown"
