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
        ("group is a list", put(LIST, '{"dataset": []}'), ("group dataset", "'folder'")),
        ("group without folder", put(LIST, '{"dataset": {"files": []}}'), ("'folder'",)),
        ("files are an object", put(LIST, '{"dataset": {"folder": "x", "files": {}}}'), ("list",)),
        ("file is a text", put(LIST, '{"dataset": {"folder": "x", "files": ["a"]}}'), ("file 0",)),
        ("name leaves", listed(name="../../a"), ("../../a",)),
        ("name missing", without("name"), ("field 'name'",)),
        ("file leaves", listed(file="/etc/a"), ("/etc/a",)),
        ("link is a file", listed(url="file:///etc/passwd"), ("file:///etc/passwd",)),
        ("link without a host", listed(url="https://"), ("'https://'",)),
        ("link is a number", listed(url=3), ("url",)),
        ("link missing", without("url"), ("file 0", "'repo' or a 'url'")),
        ("unknown field", listed(sha265="x"), ("sha265",)),
        ("digest is a number", listed(sha256=1), ("sha256",)),
        ("unpack is a text", listed(unpack="yes"), ("unpack", "'yes'")),
        ("repository is a list", listed(repo=["a/b"]), ("repo", "['a/b']")),
        ("place leaves", listed(repo="a/b", into="../x"), ("into", "../x")),
        ("picks are a text", listed(repo="a/b", pick="*.zip"), ("pick", "'*.zip'")),
        ("picks are numbers", listed(repo="a/b", pick=[1]), ("pick", "[1]")),
        ("nothing is picked", listed(repo="a/b", pick=[]), ("pick", "[]")),
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
