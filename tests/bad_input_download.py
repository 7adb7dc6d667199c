"""Bad input of `python -m egogen.download`: lists, folders and records, a row each."""

from __future__ import annotations

from pathlib import Path

from bad_input_damage import Case, Damage, edited, gone, put, untouched

LIST = "manifest.json"


def listed(**fields: object) -> Damage:
    return edited(LIST, lambda content: content["dataset"]["files"][0].update(fields))


def without(field: str) -> Damage:
    return edited(LIST, lambda content: content["dataset"]["files"][0].pop(field) and content)


def recorded(text: str) -> Damage:
    def damage(root: Path) -> None:
        (root / "out" / ".downloads").mkdir(parents=True)
        (root / "out" / ".downloads" / "a.bin.json").write_text(text)

    return damage


DOWNLOADS = [
    Case("download", what, damage, said)
    for what, damage, said in (
        ("no list", gone(LIST), (LIST,)),
        ("list is no JSON", put(LIST, "{"), (LIST,)),
        ("list is a list", put(LIST, "[]"), (LIST, "an object of groups")),
        ("no such group", put(LIST, "{}"), ("dataset",)),
        ("group is a list", put(LIST, '{"dataset": []}'), (LIST, "expected what")),
        ("group without folder", put(LIST, '{"dataset": {"files": []}}'), ("KeyError('folder')",)),
        (
            "files are an object",
            put(LIST, '{"dataset": {"folder": "x", "files": {"a": 1}}}'),
            (LIST,),
        ),
        ("file is a text", put(LIST, '{"dataset": {"folder": "x", "files": ["a"]}}'), (LIST,)),
        ("name leaves", listed(name="../../a"), ("../../a",)),
        ("name missing", without("name"), ("KeyError('name')",)),
        ("file leaves", listed(file="/etc/a"), ("/etc/a",)),
        ("link missing", without("url"), ("'repo', 'url'",)),
        ("place leaves", listed(repo="a/b", into="../x"), ("into", "../x")),
        ("record is no JSON", recorded("{"), ("a.bin.json",)),
        ("record is a list", recorded("[]"), ("a.bin.json", "expected an object")),
    )
] + [
    Case("download", "no such file", untouched, ("nothing",), more="--only nothing"),
    Case("download", "no such source", untouched, ("ftp",), more="--source ftp"),
    Case(
        "download",
        "of another source",
        listed(source="hub"),
        ("--only a.bin: dropbox has",),
        more="--source dropbox --only a.bin",
    ),
    Case("download", "folder is a file", put("out", "x"), ("out", "choose another path")),
]
