"""A report as HTML: a summary for Jupyter, and self-contained pages.

A page holds plotly's code once, in its head, and loads nothing. ``page`` takes any mixture of HTML and
figures, so that other reports can be built with it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechunlearn.auditing.report import table as report_table
from mechunlearn.auditing.report.estimates import Estimate
from mechunlearn.auditing.report.verdicts import Verdict

if TYPE_CHECKING:
    import plotly.graph_objects as go

STYLE = """
body { font: 15px/1.45 Helvetica, Arial, sans-serif; color: #2a2a2a; max-width: 1100px; margin: 2em auto;
       padding: 0 1em; background: white; }
.audit table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; }
.audit th, .audit td { text-align: left; padding: 2px 9px; border-bottom: 1px solid #e8e8e8;
                       white-space: nowrap; }
.audit th { border-bottom: 1px solid #2a2a2a; }
.audit tr.section td { border-top: 1px solid #a0a0a0; }
.audit td.changed { font-weight: 600; }
.audit .verdict { border-left: 4px solid #0072b2; padding: 2px 0 2px 10px; margin: 10px 0; }
.audit .note { font-size: 12.5px; color: #555; }
"""


def summary(
    title: str,
    verdict: Verdict,
    table: Sequence[Estimate],
    absent: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """Return verdict and table as HTML, without figures; ``absent`` and ``notes`` are those of `Report`."""
    clauses = [f"<b>{html.escape(name)}</b>: {html.escape(text)}" for name, text in verdict.clauses]
    below = [html.escape(note) for note in notes]
    below += [f"Absent: {html.escape(section)}; give <code>{html.escape(field)}</code>."
              for section, field in absent.items()]  # fmt: skip
    return (
        f'<div class="audit"><style>{STYLE}</style><h2>Audit of {html.escape(title)}</h2>'
        f'<p class="verdict">{"<br>".join(clauses)}</p>{_grid(table)}'
        + "".join(f'<p class="note">{note}</p>' for note in below)
        + "</div>"
    )


def page(title: str, blocks: Sequence[str | go.Figure]) -> str:
    """Return a self-contained page of HTML and plotly figures, one below the other.

    ``title`` is plain text and is escaped; strings among ``blocks`` are HTML and are not.
    """
    from plotly.offline import get_plotlyjs

    body = "\n".join(
        block if isinstance(block, str) else block.to_html(full_html=False, include_plotlyjs=False)
        for block in blocks
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head>\n<body>\n{body}\n</body></html>\n"
    )


def _grid(table: Sequence[Estimate]) -> str:
    heads = report_table.columns(table)
    rows = [_row("th", ["section", "asked", "gives", "facts", *heads])]
    before = ""
    for line in report_table.lines(table):
        cells = [line.section if line.section != before else "", line.label, line.metric, str(line.n)]
        cells += [line.cells.get(head, "") for head in heads]
        rows.append(_row("td", cells, opens=line.section != before, changed=line.changed))
        before = line.section
    return f"<table>{''.join(rows)}</table>"


def _row(tag: str, cells: Sequence[str], *, opens: bool = False, changed: bool = False) -> str:
    last = len(cells) - 1
    marks = [' class="changed"' if changed and column == last else "" for column in range(len(cells))]
    inner = "".join(
        f"<{tag}{mark}>{html.escape(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True)
    )
    return f'<tr class="section">{inner}</tr>' if opens else f"<tr>{inner}</tr>"
