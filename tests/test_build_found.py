"""Where clips are found, what they are called, archives of frames, folders of films."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from made_films import number_in, picture, write_film

from egogen.actions import read_actions
from egogen.build.__main__ import main
from egogen.build.clips import clip_ids, film_in, find_clips, open_clip
from egogen.errors import EgoGenError
from egogen.layout import action_file, frame_folder, metadata_file


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", times=range(75)).read_bytes()


def put(root: Path, *names: str, content: bytes = b"") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def png(number: int) -> bytes:
    data = io.BytesIO()
    picture(number).save(data, "png")
    return data.getvalue()


def tar(path: Path, members: dict[str, bytes], mode: str = "w", *others: tarfile.TarInfo) -> Path:
    """An archive of files, `others` (links, devices ...) before them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for info in others:
            archive.addfile(info)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def found(videos: Path, name: str) -> str:
    return str(find_clips(videos, [name])[name].relative_to(videos))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("P01/videos/P01_01.MP4", "P01_01"),
        ("P01/videos/P01_01.MP4", "p01_01.mp4"),
        ("a/b/c/d/P01_01.mkv", "P01_01"),
        ("recordings/seq_1/view.mp4", "seq_1/view.mp4"),
        ("recordings/seq_1/view.mp4", "SEQ_1/view"),
        ("P01/rgb_frames/P01_01.tar", "P01_01"),
        ("P01/rgb_frames/P01_01.tar.gz", "P01_01"),
        ("rgb/P01_01/frame_0000000001.jpg", "P01_01"),
    ],
)
def test_clips_are_found_however_deep(file, name, film, tmp_path):
    put(tmp_path, file, "P01/videos/P01_11.MP4", "P01/flow_frames/P01_01.tar", content=film)
    put(tmp_path, "recordings/seq_2/view.mp4", ".trash/P01_01.MP4", content=film)
    assert found(tmp_path, name) == (os.path.dirname(file) if "rgb/" in file else file)


def test_what_lies_where_it_is_said_goes_first(film, tmp_path):
    put(tmp_path, "a.mp4", "deep/a.mp4", "x/b.mp4", "deep/x/b.mp4", content=film)
    assert found(tmp_path, "a") == "a.mp4" and found(tmp_path, "x/b") == "x/b.mp4"
    assert found(tmp_path, "X/b") == "x/b.mp4"


def test_films_go_before_archives_and_these_before_folders(film, tmp_path):
    put(tmp_path, "f/P01_01/frame_1.png", "P01/meta_data/P01_01.csv", content=png(1))
    assert found(tmp_path, "P01_01") == "f/P01_01"
    tar(tmp_path / "t" / "P01_01.tar", {"1.png": png(1)})
    assert found(tmp_path, "P01_01") == "t/P01_01.tar"
    put(tmp_path, "v/P01_01.MP4", content=film)
    assert found(tmp_path, "P01_01") == "v/P01_01.MP4"
    put(tmp_path, "w/P01_01.mkv", content=film)
    with pytest.raises(EgoGenError, match=r"several of that name \(v/P01_01\.MP4, w/P01_01\.mkv\)"):
        find_clips(tmp_path, ["P01_01"])


def test_circles_of_links_and_links_to_one_film(film, tmp_path):
    put(tmp_path, "P01/a.mp4", content=film)
    (tmp_path / "P01" / "back").symlink_to(tmp_path)
    (tmp_path / "also").mkdir()
    (tmp_path / "also" / "a.mp4").symlink_to(tmp_path / "P01" / "a.mp4")
    assert (tmp_path / found(tmp_path, "a")).resolve() == tmp_path / "P01" / "a.mp4"


def test_many_clips_are_found_in_one_walk(tmp_path, monkeypatch):
    names = [f"{k}.webm" for k in range(3000)]
    put(tmp_path, *(f"deep/{name}" for name in names))
    walks, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: walks.append(a) or walk(*a, **k))
    assert len(find_clips(tmp_path, [name[:-5] for name in names])) == 3000 and len(walks) == 1


def test_the_folder_is_part_of_a_name_that_repeats(film, tmp_path):
    put(tmp_path, "r/s1/view.mp4", "r/s2/view.mp4", "r/s2/other.mp4", "s3/view/1.png", content=film)
    clips = ["s1/view.mp4", "s2/view", "s2/other.mp4", "s3/view"]
    ids = clip_ids(find_clips(tmp_path, clips), clips)
    assert list(ids.values()) == ["s1_view", "s2_view", "other", "s3_view"]
    part = find_clips(tmp_path, clips[:1])  # the others' videos are not there
    assert clip_ids(part, clips) == {"s1/view.mp4": "s1_view"}


def test_folders_with_films(film, tmp_path):
    take = tmp_path / "takes" / "cook_1"
    put(take, "frame_aligned_videos/aria01_214-1.mp4", content=film)
    assert film_in(take, ()).name == "aria01_214-1.mp4"
    put(take, "frame_aligned_videos/cam01.mp4", content=film)
    put(take, "frame_aligned_videos/downscaled/448/aria01_214-1.mp4", content=film)
    put(take, "hand_pose.json", "aria01_notes_214-1.txt", content=b"{}")
    assert found(tmp_path, "cook_1") == "takes/cook_1"
    with pytest.raises(EgoGenError, match=r"cook_1: holds .*cam01\.mp4.*--view"):
        film_in(take, ())
    chosen = film_in(take, ("*_214-1.*",))
    assert chosen == take / "frame_aligned_videos" / "aria01_214-1.mp4"
    assert film_in(take, ("none*", "CAM*")).name == "cam01.mp4"
    with pytest.raises(EgoGenError, match=r"holds .*expected one film, or --view"):
        film_in(take, ("nothing*",))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.TAR"])
@pytest.mark.parametrize("inside", ["frame_{:010d}.png", "./P01_01/frame_{:010d}.png"])
def test_frames_are_read_from_archives(name, inside, tmp_path):
    members = {inside.format(k + 1): png(k) for k in range(9) if k != 5}
    members |= {"._frame_0000000002.png": b"of the Finder", "notes.txt": b"7"}
    path = tar(tmp_path / name, members, "w:gz" if "gz" in name else "w")
    with open_clip(path, 10) as clip:
        for number in (3, 0, 8):
            frame = clip.at(number / 10)
            assert (number_in(frame.image), frame.name) == (number, f"{number:010d}")
        assert clip.last() == 0.8
        for time, said in ((0.5, r"frame 6, of 0\.50 s, is missing"), (0.95, r"ends at 0\.90 s")):
            with pytest.raises(EgoGenError, match=said):
                clip.at(time)


def test_official_frames_have_their_rate_in_a_table_that_does_not_say_it(tmp_path):
    """As `--table-only` writes it; frames elsewhere are somebody's own."""
    members = {f"frame_{k + 1:010d}.png": png(k) for k in range(90)}
    places = ("P01/rgb_frames/P01_01.tar", "P01/rgb_frames/P01_101.tar", "own/P02_01.tar")
    for place in places:
        tar(tmp_path / "videos" / place, members)
    rows = [f"{name},0,x,0.5000,1.1000" for name in ("P01_01", "P01_101", "P02_01")]
    (tmp_path / "a.csv").write_text("\n".join(["clip,id,action,source,target", *rows]))
    words = [str(tmp_path / "out"), "--table", str(tmp_path / "a.csv")]
    assert main([*words, "--videos", str(tmp_path / "videos")]) == 1
    entries = read_actions(action_file(tmp_path / "out", "epickitchen", "train"))
    assert [(Path(e.image_0).name, Path(e.image_1).name) for e in entries] == [
        ("frame_0000000030.jpg", "frame_0000000066.jpg"),
        ("frame_0000000025.jpg", "frame_0000000055.jpg"),
    ]


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def test_links_and_devices_in_archives_are_not_followed(tmp_path):
    secret = put(tmp_path, "secret.png", content=png(77)) / "secret.png"
    others = [link("1.png", str(secret)), link("2.png", "../secret.png")]
    others += [link("3.png", "/dev/zero", tarfile.CHRTYPE), link("4.png", "5.png", tarfile.LNKTYPE)]
    before = sorted(tmp_path.rglob("*"))
    path = tar(
        tmp_path / "a.tar", {"../0.png": png(0), "/5.png": png(5), "6.png": png(6)}, "w", *others
    )
    with open_clip(path, 1) as clip:
        assert [number_in(clip.at(time).image) for time in (0, 5)] == [0, 5]
        for time in (1, 2, 3, 4):
            with pytest.raises(EgoGenError, match="is missing"):
                clip.at(time)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])


def build(folder: Path, text: str, *flags: str) -> int:
    (folder / "a.csv").write_text(text)
    words = [str(folder / "out"), "--table", str(folder / "a.csv"), "--sheets", "0"]
    return main([*words, "--videos", str(folder / "videos"), "--before", "0", *flags])


def built(folder: Path) -> dict[str, list[int]]:
    """clip/id -> numbers in the two frames."""
    frames = frame_folder(folder / "out", "epickitchen", "train")
    return {
        entry.key: [number_in(picture_at(frames / p)) for p in (entry.image_0, entry.image_1)]
        for entry in read_actions(action_file(folder / "out", "epickitchen", "train"))
    }


def picture_at(path: Path):
    from PIL import Image

    return Image.open(path)


def test_rates_of_archives_may_differ_in_one_dataset(tmp_path):
    for name in ("P01_01", "P01_101"):
        folder = tmp_path / "videos" / "P01" / "rgb_frames"
        tar(folder / f"{name}.tar", {f"frame_{k + 1:010d}.png": png(k) for k in range(120)})
    text = "clip,start,action,contact,fps\nP01_01,1,cut,1.5,60\nP01_101,1,pour,1.5,50\n"
    assert build(tmp_path, text) == 0
    assert built(tmp_path) == {"P01_01/0": [60, 90], "P01_101/0": [50, 75]}
    metadata = json.loads(metadata_file(tmp_path / "out", "epickitchen").read_text())
    assert {name: fields["fps"] for name, fields in metadata.items()} == {
        "P01_01": 60.0,
        "P01_101": 50.0,
    }
    with pytest.raises(EgoGenError, match=r"clip P01_01 has fps 60\.0 and 50\.0, expected one"):
        build(tmp_path, text.replace("P01_101,1,pour", "P01_01,1,pour"))


def test_names_that_repeat_are_built_with_their_folders(film, tmp_path):
    put(tmp_path / "videos", "a/x.mp4", "b/x.mp4", content=film)
    assert build(tmp_path, "clip,start,action\na/x.mp4,1,cut\nb/x.mp4,0.5,pour\n") == 0
    assert built(tmp_path) == {"a_x/0": [30, 60], "b_x/0": [15, 45]}
