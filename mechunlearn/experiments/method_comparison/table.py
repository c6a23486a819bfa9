"""The table of the comparison: a line per method and place, every mean over people with its interval.

1. Outcomes are averaged within a person over phrasings; a mean has a 95 % bootstrap interval over people.
2. Differences between lines are paired by person.
3. A second table tells how each edit was fitted: the chosen option, the steps taken and the one kept, what it
   reached on validation phrasings, and how many weights it was free to change and changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mechunlearn.core.estimates import fact_differences, mean_interval
from mechunlearn.core.statistics import Interval
from mechunlearn.experiments.demo.table import COLUMNS as DEMO
from mechunlearn.experiments.demo.table import SEED, Column
from mechunlearn.experiments.method_comparison.cells import GOLD, UNTOUCHED, Cell

RETAIN: Final = "retain"
COLUMNS: Final[Mapping[str, Column]] = {
    "old": Column("old, held-out phrasings", "forget", "answer", ("held_out",)),
    "new": DEMO["new"],
    "choice old": DEMO["choice old"],
    "entailed": DEMO["entailed"],
    "city": DEMO["city"],
    "retain": Column("retain set, held-out phrasings", RETAIN, "answer", ("held_out",)),
    "maintained": Column("maintained, held-out phrasings", "maintained", "answer", ("held_out",), ("sport",)),
    "text": DEMO["text"],
}
NONE = "–"


def mean(cell: Cell, column: str) -> Interval:
    """A mean with its interval; not-a-number where there is nothing to say.

    Args:
        cell: one line.
        column: one of ``COLUMNS``.
    """
    return mean_interval(cell.values.get(column, {}), seed=SEED)


def difference(first: Cell, second: Cell, column: str) -> Interval:
    """The first line minus the second, paired by person.

    Args:
        first: one line.
        second: another.
        column: one of ``COLUMNS``.
    """
    pairs = fact_differences(first.values.get(column, {}), second.values.get(column, {}))
    return mean_interval(pairs, seed=SEED)


def outcomes(found: Sequence[Cell]) -> str:
    """The table of what was forgotten and kept, as Markdown.

    Args:
        found: the lines, in order; a method's follow each other.
    """
    rows = [["method", "edited at", *(column.title for column in COLUMNS.values())]]
    for cell in found:
        shown = [cell.note, *[""] * (len(COLUMNS) - 1)] if cell.note else [_shown(cell, c) for c in COLUMNS]
        rows.append([cell.method, cell.place or NONE, *shown])
    return markdown(rows)


def fits(found: Sequence[Cell], *, total: int) -> str:
    """The table of how each edit was fitted, as Markdown.

    Args:
        found: the lines, in order.
        total: how many weights there are.
    """
    heads = ["chosen", "tried", "steps", "kept", "success", "retention", "free to change", "changed"]
    rows = [["method", "edited at", *heads]]
    for cell in found:
        if cell.chosen is None:
            continue
        one = cell.chosen
        reached = [one.options, str(len(cell.tried)), str(one.steps or NONE), str(one.step or NONE)]
        reached += [f"{one.success:.2f}", f"{one.retention:.2f}"]
        sizes = [f"{count / 1000:.0f} k ({count / total:.1%})" for count in (cell.size, cell.changed)]
        rows.append([cell.method, cell.place, *reached, *sizes])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table in Markdown, the first of them its head.

    Args:
        rows: of equal length.

    Example:
        >>> print(markdown([["a", "b"], ["1", "2"]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    head, *body = (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    return "\n".join([head, "| " + " | ".join(["---"] * len(rows[0])) + " |", *body])


def _shown(cell: Cell, column: str) -> str:
    if column == "new" and cell.aim != "new" and cell.method not in (UNTOUCHED, GOLD):
        return NONE
    return str(mean(cell, column))
