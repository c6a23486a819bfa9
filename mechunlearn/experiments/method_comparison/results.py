"""The result of one method at one localization, which is a line of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mechunlearn.experiments.choosing import Trial

UNTOUCHED, GOLD = "untouched", "gold"


@dataclass(frozen=True)
class MethodResult:
    """The outcomes of one method at one localization, and how its edit was fitted.

    Args:
        method: name of the method; ``"untouched"`` or ``"gold"`` for these models as they are.
        localization: name of the localization; empty for these two.
        values: a value per person (per text for the text loss), by column of the table; empty where there is
            no edit.
        chosen: how the chosen candidate did on validation phrasings; None where nothing was fitted.
        size: number of weights that the edit was free to change; ``changed`` is how many it did change.
        note: the reason why there is no edit, if so.
    """

    method: str
    localization: str = ""
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    chosen: Trial | None = None
    trials: tuple[Trial, ...] = ()
    aim: Literal["new", "forget"] = "forget"
    size: int = 0
    changed: int = 0
    note: str = ""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> MethodResult:
        """Make a result of the fields that ``dataclasses.asdict`` gives, read from JSON."""
        fields = dict(record)
        fields["trials"] = tuple(Trial(**trial) for trial in fields["trials"])
        fields["chosen"] = fields["chosen"] and Trial(**fields["chosen"])
        return cls(**fields)
