"""Draw scores.

1. Without positions: layers upwards, the components of a layer to the right. Where there are more columns
   than can be labelled, parts of heads (``head .q``), patterns and neurons have separate panels; of neurons
   the strongest of each layer are drawn, strongest first.
2. With positions: layers upwards, tokens to the right, and a panel for every kind of site. Where a layer has
   several sites of a kind (heads), every site is a row; of hundreds, the strongest are drawn.
3. Every metric has a panel. Panels of one unit share one colour scale.
4. Panels stand side by side while all their columns can be labelled, and under one another otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechunlearn.core.sites.site import Site
from mechunlearn.core.viz.curves import line_plot
from mechunlearn.core.viz.grids import matrix_panels, matrix_plot
from mechunlearn.core.viz.stacks import stack

if TYPE_CHECKING:
    import plotly.graph_objects as go

_NAMED = 40
"""Most columns that are labelled, and number of neurons or rows drawn where there are far more."""
_ROWS = 200
_GAPLESS = 60


@dataclass(frozen=True)
class _Panel:
    """A matrix with its labels; cells without a site are NaN."""

    grid: Float[np.ndarray, "row col"]
    rows: Sequence[str]
    cols: Sequence[str]
    texts: Sequence[Sequence[str]]
    unit: str


def heatmap(values: xr.DataArray) -> go.Figure:
    """Draw labelled scores whose dimensions are ``site`` and perhaps ``pos`` and ``metric``."""
    panels: dict[str, _Panel] = {}
    for metric, one in _metrics(values).items():
        for kind, part in _kinds(one).items():
            strongest, panel = _by_position(part) if "pos" in part.dims else _by_component(part)
            name = " ".join(filter(None, (kind, metric)))
            panels[", ".join(filter(None, (name, strongest)))] = panel
    first, title = next(iter(panels.values())), values.attrs["title"]
    if not _side_by_side(list(panels.values())):
        return _stacked(panels, title)
    figure = matrix_panels(
        {name: panel.grid for name, panel in panels.items()},
        rows=first.rows,
        cols=first.cols,
        title=title,
        unit=first.unit,
        hover={name: panel.texts for name, panel in panels.items()},
    )
    return _spaced(figure, first)


def curves(values: xr.DataArray) -> go.Figure:
    """Draw labelled scores over depth, a curve for every component of a layer and every metric."""
    sites = _sites(values)
    layers = max(site.layer or 0 for site in sites) + 1
    heights: dict[str, list[float]] = {}
    for metric, panel in _metrics(values).items():
        for site, value in zip(sites, panel.values, strict=True):
            name = " ".join(filter(None, (site.column, metric)))
            heights.setdefault(name, [np.nan] * layers)[site.layer or 0] = float(value)
    return line_plot(
        heights,
        x=[f"L{layer}" for layer in range(layers)],
        title=values.attrs["title"],
        unit=values.attrs["unit"],
    )


def _sites(values: xr.DataArray) -> list[Site]:
    return [Site.parse(str(site)) for site in values["site"].values]


def _metrics(values: xr.DataArray) -> dict[str, xr.DataArray]:
    """The scores of every metric, with its unit; a single one has an empty name."""
    if "metric" not in values.dims:
        return {"": values}
    names = values["metric"].values.tolist()
    units = values["unit"].values.tolist() if "unit" in values.coords else [values.attrs["unit"]] * len(names)
    return {
        name: values.isel(metric=index, drop=True).assign_attrs(unit=unit)
        for index, (name, unit) in enumerate(zip(names, units, strict=True))
    }


def _kinds(values: xr.DataArray) -> dict[str, xr.DataArray]:
    """The scores of every panel; a single one has an empty name."""
    sites, by_position = _sites(values), "pos" in values.dims

    def panel(site: Site) -> str:
        if site.kind in ("head", "kv") and site.part:
            return f"{site.kind} .{site.part}"
        return site.kind if by_position or site.kind in ("neuron", "pattern") else ""

    names = [panel(site) for site in sites]
    if len(set(names)) == 1 or not (by_position or len({site.column for site in sites}) > _NAMED):
        return {"": values}
    rest = ", ".join(dict.fromkeys(site.kind for site, name in zip(sites, names, strict=True) if not name))
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    return {name or rest: values.isel(site=rows) for name, rows in rows_of.items()}


def _by_component(values: xr.DataArray) -> tuple[str, _Panel]:
    """A panel of layers by components, and a note where only the strongest neurons are drawn."""
    sites, heights = _sites(values), values.values
    # Sorted without their layer, columns stand in the order in which a block computes.
    columns = list(dict.fromkeys(site.column for site in sorted(sites, key=lambda site: site.key[1:])))
    column_of, note = {site: columns.index(site.column) for site in sites}, ""
    if len(columns) > _NAMED and {site.kind for site in sites} == {"neuron"}:
        column_of = _ranked(sites, heights)
        most = max(column_of.values()) + 1
        columns = [f"{rank}." for rank in range(1, min(most, _NAMED) + 1)]
        note = "strongest first" if most <= _NAMED else f"the {_NAMED} strongest of each layer"
    rows = [f"L{layer}" for layer in range(max(site.layer or 0 for site in sites) + 1)]
    grid, texts = np.full((len(rows), len(columns)), np.nan), [[""] * len(columns) for _ in rows]
    for site, height in zip(sites, heights, strict=True):
        row, column = site.layer or 0, column_of[site]
        if column < len(columns):
            grid[row, column], texts[row][column] = height, str(site)
    return note, _Panel(grid, rows, columns, texts, values.attrs["unit"])


def _ranked(sites: Sequence[Site], heights: Float[np.ndarray, " site"]) -> dict[Site, int]:
    """The rank of every site in its layer, 0 for the farthest from 0."""
    ranks, ranked = {}, Counter[int | None]()
    for row in np.argsort(-np.abs(np.nan_to_num(heights)), kind="stable"):
        layer = sites[row].layer
        ranks[sites[row]] = ranked[layer]
        ranked[layer] += 1
    return ranks


def _by_position(values: xr.DataArray) -> tuple[str, _Panel]:
    """A panel of layers by tokens, or of sites by tokens where a layer has several, and a note as above."""
    sites, tokens = _sites(values), values["token"].values.tolist()
    heights, note = values.transpose("site", "pos").values, ""
    if len(sites) > _ROWS:
        note = f"the {_NAMED} strongest of {len(sites)}"
        magnitudes = np.abs(np.nan_to_num(heights)).max(axis=1)
        strongest = sorted(np.argsort(-magnitudes, kind="stable")[:_NAMED])
        sites, heights = [sites[row] for row in strongest], heights[strongest]
    if len({site.layer for site in sites}) < len(sites) or note:
        rows, row_of = list(map(str, sites)), {site: row for row, site in enumerate(sites)}
    else:
        rows = [f"L{layer}" for layer in range(max(site.layer or 0 for site in sites) + 1)]
        row_of = {site: site.layer or 0 for site in sites}
    grid, texts = np.full((len(rows), len(tokens)), np.nan), [[""] * len(tokens) for _ in rows]
    for site, line in zip(sites, heights, strict=True):
        grid[row_of[site]], texts[row_of[site]] = line, [f"{site}, {token}" for token in tokens]
    return note, _Panel(grid, rows, tokens, texts, values.attrs["unit"])


def _side_by_side(panels: Sequence[_Panel]) -> bool:
    first, *others = panels
    alike = all((p.rows, p.cols, p.unit) == (first.rows, first.cols, first.unit) for p in others)
    return not others or (alike and len(panels) * len(first.cols) <= _NAMED)


def _stacked(panels: Mapping[str, _Panel], title: str) -> go.Figure:
    """Stack panels under one another, each with the colour scale of its unit."""
    extremes: dict[str, list[float]] = {}
    for panel in panels.values():
        finite = panel.grid[np.isfinite(panel.grid)]
        extremes.setdefault(panel.unit, []).extend((finite.min(initial=0), finite.max(initial=0)))
    figures = []
    for name, panel in panels.items():
        figure = matrix_plot(
            panel.grid, rows=panel.rows, cols=panel.cols, title=name, unit=panel.unit, hover=panel.texts
        )
        ends = np.array([extremes[panel.unit]])
        scale = matrix_plot(ends, rows=[""], cols=[""] * ends.size, unit=panel.unit).layout.coloraxis
        figures.append(_spaced(figure, panel).update_layout(coloraxis=scale))
    return stack(figures, title=title).update_layout(plot_bgcolor=figures[0].layout.plot_bgcolor)


def _spaced(figure: go.Figure, panel: _Panel) -> go.Figure:
    """Draw no gaps between very small cells, which they would hide."""
    tall, wide = (size > _GAPLESS for size in panel.grid.shape)
    figure.update_traces(ygap=0 if tall else 1, xgap=0 if wide else 1)
    return figure.update_layout(height=max(figure.layout.height, 120 + 7 * len(panel.rows) * tall))
