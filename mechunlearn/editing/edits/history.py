"""The course of a fit, as a value that tables and plots itself.

1. A record holds the number of its step and the loss terms before that step; at the steps that were measured
   on validation phrasings also ``success`` and ``retention``, as shares of the questions.
2. A history is a frozen sequence of records, and equals any tuple of the same records.
3. ``plot`` draws the loss terms above and the shares below over one axis of steps, with a line at the step
   whose weights the edit has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

from mechunlearn.core.viz.style import CURVES, GRID, INK, escaped, finish

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

STEP, SHARES = "step", ("success", "retention")
FEW = 40
"""Points up to which each is marked on its line."""

Record = Mapping[str, float | int]


class History(Sequence[Record]):
    """The loss terms and shares of every step of a fit; shows itself in Jupyter.

    Args:
        records: one per step, in order; copied.
        step: the step whose weights the edit has; 0 if nothing was fitted.
        title: the title of figures.

    Example:
        >>> judged = {"step": 2.0, "inject": 1.0, "success": 0.5, "retention": 1.0}
        >>> history = History([{"step": 1.0, "inject": 2.0}, judged], step=2)
        >>> history
        History(2 steps, step 2 kept: success 0.50, retention 1.00)
        >>> history.terms, history[-1]["success"], history[1:] == (judged,)
        (('inject',), 0.5, True)
    """

    __slots__ = ("_records", "_step", "_title")

    def __init__(self, records: Iterable[Record] = (), *, step: int = 0, title: str = "") -> None:
        self._records = tuple(dict(record) for record in records)
        self._step = step
        self._title = title

    @property
    def step(self) -> int:
        """The step whose weights the edit has; 0 if nothing was fitted."""
        return self._step

    @property
    def title(self) -> str:
        """The title of figures."""
        return self._title

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the loss terms, in the order in which they first appear."""
        names = dict.fromkeys(name for record in self._records for name in record)
        return tuple(name for name in names if name not in (STEP, *SHARES))

    @property
    def judged(self) -> History:
        """The steps at which success and retention were measured."""
        return self._with(record for record in self._records if SHARES[0] in record)

    def _with(self, records: Iterable[Record]) -> History:
        return History(records, step=self._step, title=self._title)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    def __getitem__(self, index: int | slice) -> Record | History:
        if isinstance(index, slice):
            return self._with(self._records[index])
        return MappingProxyType(self._records[index])

    def __len__(self) -> int:
        return len(self._records)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, History):
            return self._records == other._records
        return self._records == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(frozenset(record.items()) for record in self._records))

    def to_frame(self) -> pd.DataFrame:
        """One row per step: its number, the loss terms, success and retention; NaN where not measured."""
        import pandas as pd

        shares = [name for name in SHARES if any(name in record for record in self._records)]
        frame = pd.DataFrame(list(self._records), columns=[STEP, *self.terms, *shares])
        return frame.astype({STEP: int})

    def plot(self) -> go.Figure:
        """Draw the loss terms, and below them the shares where any were measured.

        Returns:
            A plotly figure as wide as the page, never shown by itself.
        """
        from plotly.subplots import make_subplots

        judged = self.judged
        rows = 2 if len(judged) else 1
        figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.17)
        colours = dict(zip((*self.terms, *SHARES), CURVES * (len(self.terms) + 2), strict=False))
        for name in self.terms:
            _curve(figure, self._records, name, colours[name], row=1)
        for name in SHARES * (rows - 1):  # none, if nothing was measured
            _curve(figure, judged, name, colours[name], row=2)
        finish(figure, self._title, height=180 + 190 * rows)
        _dress(figure, rows, last=max((record[STEP] for record in self._records), default=1))
        self._mark(figure)
        return figure

    def _mark(self, figure: go.Figure) -> None:
        """Draw a line at the step that was kept, or say that there are no steps."""
        if not self._records:
            figure.add_annotation(text="no steps", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
            figure.update_xaxes(visible=False).update_yaxes(visible=False)
        if self._step:
            figure.add_vline(x=self._step, line={"dash": "dash", "color": INK, "width": 1})
            right = bool(self._records) and self._step > 0.8 * self._records[-1][STEP]
            figure.add_annotation(
                text=f"kept: step {self._step}", x=self._step, xanchor="right" if right else "left",
                y=1, yref="y domain", yanchor="top", showarrow=False, bgcolor="rgba(255,255,255,0.8)",
            )  # fmt: skip

    def __repr__(self) -> str:
        if not self._step:
            return f"History({len(self)} steps)"
        # The record of the step that was kept; empty, if that was not measured.
        (*_, last) = ({}, *(record for record in self.judged if record[STEP] == self._step))
        shares = ", ".join(f"{name} {last[name]:.2f}" for name in SHARES if name in last)
        return f"History({len(self)} steps, step {self._step} kept{': ' * bool(shares)}{shares})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**self.plot()._repr_mimebundle_(include, exclude), "text/plain": repr(self)}


def _curve(figure: go.Figure, records: Sequence[Record], name: str, colour: str, *, row: int) -> None:
    """One quantity over the steps, in the legend of its own panel."""
    there = [record for record in records if name in record]
    figure.add_scatter(
        x=[record[STEP] for record in there], y=[record[name] for record in there],
        name=escaped(name), mode="lines+markers" if len(there) <= FEW else "lines", line_color=colour,
        legend="legend" if row == 1 else "legend2", showlegend=True,
        hovertemplate="step %{x}: %{y:.4g}", row=row, col=1,
    )  # fmt: skip


def _dress(figure: go.Figure, rows: int, *, last: float | int) -> None:
    """Name the axes, and put each panel's legend above it."""
    figure.update_xaxes(
        gridcolor=GRID, zeroline=False, showticklabels=True, ticks="", range=[0, 1.03 * last],
        nticks=12, dtick=1 if last <= 12 else None,
    )  # fmt: skip
    figure.update_xaxes(title_text="step", title_standoff=8, row=rows, col=1)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=INK, zerolinewidth=1, automargin=True)
    figure.update_yaxes(title_text="loss term", row=1, col=1)
    over = {"orientation": "h", "x": 0, "yanchor": "bottom"}
    figure.update_layout(legend={**over, "y": 1.0})
    if rows == 2:
        figure.update_yaxes(
            title_text="share, validation", range=[-0.04, 1.04], tickformat=".1f", row=2, col=1
        )
        figure.update_layout(legend2={**over, "y": figure.layout.yaxis2.domain[1]})
    figure.update_layout(margin_t=figure.layout.margin.t + 30)
