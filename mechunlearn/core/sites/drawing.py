"""Draw localizations: layers upwards, components to the right, each cell the share of a component in the set.

1. The columns are heads if the localization holds any, else whole attention layers; then whole MLPs, whose
   cells also count neurons and halves of MLPs.
2. A cell is 1 for a component in the set and 0 for one outside. In between, the sites of a model give the
   share of its parameters; without them the share is unknown and drawn as one half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.core.viz.grids import matrix_panels, matrix_plot

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from mechunlearn.core.sites.model_sites import ModelSites

_SHARE = "share of the component"
_SPLIT = ("head", "kv")


def heatmap(localization: Localization, sites: ModelSites | None = None) -> go.Figure:
    """Draw one localization; without the model's sites the picture ends at the localization's last layer."""
    columns = _columns(localization, sites)
    values, texts = _cells(localization, columns, sites)
    return matrix_plot(
        values,
        rows=[f"L{layer}" for layer in range(len(columns))],
        cols=[site.column for site in columns[0] if site],
        title=localization.source or "localization",
        unit=_SHARE if sites else "1 whole, 0.5 part",
        hover=texts,
    )


def compare(localizations: Mapping[str, Localization], sites: ModelSites) -> go.Figure:
    """Draw localizations of one model, by the name above each panel, with the same columns and colours."""
    columns = _columns([site for localization in localizations.values() for site in localization], sites)
    cells = {name: _cells(localization, columns, sites) for name, localization in localizations.items()}
    return matrix_panels(
        {name: values for name, (values, _) in cells.items()},
        rows=[f"L{layer}" for layer in range(len(columns))],
        cols=[site.column for site in columns[0] if site],
        unit=_SHARE,
        hover={name: texts for name, (_, texts) in cells.items()},
    )


def _columns(drawn: Iterable[Site], sites: ModelSites | None) -> list[list[Site | None]]:
    """The components drawn in every layer; ``embed`` is a column in the first layer's row."""
    drawn = list(drawn)
    # Without a model, its shape is at least as large as the largest numbers that are drawn.
    counts = {
        kind: max((site.index or 0 for site in drawn if site.kind == kind), default=-1) + 1 for kind in _SPLIT
    }
    layers = max((site.layer for site in drawn if site.layer is not None), default=0) + 1
    split = any(counts.values())
    if sites:
        sites.check(drawn)
        layers, groups = sites.shape.n_layers, sites.shape.n_kv_heads * sites.shape.grouped
        counts = {"head": sites.shape.n_heads, "kv": groups}
    attention = (
        [(kind, index) for kind in _SPLIT for index in range(counts[kind])] if split else [("attn", None)]
    )
    columns: list[list[Site | None]] = [
        [Site(kind, layer, index) for kind, index in [*attention, ("mlp", None)]] for layer in range(layers)
    ]
    if Site("embed") in drawn:
        columns = [[*row, Site("embed") if row is columns[0] else None] for row in columns]
    return columns


def _cells(
    localization: Localization, columns: list[list[Site | None]], sites: ModelSites | None
) -> tuple[Float[np.ndarray, "layer column"], list[list[str]]]:
    inside: dict[Site, list[Site]] = defaultdict(list)
    for site in localization:
        for component in (site, *site.wider):
            inside[component].append(site)

    def share(component: Site | None) -> float:
        if component is None:
            return float("nan")
        if any(site in localization for site in (component, *component.wider)):
            return 1.0
        if sites is None or component not in inside:
            return 0.5 * (component in inside)
        return sites.size(inside[component]) / sites.size([component])

    def text(component: Site | None) -> str:
        return f"{component}: {len(inside[component])} sites in it" if component in inside else f"{component}"

    values = np.array([[share(component) for component in row] for row in columns])
    return values, [[text(component) for component in row] for row in columns]
