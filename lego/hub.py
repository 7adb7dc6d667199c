"""Models, adapters and datasets at the hub: pushed with a card, pulled, shown in a Space."""

import os
import re
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from egogen.atomic import read_object, write_bytes, write_text
from egogen.download.fetch import asked
from egogen.download.hub import snapshot, split_name
from egogen.errors import EgoGenError, command_parser, listed, run_command
from egogen.flags import add_flags
from egogen.settings import require_paths
from lego.frame import DEFAULTS, PROJECT

HERE = Path(__file__).parent
TABLE = tomllib.loads((HERE / "hub.toml").read_text("utf-8"))
KINDS = TABLE["kinds"]


def kind_of(folder: Path) -> str:
    """The row of hub.toml whose mark a folder has. Raises EgoGenError for none or several."""
    found = [kind for kind, row in KINDS.items() if any(folder.glob(row["mark"]))]
    if len(found) != 1:
        said = TABLE["file"] if folder.is_file() else ", ".join(x["mark"] for x in KINDS.values())
        seen = " and ".join(KINDS[kind]["mark"] for kind in found) or "none"
        raise EgoGenError(f"{folder}: expected a folder with one of {said}; found {seen}")
    return found[0]


def without_places(file: Path, base: str | None) -> bytes:
    """A file's content without places on this machine: `base` for that of the base model, null for
    what nobody needs to know. Raises EgoGenError for others.
    """
    text = re.sub(TABLE["forgotten"], r"\1\2null", file.read_bytes().decode("latin-1"))
    text = re.sub(TABLE["base"], rf'\1"{base}"', text) if base else text
    if found := re.search(TABLE["place"], text):
        raise EgoGenError(f"{file}: {found[1]}: a place on this machine, expected none")
    return text.encode("latin-1")


def gather(folder: Path, kind: str, into: Path, options: Any) -> None:
    """Put what goes to the hub into `into`: files, those that tell of places without, the card."""
    require_paths({"--config": options.config})
    files = {file for pattern in KINDS[kind]["files"] for file in folder.glob(pattern)}
    for name in sorted(file.relative_to(folder) for file in files if file.is_file()):
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        if re.fullmatch(KINDS[kind]["telling"], name.name):
            write_bytes(into / name, without_places(folder / name, options.base_model))
        elif not re.search(TABLE["never"], name.as_posix()):
            put = shutil.copyfile if folder == PROJECT else os.symlink
            put((folder / name).resolve(), into / name)
    if options.config:
        write_bytes(into / "generate.yaml", without_places(options.config, None))
    write_text(into / "README.md", card(kind, options))


def card(kind: str, options: Any) -> str:
    """README.md of what hub.toml says of a kind and what is told of this one."""
    from huggingface_hub import CardData, RepoCard

    metric = read_object(options.metric) if options.metric else {}
    told = {**vars(options), "kind": kind, "metric": metric}
    data = KINDS[kind]["card"] | {key: told[key] for key in TABLE["fields"] if told.get(key)}
    return str(RepoCard.from_template(CardData(**data), str(HERE / "card.md.j2"), **told))


def push(options: Any) -> None:
    """upload a folder, with a card"""
    from huggingface_hub import HfApi

    kind, (name, revision) = kind_of(options.path), split_name(options.name)
    for other in filter(None, (options.base_model, *(options.datasets or ()))):
        split_name(other)
    if KINDS[kind].get("on_base") and not options.base_model:
        raise EgoGenError(f"{options.path}: adapters, expected --base-model OWNER/NAME as well")
    api, of = HfApi(os.environ.get("HF_ENDPOINT")), {"repo_id": name, **KINDS[kind]["of"]}

    def upload() -> str:
        url = api.create_repo(**of, private=options.private, exist_ok=True, **KINDS[kind]["new"])
        if options.private and not api.repo_info(**of).private:
            raise EgoGenError(f"{url}: is public, expected a private one for --private")
        if revision:
            api.create_branch(**of, branch=revision, exist_ok=True)
        api.upload_folder(**of, folder_path=place, revision=revision)
        return url

    with TemporaryDirectory() as place:
        gather(options.path, kind, Path(place), options)
        try:
            print(f"{kind}: {asked(f'{api.endpoint}/{name}', upload)}")
        except ValueError as error:  # what the hub has against a card
            raise EgoGenError(f"{name}: {error}") from None


def pull(options: Any) -> None:
    """download, and compare with the hub's digests"""
    from huggingface_hub import HfApi

    name, revision = split_name(options.name)
    place = Path(snapshot(options.name, options.type, options.out))
    of = {"repo_type": options.type, "revision": revision, "local_dir": place}
    check = HfApi(os.environ.get("HF_ENDPOINT")).verify_repo_checksums
    wrong = [other["path"] for other in asked(name, lambda: check(name, **of)).mismatches]
    for path in wrong:
        (place / path).resolve().unlink()
    if wrong:
        raise EgoGenError(f"{place}: {listed(wrong)}: removed, not the hub's bytes; pull again")
    print(place)


def space(options: Any) -> None:
    """make a folder with the page of two models, to be pushed"""
    if options.out.exists():
        raise EgoGenError(f"{options.out}: is there already, expected a new name")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = project["dependencies"] + sum((extras[name] for name in TABLE["extras"]), [])
    options.config, options.metric = options.config or DEFAULTS["config"], None
    gather(PROJECT, "space", options.out, options)
    for name, text in TABLE["texts"].items():
        write_text(options.out / name, text.format(**vars(options), needs="\n".join(needs)))


def main(argv: Sequence[str]) -> None:
    parser = command_parser(TABLE["about"], prog="python -m lego.hub")
    commands = parser.add_subparsers(required=True)
    for run in (push, pull, space):
        one = commands.add_parser(run.__name__, help=run.__doc__)
        add_flags(one, HERE / "commands.toml", f"hub {run.__name__}")
        one.set_defaults(run=run)
    options = parser.parse_args(argv)
    if getattr(options, "revision", None):
        options.name += f"@{options.revision}"
    if getattr(options, "endpoint", None):
        os.environ["HF_ENDPOINT"] = options.endpoint
    options.run(options)


if __name__ == "__main__":
    run_command(main)
