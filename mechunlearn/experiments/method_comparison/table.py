"""The tables of the comparison: a line per method and localization, every mean over people with its interval.

1. The first table has the outcomes; differences between lines are paired by person.
2. The second tells how each edit was fitted: the chosen option, the number of steps and the step that was
   kept, success and retention on validation phrasings, and how many weights it could change and did change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mechunlearn.core.statistics import Interval
from mechunlearn.experiments import outcomes
from mechunlearn.experiments.method_comparison.results import GOLD, UNTOUCHED, MethodResult
from mechunlearn.experiments.outcomes import COLUMNS as DEMO
from mechunlearn.experiments.outcomes import Column

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


def mean(result: MethodResult, column: str) -> Interval:
    """The mean of a column with its interval; NaN where there is no edit."""
    return outcomes.mean(result.values.get(column, {}))


def difference(first: MethodResult, second: MethodResult, column: str) -> Interval:
    """The first line minus the second, paired by person."""
    return outcomes.difference(first.values.get(column, {}), second.values.get(column, {}))


def outcome_table(results: Sequence[MethodResult]) -> str:
    """Write the table of what was forgotten and maintained, as Markdown."""
    rows = [["method", "edited at", *(column.title for column in COLUMNS.values())]]
    for result in results:
        cells = [_cell(result, column) for column in COLUMNS]
        if result.note:
            cells = [result.note, *[""] * (len(COLUMNS) - 1)]
        rows.append([result.method, result.localization or NONE, *cells])
    return markdown(rows)


def fit_table(results: Sequence[MethodResult], *, total: int) -> str:
    """Write the table of how each edit was fitted, as Markdown; ``total`` counts the model's weights."""
    heads = ["chosen", "tried", "steps", "kept", "success", "retention", "free to change", "changed"]
    rows = [["method", "edited at", *heads]]
    for result in results:
        trial = result.chosen
        if trial is None:
            continue
        cells = [trial.options, str(len(result.trials)), str(trial.steps or NONE), str(trial.step or NONE)]
        cells += [f"{trial.success:.2f}", f"{trial.retention:.2f}"]
        cells += [f"{count / 1000:.0f} k ({count / total:.1%})" for count in (result.size, result.changed)]
        rows.append([result.method, result.localization, *cells])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write rows of equal length as a table in Markdown; the first is the head."""
    head, *body = (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    return "\n".join([head, "| " + " | ".join(["---"] * len(rows[0])) + " |", *body])


def _cell(result: MethodResult, column: str) -> str:
    # A share of new answers means nothing for a method that only forgets.
    if column == "new" and result.aim != "new" and result.method not in (UNTOUCHED, GOLD):
        return NONE
    return str(mean(result, column))
