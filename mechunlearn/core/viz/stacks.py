"""Figures under one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mechunlearn.core.viz.style import finish

if TYPE_CHECKING:
    import plotly.graph_objects as go


def stack(figures: Sequence[go.Figure], *, title: str = "") -> go.Figure:
    """Put figures of one panel each under one another, over one horizontal axis.

    Args:
        figures: from the top down, drawn by ``matrix_plot``, ``line_plot`` or ``bar_plot``; each keeps its
            height.
        title: written above all.
    """
    from plotly.subplots import make_subplots

    heights = [figure.layout.height for figure in figures]
    whole = make_subplots(
        rows=len(figures), cols=1, shared_xaxes="all", row_heights=heights,
        vertical_spacing=min(80 / sum(heights), 1 / len(figures)),
        subplot_titles=[figure.layout.title.text or " " for figure in figures],
    )  # fmt: skip
    for row, figure in enumerate(figures, start=1):
        number = "" if row == 1 else str(row)
        for trace in figure.data:
            copy = type(trace)(trace.to_plotly_json())
            if trace.type == "heatmap":
                copy.coloraxis = f"coloraxis{number}"
            whole.add_trace(copy, row=row, col=1)
        whole.update_xaxes(_settings(figure.layout.xaxis), showticklabels=True, row=row, col=1)
        whole.update_yaxes(_settings(figure.layout.yaxis), row=row, col=1)
        bottom, top = whole.layout[f"yaxis{number}"].domain
        whole.update_layout({f"coloraxis{number}": figure.layout.coloraxis})
        whole.update_layout({f"coloraxis{number}_colorbar": {"len": top - bottom, "y": (top + bottom) / 2}})
        _mark(whole, figure, number)
    ends = [end for figure in figures for end in figure.layout.xaxis.range]
    whole.update_xaxes(range=[min(ends), max(ends)])
    return finish(whole, title, height=sum(heights))


def _mark(whole: go.Figure, figure: go.Figure, number: str) -> None:
    """Copy the lines and words of a figure onto its row."""
    own = {"xref": f"x{number} domain", "yref": f"y{number}"}
    for shape in figure.layout.shapes:
        whole.add_shape(shape.to_plotly_json() | own)
    for words in figure.layout.annotations:
        whole.add_annotation(words.to_plotly_json() | own)


def _settings(axis: Any) -> dict[str, Any]:
    """The settings of an axis, without its place in its figure."""
    return {name: value for name, value in axis.to_plotly_json().items() if name not in ("domain", "anchor")}
