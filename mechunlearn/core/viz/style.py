"""What all figures share: colours, fonts, ticks and margins."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

DIVERGING = ("#b2182b", "#ef8a62", "#fddbc7", "#ffffff", "#d1e5f0", "#67a9cf", "#2166ac")
"""ColorBrewer's red to blue; white is in the middle."""
CURVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can distinguish."""
MISSING, GRID, INK = "#d4d4d4", "#e8e8e8", "#2a2a2a"

MOST_TICKS = 40


def escaped(text: str) -> str:
    """Escape a string that plotly would read as markup."""
    return html.escape(text, quote=False).replace("\n", "↵")


def ticks(labels: Sequence[str], *, most: int, at: Sequence[float] | None = None) -> dict[str, Any]:
    """Settings of an axis with a label at every position; of very many, every second, third and so on."""
    positions = list(range(len(labels)) if at is None else at)
    step = ceil(len(labels) / max(most, 1))
    return {
        "tickvals": positions[::step],
        "ticktext": [escaped(label) for label in labels[::step]],
        "range": [min(positions) - 0.5, max(positions) + 0.5],
        "automargin": True,
        "ticks": "",
        "ticklabelstandoff": 4,
        "zeroline": False,
    }


def wrapped(text: str, width: int) -> str:
    """Break a long title into lines."""
    return "<br>".join(textwrap.wrap(escaped(text), width))


def finish(figure: go.Figure, title: str, *, height: int) -> go.Figure:
    """Set title, size, margins, fonts and background, alike for all figures."""
    text = wrapped(title, 80)
    figure.update_layout(
        template="none", height=height, paper_bgcolor="white", bargap=0.3,
        title={"text": text, "x": 0.01, "xanchor": "left", "font_size": 15},
        font={"size": 12, "color": INK, "family": "Helvetica, Arial, sans-serif"},
        margin={"l": 60, "r": 20, "t": 40 + 20 * (text.count("<br>") + 1) * bool(text), "b": 50},
        legend={"orientation": "h", "y": -40 / (height - 90), "yanchor": "top", "x": 0},
    )  # fmt: skip
    figure.update_annotations(font_size=12)
    return figure
