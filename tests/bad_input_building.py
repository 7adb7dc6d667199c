"""Bad input of `python -m egogen.build`: tables, videos and folders of frames, a row each."""

from __future__ import annotations

from pathlib import Path

from bad_input_damage import Case, gone, put, untouched

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
