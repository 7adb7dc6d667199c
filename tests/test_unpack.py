"""Archives are taken as hostile: nothing leaves the folder, nothing of one's own is replaced."""

from __future__ import annotations

import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest
from zip_archives import packed

from egogen.download.unpack import unpack
from egogen.errors import EgoGenError

CONTENT = bytes(range(256)) * 4096  # 1 MiB


def linked(name: str, content: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, content.encode()


HOSTILE = {
    "parent": [("../evil.txt", b"x")],
    "deep parent": [("ok/../../evil.txt", b"x")],
    "absolute": [("/evil.txt", b"x")],
    "backslash": [("..\\evil.txt", b"x")],
    "drive": [("C:evil.txt", b"x")],
    "link": [linked("door", ".."), ("door/evil.txt", b"x")],
    "only a link": [linked("door", "first.txt")],
    "twice": [("a.txt", b"x"), ("./a.txt", b"y")],
    "file and folder": [("a", b"x"), ("a/b", b"y")],
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives(tmp_path, case):
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("first.txt", b"harmless")
        for name, content in HOSTILE[case]:
            archive.writestr(name, content)
    with pytest.raises(EgoGenError, match="a.zip: member"):
        unpack(folder / "a.zip", folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "here", "in"]


def test_link_that_was_there_is_not_followed_out(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "door").symlink_to(tmp_path)
    packed(tmp_path / "in" / "a.zip", {"door/evil.txt": b"x"})
    with pytest.raises(EgoGenError, match="through a link"):
        unpack(tmp_path / "in" / "a.zip", tmp_path / "in")
    assert not (tmp_path / "evil.txt").exists()


def test_bomb(tmp_path, monkeypatch):
    packed(tmp_path / "a.zip", {"big": bytes(10**6)})
    monkeypatch.setattr("egogen.download.unpack.LARGEST_RATIO", 500)
    with pytest.raises(EgoGenError, match="claims 1000000 bytes"):
        unpack(tmp_path / "a.zip", tmp_path)


@pytest.mark.parametrize("cut", [10, 200])
def test_damaged_archives(tmp_path, cut):
    whole = packed(tmp_path / "a.zip", {"a.txt": CONTENT, "b.txt": CONTENT[::-1]})
    damaged = whole[:-cut] if cut == 200 else whole[:100] + bytes(50) + whole[150:]
    (tmp_path / "a.zip").write_bytes(damaged)
    with pytest.raises(EgoGenError, match="not a whole zip archive|is damaged"):
        unpack(tmp_path / "a.zip", tmp_path)
    assert not (tmp_path / "a.txt").exists()


def test_extraction_goes_on_and_keeps_what_is_not_its_own(tmp_path):
    packed(tmp_path / "a.zip", {"d/a.txt": b"one", "d/b.txt": b"two"})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_bytes(b"one")
    stamp = (tmp_path / "d" / "a.txt").stat().st_mtime_ns
    assert len(unpack(tmp_path / "a.zip", tmp_path)) == 2
    assert (tmp_path / "d" / "a.txt").stat().st_mtime_ns == stamp
    (tmp_path / "d" / "b.txt").write_bytes(b"own")
    with pytest.raises(EgoGenError, match="b.txt: differs from the one in a.zip"):
        unpack(tmp_path / "a.zip", tmp_path)
    assert (tmp_path / "d" / "b.txt").read_bytes() == b"own"


def split_archive(folder: Path) -> None:
    (folder / "frames").mkdir(parents=True)
    for name in "abc":  # each over one border at most: more is beyond the program that merges
        (folder / "frames" / f"{name}.bin").write_bytes(CONTENT[: 600_000 + ord(name)])
    line = ["zip", "-q", "-0", "-s", "700k", "-r", "parts.zip", "frames"]
    subprocess.run(line, cwd=folder, check=True)
    shutil.rmtree(folder / "frames")


@pytest.mark.skipif(shutil.which("zip") is None, reason="Debian's zip is not installed")
def test_split_archive(tmp_path):
    split_archive(tmp_path)
    assert (tmp_path / "parts.z01").exists()
    found = unpack(tmp_path / "parts.zip", tmp_path)
    assert {path.name for path in found} == {"a.bin", "b.bin", "c.bin"}
    assert (tmp_path / "frames" / "b.bin").read_bytes() == CONTENT[: 600_000 + ord("b")]
    (tmp_path / "parts.z02").rename(tmp_path / "parts.z03")
    with pytest.raises(EgoGenError, match=".z02 of the split archive is missing"):
        unpack(tmp_path / "parts.zip", tmp_path)
