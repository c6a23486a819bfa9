"""The table of a report: its lines, and the report as text.

1. A line is a section, a phrasing, a relation and a metric; its cells are the models' means with intervals,
   and the difference of the edited from the untouched model.
2. Probabilities, single controls and the new answer after attacks are only in ``to_frame``. Of all probes,
   the line shows the site at which the untouched model's probe is most accurate; this choice favours no
   edited model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mechunlearn.auditing.report.estimates import CONTROLS, GOLD, Estimate
from mechunlearn.core.estimates import CHANGE, EDITED, UNTOUCHED
from mechunlearn.core.facts.kinds import in_words

COLUMNS = (EDITED, UNTOUCHED, GOLD, CONTROLS, CHANGE)
BOTH = ("forget", "entailed", "probe")


class Line(NamedTuple):
    """One line of the table."""

    section: str
    label: str
    metric: str
    n: int
    cells: Mapping[str, str]
    changed: bool


def lines(table: Sequence[Estimate]) -> list[Line]:
    """The lines of the table, in the order of the audit."""
    grouped: dict[tuple[str, str, str, str], dict[str, Estimate]] = {}
    best = _best_site(table)
    for e in table:
        shown = e.metric in ("answer", "nll") or (e.metric == "new" and e.section in BOTH)
        if shown and (e.section != "probe" or e.phrasing == best):
            grouped.setdefault((e.section, e.phrasing, e.relation, e.metric), {})[e.model] = e
    several = _several(table)
    # Only where a section also has new answers must the label tell old from new.
    old = {e.section for e in table if e.metric == "new"}
    return [_line(key, cells, several, old) for key, cells in grouped.items()]


def columns(table: Sequence[Estimate]) -> tuple[str, ...]:
    """The columns for which there are estimates."""
    models = {e.model for e in table}
    return tuple(column for column in COLUMNS if column in models)


def text(
    title: str,
    verdict: str,
    table: Sequence[Estimate],
    absent: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """Return a report as text; ``absent`` and ``notes`` are those of `Report`."""
    heads = columns(table)
    body = [[line.section, line.label, line.metric, str(line.n), *(line.cells.get(h, "") for h in heads)]
            for line in lines(table)]  # fmt: skip
    grid = [["section", "asked", "gives", "n", *heads], *body]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in grid]  # fmt: skip
    below = [f"note: {note}" for note in notes]
    below += [f"absent: {section}; give {field}" for section, field in absent.items()]
    return "\n".join([f"Audit of {title}", verdict, "", *shown, *below])


def _line(
    key: tuple[str, str, str, str], cells: Mapping[str, Estimate], several: set[str], old: set[str]
) -> Line:
    section, phrasing, relation, metric = key
    label = ", ".join(part for part in (relation if section in several else "", in_words(phrasing)) if part)
    gives = {"new": "new answer", "nll": "perplexity"}.get(
        metric, "old answer" if section in old else "answer"
    )
    change = cells.get(CHANGE)
    changed = change is not None and (change.low > 0 or change.high < 0)
    count = next(iter(cells.values())).n
    return Line(section, label, gives, count, {model: _cell(e) for model, e in cells.items()}, changed)


def _cell(estimate: Estimate) -> str:
    bounds = (estimate.value, estimate.low, estimate.high)
    if estimate.metric != "nll":
        return str(estimate.interval)
    if estimate.model == CHANGE:
        return "{} [{}, {}] nats".format(*map(_signed, bounds))
    # A mean loss becomes a perplexity; a difference of losses (above) stays in nats.
    value, low, high = map(math.exp, bounds)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if value else ".000"


def _several(table: Sequence[Estimate]) -> set[str]:
    """The sections that have more than one relation."""
    relations: dict[str, set[str]] = {}
    for e in table:
        relations.setdefault(e.section, set()).add(e.relation)
    return {section for section, names in relations.items() if len(names) > 1}


def _best_site(table: Sequence[Estimate]) -> str:
    read = [e for e in table if e.section == "probe" and e.metric == "answer" and e.model == UNTOUCHED]
    return max(read, key=lambda e: e.value).phrasing if read else ""
