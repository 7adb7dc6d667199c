"""Official annotations: what becomes a row of each form, at which frames, and what is left out."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest

from egogen.build.__main__ import main
from egogen.build.forms import FORMS, read_form
from egogen.build.forms.reading import values_of
from egogen.build.rows import PRE_FRAMES, Options, Timing, split_of_file
from egogen.build.table import read_table
from egogen.errors import EgoGenError

DATA = Path(__file__).parent / "data" / "annotations"
HD_EPIC = [
    ("P01-20240101-100000", "P01-20240101-100000-1", "train", "pick up mug", 125, 210),
    (
        "P01-20240101-100000",
        "P01-20240101-100000-2",
        "train",
        "put down garbage bag and close lid",
        225,
        467,
    ),
]
# Form, file, more arguments, frames a second to count frames by: rows (clip, id, split, action,
# frame of the source, of the target), and how many are left out for which reason.
CASES = {
    "epic": (
        "epic100",
        "EPIC_100_validation.csv",
        "--video-info {data}/EPIC_100_video_info.csv",
        60,
        [
            ("P01_11", "7", "val", "open drawer", 0, 124),  # 0.14 + 0.6 * 3.23 = 2.078 s
            ("P01_11", "5", "val", "take ladle", 0, 45),
            ("P01_101", "104", "val", "put down mug", 3765, 3829),
        ],
        {
            "behind the end of the video": 2,
            "duplicate id": 1,
            "stop not after start": 1,
            "no narration": 1,
        },
    ),
    "fho": (
        "ego4d-fho",
        "fho_main.json",
        "",
        30,
        [
            ("aaaa-1", "u-1", "train", "#C C picks up the ladle", 622, 661),
            ("aaaa-1", "u-2", "train", "#c c wipes the hob", 0, 37),
            ("aaaa-1", "u-3", "train", "#C C turns a valve", 730, 760),
            ("bbbb-2", "v-1", "val", "#O man X lifts a pan", 12357, 12390),  # 12345 at 29.97
        ],
        {
            "unsure": 1,
            "no narration": 1,
            "rejected": 1,
            "invalid": 1,
            "no PNR frame": 1,
            "no pre_15 frame": 1,
            "PNR frame not after the source": 1,
            "behind the end of the video": 1,
            "duplicate id": 1,
            "redacted": 1,
            "nothing in it": 1,
        },
    ),
    "fho on clips": (
        "ego4d-fho",
        "fho_main.json",
        "--on clip --split val",
        30,
        [("clip-12", "u-1", "val", "#C C picks up the ladle", 322, 361)],
        {
            "no PNR frame": 8,
            "behind the end of the video": 1,
            "rejected": 1,
            "invalid": 1,
            "redacted": 1,
            "nothing in it": 1,
            "no clip": 1,
        },
    ),
    "atomic": (
        "egoexo4d",
        "atomic_descriptions_val.json",
        "--video-info {data}/takes.json --before 0.5 --after 2",
        30,
        [
            ("invented_cooking_01_2", "0", "val", "C picks up a sieve with the left hand", 92, 167),
            ("invented_cooking_01_2", "4", "val", "C puts the sieve down", 0, 63),
        ],
        {
            "not by the wearer": 1,
            "not visible": 1,
            "unsure": 1,
            "no start": 1,
            "rejected": 1,
            "no name of the take": 1,
        },
    ),
    "keystep": (
        "egoexo4d",
        "keystep_train.json",
        "",
        30,
        [
            ("invented_bike_02_1", "0", "train", "Loosen the valve", 30, 73),
            ("invented_bike_02_1", "3", "train", "Pump air", 292, 480),
        ],
        {"stop not after start": 1, "no end": 1},
    ),
    "holoassist": (
        "holoassist",
        "holoassist.json",
        "",
        30,
        [
            ("R007-invented-GoPro", "2", "train", "grab lens", 37, 81),
            ("R007-invented-GoPro", "3", "train", "turn small ring", 97, 127),
        ],
        {"wrong action": 1, "no narration": 1},
    ),
    "assembly101": (
        "assembly101",
        "assembly101_validation.csv",
        "",
        30,
        [
            ("invented_9011_a/C1_rgb.mp4", "0", "val", "pick up wheel", 67, 105),
            ("invented_9012_b/C1_rgb.mp4", "1", "val", "screw axle", 0, 18),
        ],
        {"stop not after start": 1},
    ),
    "ssv2": (
        "ssv2",
        "something-something-v2-validation.json",
        "--video-info {data}/ssv2_videos.csv",
        12,
        [
            ("101", "101", "val", "holding a spoon next to a jar", 0, 47),
            ("102", "102", "val", "Pushing chalk from left to right", 0, 36),
        ],
        {"no duration": 1},
    ),
    **{
        name: ("hd-epic", name, "", 100, HD_EPIC, {"no narration": 1, "no end": 1})
        for name in (
            "HD_EPIC_Narrations.csv",
            "hd_epic_pandas_1.5.pkl",  # with numpy 1; its index is the id
            "hd_epic_pandas_2.2.pkl",
            "hd_epic_pandas_3.1.pkl",  # texts are arrays of pyarrow
        )
    },
}


def run(form: str, table: Path, out: Path, more: str = "") -> int:
    words = ["--from", form, "--table", str(table), "--table-only", str(out)]
    return main([*words, *more.format(data=DATA).split()])


@pytest.mark.parametrize("case", CASES)
def test_a_form_becomes_the_own_table_and_comes_back(case, tmp_path, capsys):
    if case.endswith(".pkl"):
        pytest.importorskip("pandas")
    form, file, more, rate, expected, skips = CASES[case]
    out = tmp_path / "out.csv"
    assert run(form, DATA / file, out, more) == 1
    told = dict(re.findall(r"left out, (.*): (\d+) \(", capsys.readouterr().err))
    assert {reason: int(count) for reason, count in told.items()} == skips
    with open(out, newline="") as written:
        header, *_ = csv.reader(written)
    assert header == ["clip", "id", "split", "action", "source", "target", "description"]
    timing = Timing()
    rows = read_table(out, Options()).rows
    frames = [[math.floor(t * rate + 1e-6) for t in row.times(timing)] for row in rows]
    said = [(row.clip, row.id, row.split, row.action) for row in rows]
    assert [(*one, *two) for one, two in zip(said, frames, strict=True)] == expected
    again = tmp_path / "again.csv"
    assert run("csv", out, again) == 0
    assert again.read_bytes() == out.read_bytes()
    assert all(re.fullmatch(r"\d+\.\d{4,}", part) for t in _times(out) for part in t)


def _times(path: Path) -> list[tuple[str, str]]:
    with open(path, newline="") as file:
        return [(row["source"], row["target"]) for row in csv.DictReader(file)]


def test_every_official_form_has_a_file_here():
    assert {case[0] for case in CASES.values()} == FORMS.keys() - {"csv", "pairs"}


def test_what_is_left_out_is_listed(tmp_path, capsys):
    table = tmp_path / "EPIC_100_train.csv"
    head = "narration_id,video_id,start_timestamp,stop_timestamp,narration\n"
    table.write_text(head + "".join(f"P01_01_{k},P01_01,0:01,0:01,x\n" for k in range(30)))
    with pytest.raises(EgoGenError, match="no rows"):
        run("epic100", table, tmp_path / "out.csv")
    assert "row 21 and 10 more" in capsys.readouterr().err
    with pytest.raises(EgoGenError, match="no rows"):
        run("epic100", table, tmp_path / "out.csv", "--list-skipped")
    assert "row 31)" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_descriptions_rates_and_boxes():
    """What a build needs besides times."""
    narrated = read_form("hd-epic", DATA / "HD_EPIC_Narrations.csv", Options()).rows
    assert narrated[1].description == "Put the garbage bag down, and close the lid."
    epic = read_form("epic100", DATA / "EPIC_100_validation.csv", Options()).rows
    assert {row.clip: row.fps for row in epic} == {"P01_11": 60.0, "P01_101": 50.0}
    assert (epic[0].start, epic[0].end) == (0.14, 3.37)  # a build's --fraction still counts
    rows = read_form("ego4d-fho", DATA / "fho_main.json", Options()).rows
    assert [row.boxes != "" for row in rows] == [True, False, False, False]
    assert json.loads(rows[0].boxes) == [
        {"frame": "source", "object": "ladle_(ladle,_scoop)", "bbox": [10.5, 20, 40.5, 60]},
        {"frame": "source", "object": "left_hand", "bbox": [1, 2, 4, 6]},
        {"frame": "target", "object": "right_hand", "bbox": [5, 6, 7, 8]},
    ]
    whole = read_form("ssv2", DATA / "something-something-v2-validation.json", Options())
    assert [row.times(Timing()) for row in whole.rows] == 3 * [(0.0, math.inf)]


def test_fho_with_boxes_of_null_and_a_rate_rounded_up(tmp_path):
    """A frame counts by the film's rate: by 29.97003 most would be one early."""
    boxes = [{"object_type": "tool", "bbox": None}, {"left_hand": [1, 2, 3, 4]}]
    area = {"x": 1, "y": None, "width": 2, "height": 2}
    boxes += [None, {"right_hand": None}, {"object_type": "tool", "bbox": area}]
    action = {
        "uid": "u",
        "narration_text": "#C C cuts a leek",
        "critical_frames": {"pre_15": 12345, "pnr_frame": 12351},
        "frames": [None, {"frame_type": "pnr_frame", "boxes": boxes}],
    }
    metadata = {"fps": 29.97003, "num_frames": None}
    video = {"video_uid": "v", "video_metadata": metadata}
    video["annotated_intervals"] = [{"narrated_actions": [action]}]
    (tmp_path / "fho_main.json").write_text(json.dumps({"videos": [video]}))
    (row,) = read_form("ego4d-fho", tmp_path / "fho_main.json", Options()).rows
    frames = [math.floor(time * 30000 / 1001 + 1e-6) for time in row.times(Timing())]
    assert frames == [12345, 12351]
    assert [box["object"] for box in json.loads(row.boxes)] == ["left_hand"]


@pytest.mark.parametrize("pre", PRE_FRAMES)
def test_pre_frame_by_name(pre):
    first = read_form("ego4d-fho", DATA / "fho_main.json", Options(pre=pre)).rows[0]
    frame = {"pre_15": 622, "pre_30": 607, "pre_45": 592, "pre_frame": 637}[pre]
    assert first.source == frame / 30


def test_frames_are_met_again_at_every_rate():
    """30, 29.97, 23.976 and 59.94 a second: no frame before or behind the one that was meant."""
    for rate in (30.0, 30000 / 1001, 24000 / 1001, 60000 / 1001):
        assert all(math.floor(n / rate * rate + 1e-6) == n for n in range(0, 2_000_000, 37))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("EPIC_100_train.csv", "train"),
        ("EPIC_100_validation.csv", "val"),
        ("EPIC_100_retrieval_train.csv", "train"),
        ("keystep_val.json", "val"),
        ("something-something-v2-test.json", "val"),
        ("data-annotation-trainval-v1_1.json", "train"),
        ("latest.csv", "train"),
    ],
)
def test_split_by_the_words_of_a_name(name, split):
    assert split_of_file(Path(name), Options()) == split
    assert split_of_file(Path(name), Options(split="val")) == "val"


def test_tables_of_other_releases(tmp_path):
    """Columns in another order, under other names, as parquet, with an index in front."""
    rows = list(csv.DictReader((DATA / "EPIC_100_validation.csv").read_text().splitlines()))
    turned = tmp_path / "turned_validation.csv"
    with open(turned, "w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, ["", *reversed(rows[0])], delimiter=";")
        table.writeheader()
        table.writerows({"": number, **row} for number, row in enumerate(rows))
    given = read_form("epic100", DATA / "EPIC_100_validation.csv", Options())
    assert read_form("epic100", turned, Options()) == given
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(rows).set_index("narration_id")
    table.to_pickle(tmp_path / "EPIC_100_validation.pkl")
    assert read_form("epic100", tmp_path / "EPIC_100_validation.pkl", Options()).rows == given.rows
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    records = [
        {
            "unique_narration_id": "a-1",
            "video_id": "a",
            "narration": "Close it.",
            "start_timestamp": 1.0,
            "stop_timestamp": 2.0,
            "main_actions": [["close", "lid:pan"]],
        }
    ]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "n.parquet")
    (row,) = read_form("hd-epic", tmp_path / "n.parquet", Options()).rows
    assert (row.action, row.description, row.end) == ("close pan lid", "Close it.", 2.0)


def test_of_several_names_the_first_that_has_a_value_is_taken():
    row = {
        "unique_narration_id": " ",
        "narration_id": 7.0,
        "video_id": "P01",
        "end_timestamp": math.nan,
    }
    found = values_of(row | {"stop_timestamp": "1:02.5"}, "hd-epic")
    assert (found["id"], found["clip"], found["end"], found["start"]) == ("7", "P01", 62.5, None)
