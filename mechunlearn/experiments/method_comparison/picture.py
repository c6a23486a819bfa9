"""The trade-off as a figure: what was forgotten against what was maintained, a panel for every method.

1. A panel shows the method at every localization, in its colour and shape, with its intervals; all other
   methods lie behind it in grey, so that panels can be compared.
2. The ideal edit lies in the right upper corner. The gold model, which never learned these people, does not
   quite reach it, for some of its guesses are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from mechunlearn.core.statistics import Interval
from mechunlearn.core.viz.style import CURVES, GRID, INK, MISSING, escaped, finish
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP
from mechunlearn.experiments.method_comparison.localizations import RANDOM
from mechunlearn.experiments.method_comparison.results import GOLD, UNTOUCHED, MethodResult
from mechunlearn.experiments.method_comparison.table import mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

ACROSS, TALL = 5, 165
SHAPES: Final = {LOOKUP: (CURVES[0], "circle"), RANDOM: (CURVES[1], "x"), EVERYTHING: (CURVES[2], "diamond")}
AS_IS: Final = {UNTOUCHED: "circle-open", GOLD: "star"}
FORGOTTEN = "forgotten: share of people whose old answer is gone, held-out phrasings"
MAINTAINED = "maintained, held-out phrasings"


def tradeoff(results: Sequence[MethodResult]) -> go.Figure:
    """Draw forgotten against maintained."""
    from plotly.subplots import make_subplots

    methods = list(dict.fromkeys(result.method for result in results if result.chosen is not None))
    rows = max(1, ceil(len(methods) / ACROSS))
    figure = make_subplots(
        rows=rows, cols=ACROSS, shared_xaxes="all", shared_yaxes="all",
        subplot_titles=[escaped(method) for method in methods],
        horizontal_spacing=0.025, vertical_spacing=0.26 / max(rows, 2),
        x_title=FORGOTTEN, y_title=MAINTAINED,
    )  # fmt: skip
    for number, method in enumerate(methods):
        _panel(figure, method, results, {"row": number // ACROSS + 1, "col": number % ACROSS + 1})
    _legend(figure, results)
    figure.update_xaxes(range=[-0.06, 1.06], tickvals=[0, 0.5, 1], gridcolor=GRID, zeroline=False)
    figure.update_yaxes(range=[-0.06, 1.08], tickvals=[0, 0.5, 1], gridcolor=GRID, zeroline=False)
    for column in range(ACROSS):
        # The last panel of a column has the tick labels, also where the last row is short.
        last = (len(methods) - 1 - column) // ACROSS + 1
        if last > 0:
            figure.update_xaxes(showticklabels=True, row=last, col=column + 1)
    # Title, legend and margins have fixed heights in pixels, whatever the number of rows.
    height = TALL * rows + 135
    finish(figure, "What every method forgets, and what it maintains", height=height)
    figure.update_layout(
        title={"y": 1 - 14 / height, "yanchor": "top"},
        legend={"y": 1 - 40 / height, "yanchor": "top", "yref": "container"},
        margin={"t": 95, "b": 60, "l": 65},
    )
    return figure


def _panel(figure: go.Figure, method: str, results: Sequence[MethodResult], at: dict[str, int]) -> None:
    behind = [result for result in results if result.chosen is not None and result.method != method]
    figure.add_scatter(
        x=[_forgotten(result).mean for result in behind],
        y=[mean(result, "maintained").mean for result in behind],
        mode="markers", marker={"color": MISSING, "size": 4}, hoverinfo="skip", showlegend=False, **at,
    )  # fmt: skip
    for result in results:
        if result.method in AS_IS or (result.method == method and result.chosen is not None):
            figure.add_scatter(**_marker(result), showlegend=False, **at)


def _marker(result: MethodResult) -> dict[str, Any]:
    x, y = _forgotten(result), mean(result, "maintained")
    name = result.localization
    colour, shape = SHAPES[name] if name else (INK, AS_IS[result.method])
    marker: dict[str, Any] = {
        "x": [x.mean], "y": [y.mean], "mode": "markers", "name": name or f"{result.method} model",
        "marker": {"color": colour, "symbol": shape, "size": 9 if name else 7},
        "text": [escaped(f"{result.method}, {name or 'as it is'}: forgotten {x}, maintained {y}")],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    if name:
        marker |= {"error_x": _bars(x, colour), "error_y": _bars(y, colour)}
    return marker


def _legend(figure: go.Figure, results: Sequence[MethodResult]) -> None:
    # One entry for every localization and model, by traces without points: panels repeat the same markers.
    entries = {result.localization or result.method: result for result in results if result.values}
    for result in entries.values():
        marker = _marker(result)
        figure.add_scatter(
            x=[None], y=[None], mode="markers", marker=marker["marker"], name=marker["name"], showlegend=True
        )


def _forgotten(result: MethodResult) -> Interval:
    """The share of people who no longer get the old answer."""
    old = mean(result, "old")
    # The complement swaps the bounds.
    return Interval(1 - old.mean, 1 - old.high, 1 - old.low)


def _bars(interval: Interval, colour: str) -> dict[str, Any]:
    return {
        "array": [interval.high - interval.mean], "arrayminus": [interval.mean - interval.low],
        "color": colour, "thickness": 1, "width": 0,
    }  # fmt: skip
