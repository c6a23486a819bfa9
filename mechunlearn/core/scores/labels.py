"""Label an array of scores: one stacked dimension of sites, whose coordinates describe each site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, one_of

SUPPORT = "support, in "
"""Begins the unit of scores that say how far a site supports the answer."""

DIMS = ("fact", "sample", "site", "pos", "metric")


def label(
    values: Float[np.ndarray, "..."] | Float[torch.Tensor, "..."],
    sites: Sequence[Site],
    dims: tuple[str, ...],
    *,
    params: Mapping[Site, int] | ModelSites | None = None,
    total_params: int | None = None,
    tokens: Sequence[str] | None = None,
    metrics: Sequence[str] | Mapping[str, str] | None = None,
    facts: Sequence[int] | None = None,
    fact_tokens: Sequence[Sequence[str]] | None = None,
    change_signs: int | Sequence[int] = 1,
) -> xr.DataArray:
    """Copy an array into a read-only labelled one; arguments and errors are those of ``Scores.of``."""
    array = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else values
    array = np.array(array, dtype=np.float64)
    array.flags.writeable = False
    names = None if metrics is None else list(metrics)
    _check(array.shape, dims, {"site": sites, "pos": tokens, "metric": names, "fact": facts})
    sizes = dict(zip(dims, array.shape, strict=True))
    counts = _counts({*sites, *map(component, sites)}, params)
    coords = {dim: range(size) for dim, size in sizes.items()} | site_coords(sites, counts)
    if facts is not None:
        coords["fact"] = list(facts)
    if "pos" in sizes:
        # Tokens repeat, so they stand beside the positions and never index them.
        coords["token"] = ("pos", list(tokens or map(str, range(sizes["pos"]))))
    if fact_tokens is not None and "pos" in sizes:
        coords["fact_token"] = (("fact", "pos"), np.array([list(row) for row in fact_tokens], dtype=object))
    if names:
        coords["metric"] = names
    if isinstance(metrics, Mapping):
        coords["unit"] = ("metric", list(metrics.values()))
    signs = [change_signs] if isinstance(change_signs, int) else list(change_signs)
    if names and len(signs) > 1:
        coords["change_sign"] = ("metric", signs)
    if total_params is None:
        total_params = _total(sites, counts, params)
    components = {str(site): counts[site] for site in dict.fromkeys(map(component, sites)) if site in counts}
    attrs = {"total_params": total_params, "components": components, "change_sign": signs[0]}
    return xr.DataArray(array, coords, dims, attrs=attrs)


def raw_change(values: xr.DataArray) -> xr.DataArray:
    """Scores with the sign of the metric's raw change; they keep their labels."""
    sign = values.coords.get("change_sign", values.attrs["change_sign"])
    changed = (values * sign).transpose(*values.dims).assign_attrs(values.attrs)
    unit = str(values.attrs["unit"]).removeprefix(SUPPORT)
    changed = changed.assign_attrs(change_sign=1, unit=unit, title=f"{values.attrs['title']}, raw change")
    if "unit" in changed.coords:
        changed = changed.assign_coords(
            unit=("metric", [u.removeprefix(SUPPORT) for u in changed["unit"].values])
        )
    result: xr.DataArray = changed.drop_vars("change_sign", errors="ignore")
    return result


def component(site: Site) -> Site:
    """The whole component that holds a site's weights: ``L5.attn`` of ``L5.head[2].q``."""
    return (site, *site.wider)[-1]


def site_coords(sites: Sequence[Site], counts: Mapping[Site, int]) -> dict[str, Any]:
    """Layer, kind, head and parameter count of each site, as coordinates along the dimension ``site``."""

    def head(site: Site) -> int:
        return site.index if site.kind in ("head", "pattern") and site.index is not None else -1

    return {
        "site": [str(site) for site in sites],
        "layer": ("site", [-1 if site.layer is None else site.layer for site in sites]),
        "kind": ("site", [site.kind for site in sites]),
        "head": ("site", [head(site) for site in sites]),
        "params": ("site", [counts.get(site, 0) for site in sites]),
    }


def select_label(values: xr.DataArray, dim: str, choice: int | str) -> xr.DataArray:
    """Select one entry of a dimension, a position also by its token; errors are those of ``Scores.sel``."""
    labels = values["token" if isinstance(choice, str) and dim == "pos" else dim].values.tolist()
    indices = [index for index, name in enumerate(labels) if name == choice]
    if not indices:
        raise ScoresError(one_of(dim, choice, labels))
    if len(indices) > 1:
        raise ScoresError(f"{choice!r} stands at positions {indices}; select one by its number")
    if dim == "metric" and "unit" in values.coords:
        values = values.assign_attrs(unit=str(values["unit"].values[indices[0]]))
    if dim == "metric" and "change_sign" in values.coords:
        values = values.assign_attrs(change_sign=int(values["change_sign"].values[indices[0]]))
    values = values.isel({dim: indices[0]}, drop=True)
    return _with_own_tokens(values) if dim == "fact" and "fact_token" in values.coords else values


def _with_own_tokens(values: xr.DataArray) -> xr.DataArray:
    """One fact's scores at its own tokens, which label them."""
    tokens = values["fact_token"].values
    at_tokens = values.isel(pos=[index for index, token in enumerate(tokens) if token])
    return at_tokens.assign_coords(token=("pos", at_tokens["fact_token"].values.tolist())).drop_vars(
        "fact_token"
    )


def _total(
    sites: Sequence[Site], counts: Mapping[Site, int], params: Mapping[Site, int] | ModelSites | None
) -> int:
    """Parameters of all sites of the model but an embedding that is not scored; else of those scored."""
    if isinstance(params, ModelSites):
        return params.size(site for site in params if site.kind != "embed" or site in sites)
    return sum(counts.get(site, 0) for site in sites)


def _counts(sites: set[Site], params: Mapping[Site, int] | ModelSites | None) -> dict[Site, int]:
    weights = [site for site in sites if site.has_weights]
    if params is None:
        return {}
    if isinstance(params, ModelSites):
        params.check(weights)
        # Heads and neurons of a layer are alike, and there are thousands: count one of each.
        alike = {(site.kind, site.layer, site.part): site for site in weights}
        sizes = {key: params.size([site]) for key, site in alike.items()}
        return {site: sizes[site.kind, site.layer, site.part] for site in weights}
    return {site: int(params[site]) for site in weights if site in params}


def _check(shape: tuple[int, ...], dims: tuple[str, ...], labels: Mapping[str, Sequence[Any] | None]) -> None:
    for dim in dims:
        if dim not in DIMS:
            raise ScoresError(one_of("a dimension of scores", dim, DIMS))
    if len(shape) != len(dims) or len(set(dims)) != len(dims) or "site" not in dims:
        raise ScoresError(
            f"dims name each dimension once, and 'site' is one; {dims} does not fit shape {shape}"
        )
    for dim, names in labels.items():
        size = shape[dims.index(dim)] if dim in dims else 0
        if names is not None and len(names) != size:
            raise ScoresError(f"{len(names)} labels for {dim!r}, whose size is {size}; give one for each")
    if "metric" in dims and labels["metric"] is None:
        raise ScoresError("a dimension 'metric' needs the names of its metrics; pass metrics=")
    (site, times), *_ = Counter(labels["site"] or ["no site"]).most_common(1)
    if times > 1:
        raise ScoresError(f"{site} is scored {times} times; give every site once")
