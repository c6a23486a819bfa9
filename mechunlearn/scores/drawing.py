"""Scores as pictures.

1. Without positions: layers upwards, the components of a layer to the right.
2. With positions: layers upwards, tokens to the right, and a panel for every kind of site. Where a layer has
   several sites of a kind (heads), all sites are written upwards in one panel.
3. Every metric is a panel too, and all panels share one colour scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechunlearn import viz
from mechunlearn.sites import Site

if TYPE_CHECKING:
    import plotly.graph_objects as go


def heatmap(values: xr.DataArray) -> go.Figure:
    """Draw labelled scores whose dimensions are ``site`` and perhaps ``pos`` and ``metric``."""
    sites = _sites(values)
    several = len({(site.layer, site.kind) for site in sites}) < len(sites)
    if "pos" in values.dims and several:
        rows, names = [str(site) for site in sites], {str(site): str(site) for site in sites}
    else:
        rows = [f"L{layer}" for layer in range(max(site.layer or 0 for site in sites) + 1)]
        names = {str(site): f"L{site.layer or 0}" for site in sites}
    # Sorted without their layer, columns stand in the order in which a block computes.
    columns = {site.column: None for site in sorted(sites, key=lambda site: site.key[1:])}
    cols = values["token"].values.tolist() if "pos" in values.dims else list(columns)
    panels = _panels(values, by_kind="pos" in values.dims and not several)
    drawn = {name: _grid(panel, rows, list(columns), names) for name, panel in panels.items()}
    return viz.panels(
        {name: grid for name, (grid, _) in drawn.items()},
        rows=rows,
        cols=cols,
        title=values.attrs["title"],
        unit=values.attrs["unit"],
        hover={name: texts for name, (_, texts) in drawn.items()},
    )


def curves(values: xr.DataArray) -> go.Figure:
    """Draw labelled scores over depth, a curve for every component of a layer and every metric."""
    sites = _sites(values)
    layers = max(site.layer or 0 for site in sites) + 1
    heights: dict[str, list[float]] = {}
    for metric, panel in _panels(values, by_kind=False).items():
        for site, value in zip(sites, panel.values, strict=True):
            name = " ".join(filter(None, (site.column, metric)))
            heights.setdefault(name, [np.nan] * layers)[site.layer or 0] = float(value)
    return viz.lines(
        heights,
        x=[f"L{layer}" for layer in range(layers)],
        title=values.attrs["title"],
        unit=values.attrs["unit"],
    )


def _sites(values: xr.DataArray) -> list[Site]:
    return [Site.parse(str(site)) for site in values["site"].values]


def _panels(values: xr.DataArray, *, by_kind: bool) -> dict[str, xr.DataArray]:
    """Split by metric and, where asked, by kind of site."""
    metrics = values["metric"].values.tolist() if "metric" in values.dims else [""]
    kinds = list(dict.fromkeys(values["kind"].values.tolist()))
    panels = {}
    for metric in metrics:
        one = values.sel(metric=metric, drop=True) if metric else values
        for kind in kinds if by_kind and len(kinds) > 1 else [""]:
            name = " ".join(filter(None, (kind, metric)))
            panels[name] = one.isel(site=(one["kind"] == kind).values) if kind else one
    return panels


def _grid(
    panel: xr.DataArray, rows: list[str], columns: list[str], names: dict[str, str]
) -> tuple[Float[np.ndarray, "row col"], list[list[str]]]:
    """Lay one panel out, with the text of every cell; cells without a site are NaN."""
    tokens = panel["token"].values.tolist() if "pos" in panel.dims else None
    width = len(columns) if tokens is None else len(tokens)
    grid, texts = np.full((len(rows), width), np.nan), [[""] * width for _ in rows]
    row_of = {name: row for row, name in enumerate(rows)}
    column_of = {name: column for column, name in enumerate(columns)}
    for site, scored in zip(_sites(panel), panel.transpose("site", ...).values, strict=True):
        row = row_of[names[str(site)]]
        if tokens is None:
            column = column_of[site.column]
            grid[row, column], texts[row][column] = scored, str(site)
        else:
            grid[row], texts[row] = scored, [f"{site}, {token}" for token in tokens]
    return grid, texts
