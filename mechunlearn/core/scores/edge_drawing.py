"""Draw edge scores: senders upwards, receivers to the right, a panel for every position.

Where there are more senders or receivers than can be labelled, those with the strongest edges are drawn, in
the order of the array; the title says how many of how many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from jaxtyping import Int

from mechunlearn.core.viz.grids import matrix_panels

if TYPE_CHECKING:
    import plotly.graph_objects as go


def heatmap(values: xr.DataArray, *, most: int) -> go.Figure:
    """Draw labelled edge scores whose dimensions are ``sender``, ``receiver`` and perhaps ``pos``."""
    strength = abs(values).max("pos") if "pos" in values.dims else abs(values)
    strongest, notes = {}, []
    for end, opposite in (("sender", "receiver"), ("receiver", "sender")):
        strongest[end] = _strongest(strength.max(opposite), most)
        if len(strongest[end]) < values.sizes[end]:
            notes.append(f"{len(strongest[end])} of {values.sizes[end]} {end}s")
    drawn = values.isel(strongest)
    panels = {"": drawn}
    if "pos" in values.dims:
        tokens = [str(token) for token in values["token"].values]
        names = tokens if len(set(tokens)) == len(tokens) else [f"{i} {t}" for i, t in enumerate(tokens)]
        panels = {name: drawn.isel(pos=position) for position, name in enumerate(names)}
    rows, cols = ([str(site) for site in drawn[end].values] for end in ("sender", "receiver"))
    return matrix_panels(
        {name: panel.transpose("sender", "receiver").values for name, panel in panels.items()},
        rows=rows,
        cols=cols,
        title=values.attrs["title"] + (f" (the strongest {' and '.join(notes)})" if notes else ""),
        unit=values.attrs["unit"],
        hover={name: [[f"{row} → {col}" for col in cols] for row in rows] for name in panels},
    )


def _strongest(strength: xr.DataArray, most: int) -> Int[np.ndarray, "drawn"]:
    """The indices of the largest values, in ascending order; NaN counts as the smallest."""
    order = np.argsort(-strength.fillna(-1).values, kind="stable")[:most]
    return np.sort(order)
