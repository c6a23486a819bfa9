"""Combine the scores of heads, neurons and other parts into scores of whole components.

1. Every site belongs to one whole component: heads, their parts and their key-value groups to the attention
   of their layer, halves and neurons to its MLP. Whole components stay as they are.
2. The numbers of a component's parts are summed, averaged, or replaced by the one farthest from 0, for every
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
from mechunlearn.core.sites.site import Site
from mechunlearn.core.sites.universe import ModelSites
from mechunlearn.errors import ScoresError, one_of

_Combiner = Callable[[Float[np.ndarray, "part *rest"]], Float[np.ndarray, "*rest"]]


def combine(values: xr.DataArray, how: str, *, sites: ModelSites | None = None) -> xr.DataArray:
    """Combine labelled scores into those of whole components; the arguments are those of ``Scores.combine``.

    Raises:
        ScoresError: for an unknown `how`, a state, or a component scored both whole and in parts.
    """
    if how not in _COMBINERS:
        raise ScoresError(one_of("how", how, _COMBINERS))
    parts = _parts([Site.parse(str(site)) for site in values["site"].values])
    if all(len(places) == 1 and whole == site for whole, (site, places) in parts.items()):
        return values
    wholes, axis = list(parts), values.dims.index("site")
    rows = np.moveaxis(values.values, axis, 0)
    combined = np.stack([_COMBINERS[how](rows[places]) for _, places in parts.values()])
    sizes: Mapping[str, int] = values.attrs.get("components", {})
    attrs = dict(values.attrs)
    if sites is not None:
        sizes = {str(whole): sites.size([whole]) for whole in wholes}
        attrs |= {"components": sizes, "total_params": sites.size(sites.attns() | sites.mlps())}
    first = values.isel(site=[places[0] for _, places in parts.values()])
    coords = site_coords(wholes, {whole: sizes.get(str(whole), 0) for whole in wholes})
    return (
        first.copy(data=np.moveaxis(combined, 0, axis))
        .assign_coords(coords)
        .assign_attrs(attrs | {"title": f"{attrs['title']}, parts combined by {how}"})
    )


def _parts(sites: list[Site]) -> dict[Site, tuple[Site, list[int]]]:
    """The first scored site of every component and the places of all of them, in order of appearance."""
    places: dict[Site, list[int]] = defaultdict(list)
    for place, site in enumerate(sites):
        if not site.has_weights:
            raise ScoresError(
                f"{site} is a state and part of no component; keep what writes to the residual stream, such "
                "as .only('head', 'mlp')"
            )
        places[component(site)].append(place)
    for whole, found in places.items():
        if len(found) > 1 and whole in (sites[place] for place in found):
            part = next(sites[place] for place in found if sites[place] != whole)
            raise ScoresError(
                f"{whole} is scored whole and in parts, as {part}, and would count twice; score one grain"
            )
    return {whole: (sites[found[0]], found) for whole, found in places.items()}


def _sum(parts: Float[np.ndarray, "part *rest"]) -> Float[np.ndarray, "*rest"]:
    return np.asarray(parts.sum(axis=0))


def _mean(parts: Float[np.ndarray, "part *rest"]) -> Float[np.ndarray, "*rest"]:
    return np.asarray(parts.mean(axis=0))


def _farthest(parts: Float[np.ndarray, "part *rest"]) -> Float[np.ndarray, "*rest"]:
    # numpy takes NaN for the largest number, so one NaN among the parts is found and returned.
    return np.asarray(np.take_along_axis(parts, np.abs(parts).argmax(axis=0)[None], axis=0)[0])


_COMBINERS: dict[str, _Combiner] = {"sum": _sum, "mean": _mean, "max": _farthest}
