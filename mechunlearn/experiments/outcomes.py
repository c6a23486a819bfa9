"""The columns of the tables: a value per person from the rows of an exam, and means over people.

1. Outcomes are averaged within a person over phrasings.
2. A mean has a 95 % bootstrap interval over people; a difference between two models is paired by person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mechunlearn.auditing.report.estimates import Row
from mechunlearn.core.estimates import fact_differences, fact_means, mean_interval
from mechunlearn.core.statistics import Interval

SEED = 0


@dataclass(frozen=True)
class Column:
    """One column of a table: a metric of one section of the exam.

    ``metric`` is a key of `Row.values`; empty ``phrasings`` or ``relations`` stand for all of them.
    """

    title: str
    section: str
    metric: str
    phrasings: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()

    def per_person(self, rows: Iterable[Row]) -> dict[str, float]:
        """Average this column's outcomes within every person; ``rows`` are those of one model."""
        return fact_means(
            (row.fact, row.values[self.metric])
            for row in rows
            if row.section == self.section
            and (not self.phrasings or row.phrasing in self.phrasings)
            and (not self.relations or row.relation in self.relations)
            and self.metric in row.values
        )


COLUMNS: Final[Mapping[str, Column]] = {
    "new": Column("new, held-out phrasings", "forget", "new", ("held_out",)),
    "choice new": Column("new, multiple choice", "forget", "new", ("multiple_choice",)),
    "choice old": Column("old, multiple choice", "forget", "answer", ("multiple_choice",)),
    "entailed": Column("league, place still old", "entailed", "answer"),
    "relearned": Column("old, relearned", "relearning", "answer", ("train", "held_out")),
    "city": Column("home city kept", "same subject", "answer"),
    "maintained": Column("maintained", "maintained", "answer", relations=("sport",)),
    "text": Column("text loss (nats)", "text", "nll"),
}


def mean(values: Mapping[str, float]) -> Interval:
    """The mean over people with its interval; NaN where there is nobody."""
    return mean_interval(values, seed=SEED)


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> Interval:
    """The mean of the first minus the second over the people of both, with its interval."""
    return mean_interval(fact_differences(first, second), seed=SEED)
