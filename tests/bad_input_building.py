"""Bad input of `python -m egogen.build`: tables, videos and folders of frames, a row each."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from bad_input_damage import Case, Damage, gone, put, untouched
from PIL import Image

TABLE = "actions.csv"
HEAD = "clip,start,action,end,contact,split,id\n"


def video_of_text(root: Path) -> None:
    (root / "videos" / "kitchen.mp4").write_text("no video")
    (root / TABLE).write_text(HEAD + "kitchen.mp4,1,pick up,,,,\n")


def frames_from_9(root: Path) -> None:
    for number in range(9):
        (root / "videos" / "kitchen" / f"{number}.jpg").unlink()


def every_third_frame(root: Path) -> None:
    for number in range(30):
        if number % 3:
            (root / "videos" / "kitchen" / f"{number}.jpg").unlink()


def two_cases(root: Path) -> None:
    for name in ("Garden", "GARDEN"):
        (root / "videos" / name).mkdir()
    (root / TABLE).write_text(HEAD + "garden,1,pick up,,,,\n")


BUILDING = [
    Case("build", what, put(TABLE, text), (TABLE, said))
    for what, text, said in (
        ("table empty", "", ""),
        ("no rows", HEAD, "row"),
        ("no column of actions", "clip,start\nkitchen,1\n", "action"),
        ("start is a word", HEAD + "kitchen,soon,pick up,,,,\n", "soon"),
        ("start is negative", HEAD + "kitchen,-3,pick up,,,,\n", "-3"),
        ("start is not a number", HEAD + "kitchen,nan,pick up,,,,\n", "nan"),
        ("start is infinite", HEAD + "kitchen,inf,pick up,,,,\n", "inf"),
        ("contact before the start", HEAD + "kitchen,2,pick up,,1,,\n", "contact"),
        ("no action", HEAD + "kitchen,1,,,,,\n", "action"),
        ("clip leaves", HEAD + "../kitchen,1,pick up,,,,\n", "../kitchen"),
        ("clip is absolute", HEAD + "/etc,1,pick up,,,,\n", "/etc"),
        ("unknown split", HEAD + "kitchen,1,pick up,,,dev,\n", "dev"),
        ("id twice", HEAD + 2 * "kitchen,1,pick up,,,val,a\n", "a"),
        ("id has a slash", HEAD + "kitchen,1,pick up,,,val,a/b\n", "a/b"),
        ("not UTF-8", HEAD.encode() + b"kitchen,1,pick \xff up,,,,\n", ""),
        ("a zero byte", HEAD + "kitchen,1,pick\0up,,,,\n", ""),
        ("frames in a time", HEAD + "kitchen,00:00:01:12,pick up,,,,\n", "00:00:01:12"),
        ("underscore in a time", HEAD + "kitchen,1_0,pick up,,,,\n", "1_0"),
        ("exponent in a time", HEAD + "kitchen,1e0,pick up,,,,\n", "1e0"),
        ("decimal comma", HEAD + 'kitchen,"1,5",pick up,,,,\n', "with a point"),
        ("75 seconds of a minute", HEAD + "kitchen,1:75,pick up,,,,\n", "1:75"),
        ("column twice", "clip,start,action,Start\nkitchen,1,pick up,2\n", "each once"),
        ("value without a column", "clip,start,action,\nkitchen,1,pick up,2\n", "row 2"),
        ("backslash", HEAD + "a\\kitchen,1,pick up,,,,\n", "with / between"),
        ("clip is the folder", HEAD + ".,1,pick up,,,,\n", "'.'"),
    )
] + [
    Case("build", "no table", gone(TABLE), (TABLE,)),
    Case(
        "build",
        "table to write is a folder",
        untouched,
        ("/videos: Is a directory",),
        more="--table-only {root}/videos",
    ),
    Case("build", "no such clip", put(TABLE, HEAD + "garden,1,pick up,,,,\n"), ("garden",)),
    Case("build", "after the end", put(TABLE, HEAD + "kitchen,99,pick up,,,,\n"), ("kitchen",), 1),
    Case("build", "video is a text", video_of_text, ("kitchen.mp4",), 1),
    Case("build", "frame missing", gone("videos/kitchen/7.jpg"), ("frame 7",), 1),
    Case("build", "no first frames", frames_from_9, ("numbered from 9",), 1),
    Case("build", "every third frame", every_third_frame, ("every frame number 3",), 1),
    Case("build", "number twice", put("videos/kitchen/07.png", b""), ("07.png", "7.jpg"), 1),
    Case("build", "no number", put("videos/kitchen/cover.jpg", b""), ("cover.jpg",), 1),
    Case("build", "two cases", two_cases, ("several", "Garden", "GARDEN")),
    Case("build", "fps infinite", untouched, ("--fps",), more="--fps inf"),
]

# ---- archives of frames, folders of films, ready pairs

CLIP, PAIRS = "kitchen2", "--from pairs --table {root}/pairs.jsonl"
ARCHIVE = "videos/P01/kitchen2.tar"


def archive(*members: tarfile.TarInfo, cut: int | None = None, images: int = 20) -> Damage:
    """Frames of a clip as an archive, these members first; the table asks for it."""

    def damage(root: Path) -> None:
        path = root / ARCHIVE
        path.parent.mkdir()
        with tarfile.open(path, "w") as file:
            for member in members:
                file.addfile(member)
            for number in range(images):
                file.add(root / "videos" / "kitchen" / f"{number}.jpg", f"{number}.jpg")
        path.write_bytes(path.read_bytes()[:cut])
        (root / TABLE).write_text(HEAD + f"{CLIP},0.5,pick up,,1,,\n")

    return damage


def member(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def backwards(root: Path) -> None:
    """The size of the first member is below 0, as numbers of base 256 can be."""
    archive()(root)
    data = bytearray((root / ARCHIVE).read_bytes())
    data[124:136] = (2**96 - 512).to_bytes(12, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (root / ARCHIVE).write_bytes(data)


def link_to_a_file(root: Path) -> None:
    archive(member("5.jpg", tarfile.SYMTYPE, str(root / "photo.jpg")), images=5)(root)


def two_views(root: Path) -> None:
    for name in ("left", "right"):
        film = root / "videos" / "take" / f"{name}.mpg"
        film.parent.mkdir(exist_ok=True)
        film.write_bytes(MOVING)
    (root / TABLE).write_text(HEAD + "take,0,pick up,,1,,\n")


def pairs(*lines: str) -> Damage:
    return lambda root: (root / "pairs.jsonl").write_text("\n".join(lines) + "\n")


def text_as_image(root: Path) -> None:
    pairs(f'{{{TWO}, "action": "a"}}')(root)
    (root / "videos" / "kitchen" / "9.jpg").write_text("no image")


def moving() -> bytes:
    data = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(data, "gif", save_all=True, append_images=frames[1:])
    return data.getvalue()


MOVING = moving()
TWO = '"before": "kitchen/1.jpg", "after": "kitchen/9.jpg"'
RATES = "clip,start,action,fps\nkitchen,1,pick up,10\nkitchen,2,put down,20\n"
BUILDING += (
    [
        Case("build", "archive cut short", archive(cut=3000), ("kitchen2.tar",), 1),
        Case("build", "archive of nothing", archive(cut=0), ("kitchen2.tar",), 1),
        Case("build", "archive without images", archive(images=0), ("no images",), 1),
        Case("build", "member of a size below 0", backwards, ("kitchen2.tar", "damaged"), 1),
        Case("build", "member is a link", link_to_a_file, ("kitchen2.tar", "ends at"), 1),
        Case(
            "build",
            "member is a device",
            archive(member("7.jpg", tarfile.CHRTYPE), images=5),
            ("kitchen2.tar", "ends at"),
            1,
        ),
        Case("build", "several films in a folder", two_views, ("take", "left.mpg", "--view")),
        Case("build", "no film of that view", two_views, ("right.mpg",), more="--view *mono*"),
        Case("build", "two rates of one clip", put(TABLE, RATES), (TABLE, "10.0", "20.0")),
        Case("build", "rate of 0", put(TABLE, RATES.replace(",20", ",0")), ("row 3", "fps")),
        Case("build", "even number of neighbours", untouched, ("odd",), more="--sharpest 4"),
        Case("build", "no neighbours", untouched, ("--sharpest",), more="--sharpest 0"),
    ]
    + [
        Case("build", f"pairs: {what}", pairs(*lines), said, code, PAIRS)
        for what, lines, said, code in (
            ("not JSON", ["kitchen"], ("pairs.jsonl", "line 1"), 2),
            ("a list", ["[1, 2]"], ("line 1", "an object"), 2),
            ("no rows", [""], ("pairs.jsonl", "no rows"), 2),
            ("no action", [f"{{{TWO}}}"], ("line 1", "no action", "narration"), 2),
            ("no column of images", ['{"action": "cut"}'], ("line 1", "no before"), 2),
            ("leaves", [f'{{{TWO.replace("kitchen", "..", 1)}, "action": "a"}}'], ("../1.jpg",), 2),
            (
                "absolute",
                [f'{{{TWO.replace("kitchen", "/a", 1)}, "action": "a"}}'],
                ("/a/1.jpg",),
                2,
            ),
            ("clip leaves", [f'{{{TWO}, "action": "a", "clip": "../a"}}'], ("../a",), 2),
            ("id twice", [f'{{{TWO}, "action": "a", "id": 1}}'] * 2, ("line 2", "twice"), 2),
            ("id has a slash", [f'{{{TWO}, "action": "a", "id": "a/b"}}'], ("a/b",), 2),
            ("unknown split", [f'{{{TWO}, "action": "a", "split": "dev"}}'], ("dev",), 2),
            ("pixels in the table", ['{"before": {"bytes": "x"}, "action": "a"}'], ("before",), 2),
            ("no such image", [f'{{{TWO.replace("9.", "99.")}, "action": "a"}}'], ("99.jpg",), 1),
        )
    ]
    + [
        Case(
            "build", "pairs: an image is a text", text_as_image, ("9.jpg", "unreadable"), 1, PAIRS
        ),
        Case(
            "build", "pairs as a table", untouched, ("--table-only",), 2, f"{PAIRS} --table-only a"
        ),
    ]
)
