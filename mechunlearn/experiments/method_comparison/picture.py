"""The trade-off as a picture: what was forgotten against what was maintained, a panel for every method.

1. A panel shows the method at every place, in the place's colour and shape, with its intervals; all other
   methods lie behind it in grey, so that panels can be compared.
2. The right upper corner is where an edit should be. The gold model, which never learned these people, is
   not quite there: it still guesses right now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from mechunlearn.core.statistics import Interval
from mechunlearn.core.viz.style import CURVES, GRID, INK, MISSING, escaped, finish
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP
from mechunlearn.experiments.method_comparison.cells import GOLD, UNTOUCHED, Cell
from mechunlearn.experiments.method_comparison.places import RANDOM
from mechunlearn.experiments.method_comparison.table import mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

ACROSS, TALL = 5, 165
SHAPES: Final = {LOOKUP: (CURVES[0], "circle"), RANDOM: (CURVES[1], "x"), EVERYTHING: (CURVES[2], "diamond")}
AS_IS: Final = {UNTOUCHED: "circle-open", GOLD: "star"}
FORGOTTEN = "forgotten: share of people whose old answer is gone, held-out phrasings"
MAINTAINED = "maintained, held-out phrasings"


def tradeoff(found: Sequence[Cell]) -> go.Figure:
    """Draw forgotten against maintained.

    Args:
        found: the lines of the table.
    """
    from plotly.subplots import make_subplots

    fitted = [cell for cell in found if cell.chosen is not None]
    methods = list(dict.fromkeys(cell.method for cell in fitted))
    rows = max(1, ceil(len(methods) / ACROSS))
    figure = make_subplots(
        rows=rows, cols=ACROSS, shared_xaxes="all", shared_yaxes="all",
        subplot_titles=[escaped(method) for method in methods],
        horizontal_spacing=0.025, vertical_spacing=0.26 / max(rows, 2),
        x_title=FORGOTTEN, y_title=MAINTAINED,
    )  # fmt: skip
    for number, method in enumerate(methods):
        _panel(figure, method, found, {"row": number // ACROSS + 1, "col": number % ACROSS + 1})
    _legend(figure, found)
    figure.update_xaxes(range=[-0.06, 1.06], tickvals=[0, 0.5, 1], gridcolor=GRID, zeroline=False)
    figure.update_yaxes(range=[-0.06, 1.08], tickvals=[0, 0.5, 1], gridcolor=GRID, zeroline=False)
    for column in range(ACROSS):
        # The last panel of a column bears the numbers, also where the last row is short.
        last = (len(methods) - 1 - column) // ACROSS + 1
        if last > 0:
            figure.update_xaxes(showticklabels=True, row=last, col=column + 1)
    height = TALL * rows + 135
    finish(figure, "What every method forgets, and what it maintains", height=height)
    figure.update_layout(
        title={"y": 1 - 14 / height, "yanchor": "top"},
        legend={"y": 1 - 40 / height, "yanchor": "top", "yref": "container"},
        margin={"t": 95, "b": 60, "l": 65},
    )
    return figure


def _panel(figure: go.Figure, method: str, found: Sequence[Cell], at: dict[str, int]) -> None:
    others = [cell for cell in found if cell.chosen is not None and cell.method != method]
    figure.add_scatter(
        x=[_gone(cell).mean for cell in others], y=[mean(cell, "maintained").mean for cell in others],
        mode="markers", marker={"color": MISSING, "size": 4}, hoverinfo="skip", showlegend=False, **at,
    )  # fmt: skip
    for cell in found:
        if cell.method in AS_IS or (cell.method == method and cell.chosen is not None):
            figure.add_scatter(**_marker(cell), showlegend=False, **at)


def _marker(cell: Cell) -> dict[str, Any]:
    x, y = _gone(cell), mean(cell, "maintained")
    colour, shape = SHAPES[cell.place] if cell.place else (INK, AS_IS[cell.method])
    drawn: dict[str, Any] = {
        "x": [x.mean], "y": [y.mean], "mode": "markers", "name": cell.place or f"{cell.method} model",
        "marker": {"color": colour, "symbol": shape, "size": 9 if cell.place else 7},
        "text": [escaped(f"{cell.method}, {cell.place or 'as it is'}: forgotten {x}, maintained {y}")],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    if cell.place:
        drawn |= {"error_x": _bars(x, colour), "error_y": _bars(y, colour)}
    return drawn


def _legend(figure: go.Figure, found: Sequence[Cell]) -> None:
    """One entry for every place and model, whatever the panels show."""
    entries = {cell.place or cell.method: cell for cell in found if cell.values}
    for cell in entries.values():
        marker = _marker(cell)
        figure.add_scatter(
            x=[None], y=[None], mode="markers", marker=marker["marker"], name=marker["name"], showlegend=True
        )


def _gone(cell: Cell) -> Interval:
    """How many no longer give the old answer."""
    old = mean(cell, "old")
    return Interval(1 - old.mean, 1 - old.high, 1 - old.low)


def _bars(found: Interval, colour: str) -> dict[str, Any]:
    return {
        "array": [found.high - found.mean], "arrayminus": [found.mean - found.low], "color": colour,
        "thickness": 1, "width": 0,
    }  # fmt: skip
