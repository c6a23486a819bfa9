"""The cells of the comparison, and the folder that keeps them.

A cell is one method at one place. Each is a JSON file of its own with the fingerprint of what it depends on,
written beside the old one and then put in its place, so that a run that is interrupted goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mechunlearn.core.files import write_text
from mechunlearn.errors import DataError
from mechunlearn.experiments.method_comparison.choosing import Tried

UNTOUCHED, GOLD = "untouched", "gold"


@dataclass(frozen=True)
class Cell:
    """What was found for one method at one place.

    Args:
        method: its name; ``"untouched"`` or ``"gold"`` for these models as they are.
        place: the name of the localization; empty for these two.
        values: a value per person (per text for the text loss), by column of the table; nothing where there
            is no edit.
        chosen: how the chosen candidate did on validation phrasings; None where nothing was fitted.
        tried: all candidates that were tried.
        aim: ``"new"`` if a new answer was aimed at.
        size: how many weights the edit was free to change.
        changed: how many it did change.
        note: why there is no edit, if so.
    """

    method: str
    place: str = ""
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    chosen: Tried | None = None
    tried: tuple[Tried, ...] = ()
    aim: Literal["new", "forget"] = "forget"
    size: int = 0
    changed: int = 0
    note: str = ""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Cell:
        """The cell again.

        Args:
            record: as ``dataclasses.asdict`` gives it.
        """
        fields = dict(record)
        fields["tried"] = tuple(Tried(**each) for each in fields["tried"])
        fields["chosen"] = fields["chosen"] and Tried(**fields["chosen"])
        return cls(**fields)


def load(path: Path, key: str) -> Cell | None:
    """Read a cell, or nothing if there is none or it is of another run.

    Args:
        path: of its file.
        key: the fingerprint of what it must depend on.

    Raises:
        DataError: the file is cut short or of another kind.
    """
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Cell.from_json(record["cell"]) if record["key"] == key else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a whole cell: {error!r}; delete it and run again") from None


def save(path: Path, key: str, cell: Cell) -> None:
    """Write a cell; it appears whole or not at all.

    Args:
        path: of its file, in a folder that exists.
        key: the fingerprint of what it depends on.
        cell: what was found.
    """
    write_text(path, json.dumps({"key": key, "cell": asdict(cell)}))
