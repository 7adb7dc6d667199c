"""Bad input of `python -m egogen.build --from FORM --table-only`: official files, a row each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bad_input_damage import Case, payload, put

DATA = Path(__file__).parent / "data" / "annotations"
FORMS = {  # name of a sound file of the form
    "epic100": "EPIC_100_validation.csv",
    "ego4d-fho": "fho_main.json",
    "egoexo4d": "keystep_train.json",
    "holoassist": "holoassist.json",
    "hd-epic": "HD_EPIC_Narrations.csv",
    "assembly101": "assembly101_validation.csv",
    "ssv2": "something-something-v2-validation.json",
}
EPIC = (DATA / "EPIC_100_validation.csv").read_text()
NARRATIONS = (DATA / "HD_EPIC_Narrations.csv").read_text()
ACTION = {
    "uid": "u",
    "narration_text": "#C C cuts a leek",
    "is_rejected": False,
    "critical_frames": {"pre_15": 10, "pnr_frame": 40},
}


def case(
    form: str,
    what: str,
    data: bytes | str,
    *said: str,
    code: int = 2,
    more: str = "",
    name: str = "",
) -> Case:
    """This in the place of a sound file, under its name or another."""
    name = name or FORMS[form]
    words = f"--from {form} --table {{root}}/{name} --table-only {{root}}/out.csv {more}"
    return Case("build", f"{form}: {what}", put(name, data), said, more=words)


def fho(**fields: Any) -> str:
    """A file of one interaction with these fields, or of none where `interval` is given."""
    interval = fields.pop("interval", {"narrated_actions": [ACTION | fields]})
    return json.dumps({"videos": [{"video_uid": "v", "annotated_intervals": [interval]}]})


def event(**fields: Any) -> str:
    whole = {"label": "Fine grained action", "start": 1, "end": 2, "attributes": {"Verb": "turn"}}
    return json.dumps([{"video_name": "a", "events": [whole | fields]}])


def segment(**fields: Any) -> str:
    whole = {"start_time": 1, "end_time": 2, "step_name": "Pump"}
    return json.dumps({"annotations": {"t": {"take_name": "x", "segments": [whole | fields]}}})


AT = "videos/0/annotated_intervals/0/narrated_actions/0"
TEST_COLUMNS = "\n".join(",".join(line.split(",")[:8]) for line in EPIC.splitlines()[:3])
ANNOTATIONS = [
    # EPIC-KITCHENS-100
    case("epic100", "empty", "", "no rows"),
    case("epic100", "of test videos", TEST_COLUMNS, "expected narration_id", "narration, each"),
    case(
        "epic100",
        "no video_id",
        EPIC.replace("video_id", "video"),
        "expected narration_id, video_id",
    ),
    case("epic100", "column twice", EPIC.replace("noun_class,", "noun,", 1), "each once"),
    case(
        "epic100",
        "time is a word",
        EPIC.replace("00:00:00.14", "soon"),
        "row 2",
        "start_timestamp",
        "soon",
    ),
    case(
        "epic100",
        "time with frames",
        EPIC.replace("00:00:03.37", "00:00:03:37"),
        "row 2",
        "stop_timestamp",
    ),
    case(
        "epic100",
        "id without number",
        EPIC.replace("P01_11_5,", "P01_11_x,"),
        "row 3",
        "P01_11_x",
        "VIDEO_NUMBER",
    ),
    case("epic100", "id empty", EPIC.replace("P01_11_5,", ","), "row 3", "narration_id"),
    case("epic100", "video leaves", EPIC.replace(",P01_11,", ",../P01_11,"), "row 2", "leaves"),
    case("epic100", "cut within a row", EPIC[: EPIC.index("P01,P01_101")], "row 4", "fields"),
    case("epic100", "UTF-16", EPIC.encode("utf-16"), "UTF-8"),
    case("epic100", "zero byte", EPIC.replace("take ladle", "take\0ladle"), ""),
    case("epic100", "JSON", (DATA / "fho_main.json").read_text(), "EPIC_100_validation.csv"),
    case(
        "epic100",
        "JSON in a line",
        json.dumps([{"video_id": "P01_11"}] * 900),
        "...; expected names, each once",
    ),
    case(
        "epic100",
        "no videos' table",
        EPIC,
        "none.csv: no such file",
        more="--video-info {root}/none.csv",
    ),
    # Ego4D
    case("ego4d-fho", "cut short", fho()[:-9], "not valid JSON"),
    case("ego4d-fho", "a list", "[]", "expected an object"),
    case("ego4d-fho", "no videos", "{}", "expected fho_main.json"),
    case(
        "ego4d-fho",
        "fho_hands",
        '{"clips": [{"frames": [{"action_start_frame": 1}]}]}',
        "looks like fho_hands",
    ),
    case(
        "ego4d-fho", "fho_lta", '{"clips": [{"action_clip_start_frame": 1}]}', "looks like fho_lta"
    ),
    case(
        "ego4d-fho",
        "fho_oscc-pnr",
        '{"clips": [{"state_change": true}]}',
        "looks like fho_oscc-pnr",
    ),
    case(
        "ego4d-fho", "narrations", '{"v": {"narration_pass_1": {}}}', "looks like narrations.json"
    ),
    case(
        "ego4d-fho",
        "videos by uid",
        '{"videos": {"a": {}}}',
        "videos",
        "expected a list of objects",
    ),
    case("ego4d-fho", "video is a text", '{"videos": ["a"]}', "videos/0"),
    case("ego4d-fho", "no uid", fho(uid=None), AT, "uid None", "expected some text"),
    case("ego4d-fho", "uid has a slash", fho(uid="a/b"), AT, "a/b"),
    case("ego4d-fho", "text is a list", fho(narration_text=["a"]), AT, "narration_text"),
    case(
        "ego4d-fho",
        "rejected is a word",
        fho(is_rejected="maybe"),
        AT,
        "is_rejected",
        "true or false",
    ),
    case("ego4d-fho", "frames are a number", fho(critical_frames=3), AT, "critical_frames"),
    case(
        "ego4d-fho",
        "half a frame",
        fho(critical_frames={"pre_15": 1.5, "pnr_frame": 4}),
        AT,
        "pre_15",
        "1.5",
        "whole",
    ),
    case(
        "ego4d-fho",
        "boxes are a text",
        fho(frames=[{"frame_type": "pre_15", "boxes": "a"}]),
        AT,
        "boxes",
    ),
    case(
        "ego4d-fho",
        "actions are an object",
        fho(interval={"narrated_actions": {}}),
        "annotated_intervals/0",
        "narrated_actions",
    ),
    case("ego4d-fho", "all redacted", fho(interval={"redacted": True}), "no rows"),
    case("ego4d-fho", "no PNR frame", fho(critical_frames={"pre_15": 1}), "no rows"),
    case("ego4d-fho", "unknown PRE frame", fho(), "--pre", more="--pre pre_20"),
    # Ego-Exo4D
    case("egoexo4d", "no annotations", "{}", "no rows"),
    case(
        "egoexo4d", "annotations in a list", '{"annotations": []}', "annotations", "expected object"
    ),
    case("egoexo4d", "take is a text", '{"annotations": {"t": "a"}}', "annotations/t/0"),
    case(
        "egoexo4d",
        "takes are not named",
        '{"annotations": {"t": [{"descriptions": [{}]}]}}',
        "--video-info takes.json",
    ),
    case(
        "egoexo4d",
        "takes' file is this one",
        segment(),
        "takes/0",
        more="--video-info {root}/keystep_train.json",
    ),
    case(
        "egoexo4d",
        "time is an object",
        segment(start_time={}),
        "annotations/t/0/segments/0",
        "start_time",
    ),
    case("egoexo4d", "take leaves", segment().replace('"x"', '"../x"'), "leaves"),
    # HoloAssist
    case("holoassist", "an object", "{}", "videos/0", "expected a list"),
    case("holoassist", "no name", '[{"events": []}]', "videos/0", "video_name"),
    case("holoassist", "time is a word", event(start="soon"), "videos/0/events/0", "start"),
    case("holoassist", "attributes are a list", event(attributes=[1]), "attributes", "object"),
    case(
        "holoassist",
        "wrong alone",
        event(attributes={"Action Correctness": "Wrong Action"}),
        "no rows",
    ),
    # HD-EPIC
    case(
        "hd-epic",
        "pairs are no list",
        NARRATIONS.replace("[('pick-up', 'mug')]", "pick up"),
        "row 2",
        "main_actions",
    ),
    case(
        "hd-epic",
        "pairs of three",
        NARRATIONS.replace("('pick-up', 'mug')", "(1, 2, 3)"),
        "row 2",
        "main_actions",
    ),
    case(
        "hd-epic",
        "pairs call",
        NARRATIONS.replace("[('pick-up', 'mug')]", "__import__('os')"),
        "row 2",
        "main_actions",
    ),
    case(
        "hd-epic", "no main actions", NARRATIONS.replace("main_actions", "actions"), "main_actions"
    ),
    case("hd-epic", "text as pickle", "clip", "not a pickled table", name="n.pkl"),
    case("hd-epic", "text as parquet", "clip", "not a parquet table", name="n.parquet"),
    Case(
        "build",
        "hd-epic: a payload",
        payload("n.pkl"),
        ("n.pkl", "it refers to posix.mkdir"),
        more="--from hd-epic --table {root}/n.pkl --table-only {root}/out.csv",
    ),
    # Assembly101
    case("assembly101", "no frames", "id,video,action_cls\n0,a/b.mp4,turn\n", "start_frame"),
    case(
        "assembly101",
        "frame is a time",
        "id,video,start_frame,end_frame,action_cls\n0,a/b.mp4,0:01,40,turn\n",
        "row 2",
        "start_frame",
        "whole number",
    ),
    case(
        "assembly101", "no actions", "id,video,start_frame,end_frame\n0,a/b.mp4,1,40\n", "no rows"
    ),
    # Something-Something
    case("ssv2", "of test videos", '[{"id": "1"}]', "videos/0", "label None"),
    case("ssv2", "labels by template", '{"Closing [something]": "3"}', "expected a list"),
    case(
        "ssv2", "no durations", '[{"id": "1", "label": "closing a tin"}]', "clip 1", "--video-info"
    ),
    case(
        "ssv2",
        "labels as the videos' table",
        json.dumps([{"id": "1", "label": "closing a tin"}] * 900),
        "...; expected names, each once",
        more="--video-info {root}/something-something-v2-validation.json",
    ),
    case("ssv2", "id is a list", '[{"id": [1], "label": "closing a tin"}]', "videos/0", "id"),
]
