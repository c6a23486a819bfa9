"""The demo's figures and its page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechunlearn.auditing.report.html import page
from mechunlearn.auditing.report.report import Report
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.core.statistics import Interval
from mechunlearn.core.viz.curves import line_plot
from mechunlearn.core.viz.grids import matrix_plot
from mechunlearn.core.viz.stacks import stack
from mechunlearn.experiments.demo.lines import Line, Lines, mean
from mechunlearn.experiments.demo.looking import Look
from mechunlearn.experiments.demo.readings import side_by_side
from mechunlearn.experiments.outcomes import COLUMNS

if TYPE_CHECKING:
    import plotly.graph_objects as go

PROFILE = ("relearned", "entailed", "choice new", "city")
INTRODUCTION = """
<h1>Look, cut, doubt</h1>
<p>A small language model knows which sport each of 720 fictional people plays. Three readings say where
it looks the sport up; 32 people (8 in a quick run) are given another sport at each of these places,
every edit by the same recipe and stopped by the same rule; then every edit is asked in other words,
asked for what should follow and for what should survive, and attacked by relearning. <i>Gold</i> is a
model that never learned the sport of these people: what perfect removal looks like.</p>
"""


def figures(looks: Sequence[Look], profile: Lines, sites: ModelSites) -> dict[str, go.Figure]:
    """Draw every figure of the report, by name; of the looks, one per draw, the first is drawn."""
    first = looks[0]
    by_name = {
        "fact lookup": first.lookup.heatmap(),
        "probe": first.lookup.evidence["probe"].curves(),
        "readings": side_by_side(first.lookup, first.ablation),
        "causal tracing": first.trace.heatmap(),
        "attribution patching": first.attribution.heatmap(),
        "localizations": sites.compare(first.localizations),
    }
    if profile:
        by_name["depth profile"] = depth_profile(profile, first)
    return by_name


def depth_profile(profile: Lines, look: Look) -> go.Figure:
    """Draw the same edit at every pair of neighbouring MLPs, below the localizers' scores of each MLP."""
    import numpy as np

    means = {COLUMNS[name].title: [mean(line, name) for line in profile.values()] for name in PROFILE}
    readings = {
        "attribution patching": look.attribution.only("mlp"),
        "causal tracing": look.trace.only("mlp"),
        "fact lookup": look.lookup,
    }
    heights = np.array([np.abs(scores.reduce().values.values) for scores in readings.values()])
    above = matrix_plot(
        heights / heights.max(axis=1, keepdims=True),
        rows=list(readings),
        cols=[f"MLP {layer}" for layer in range(heights.shape[1])],
        title="What each localizer credits MLPs with",
        unit="share of its highest",
    )
    below = line_plot(
        {title: [cell.mean for cell in cells] for title, cells in means.items()},
        x=list(profile),
        # A pair stands between its two MLPs on the axis of the matrix above.
        at=[float(pair.split("+")[0]) + 0.5 for pair in profile],
        bands={title: ([c.low for c in cells], [c.high for c in cells]) for title, cells in means.items()},
        title="The same edit at two neighbouring MLPs",
        unit="share of people",
    )
    return stack([above, below])


def table_html(lines: Lines) -> str:
    """Write the table as HTML."""
    head = ["edited at", "parameters", "lr", "steps", *(column.title for column in COLUMNS.values())]
    rows = ["".join(f'<th style="white-space: normal">{html.escape(cell)}</th>' for cell in head)]
    for name, line in lines.items():
        cells = [html.escape(cell) for cell in (name, size_of(line), *fit_of(line))]
        cells += [_cell(mean(line, column)) for column in COLUMNS]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    inner = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="audit"><table>{inner}</table></div>'


def _cell(interval: Interval) -> str:
    # The bounds stand below the mean, so that the table stays narrow.
    value, _, bounds = html.escape(str(interval)).partition(" ")
    return f"{value}<br><small>{bounds}</small>"


def size_of(line: Line) -> str:
    """The number of parameters that a line's edits could change, in thousands."""
    sizes = sorted({round(result.size / 1000) for result in line})
    return " / ".join(f"{size} k" if size else "–" for size in sizes)


def fit_of(line: Line) -> tuple[str, str]:
    """Learning rates and steps of a line's edits, draw by draw."""
    edited = [result for result in line if result.size]
    return " / ".join(f"{r.lr:g}" for r in edited), " / ".join(str(r.steps) for r in edited)


def write(
    lines: Lines, verdict: Sequence[str], drawn: Mapping[str, go.Figure], notes: Sequence[str], audit: Report
) -> str:
    """Write the page as HTML; the first note says how it was run, the others where edits were made."""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in verdict)
    blocks: list[str | go.Figure] = [INTRODUCTION, "<h2>What was found</h2>", f"<ul>{items}</ul>"]
    blocks += ["<h2>Every row</h2>", table_html(lines)]
    how, *edits = (f'<p class="note">{html.escape(note)}</p>' for note in notes)
    blocks += [how, f"<details><summary>Where every edit was made</summary>{''.join(edits)}</details>"]
    blocks += ["<h2>Where it looks facts up</h2>", *drawn.values()]
    blocks += ["<h2>The lookup edit, audited</h2>", audit._repr_html_(), *audit.figures.values()]
    return page("mechunlearn: look, cut, doubt", blocks)
