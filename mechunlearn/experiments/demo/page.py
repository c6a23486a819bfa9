"""The demo's pictures and its page."""

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
from mechunlearn.experiments.demo.jobs import Done
from mechunlearn.experiments.demo.looking import Look
from mechunlearn.experiments.demo.readings import side_by_side
from mechunlearn.experiments.demo.table import COLUMNS, UNITS, mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

PROFILE = ("relearned", "entailed", "choice new", "city")
INTRODUCTION = """
<h1>Look, cut, doubt</h1>
<p>A small language model knows which sport each of 720 fictional people plays. Three readings say where it
looks the sport up; 32 people are given another sport at each of these places, every edit by the same recipe
and stopped by the same rule; then every edit is asked in other words, asked for what should follow and for
what should survive, and attacked by relearning. <i>Gold</i> is a model that never learned the sport of
these people: what perfect removal looks like.</p>
"""


def figures(
    looks: Sequence[Look],
    profile: Mapping[str, Sequence[Done]],
    sites: ModelSites,
) -> dict[str, go.Figure]:
    """Every picture of the report, by name.

    Args:
        looks: one per draw; the first is drawn.
        profile: the jobs of the depth profile, by pair of MLPs.
        sites: of the embedded model.
    """
    first = looks[0]
    drawn = {
        "fact lookup": first.lookup.heatmap(),
        "probe": first.lookup.evidence["probe"].curves(),
        "readings": side_by_side(first.lookup, first.ablation),
        "causal tracing": first.trace.heatmap(),
        "attribution patching": first.attribution.heatmap(),
        "localizations": sites.compare(first.localizations),
    }
    if profile:
        drawn["depth profile"] = depth_profile(profile, first)
    return drawn


def depth_profile(profile: Mapping[str, Sequence[Done]], seen: Look) -> go.Figure:
    """The same edit at every pair of neighbouring MLPs, by depth, under what the localizers saw there.

    Args:
        profile: the jobs, by pair.
        seen: the look that the first draw's edits came from.
    """
    import numpy as np

    found = {name: [mean(done, COLUMNS[name]) for done in profile.values()] for name in PROFILE}
    titles = {name: COLUMNS[name].title for name in PROFILE}
    readings = {
        "attribution patching": seen.attribution.only("mlp"),
        "causal tracing": seen.trace.only("mlp"),
        "fact lookup": seen.lookup,
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
        {titles[name]: [cell.mean for cell in cells] for name, cells in found.items()},
        x=[f"{pair}" for pair in profile],
        at=[float(pair.split("+")[0]) + 0.5 for pair in profile],
        bands={
            titles[name]: ([c.low for c in cells], [c.high for c in cells]) for name, cells in found.items()
        },
        title="The same edit at two neighbouring MLPs",
        unit="share of people",
    )
    return stack([above, below])


def table_html(lines: Mapping[str, Sequence[Done]]) -> str:
    """The table as HTML.

    Args:
        lines: the jobs of each line.
    """
    head = ["edited at", "parameters", "lr", "steps", *(COLUMNS[unit].title for unit in UNITS)]
    rows = ["".join(f'<th style="white-space: normal">{html.escape(cell)}</th>' for cell in head)]
    for name, done in lines.items():
        cells = [html.escape(cell) for cell in (name, size_of(done), *fitted(done))]
        cells += [_cell(mean(done, COLUMNS[unit])) for unit in UNITS]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    inner = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="audit"><table>{inner}</table></div>'


def _cell(found: Interval) -> str:
    """The mean, and below it the interval, so that the table stays narrow."""
    value, _, bounds = html.escape(str(found)).partition(" ")
    return f"{value}<br><small>{bounds}</small>"


def size_of(done: Sequence[Done]) -> str:
    """How many parameters a line's edits could change, in thousands."""
    sizes = sorted({round(each.size / 1000) for each in done})
    return " / ".join(f"{size} k" if size else "–" for size in sizes)


def fitted(done: Sequence[Done]) -> tuple[str, str]:
    """Learning rate and steps of a line's edits, draw by draw."""
    edited = [each for each in done if each.size]
    return " / ".join(f"{each.lr:g}" for each in edited), " / ".join(str(each.steps) for each in edited)


def write(
    lines: Mapping[str, Sequence[Done]],
    said: Sequence[str],
    drawn: Mapping[str, go.Figure],
    notes: Sequence[str],
    audit: Report,
) -> str:
    """The whole page.

    Args:
        lines: the table.
        said: the verdict.
        drawn: the pictures.
        notes: how it was run.
        audit: the full audit of the lookup edit.
    """
    verdict = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in said)
    blocks: list[str | go.Figure] = [INTRODUCTION, "<h2>What was found</h2>", f"<ul>{verdict}</ul>"]
    blocks += ["<h2>Every row</h2>", table_html(lines)]
    how, *places = (f'<p class="note">{html.escape(note)}</p>' for note in notes)
    blocks += [how, f"<details><summary>Where every edit was made</summary>{''.join(places)}</details>"]
    blocks += ["<h2>Where it looks facts up</h2>", *drawn.values()]
    blocks += ["<h2>The lookup edit, audited</h2>", audit._repr_html_(), *audit.figures.values()]
    return page("mechunlearn: look, cut, doubt", blocks)
