"""The rules of CONTRIBUTING.md about rooms, read off the code's own imports and definitions."""

import ast
import tomllib
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = {  # room -> the rooms that it may import
    "egogen": set(),
    "llava": {"egogen"},
    "ldm": {"egogen"},
    "lego": {"egogen", "ldm", "llava"},
    "metrics": {"egogen"},
    "mini": {"egogen", "ldm", "llava", "metrics"},
    "bench": {"egogen", "ldm", "llava", "lego", "metrics"},
    "scripts": {"egogen", "ldm", "llava", "lego", "metrics"},
}
# The released command that generates frames lies in metrics/, and is an entry of stage 2.
ENTRIES = {"metrics/inference.py": {"egogen", "ldm"}}
FOLDERS = ("egogen", "vllm", "ldm", "lego", "metrics", "mini", "bench", "scripts")
FILES = sorted(
    path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
)


def module_name(path: Path) -> str:
    parts = list(path.with_suffix("").parts)
    parts = parts[1:] if parts[0] == "vllm" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path, *, when_loaded: bool = False) -> set[str]:
    """Modules that a file imports; `when_loaded`: not those inside functions."""
    tree = ast.parse((ROOT / path).read_text())
    nodes = tree.body if when_loaded else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in MODULES else node.module)
    return found


def test_a_room_imports_only_rooms_below_it():
    tests = {test.stem for test in (ROOT / "tests").glob("*.py")} | {"tests"}
    for path in FILES:
        room = module_name(path).split(".")[0] if path.parts[1:2] != ("scripts",) else "llava"
        allowed = ENTRIES.get(str(path), ROOMS[room]) | {room}
        used = {name.split(".")[0] for name in imports(path)}
        assert used & set(ROOMS) <= allowed, path
        assert not used & tests, path


def test_no_import_circle():
    left = {name: imports(path, when_loaded=True) & set(MODULES) for name, path in MODULES.items()}
    while free := {name for name, needs in left.items() if not needs & set(left) - {name}}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left


def test_folders_files_and_functions_stay_small():
    folders = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {str(folder): count for folder, count in folders.items() if count > 16} == {}
    for path in FILES:
        text = (ROOT / path).read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_files_beside_the_code_are_installed_with_it():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for folder in ("egogen", "ldm", "lego", "metrics", "mini", "vllm/llava"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                package = ".".join(path.relative_to(ROOT).parent.parts).removeprefix("vllm.")
                patterns = settings["package-data"].get(package, ())
                assert any(fnmatch(path.name, pattern) for pattern in patterns), path
