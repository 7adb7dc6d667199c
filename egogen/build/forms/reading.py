"""What the readers of forms share: values by type, rows as they are found, what is left out."""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from egogen.build.records import need_columns, read_records
from egogen.build.rows import Options, Row, Skipped, Table, seconds, split_of_file
from egogen.errors import EgoGenError

FIELDS = tomllib.loads(Path(__file__).with_name("fields.toml").read_text(encoding="utf-8"))
TEXTS = ("text", "some text", "words")
TRUTHS = {"0": False, "false": False, "1": True, "true": True}


def given(value: Any) -> Any:
    """A cell or JSON value, texts with single blanks; None for an empty one and NaN."""
    if isinstance(value, str):
        return " ".join(value.split()) or None
    return None if isinstance(value, float) and math.isnan(value) else value


def converted(value: Any, kind: str) -> Any:
    """A value (of `given`) as a type of fields.toml; None, "" as text, for an empty one, or a time
    "end". Raises ValueError for a value of another type."""
    if isinstance(value, float) and value.is_integer() and kind in TEXTS:  # a column with gaps
        value = int(value)
    if value is None:
        return "" if kind in TEXTS else None
    match kind:
        case "anything":
            return value
        case _ if kind in TEXTS and isinstance(value, str | int) and type(value) is not bool:
            return str(value)
        case "seconds" if isinstance(value, str):
            return None if value.lower() in ("end", "nan") else seconds(value)
        case "seconds" if type(value) in (int, float) and abs(value) <= 1e9:
            return float(value)
        case "whole number" if re.fullmatch(r"-?[0-9]{1,9}(\.0+)?", str(value)):
            return int(float(value))
        case "true or false" if str(value).lower() in TRUTHS:
            return TRUTHS[str(value).lower()]
        case "parts" if isinstance(value, list) and all(isinstance(part, dict) for part in value):
            return {key: inside for part in value for key, inside in part.items()}
        case "list" | "object" | "parts" if isinstance(value, list if kind == "list" else dict):
            return value
    raise ValueError


def values_of(entry: Mapping, form: str) -> dict[str, Any]:
    """What a row or object has, by our names in fields.toml. Raises ValueError."""
    found = {}
    for ours, (kind, *names) in FIELDS[form].items():
        values = (given(entry.get(name)) for name in names)
        value = next((value for value in values if value is not None), None)
        try:
            found[ours] = converted(value, kind)
            if kind == "some text" and not found[ours]:
                raise ValueError
        except ValueError:
            raise ValueError(f"{names[0]} {repr(value)[:60]}, expected {kind}") from None
    return found


class Reading:
    """Rows of one file as its reader finds them; every method raises EgoGenError, which names the
    place, for what is not of the form."""

    def __init__(self, path: Path, options: Options):
        self.path, self.timing = path, options.timing
        self.split = split_of_file(path, options)
        self.table = Table([])
        self._taken: set[tuple[str, str]] = set()

    def bad(self, where: str, what: str) -> EgoGenError:
        return EgoGenError(f"{self.path}: {where}: {what}")

    def values(self, where: str, entry: Mapping, form: str) -> dict[str, Any]:
        try:
            return values_of(entry, form)
        except ValueError as error:
            raise self.bad(where, str(error)) from None

    def rows(self, form: str) -> Iterator[tuple[str, dict]]:
        """Rows of a table by our names, with the places that they have in the file."""
        records = read_records(self.path)
        columns = [*(records[0][1] if records else ())]
        fields = [names for kind, *names in FIELDS[form].values() if kind != "words" and records]
        needed = [next((n for n in names if n in columns), names[0]) for names in fields]
        need_columns(self.path, columns, needed)
        for where, values in records:
            yield where, self.values(where, values, form)

    def walk(self, where: str, items: Any, *forms: str) -> Iterator[tuple[str, list[dict]]]:
        """Places ("videos/3/events/0") and values of the objects in a list, or in the `items` of
        its objects and so on, one for each of `forms`."""
        for number, item in enumerate(items if isinstance(items, list) else [None]):
            place = f"{where}/{number}"
            if not isinstance(item, dict):
                raise self.bad(place, "expected a list of objects")
            values = self.values(place, item, forms[0])
            items = values.get("items")
            reasons = {"redacted": values.get("redacted"), "nothing in it": items is None}
            if not forms[1:]:
                yield place, [values]
            elif not self.left_out(place, reasons):
                key = next(name for name in FIELDS[forms[0]]["items"] if name in item)
                for below, more in self.walk(f"{place}/{key}", items, *forms[1:]):
                    yield below, [values, *more]

    def left_out(self, where: str, reasons: Mapping[str, object]) -> bool:
        """Whether any of the reasons holds; the first that does is counted."""
        holding = [reason for reason, holds in reasons.items() if holds]
        self.table.skipped.extend(Skipped(where, reason) for reason in holding[:1])
        return bool(holding)

    def add(
        self, where: str, row: Row, length: float = math.inf, ends: bool = True, split: str = ""
    ) -> None:
        """Take a row if it is whole (with an end if it `ends`) and within a video of `length` s."""
        first = row.source if row.start is None else row.start
        try:
            row = replace(row, action=row.action.rstrip(" ."), split=split or self.split).checked()
        except (ValueError, EgoGenError) as error:
            raise self.bad(where, str(error)) from None
        reasons = {
            "no narration": not row.action,
            "no start": first is None,
            "no end": ends and row.end is None and row.target is None,
            "before the begin of the video": (first or 0) < 0,
            "stop not after start": row.end is not None and row.end <= (first or 0),
            "behind the end of the video": length <= row.times(self.timing)[1] < math.inf,
            "duplicate id": (row.clip, row.id) in self._taken,
        }
        if not self.left_out(where, reasons):
            self._taken.add((row.clip, row.id))
            self.table.rows.append(row)


def video_times(options: Options) -> dict[str, tuple[float, float]]:
    """(seconds, frames a second) of each video in the CSV `--video-info`; {} without one."""
    found, times = Reading(options.video_info or Path(), options), {}
    for where, row in found.rows("videos") if options.video_info else ():
        if not row["duration"] or not row["fps"]:
            raise found.bad(where, "expected a duration and fps")
        times[row["clip"]] = row["duration"], row["fps"]
    return times
