"""Two processes on one output folder share the work, or the second says that it will not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bad_input_world import ENTRIES, PROJECT, World
from other_process import held

from egogen.errors import run_command

WORKER = f"""
import contextlib, json, os, sys
sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / "vllm")!r}, {str(PROJECT / "tests")!r}]
from bad_input_world import ENTRIES
from egogen.errors import run_command
answers, sys.stdout = sys.stdout, sys.stderr
print("ready", file=answers, flush=True)
for line in sys.stdin:
    entry, *words = json.loads(line)
    try:
        run_command(ENTRIES[entry][0], words)
    except SystemExit as stopped:
        print(stopped.code, file=answers, flush=True)
    except BaseException as error:
        print(repr(error), file=answers, flush=True)
"""
# What is compared with the files of one undisturbed run.
SHARED = {
    "render": "out/**/*.*",
    "cache": "out/**/*.safetensors",
    "generate": "model/**/*.jpg",
    "metrics": "out/*.*",
    "features": "out/**/*.npy",
    "merge": "out/*.json",
}
ALONE = {  # name of the lock, and what is compared
    "build": ("out/build/epickitchen/.lock", "out/**/*.*"),
    "describe": ("out/chunks/.out_1.lock", "out/**/*.*"),
    "tune": ("out/.lock", "out/model.safetensors"),
    "train": ("out/a/.lock", "out/a/config.yaml"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("two"))


@pytest.fixture(autouse=True)
def clean(world):
    yield
    world.restore()


def words(world: World, entry: str) -> list[str]:
    return ENTRIES[entry][1].replace("{root}", str(world.root)).split()


def content(world: World, pattern: str) -> dict[str, bytes]:
    found = {
        str(path.relative_to(world.root)): path.read_bytes()
        for path in world.root.glob(pattern)
        if path.is_file()
    }
    assert found
    return found


def undisturbed(world: World, entry: str, pattern: str) -> dict[str, bytes]:
    with pytest.raises(SystemExit) as stopped:
        run_command(ENTRIES[entry][0], words(world, entry))
    assert stopped.value.code == 0
    found = content(world, pattern)
    world.restore()
    return found


@pytest.fixture(scope="module")
def pair():
    """Two processes that have everything imported, and begin when they are told what."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", WORKER]
    workers = [subprocess.Popen(command, cwd=PROJECT, **pipes) for _ in range(2)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    yield workers
    for worker in workers:
        worker.communicate()


@pytest.mark.parametrize("entry", SHARED)
def test_two_at_once_make_what_one_makes(entry, pair, world, capfd):
    expected = undisturbed(world, entry, SHARED[entry])
    for worker in pair:
        worker.stdin.write(json.dumps([entry, *words(world, entry)]) + "\n")
        worker.stdin.flush()
    assert [worker.stdout.readline() for worker in pair] == ["0\n"] * 2, capfd.readouterr().err
    assert content(world, SHARED[entry]) == expected


@pytest.mark.parametrize("entry", ALONE)
def test_the_second_says_so_and_changes_nothing(entry, world, capfd):
    lock, pattern = ALONE[entry]
    expected = undisturbed(world, entry, pattern)
    with held(world.root / lock), pytest.raises(SystemExit) as stopped:
        run_command(ENTRIES[entry][0], words(world, entry))
    said = capfd.readouterr().err
    assert stopped.value.code == 2 and "another process is" in said, said
    assert (
        not list(world.root.glob("out/**/*.npy"))
        and not list(world.root.glob("out/**/*.jpg"))
        and not (world.root / "out/a/config.yaml").exists()
    )
    with pytest.raises(SystemExit):  # the other one has been killed: the same command begins
        run_command(ENTRIES[entry][0], words(world, entry))
    assert content(world, pattern) == expected
