"""Bad input on every command: one clear line, the right exit code, nothing run, nothing half-done.

The cases are data: tests/bad_input_files.py and tests/bad_inputs.py.
"""

from __future__ import annotations

import shlex

import pytest
from bad_input_damage import Case
from bad_input_world import ENTRIES, World, state
from bad_inputs import CASES

from egogen.errors import run_command

# What a command that was refused on its way may leave: the same command continues with it.
BEGUN = {
    "curate": ("out", "out/.talk.json.lock"),
    "judge": ("out", "out/.judge.json.lock"),
    "describe served": ("out", "out/chunks", "out/chunks/.out_1.lock"),
    "download": ("out/.downloads/lock",),
    "tune": ("out", "out/.lock", "out/tuning_settings.json"),
    "train": (
        "out",
        "out/a",
        "out/a/.lock",
        "out/a/config.yaml",
        "out/a/made_by.json",
        "out/a/metrics.jsonl",
        "out/a/checkpoints",
        "out/a/checkpoints/last.ckpt",
    ),
}
NAMED = ("error: ", "problem: ", "not described: ", "not generated: ", "not converted: ")
NAMED += ("not built: ", "not curated: ", "not judged: ", "missing: ")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("bad_input"))


def run(world: World, entry: str, more: str, capfd) -> tuple[object, str]:
    """-> exit code, everything printed."""
    main, line = ENTRIES[entry]
    words = shlex.split(f"{line} {more}".replace("{root}", str(world.root)))
    with pytest.raises(SystemExit) as stopped:
        run_command(main, words)
    printed = capfd.readouterr()
    return stopped.value.code, printed.out + printed.err


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * case.slow) for case in CASES],
    ids=str,
)
def test_bad_input(case: Case, world, capfd):
    case.damage(world.root)
    before = state(world.root)
    try:
        code, text = run(world, case.entry, case.more, capfd)
        after = state(world.root)
    finally:
        world.restore()
    assert code == case.code, text
    assert "Traceback" not in text
    new = after.keys() - before.keys()
    assert "executed" not in new
    assert not [path for path in new if ".tmp" in path]
    assert all(after.get(path) == kept for path, kept in before.items()), "input was changed"
    if code == 0:
        return
    lines = [line for line in text.splitlines() if line.lstrip().startswith(NAMED)]
    usage = [line for line in text.splitlines() if ": error: " in line]  # argparse's own
    named = "\n".join(lines + usage)
    assert all(part in named for part in case.said), text
    if code == 2:
        assert len([line for line in lines if line.startswith("error: ")]) + len(usage) <= 1, text
        assert new <= set(BEGUN.get(case.entry, ())), new


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_same_command_on_sound_input(entry, world, capfd):
    """Otherwise every case above could be about the command line."""
    if entry in ("download", "hub"):
        pytest.skip("its address answers nothing; tests/test_download.py has a server")
    try:
        code, text = run(world, entry, "", capfd)
    finally:
        world.restore()
    assert code == 0, text


def test_debug_shows_where_it_was_found(world, capfd):
    (world.root / "generate.yaml").write_text("- a list\n")
    try:
        code, text = run(world, "generate", "--debug", capfd)
    finally:
        world.restore()
    assert code == 2 and "Traceback" in text and "error: " in text


def test_there_are_enough_cases():
    assert len(CASES) >= 150 and {case.entry for case in CASES} == set(ENTRIES)
    assert len({str(case) for case in CASES}) == len(CASES)
