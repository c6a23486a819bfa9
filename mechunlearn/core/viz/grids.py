"""Draw matrices as heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mechunlearn.core.viz.style import DIVERGING, MISSING, MOST_TICKS, escaped, finish, ticks, wrapped

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PANELS_A_ROW = 4


def matrix_plot(
    values: Float[np.ndarray, "row col"],
    *,
    rows: Sequence[str],
    cols: Sequence[str],
    title: str = "",
    unit: str = "",
    hover: Sequence[Sequence[str]] | None = None,
) -> go.Figure:
    """Draw one matrix; see `matrix_panels`."""
    named = None if hover is None else {"": hover}
    return matrix_panels({"": values}, rows=rows, cols=cols, title=title, unit=unit, hover=named)


def matrix_panels(
    grids: Mapping[str, Float[np.ndarray, "row col"]],
    *,
    rows: Sequence[str],
    cols: Sequence[str],
    title: str = "",
    unit: str = "",
    hover: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> go.Figure:
    """Draw matrices, by the name above each panel, four to a row, with one colour scale for all.

    The first row is at the bottom, as layers are stacked. Labels may repeat; NaN cells are grey. ``unit`` is
    written beside the colours. ``hover`` holds a text for every cell, by panel; default its row and column.
    ValueError if there is no matrix, or labels and matrices do not fit each other.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if not grids:
        raise ValueError("matrix_panels draws one grid or more; not none")
    for name, values in grids.items():
        if values.shape != (len(rows), len(cols)):
            raise ValueError(
                f"{len(rows)} row labels and {len(cols)} column labels do not fit the matrix {name!r} of "
                f"{values.shape[0]} by {values.shape[1]}; give one label each"
            )
    across = min(len(grids), _PANELS_A_ROW)
    down = ceil(len(grids) / _PANELS_A_ROW)
    figure = make_subplots(
        rows=down, cols=across, subplot_titles=[escaped(name) for name in grids],
        shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.3 / down,
    )  # fmt: skip
    default = [[f"{row}, {col}" for col in cols] for row in rows]
    for panel, (name, values) in enumerate(grids.items()):
        texts = default if hover is None else hover[name]
        trace = go.Heatmap(
            z=values, coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False,
            text=[[escaped(text) for text in line] for line in texts],
            hovertemplate="%{text}<br>%{z:.4g}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(trace, row=1 + panel // across, col=1 + panel % across)
    figure.update_xaxes(**ticks(cols, most=MOST_TICKS // across), showgrid=False)
    figure.update_yaxes(**ticks(rows, most=MOST_TICKS), showgrid=False)
    figure.update_layout(coloraxis=_colours(list(grids.values()), unit), plot_bgcolor=MISSING)
    height = min(max(22 * len(rows), 120), 640)
    return finish(figure, title, height=down * (height + 60) + 60)


def _colours(grids: Sequence[Float[np.ndarray, "row col"]], unit: str) -> dict[str, Any]:
    """One colour scale for all grids, symmetric around white at 0."""
    finite = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    largest = float(np.abs(finite).max(initial=0.0)) or 1.0
    half = not (finite < 0).any()
    return {
        "colorscale": list(DIVERGING[len(DIVERGING) // 2 :] if half else DIVERGING),
        "cmin": 0.0 if half else -largest,
        "cmax": largest,
        "colorbar": {
            "title": {"text": wrapped(unit, 36), "side": "right"},
            "thickness": 12, "outlinewidth": 0, "nticks": 6,
        },
    }  # fmt: skip
