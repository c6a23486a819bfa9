"""Draw curves and bars with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Real

from mechunlearn.core.viz.style import CURVES, GRID, INK, MOST_TICKS, escaped, finish, ticks

if TYPE_CHECKING:
    import plotly.graph_objects as go

Heights = Sequence[float | int] | Real[np.ndarray, " point"]
Bands = Mapping[str, tuple[Heights, Heights]]
"""Lower and upper ends of an interval, by the name of a curve."""


def line_plot(
    curves: Mapping[str, Heights],
    *,
    x: Sequence[str],
    at: Heights | None = None,
    title: str = "",
    unit: str = "",
    bands: Bands | None = None,
    chance: float | int | None = None,
) -> go.Figure:
    """Draw curves, by their name in the legend, with a marker at every point; a NaN leaves a gap.

    ``x`` labels the points, whose horizontal positions are ``at`` (default 0, 1, 2 and so on); labels may
    repeat. ``bands`` are intervals of some or all curves, ``chance`` is the height of a dashed line.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    positions = [float(position) for position in (range(len(x)) if at is None else at)]
    for name, heights in curves.items():
        colour = _colour(name, curves)
        if bands and name in bands:
            for run, lower, upper in _runs(positions, *bands[name]):
                figure.add_scatter(
                    x=[*run, *run[::-1]], y=[*upper, *lower[::-1]], fill="toself", hoverinfo="skip",
                    fillcolor=_faint(colour), line_width=0, mode="lines", legendgroup=name, showlegend=False,
                )  # fmt: skip
        figure.add_scatter(
            x=positions, y=list(heights), name=escaped(name), mode="lines+markers", line_color=colour,
            legendgroup=name, text=[escaped(label) for label in x], showlegend=len(curves) > 1,
            hovertemplate="%{text}: %{y:.4g}",
        )  # fmt: skip
    figure.update_xaxes(**ticks(x, at=positions, most=MOST_TICKS))
    return finish(_with_heights(figure, unit, chance), title, height=340)


def bar_plot(
    groups: Mapping[str, Heights],
    *,
    x: Sequence[str],
    title: str = "",
    unit: str = "",
    bands: Bands | None = None,
    chance: float | int | None = None,
) -> go.Figure:
    """Draw bars in groups, with a label in ``x`` each; the other arguments are those of `line_plot`."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, heights in groups.items():
        error = None
        if bands and name in bands:
            lower, upper = (np.asarray(end, dtype=float) for end in bands[name])
            error = {"array": upper - heights, "arrayminus": heights - lower, "color": INK, "thickness": 1.2}
        figure.add_bar(
            x=list(range(len(x))), y=list(heights), name=escaped(name), error_y=error,
            marker_color=_colour(name, groups), showlegend=len(groups) > 1, textposition="none",
            text=[escaped(label) for label in x],
            hovertemplate="%{text}: %{y:.4g}",
        )  # fmt: skip
    figure.update_xaxes(**ticks(x, most=MOST_TICKS), showgrid=False)
    return finish(_with_heights(figure, unit, chance), title, height=340)


def _runs(
    positions: Sequence[float], lower: Heights, upper: Heights
) -> Iterator[Float[np.ndarray, "row run"]]:
    """Cut a band where a bound is NaN, since plotly would close its outline across the gap."""
    table = np.array([positions, lower, upper], dtype=float)
    (gaps,) = np.isnan(table).any(axis=0).nonzero()
    starts, ends = [0, *(gaps + 1)], [*gaps, table.shape[1]]
    return (table[:, start:end] for start, end in zip(starts, ends, strict=True) if start < end)


def _colour(name: str, names: Mapping[str, Any]) -> str:
    return CURVES[list(names).index(name) % len(CURVES)]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _with_heights(figure: go.Figure, unit: str, chance: float | int | None) -> go.Figure:
    """Style the vertical axis of curves or bars, and mark the score of guessing."""
    figure.update_yaxes(title_text=escaped(unit), gridcolor=GRID, zerolinecolor=INK, zerolinewidth=1)
    if chance is not None:
        figure.add_hline(y=chance, line={"dash": "dash", "color": INK, "width": 1})
        figure.add_annotation(
            text="chance", x=1, xref="x domain", xanchor="right", y=chance, yanchor="bottom", showarrow=False
        )
    return figure
