"""The table of a report: which lines it has, and as text.

1. A line is a section, a phrasing, a relation and a metric; its cells are the models' means with intervals,
   and the difference of the edited from the untouched model.
2. Probabilities, single controls and the new answer after attacks stay in ``to_frame``. Of the probes, the
   line is the site at which the untouched model's probe reads best: chosen there, it favours no other model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mechunlearn.auditing.report.estimates import CONTROLS, EDITED, GOLD, UNTOUCHED, Estimate

CHANGE = f"{EDITED} − {UNTOUCHED}"
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
    """The lines of the table, in the order of the audit.

    Args:
        table: all estimates.
    """
    kept: dict[tuple[str, str, str, str], dict[str, Estimate]] = {}
    best = _best_site(table)
    for found in table:
        shown = found.metric in ("answer", "nll") or (found.metric == "new" and found.section in BOTH)
        if shown and (found.section != "probe" or found.phrasing == best):
            key = (found.section, found.phrasing, found.relation, found.metric)
            kept.setdefault(key, {})[found.model] = found
    several = _several(table)
    old = {found.section for found in table if found.metric == "new"}
    return [_line(key, cells, several, old) for key, cells in kept.items()]


def columns(table: Sequence[Estimate]) -> tuple[str, ...]:
    """The columns for which there is anything."""
    there = {found.model for found in table}
    return tuple(column for column in COLUMNS if column in there)


def text(
    title: str,
    verdict: str,
    table: Sequence[Estimate],
    absent: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """Write a report as text.

    Args:
        title: what was audited.
        verdict: in words.
        table: all estimates.
        absent: sections that could not be filled.
        notes: what a reader must know.
    """
    heads = columns(table)
    body = [[line.section, line.label, line.metric, str(line.n), *(line.cells.get(h, "") for h in heads)]
            for line in lines(table)]  # fmt: skip
    grid = [["section", "asked", "gives", "n", *heads], *body]
    widths = [max(len(row[place]) for row in grid) for place in range(len(grid[0]))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in grid]  # fmt: skip
    below = [f"note: {note}" for note in notes]
    below += [f"absent: {section}; give {field}" for section, field in absent.items()]
    return "\n".join([f"Audit of {title}", verdict, "", *shown, *below])


def _line(
    key: tuple[str, str, str, str], cells: Mapping[str, Estimate], several: set[str], old: set[str]
) -> Line:
    section, phrasing, relation, metric = key
    label = ", ".join(part for part in (relation if section in several else "", phrasing) if part)
    gives = {"new": "new answer", "nll": "perplexity"}.get(
        metric, "old answer" if section in old else "answer"
    )
    change = cells.get(CHANGE)
    changed = change is not None and (change.low > 0 or change.high < 0)
    count = next(iter(cells.values())).n
    return Line(section, label, gives, count, {m: _cell(found) for m, found in cells.items()}, changed)


def _cell(found: Estimate) -> str:
    if found.metric != "nll":
        return str(found.interval)
    if found.model == CHANGE:
        return f"{_signed(found.value)} [{_signed(found.low)}, {_signed(found.high)}] nats"
    value, low, high = (math.exp(part) for part in (found.value, found.low, found.high))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if value else ".000"


def _several(table: Sequence[Estimate]) -> set[str]:
    """The sections that have more than one relation."""
    relations: dict[str, set[str]] = {}
    for found in table:
        relations.setdefault(found.section, set()).add(found.relation)
    return {section for section, names in relations.items() if len(names) > 1}


def _best_site(table: Sequence[Estimate]) -> str:
    read = [e for e in table if e.section == "probe" and e.metric == "answer" and e.model == UNTOUCHED]
    return max(read, key=lambda found: found.value).phrasing if read else ""
