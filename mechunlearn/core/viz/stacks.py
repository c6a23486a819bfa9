"""Stack figures under one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mechunlearn.core.viz.style import finish

if TYPE_CHECKING:
    import plotly.graph_objects as go


def stack(figures: Sequence[go.Figure], *, title: str = "") -> go.Figure:
    """Stack figures of one panel each, from the top down, over one horizontal axis; each keeps its height."""
    from plotly.subplots import make_subplots

    heights = [figure.layout.height for figure in figures]
    stacked = make_subplots(
        rows=len(figures), cols=1, shared_xaxes="all", row_heights=heights,
        vertical_spacing=min(80 / sum(heights), 1 / len(figures)),
        subplot_titles=[figure.layout.title.text or " " for figure in figures],
    )  # fmt: skip
    for row, figure in enumerate(figures, start=1):
        # plotly names the axes of the first subplot without a number.
        number = "" if row == 1 else str(row)
        for trace in figure.data:
            copy = type(trace)(trace.to_plotly_json())
            if trace.type == "heatmap":
                copy.coloraxis = f"coloraxis{number}"
            stacked.add_trace(copy, row=row, col=1)
        stacked.update_xaxes(_settings(figure.layout.xaxis), showticklabels=True, row=row, col=1)
        stacked.update_yaxes(_settings(figure.layout.yaxis), row=row, col=1)
        bottom, top = stacked.layout[f"yaxis{number}"].domain
        stacked.update_layout({f"coloraxis{number}": figure.layout.coloraxis})
        stacked.update_layout({f"coloraxis{number}_colorbar": {"len": top - bottom, "y": (top + bottom) / 2}})
        _mark(stacked, figure, number)
    ends = [end for figure in figures for end in figure.layout.xaxis.range]
    stacked.update_xaxes(range=[min(ends), max(ends)])
    return finish(stacked, title, height=sum(heights))


def _mark(stacked: go.Figure, figure: go.Figure, number: str) -> None:
    """Copy the lines and annotations of a figure onto its row."""
    axes = {"xref": f"x{number} domain", "yref": f"y{number}"}
    for shape in figure.layout.shapes:
        stacked.add_shape(shape.to_plotly_json() | axes)
    for annotation in figure.layout.annotations:
        stacked.add_annotation(annotation.to_plotly_json() | axes)


def _settings(axis: Any) -> dict[str, Any]:
    """The settings of an axis, without its position in its figure."""
    return {name: value for name, value in axis.to_plotly_json().items() if name not in ("domain", "anchor")}
