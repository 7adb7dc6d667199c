"""README's two commands from nothing, in a Debian 13 that has Python and nothing else.

The Debian is made with debootstrap in a folder of the test's own, and its processes have mounts and
process numbers of their own, so nothing outlives them. It takes over how this machine reaches
mirrors (certificates, proxies, pip's configuration and environment), which may differ anywhere, and
nothing else. 7 GB of disk and some 15 minutes:

    TEST_PROCESSES=1 bash scripts/test.sh -m slow tests/test_bare_debian.py
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = "ca-certificates,python3,python3-venv"
SETTLED = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/xdg/pip")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
ENTER = """
mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc"
exec chroot "$@"
"""
HOME = "/home/me"
PROJECT = f"{HOME}/my project"

pytestmark = [
    pytest.mark.slow("bare Debian"),
    pytest.mark.timeout(5400),
    pytest.mark.skipif(os.geteuid() != 0, reason="a chroot needs root"),
    pytest.mark.skipif(shutil.which("debootstrap") is None, reason="debootstrap is not installed"),
]


def mirror() -> list[str]:
    """This machine's own mirror of Debian, where it has one; else debootstrap knows its default."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    lines = "\n".join(path.read_text() for path in files if path.is_file())
    return re.findall(r"^(?:deb|URIs:)\s.*?(https?://\S+/debian)/?(?:\s|$)", lines, re.M)[:1]


class Debian:
    def __init__(self, folder: Path):
        self.folder = folder

    def call(self, line: str, user: str = "root", timeout: int = 3600):
        home = HOME if user == "me" else "/root"
        env = {"HOME": home, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        env |= {name: value for name, value in os.environ.items() if is_network(name)}
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", ENTER]
        words = [f"--userspec={user}", str(self.folder), "/bin/bash", "-c", line]
        return subprocess.run(
            [*command, str(self.folder), *words],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def done(self, line: str, user: str = "root") -> str:
        result = self.call(line, user)
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
        return result.stdout


def is_network(name: str) -> bool:
    """How mirrors are reached; folders of wheels on this machine's disk are not taken over."""
    pip = name.startswith("PIP_") and name != "PIP_FIND_LINKS"
    return pip or name.lower().endswith("_proxy")


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    folder = tmp_path_factory.mktemp("debian") / "trixie"
    folder.mkdir()
    folder.chmod(0o755)
    make = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "trixie", str(folder)]
    made = subprocess.run([*make, *mirror()], capture_output=True, text=True)
    assert made.returncode == 0, (made.stdout + made.stderr)[-2000:]
    for path in map(Path, (*SETTLED, CERTIFICATES)):
        there = folder / path.relative_to("/")
        if path.is_dir():
            shutil.copytree(path, there, dirs_exist_ok=True)
        elif path.is_file():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)
    proxies = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
    proxies = "\n".join(line for line in proxies.splitlines() if "proxy" in line.lower())
    (folder / "etc/apt/apt.conf.d/90proxies").write_text(proxies + "\n")
    machine = Debian(folder)
    machine.done("useradd -m me")
    clone = folder / PROJECT.lstrip("/")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    shutil.rmtree(clone / ".git")  # as unpacked from an archive: there is no git either
    machine.done(f"chown -R me: {shlex.quote(PROJECT)}")
    yield machine
    shutil.rmtree(folder)


def test_quick_start_of_a_user(debian):
    """Without root; in a folder with a space; with the packages that README asks for alone."""
    line = f"cd {shlex.quote(PROJECT)} && bash scripts/quickstart.sh tiny"
    said = debian.done(line, "me")
    assert "report: " in said
    report = debian.folder / PROJECT.lstrip("/") / "runs/tiny/report/report.html"
    assert "<html" in report.read_text()
    assert report.stat().st_uid == 1000
    assert "==" not in debian.done(line, "me")  # finished work is not done again


def test_tests_as_root(debian):
    """A browser, zip and Slurm are installed first; the tests that need them run, and some more."""
    names = ("report", "unpack", "settings", "house", "setup", "slurm")
    words = " ".join(f"tests/test_{name}.py" for name in names)
    said = debian.done(f"cd {shlex.quote(PROJECT)} && CI=true bash scripts/test.sh {words}")
    assert " passed" in said and "failed" not in said


def test_without_the_package_for_environments(debian):
    """Debian's Python alone: one line says what to install."""
    debian.done("apt-get purge -y -qq 'python3*-venv'")
    scripts = f"{shlex.quote(PROJECT)}/scripts"
    result = debian.call(f"cp -r {scripts} /tmp && cd /tmp && bash scripts/quickstart.sh")
    assert result.returncode == 2 and result.stdout == "", result.stdout + result.stderr
    assert "apt-get install python3.13-venv" in result.stderr and result.stderr.count("\n") == 1
