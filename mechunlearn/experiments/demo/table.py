"""The demo's table: one line per place that was edited, every cell a mean over people with its interval.

1. Outcomes are averaged within a person over phrasings, pooled over draws (a person counts once a draw).
2. Every mean has a 95 % bootstrap interval over people; differences between lines are paired by person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mechunlearn.core.estimates import fact_differences, fact_means, mean_interval
from mechunlearn.core.statistics import Interval
from mechunlearn.experiments.demo.jobs import Done

SEED = 0


@dataclass(frozen=True)
class Column:
    """One column: which questions of the exam, and which answer counts; no restriction where empty."""

    title: str
    section: str
    metric: str
    phrasings: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()


COLUMNS: Final = {
    "new": Column("new, held-out phrasings", "forget", "new", ("held_out",)),
    "choice new": Column("new, multiple choice", "forget", "new", ("multiple_choice",)),
    "choice old": Column("old, multiple choice", "forget", "answer", ("multiple_choice",)),
    "entailed": Column("league, place still old", "entailed", "answer"),
    "relearned": Column("old, relearned", "relearning", "answer", ("train", "held_out")),
    "city": Column("home city kept", "same subject", "answer"),
    "maintained": Column("maintained", "maintained", "answer", relations=("sport",)),
    "text": Column("text loss (nats)", "text", "nll"),
}
UNITS = tuple(COLUMNS)

Cells = Mapping[tuple[int, str], float]


def cells(done: Sequence[Done], column: Column) -> dict[tuple[int, str], float]:
    """One value per draw and fact.

    Args:
        done: the jobs of one line of the table, one per draw.
        column: what to read.
    """
    return fact_means(
        ((each.job.draw, row.fact), row.values[column.metric])
        for each in done
        for row in each.rows
        if row.section == column.section
        and (not column.phrasings or row.phrasing in column.phrasings)
        and (not column.relations or row.relation in column.relations)
        and column.metric in row.values
    )


def mean(done: Sequence[Done], column: Column) -> Interval:
    """The cell of a table, with its interval.

    Args:
        done: the jobs of one line of the table.
        column: what to read.
    """
    return mean_interval(cells(done, column), seed=SEED)


def difference(first: Sequence[Done], second: Sequence[Done], column: Column) -> Interval:
    """The first line minus the second, paired by person.

    Args:
        first: the jobs of one line.
        second: the jobs of another, with the same draws.
        column: what to read.
    """
    return mean_interval(fact_differences(cells(first, column), cells(second, column)), seed=SEED)


def by_name(done: Sequence[Done]) -> dict[str, list[Done]]:
    """The jobs of each line, draws in order.

    Args:
        done: all jobs.
    """
    lines: dict[str, list[Done]] = {}
    for each in sorted(done, key=lambda d: d.job.draw):
        lines.setdefault(each.job.name, []).append(each)
    return lines
