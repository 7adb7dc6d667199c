"""The pipeline as one file: what diffusers loads a folder with where this project is not installed.

    python -m ldm.checkpoints.standalone lego_pipeline.py

The file has what `LegoPipeline` needs: the definitions at the top of this project's modules, as
they stand there, and the imports of other packages. What would need more of the project than
networks and sampling (configs, checkpoints of other forms) is asked of it when it is called.
"""

import ast
import importlib
from collections.abc import Iterator, Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import yaml

from egogen import EgoGenError, write_text
from egogen.errors import command_parser, run_command

START = ("ldm.pipeline", "LegoPipeline")
STAYS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


@cache
class Source:
    """A module of the project: its text, and what each name at its top is."""

    def __init__(self, module: str):
        self.module = importlib.import_module(module)
        self.text = Path(str(self.module.__file__)).read_text("utf-8")
        self.defined: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, str]] = {}  # name -> module, name there ("": itself)
        for node in ast.parse(self.text).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                at = getattr(node, "module", "")
                found = {
                    a.asname or a.name: (at, a.name) if at else (a.name, "") for a in node.names
                }
                self.imported |= found
            else:
                stored = [name.id for name in _names(node) if isinstance(name.ctx, ast.Store)]
                names = [node.name] if hasattr(node, "name") else stored
                self.defined |= dict.fromkeys(names, node)

    def segments(self, names: set[str]) -> Iterator[str]:
        """Definitions as they stand in the module, with the comments right above them."""
        lines = self.text.splitlines()
        for name, node in self.defined.items():
            start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
            while start and lines[start - 1].startswith("#"):
                start -= 1
            text = "\n".join(lines[start : node.end_lineno])
            if name in names:  # what a file beside the module says goes into this one
                yield f"{name} = {getattr(self.module, name)!r}" if "__file__" in text else text


def add(name: str, module: str, origins: dict[str, tuple[str, str]], needs: dict) -> None:
    """`name` as `module` knows it, and all that it needs, go into `origins` (name -> module, name
    there) and `needs` (module -> modules). Raises EgoGenError for what one file cannot have.
    """
    origin, seen = (module, name), name in origins
    while _is_own(origin[0]) and name in (source := Source(origin[0])).imported:
        origin = source.imported[name]  # of a package, which may hand it on
    if (known := origins.setdefault(name, origin)) != origin:
        raise EgoGenError(f"{name}: stands in {known[0]} and {origin[0]}, expected two names")
    if not _is_own(at := origin[0]):
        return
    if origin[1] != name or name not in source.defined:
        raise EgoGenError(f"{module}: {name} is not what {at} calls so, expected the name there")
    needs.setdefault(module, {})[at] = None
    if not seen and name not in STAYS.get(at, ()):
        used = [part.id for part in _names(source.defined[name])]
        for other in dict.fromkeys(used) if "__file__" not in used else ():
            if other in source.defined or other in source.imported:
                add(other, at, origins, needs)


def standalone() -> str:
    """The file's text. Raises EgoGenError for code of the project that one file cannot hold."""
    origins: dict[str, tuple[str, str]] = {}
    needs: dict[str, dict[str, None]] = {}  # the inner ones in the order of their use
    stays, parts = [], []
    add(START[1], START[0], origins, needs)
    order = TopologicalSorter({m: [n for n in needed if n != m] for m, needed in needs.items()})
    for module in order.static_order():
        source = Source(module)
        names = {name for name, origin in origins.items() if origin[0] == module}
        asked = [name for name in STAYS.get(module, ()) if name in names]
        stays += [f'{name} = of_project("{module}", "{name}")' for name in asked]
        segments = dict.fromkeys(source.segments(names.difference(asked)))
        parts += [f"# ==== {module}", *segments] if segments else []
    imports = {_import(name, *origin) for name, origin in origins.items() if not _is_own(origin[0])}
    form = Path(__file__).with_suffix(".txt").read_text("utf-8").rstrip()
    head = form.format(imports="\n".join(sorted(imports)), stays="\n".join(stays))
    return "\n\n\n".join([head, *parts]) + "\n"


def _names(node: ast.AST) -> Iterator[ast.Name]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Name))


def _is_own(module: str) -> bool:
    return module.split(".")[0] in ("egogen", "ldm")


def _import(name: str, module: str, original: str) -> str:
    alias = "" if name == (original or module) else f" as {name}"
    return (f"from {module} import {original}" if original else f"import {module}") + alias


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__, prog="python -m ldm.checkpoints.standalone")
    parser.add_argument("out", help="where the file goes")
    write_text(parser.parse_args(argv).out, standalone())


if __name__ == "__main__":
    run_command(main)
