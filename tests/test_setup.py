"""The Python that scripts find and make .venv with, on machines as people have them.

The interpreters on the path are stand-ins that answer as another version would and note what pip is
asked for; the scripts are the project's, in a folder with a space in its name.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "mkdir", "rm", "touch", "tr")
STAND_IN = """#!/bin/bash
case "$*" in
  *"import ensurepip"*) exit {no_venv} ;;
  *"-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python; touch .venv/pip ;;
  *"-m ensurepip"*) [ {no_venv} = 0 ] && touch .venv/pip ;;
  *"-m pip --version"*) [ -e .venv/pip ] ;;
  *"-m pip install"*) echo "{version}: $* in $TMPDIR" >> pip.txt; exit "${{PIP_FAILS:-0}}" ;;
  "-E -c "*) exec "{real}" -E -S -c "
import platform, sys, sysconfig
platform.python_version = lambda: '{version}'
sys.version_info = tuple(map(int, '{version}'.split('.')))
sysconfig.get_config_var = lambda name: {free}
exec(sys.argv[1])" "$3" ;;
  *) echo "{version} ran $*" ;;
esac
"""


class Machine:
    """A folder of commands, the only one on the path, and a fresh copy of the project's scripts."""

    def __init__(self, folder: Path):
        self.bin, self.project = folder / "bin", folder / "the project"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        shutil.copytree(ROOT / "scripts", self.project / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.project)

    def python(self, name: str, version: str, venv: bool = True, free: bool = False) -> Path:
        path = self.bin / name
        real = Path(sys.executable).resolve()
        path.write_text(
            STAND_IN.format(version=version, no_venv=int(not venv), real=real, free=int(free))
        )
        path.chmod(0o755)
        return path

    def run(self, *words: str, script: str = "quickstart.sh", **env: str):
        return subprocess.run(
            ["bash", str(self.project / "scripts" / script), *words],
            env={"PATH": str(self.bin), "HOME": str(self.bin), **env},
            cwd=self.bin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def refused(self, **env: str) -> str:
        """The one line of a refusal that has left nothing behind."""
        before = sorted(self.project.rglob("*"))
        done = self.run(**env)
        assert done.returncode == 2 and done.stdout == "", done
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert sorted(self.project.rglob("*")) == before
        return done.stderr

    def installs(self) -> list[str]:
        path = self.project / "pip.txt"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("version", ["3.11.0", "3.12.4", "3.13.5", "3.14.7"])
def test_python3_is_used_where_it_fits(machine, version):
    machine.python("python3", version)
    machine.python("python3.12", "3.12.1")
    done = machine.run("--seed", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{version} ran mini/run.py quick --seed 1\n"
    assert machine.run("tiny").stdout == f"{version} ran mini/run.py tiny\n"
    (line,) = machine.installs()
    assert line.startswith(f"{version}: -I -m pip install --no-user -c constraints.txt -e .[")
    assert line.endswith(f" in {machine.project}/.venv/tmp")  # a bare Debian 13 has /tmp in memory


@pytest.mark.parametrize(
    "default, others, used",
    [
        ("3.10.12", ["3.13.1", "3.11.9"], "3.11.9"),  # Ubuntu 22.04 and what was added to it
        ("3.15.0", ["3.14.2", "3.12.1"], "3.12.1"),
        ("3.9.2", ["3.14.0"], "3.14.0"),
        ("2.7.18", ["3.13.0"], "3.13.0"),
        (None, ["3.12.1"], "3.12.1"),
    ],
)
def test_a_fitting_python_on_the_path_is_found(machine, default, others, used):
    if default:
        machine.python("python3", default)
    for version in others:
        machine.python("python" + version.rsplit(".", 1)[0], version)
    done = machine.run()
    assert done.stdout == f"{used} ran mini/run.py quick\n", done.stderr
    said = f"is Python {default}" if default else "does not run"
    assert f"python3 {said}: python{used.rsplit('.', 1)[0]} makes .venv" in done.stderr


def test_the_path_is_searched_for_what_works(machine):
    """Names alone say little: a pyenv has commands of versions that are not chosen, Debian takes
    `ensurepip` out, and few packages have wheels for the free-threaded builds."""
    machine.python("python3", "3.10.2")
    shim = machine.bin / "python3.11"
    shim.write_text("#!/bin/bash\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    machine.python("python3.12", "3.12.3", venv=False)
    machine.python("python3.13", "3.13.0", free=True)
    assert "apt-get install python3.12-venv" in machine.refused()
    machine.python("python3.14", "3.14.0")
    assert machine.run().stdout.startswith("3.14.0 ran")


def test_refusals_name_the_versions(machine):
    expected = "expected Python 3.11 to 3.14"
    line = machine.refused()
    assert "python3 does not run" in line and expected in line
    machine.python("python3", "3.10.12")
    line = machine.refused()
    assert "python3 is Python 3.10.12" in line and expected in line
    machine.python("python3", "3.13.1", free=True)
    assert "is the free-threaded Python 3.13.1" in machine.refused()


def test_the_package_of_debian_is_named(machine):
    machine.python("python3", "3.13.5", venv=False)
    assert "apt-get install python3.13-venv" in machine.refused()
    machine.python("python3", "3.13.5")
    assert machine.run().returncode == 0


@pytest.mark.parametrize("there", [False, True])
def test_PYTHON_wins(machine, there):  # noqa: N802
    machine.python("python3", "3.12.1")
    if there:
        assert machine.run().returncode == 0
    own = machine.python("own python", "3.14.1")
    old = machine.python("old", "3.10.9")
    line = machine.refused(PYTHON=str(old))
    assert f"PYTHON={old} is Python 3.10.9, expected Python 3.11 to 3.14" in line
    assert "PYTHON=/nowhere/python does not run" in machine.refused(PYTHON="/nowhere/python")
    if there:  # .venv is of another version: nothing is silently done with the wrong one
        line = machine.refused(PYTHON=str(own))
        assert "is Python 3.14, .venv has 3.12" in line and "rm -r .venv" in line
        assert machine.run(PYTHON="python3").stdout.startswith("3.12.1 ran")
    else:
        assert machine.run(PYTHON=str(own)).stdout.startswith("3.14.1 ran")


def test_installed_once_and_again_when_something_changed(machine):
    machine.python("python3", "3.12.1")
    for _ in range(2):
        assert machine.run().returncode == 0
    assert len(machine.installs()) == 1
    with open(machine.project / "constraints.txt", "a") as file:
        file.write("# another version\n")
    assert machine.run().returncode == 0 and len(machine.installs()) == 2
    moved = machine.project.with_name("moved")
    machine.project = machine.project.rename(moved)  # its packages point to the old folder
    assert machine.run().returncode == 0 and len(machine.installs()) == 3
    shutil.copy(machine.python("python3", "3.13.0"), machine.project / ".venv/bin/python")
    assert machine.run().returncode == 0  # the system's Python went up below it
    assert machine.installs()[3].startswith("3.13.0")
    shutil.copy(ROOT / "constraints.txt", machine.project)  # back at an older commit
    assert machine.run().returncode == 0 and len(machine.installs()) == 5


def test_a_stopped_installation_goes_on(machine):
    machine.python("python3", "3.12.1")
    done = machine.run(PIP_FAILS="1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: pip could not install the packages")
    (machine.project / ".venv" / "pip").unlink()  # as a stopped venv, or one of uv, is: without pip
    assert machine.run().stdout.startswith("3.12.1 ran") and len(machine.installs()) == 2
    shutil.rmtree(machine.project / ".venv" / "bin")
    assert machine.run().stdout.startswith("3.12.1 ran")


def test_a_broken_environment_is_named(machine):
    machine.python("python3", "3.12.1")
    python = machine.project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/nowhere/python3.11")  # its interpreter was removed
    line = machine.refused()
    assert ".venv/bin/python does not run" in line and "rm -r .venv" in line
    python.unlink()
    shutil.copy(machine.python("old", "3.10.2"), python)
    assert ".venv/bin/python is Python 3.10.2, expected" in machine.refused()


def test_downloads_run_where_only_python3_is(machine):
    machine.python("python3", "3.12.1")
    done = machine.run("dataset", "--dry-run", script="download.sh")
    assert done.stdout == "3.12.1 ran -m egogen.download dataset --dry-run\n", done.stderr


def test_packages_that_debian_lacks_do_not_end_the_script(machine):
    """Ubuntu has no chromium as a package, a laptop on a train has no mirror."""
    (machine.bin / "id").write_text("#!/bin/bash\necho 0\n")
    apt = '#!/bin/bash\necho "$*" >> apt.txt\n[ "${*: -1}" = zip ]\n'
    (machine.bin / "apt-get").write_text(apt)
    for name in ("id", "apt-get"):
        (machine.bin / name).chmod(0o755)
    machine.python("python3", "3.12.1")
    done = machine.run("tests/test_x.py", script="test.sh")
    assert done.stdout.startswith("3.12.1 ran -m pytest -n 2") and "tests/test_x.py" in done.stdout
    assert "note: chromium could not be installed" in done.stderr and "zip" not in done.stderr


def test_versions_stand_everywhere_alike():
    """What may be installed, what the scripts take and what is checked after every push."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    versions = ["3.11", "3.12", "3.13", "3.14"]
    script = (ROOT / "scripts" / "environment.sh").read_text()
    assert re.search(r"python3 (python3\.\d+ ?)+\)", script)[0] == (
        f"python3 {' '.join('python' + version for version in versions)})"
    )
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["ci"]["strategy"]["matrix"]["python"] == versions


def test_the_cpu_build_of_torch_satisfies_the_tested_versions():
    """docs/setup.md: what is there as 2.11.0+cpu is not replaced by the CUDA build."""
    from packaging.requirements import Requirement

    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin = Requirement(line)
        if pin.name in ("torch", "torchvision"):
            (exact,) = pin.specifier
            assert pin.specifier.contains(exact.version + "+cpu")


@pytest.mark.slow("environment made by a real Python")
def test_a_real_environment(machine):
    """A real interpreter and a real venv; pip is kept from every index and says so."""
    for tool in ("env", "uname"):
        (machine.bin / tool).symlink_to(shutil.which(tool))
    real = os.path.realpath(sys.executable)
    words = dict(PYTHON=real, PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull, PIP_USER="1")
    words["PYTHONPATH"] = str(machine.bin / "packages of another Python")
    done = machine.run(**words)
    assert done.returncode == 2 and "pip could not install" in done.stderr.splitlines()[-1]
    assert "--user" not in done.stderr
    assert (machine.project / ".venv" / "pyvenv.cfg").exists()
