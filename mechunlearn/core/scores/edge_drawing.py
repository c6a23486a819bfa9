"""Edge scores as pictures: senders upwards, receivers to the right, a panel for every position.

Of more senders or receivers than can be named, those with the strongest edges are drawn, in the order of the
array; the title says how many of how many.
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
    kept, notes = {}, []
    for end, other in (("sender", "receiver"), ("receiver", "sender")):
        kept[end] = _strongest(strength.max(other), most)
        if len(kept[end]) < values.sizes[end]:
            notes.append(f"{len(kept[end])} of {values.sizes[end]} {end}s")
    drawn = values.isel(kept)
    panels = {"": drawn}
    if "pos" in values.dims:
        tokens = [str(token) for token in values["token"].values]
        names = tokens if len(set(tokens)) == len(tokens) else [f"{i} {t}" for i, t in enumerate(tokens)]
        panels = {name: drawn.isel(pos=place) for place, name in enumerate(names)}
    rows, cols = ([str(site) for site in drawn[end].values] for end in ("sender", "receiver"))
    return matrix_panels(
        {name: panel.transpose("sender", "receiver").values for name, panel in panels.items()},
        rows=rows,
        cols=cols,
        title=values.attrs["title"] + (f" (the strongest {' and '.join(notes)})" if notes else ""),
        unit=values.attrs["unit"],
        hover={name: [[f"{row} → {col}" for col in cols] for row in rows] for name in panels},
    )


def _strongest(strength: xr.DataArray, most: int) -> Int[np.ndarray, "kept"]:
    """The places of the largest values, in their own order; NaN is the least."""
    order = np.argsort(-strength.fillna(-1).values, kind="stable")[:most]
    return np.sort(order)
