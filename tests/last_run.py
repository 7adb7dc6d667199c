"""A plugin of pytest's: `-m slow` keeps docs/last_run.md, a table of the long tests' last runs.

A row is a part: what `@pytest.mark.slow("two-node Slurm")` names, or the file of a test that names
none. It is written anew after each test, so that a run that is killed says how far it came; rows of
parts that were not run stay as they are.
"""

import os
import platform
import re
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from egogen.atomic import write_text

TABLE = "docs/last_run.md"
HEAD = """# Last runs of the long tests

The default tests leave these out. `bash scripts/test.sh -m slow` runs them and writes this table;
`-m slow -k slurm`, or `-m slow tests/test_slurm_two_nodes.py`, runs a part and leaves other rows as
they are. A "+" behind the commit: files were not as in it. Seconds are of the machine at that
time, with whatever else it did; dates are UTC.

| part | outcome | seconds | commit | date | machine |
|---|---|---|---|---|---|
"""
WORSE = ("passed", "skipped", "failed")


def pytest_configure(config: pytest.Config) -> None:
    if re.search(r"(?<!\bnot )\bslow\b", config.option.markexpr):
        config.pluginmanager.register(LastRun(config))


def part_of(item: pytest.Item) -> str | None:
    """None: not a slow test."""
    mark = item.get_closest_marker("slow")
    return mark and (mark.args[0] if mark.args else item.path.stem)


def commit(root: Path) -> str:
    """The commit, with a "+" when files differ from it; "unknown" where git does not say."""
    if not (root / ".git").exists():  # the commit of a folder above would be another project's
        return "unknown"
    line = ["git", "-C", str(root)]
    try:
        number = subprocess.check_output([*line, "rev-parse", "--short", "HEAD"], text=True)
        status = [*line, "status", "--porcelain", "--", ".", f":!{TABLE}"]
        return number.strip() + "+" * bool(subprocess.check_output(status))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {version('torch')}"


class LastRun:
    """Gathers the results of a session; of several processes, the one that gets all reports."""

    def __init__(self, config: pytest.Config):
        self.path = config.rootpath / TABLE
        self.by_name = any("::" in word for word in config.args)
        self.worker = hasattr(config, "workerinput")
        self.commit = commit(config.rootpath)
        self.parts: dict[str, tuple[str, int]] = {}  # test -> its part, how many tests that has
        self.results: dict[str, dict[str, str]] = defaultdict(dict)  # part -> test -> outcome
        self.remarks: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.seconds: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]):
        """Reports carry the part, from whichever process; counted before -k takes tests away."""
        parts = {item: part for item in items if (part := part_of(item))}
        totals = Counter(parts.values())
        for item, part in parts.items():
            item.user_properties.append(("part", [part, 0 if self.by_name else totals[part]]))
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.worker:
            return
        test, said = report.nodeid, dict(report.user_properties)
        if "part" in said:
            self.parts[test] = tuple(said["part"])
        died = report.when not in ("setup", "call", "teardown")  # with its process; says no part
        if test not in self.parts and not died:
            return
        part = self.parts.setdefault(test, (Path(test.split("::")[0]).stem, 0))[0]
        results, remarks = self.results[part], self.remarks[part]
        self.seconds[part] += report.duration
        if report.failed and results.get(test) != "failed":
            remarks["failed"].append(test.split("::")[-1])
        elif report.skipped:
            where_why = report.longrepr  # (file, line, reason); other for an expected failure
            why = where_why[2] if isinstance(where_why, tuple) else "expected to fail"
            remarks["skipped"].append(why.removeprefix("Skipped: "))
        elif report.when == "call" and "remark" in said:
            remarks["passed"].append(said["remark"])
        results[test] = max(report.outcome, results.get(test, "passed"), key=WORSE.index)
        if report.when == "teardown" or died:
            self.write(part, self.parts[test][1])

    def write(self, part: str, total: int) -> None:
        results = self.results[part].values()
        words = []
        for outcome, count in sorted(Counter(results).items()):
            remarks = ", ".join(dict.fromkeys(self.remarks[part][outcome]))
            words.append(f"{count} {outcome}" + f" ({remarks})" * bool(remarks))
        text = ", ".join(words)
        if len(results) != total:
            known = f"{len(results)} of its {total} tests" if total else "tests asked for by name"
            text += f"; {known}"
        cells = [part, text, f"{self.seconds[part]:.0f}", self.commit]
        cells += [str(datetime.now(UTC).date()), machine()]
        cells = [re.sub(r"[\s|]+", " ", cell) for cell in cells]
        try:
            known = self.path.read_text().splitlines() if self.path.exists() else []
            rows = {line.split(" | ")[0][2:]: line for line in known if line.startswith("| ")}
            rows.pop("part", None)
            rows[cells[0]] = f"| {' | '.join(cells)} |"
            write_text(self.path, HEAD + "".join(f"{rows[name]}\n" for name in sorted(rows)))
        except OSError as error:  # hours of tests go on
            print(f"{self.path} is not written: {error}", file=sys.stderr)
