"""The lines of the demo's table: one model or localization each, its draws pooled.

A person counts once a draw, and two lines are compared person by person within a draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mechunlearn.core.statistics import Interval
from mechunlearn.experiments import outcomes
from mechunlearn.experiments.demo.cells import DemoResult
from mechunlearn.experiments.outcomes import COLUMNS

Line = Sequence[DemoResult]
"""The results of one line, one per draw."""
Lines = Mapping[str, Line]


def values(line: Line, column: str) -> dict[str, float]:
    """A value per draw and person."""
    return {
        f"{result.cell.draw}: {person}": value
        for result in line
        for person, value in COLUMNS[column].per_person(result.rows).items()
    }


def mean(line: Line, column: str) -> Interval:
    """The mean of a column with its interval."""
    return outcomes.mean(values(line, column))


def difference(first: Line, second: Line, column: str) -> Interval:
    """The first line minus the second, paired by draw and person."""
    return outcomes.difference(values(first, column), values(second, column))
