"""Read and write records, which are plain dictionaries, as CSV and JSON lines.

1. Each line or row becomes a dictionary; an unreadable one is an error that names the line.
2. A column mapping renames the keys to the fields of ``Fact``; a missing column is an error that lists the
   columns there are.
3. Cells of several values become tuples: from a list, a JSON list as text, or text split at ``|``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechunlearn.core.files import write_text
from mechunlearn.errors import DataError, FactError, one_of

FORMAT = "mechunlearn.facts/1"
REQUIRED = ("prompt", "subject", "answer")


def rows_of(records: Any) -> Iterable[Mapping[str, Any]]:
    """The rows of records: dictionaries, or those of a data frame or a dataset; FactError for others."""
    if isinstance(records, Mapping):
        raise FactError(
            f"the records are a {type(records).__name__} with the keys {list(records)}; give one split, as "
            "in dataset['train'], or a list of dictionaries"
        )
    if hasattr(records, "to_dict") and hasattr(records, "columns"):
        return list(records.to_dict("records"))
    if isinstance(records, str) or not isinstance(records, Iterable):
        raise FactError(f"the records are a {type(records).__name__}; give a list of dictionaries")
    return records


def absent(value: object) -> bool:
    """Return whether a cell is empty: None, an empty string or list, or pandas' NaN; 0 is a value."""
    if isinstance(value, float):
        return value != value  # true for NaN alone
    return value is None or (isinstance(value, str | Sequence | Mapping) and not value)


def several(cell: object) -> tuple[Any, ...]:
    """Split a cell of one or several values; FactError if its text starts like JSON and is none.

    Example:
        >>> several("golf | tennis"), several('["golf", "tennis"]')
        (('golf', 'tennis'), ('golf', 'tennis'))
    """
    if not isinstance(cell, str):
        return tuple(cell) if isinstance(cell, Iterable) and not isinstance(cell, Mapping) else (cell,)
    if cell.lstrip().startswith("["):
        return tuple(parsed(cell))
    return tuple(part.strip() for part in cell.split("|"))


def parsed(cell: str) -> Any:
    """Parse a cell of JSON text; FactError if it is not JSON."""
    try:
        return json.loads(cell)
    except json.JSONDecodeError as error:
        raise FactError(
            f"cell {cell[:60]!r} starts like JSON and cannot be read ({error}); write a JSON list, "
            "or values separated by '|'"
        ) from None


def renamed(
    record: Mapping[str, Any], columns: Mapping[str, str] | None, *, fields: Sequence[str]
) -> dict[str, Any]:
    """Select the fields of a fact from a record, where ``columns`` names the column of a field.

    Other keys of the record are ignored. FactError if a key of ``columns`` is no field, or a column is
    missing.

    Example:
        >>> renamed({"q": "Mary plays", "subject": "Mary", "answer": "golf", "id": 7},
        ...         {"prompt": "q"}, fields=("prompt", "subject", "answer"))
        {'prompt': 'Mary plays', 'subject': 'Mary', 'answer': 'golf'}
    """
    columns = dict(columns or {})
    for field in columns:
        if field not in fields:
            raise FactError(one_of("a key of columns", field, fields))
    for field in (*columns, *REQUIRED):
        column = columns.get(field, field)
        if column not in record:
            names = ", ".join(repr(name) for name in record)
            raise FactError(
                f"column {column!r}, wanted for {field!r}, is not among the columns {names}; "
                f"say which column holds it, as in columns={{{field!r}: ...}}"
            )
    picked = {field: record.get(columns.get(field, field)) for field in fields}
    # An empty required cell becomes "", so that Fact itself names what is wrong.
    missing = {field: "" for field in REQUIRED}
    # An empty `join` is a value: nothing stands between prompt and answer.
    present = {f: value for f, value in picked.items() if not absent(value) or (f == "join" and value == "")}
    return missing | present


def read_csv(path: str | Path) -> list[dict[str, Any]]:
    """Read a CSV file with a header row (UTF-8, with or without a byte-order mark).

    DataError if it is not UTF-8 text, or a row has more cells than the header.
    """
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(_text(path), newline="")))
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise DataError(
                f"{path}: row {number} has more cells than the header has columns; put quotation marks "
                "around cells that hold a comma"
            )
    return [{name: cell or None for name, cell in row.items()} for row in rows]


def read_jsonl(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read JSON lines: the header that `write_jsonl` writes (empty if there is none), and the records.

    DataError if a line is not a JSON object, the file is of another format, or it is empty or cut short.
    """
    # Not splitlines, which would also cut at U+2028 and other characters that JSON leaves unescaped.
    lines = _text(path).split("\n")
    rows = [_object(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise DataError(f"{path} is empty, expected a fact a line; write it again with Facts.to_jsonl")
    if "format" not in rows[0]:
        return {}, rows
    header, rows = rows[0], rows[1:]
    if header["format"] != FORMAT:
        raise DataError(f"{path} has the format {header['format']!r}, expected {FORMAT!r}")
    if header.get("facts", len(rows)) != len(rows):
        raise DataError(
            f"{path} announces {header['facts']} facts and holds {len(rows)}: it is cut short or altered; "
            "write it again with Facts.to_jsonl"
        )
    text = header.get("text", [])
    if not isinstance(text, list) or not all(isinstance(sentence, str) for sentence in text):
        raise DataError(
            f"{path}: the text of its header is {str(text)[:60]!r}, expected a list of strings; "
            "write it again with Facts.to_jsonl"
        )
    return header, rows


def write_jsonl(
    path: str | Path, records: Sequence[Mapping[str, Any]], *, text: Sequence[str], name: str
) -> None:
    """Write a header line, then one record a line; an interrupted write leaves the old file as it was."""
    header = {"format": FORMAT, "name": name, "facts": len(records), "text": list(text)}
    lines = [json.dumps(row, ensure_ascii=False) for row in (header, *records)]
    write_text(path, "\n".join(lines) + "\n")


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it again as UTF-8") from None


def _object(line: str, path: str | Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {number} is not JSON ({error.msg}): {line[:60]!r}; "
            "the file is cut short or altered, write it again"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {number} must be a JSON object; not {line[:60]!r}")
    return row
