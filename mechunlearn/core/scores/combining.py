"""Combine the scores of heads, neurons and other parts into scores of whole components.

1. Every site belongs to one whole component: heads, their parts and their key-value groups to the attention
   of their layer; halves and neurons to its MLP.
2. The scores of a component's parts are summed, averaged, or replaced by the one farthest from 0, for every
   fact, sample, position and metric by itself. Where one of them is NaN, so is the result.
3. A component has more parameters than its scored parts together (output biases, parts that were not
   scored), so its own size is taken, never their sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechunlearn.core.scores.labels import component, site_coords
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, one_of

_Combiner = Callable[[Float[np.ndarray, "part *rest"]], Float[np.ndarray, "*rest"]]


def combine(values: xr.DataArray, how: str, *, sites: ModelSites | None = None) -> xr.DataArray:
    """Combine scores into those of whole components; arguments and errors are those of ``Scores.combine``."""
    if how not in _COMBINERS:
        raise ScoresError(one_of("how", how, _COMBINERS))
    scored = [Site.parse(str(site)) for site in values["site"].values]
    rows_of = _rows(scored)
    if len(rows_of) == len(scored) and all(site in rows_of for site in scored):
        return values
    components, axis = list(rows_of), values.dims.index("site")
    parts = np.moveaxis(values.values, axis, 0)
    combined = np.stack([_COMBINERS[how](parts[rows]) for rows in rows_of.values()])
    sizes: Mapping[str, int] = values.attrs.get("components", {})
    attrs = dict(values.attrs)
    if sites is not None:
        sizes = {str(site): sites.size([site]) for site in components}
        attrs |= {"components": sizes, "total_params": sites.size(sites.attns() | sites.mlps())}
    first_parts = values.isel(site=[rows[0] for rows in rows_of.values()])
    coords = site_coords(components, {site: sizes.get(str(site), 0) for site in components})
    return (
        first_parts.copy(data=np.moveaxis(combined, 0, axis))
        .assign_coords(coords)
        .assign_attrs(attrs | {"title": f"{attrs['title']}, parts combined by {how}"})
    )


def farthest_position(values: xr.DataArray) -> xr.DataArray:
    """Replace the positions, if there are any, by the score farthest from 0, with its sign."""
    if "pos" not in values.dims:
        return values
    # Below every magnitude, so that NaN is chosen only where all positions are NaN.
    farthest = abs(values).fillna(-1).argmax("pos")
    return values.isel(pos=farthest).drop_vars(("pos", "token", "fact_token"), errors="ignore")


def _rows(sites: list[Site]) -> dict[Site, list[int]]:
    """The rows of every component's scored sites, in order of appearance."""
    rows_of: dict[Site, list[int]] = defaultdict(list)
    for row, site in enumerate(sites):
        if not site.has_weights:
            raise ScoresError(
                f"{site} is a state and part of no component; keep what writes to the residual stream, such "
                "as .only('head', 'mlp')"
            )
        rows_of[component(site)].append(row)
    for whole_site, rows in rows_of.items():
        parts = [sites[row] for row in rows if sites[row] != whole_site]
        if parts and len(parts) < len(rows):
            raise ScoresError(
                f"{whole_site} is scored whole and in parts, as {parts[0]}, and would count twice; "
                "score one grain"
            )
    return dict(rows_of)


def _sum(parts: Float[np.ndarray, "part *rest"]) -> Float[np.ndarray, "*rest"]:
    return np.asarray(parts.sum(axis=0))


def _mean(parts: Float[np.ndarray, "part *rest"]) -> Float[np.ndarray, "*rest"]:
    return np.asarray(parts.mean(axis=0))


def _farthest(parts: Float[np.ndarray, "part *rest"]) -> Float[np.ndarray, "*rest"]:
    # numpy's argmax treats NaN as the largest number, so one NaN among the parts is chosen and returned.
    return np.asarray(np.take_along_axis(parts, np.abs(parts).argmax(axis=0)[None], axis=0)[0])


_COMBINERS: dict[str, _Combiner] = {"sum": _sum, "mean": _mean, "max": _farthest}
