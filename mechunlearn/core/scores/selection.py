"""Select sites by their scores: rank them, then spend a budget from the top.

1. Scores of states select nothing, since an edit could not write there; nor does NaN, which has no rank.
2. The best sites are taken until the next does not fit the budget. A lower one that would fit is not taken
   instead, so the selection is always the beginning of the ranking. A selection that takes sites of score 0,
   or leaves out one that scores the same as the last it takes, would be an accident of order, and is refused.
3. By the convention of Guo et al. 2024, parts are first summed into whole components. These are taken by
   absolute value until the budget is used up, and every component that scores as high as the last is taken
   too: the selection goes over the budget by up to one component, and by more where scores tie.

All functions take reduced scores: an array whose only dimension is ``site``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechunlearn.core.sites.budget import gap
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, one_of


def top_k(values: xr.DataArray, k: int, *, by: str, per_parameter: bool) -> Localization:
    """Select the `k` best sites; arguments and errors are those of ``Scores.top``."""
    ranked = rank(values, by=by, per_parameter=per_parameter)
    if not 1 <= k <= len(ranked):
        raise ScoresError(f"top selects 1 to {len(ranked)} sites, as many as were scored; not {k}")
    _require_clear_cut(values, ranked, k, by=by, per_parameter=per_parameter)
    return Localization(ranked[:k], source=f"{_title(values, per_parameter)}, top {k}")


def top_params(
    values: xr.DataArray,
    params: float | int,
    *,
    by: str,
    per_parameter: bool,
    overshoot: bool,
    fill: ModelSites | None,
    seed: int,
) -> Localization:
    """Select the best sites within a budget; arguments and errors are those of ``Scores.top``."""
    ranked = rank(values, by=by, per_parameter=per_parameter)
    if fill is not None and overshoot:
        raise ScoresError("fill never goes above the budget; leave out either fill or overshoot=True")
    budget, title = _budget(params, values), f"{_title(values, per_parameter)}, {_share(params)}"
    if fill is not None:
        filled = fill.fill(ranked, params=budget, seed=seed)
        reached = {site for part in filled for site in (part, *part.wider)}
        touched = sum(site in reached for site in ranked)
        _require_clear_cut(values, ranked, touched, by=by, per_parameter=per_parameter)
        return Localization(filled, source=f"{title} ({filled.source})")
    sizes = _sizes(values.sel(site=[str(site) for site in ranked]))
    spent = np.cumsum(sizes)
    # From the right, so that a site that meets the budget exactly still fits.
    count = int(np.searchsorted(spent, budget, side="right"))
    if overshoot and (count == 0 or spent[count - 1] < budget):
        count = min(count + 1, len(ranked))
    if count == 0:
        raise ScoresError(
            f"the best site, {ranked[0]}, has {sizes[0]:,} parameters, more than the budget of {budget:,}; "
            "raise params, or pass fill=hm.sites or overshoot=True"
        )
    _require_clear_cut(values, ranked, count, by=by, per_parameter=per_parameter)
    return Localization(ranked[:count], source=f"{title} ({gap(int(spent[count - 1]), budget)})")


def top_guo2024(values: xr.DataArray, params: float | int) -> Localization:
    """Select whole components as Guo et al. 2024 do; the source says how far they go over the budget."""
    ranked, budget = rank(values, by="abs"), _budget(params, values)
    ordered = values.sel(site=[str(site) for site in ranked])
    magnitudes, spent = np.abs(ordered.values), np.cumsum(_sizes(ordered))
    # From the left: the first component that meets the budget, or the last if the budget exceeds them all.
    last = min(int(np.searchsorted(spent, budget)), len(ranked) - 1)
    count = int((magnitudes >= magnitudes[last]).sum())
    size = gap(int(spent[count - 1]), budget)
    source = f"{values.attrs['title']}, {_share(params)} as in Guo et al. 2024 ({size})"
    return Localization(ranked[:count], source=source)


def require_convention(convention: str, values: xr.DataArray, options: Mapping[str, bool]) -> None:
    """Raise ScoresError if a selection by convention is impossible for these scores, not yet reduced.

    ``options`` tells of each option that the convention decides itself whether it was passed.
    """
    if convention != "guo2024":
        raise ScoresError(one_of("convention", convention, ("guo2024",)))
    for name in (name for name, passed in options.items() if passed):
        raise ScoresError(
            f"convention='guo2024' fixes how sites are ranked and spends a budget; leave out {name}, "
            "and write top(params=, convention='guo2024')"
        )
    if "pos" in values.dims:
        raise ScoresError(
            "convention='guo2024' ranks scores without positions; select one with .sel(pos=), or score "
            "all positions together"
        )


def rank(
    values: xr.DataArray, *, by: str, above: float | int = -np.inf, per_parameter: bool = False
) -> list[Site]:
    """List the sites whose value exceeds a threshold, the best first; ties keep their order.

    ScoresError if a site is a state, a score is NaN, or parameters are needed and unknown.
    """
    if by not in ("abs", "signed"):
        raise ScoresError(one_of("by", by, ("abs", "signed")))
    sites = [Site.parse(str(site)) for site in values["site"].values]
    if states := [site for site in sites if not site.has_weights]:
        raise ScoresError(
            f"scores of states draw and compare but select nothing: {states[0]} has no weights; score what "
            "writes to it instead, such as causal_trace(..., sites='mlp')"
        )
    if np.isnan(values.values).any():
        raise ScoresError(
            f"the score of {sites[int(np.isnan(values.values).argmax())]} is NaN and has no rank"
        )
    ranks = _ranks(values, by=by, per_parameter=per_parameter)
    return [sites[row] for row in np.argsort(-ranks, kind="stable") if ranks[row] > above]


def _ranks(values: xr.DataArray, *, by: str, per_parameter: bool) -> Float[np.ndarray, " site"]:
    """The numbers that sites are ranked by, in the order of the array."""
    ranks = np.abs(values.values) if by == "abs" else values.values
    return np.asarray(ranks / _sizes(values) if per_parameter else ranks)


def _require_clear_cut(
    values: xr.DataArray, ranked: list[Site], count: int, *, by: str, per_parameter: bool
) -> None:
    """Raise ScoresError if the first ``count`` sites of a ranking are no better than sites left out, or 0."""
    ranks = _ranks(values, by=by, per_parameter=per_parameter)
    score = dict(zip(map(str, values["site"].values), ranks.tolist(), strict=True))
    ordered = [score[str(site)] for site in ranked]
    hint = values.attrs.get("zero_means", "")
    if 0.0 in ordered[:count]:
        nonzero = ordered.index(0.0)
        raise ScoresError(
            f"{values.attrs['title']}: only {nonzero} of {len(ranked)} sites score above 0, so the first "
            f"{count} would take {ranked[nonzero]}, which scores 0, by the order of the array; "
            f"{hint or 'take fewer sites, or score more facts'}"
        )
    if count < len(ranked) and ordered[count] == ordered[count - 1]:
        tied = [str(site) for site, number in zip(ranked, ordered, strict=True) if number == ordered[count]]
        better = ordered.index(ordered[count])
        raise ScoresError(
            f"{', '.join(tied[:4])}{' ...' * (len(tied) > 4)} score the same ({ordered[count]:.4g}), and the "
            f"first {count} sites would take some of them by the order of the array; take {better} or "
            f"{better + len(tied)}"
        )


def _title(values: xr.DataArray, per_parameter: bool) -> str:
    return f"{values.attrs['title']}{' per parameter' * per_parameter}"


def _share(params: float | int) -> str:
    if isinstance(params, float):
        return f"top {100 * params:g} % of parameters"
    return f"top {params:,} parameters"


def _sizes(values: xr.DataArray) -> Int[np.ndarray, " site"]:
    sizes = values["params"].values
    if not sizes.all():
        raise ScoresError(
            "these scores know no parameter counts; give params to Scores.of, or select by k "
            "(combined scores take them from scores.combine(sites=hm.sites))"
        )
    return np.asarray(sizes)


def _budget(params: float | int, values: xr.DataArray) -> int:
    _sizes(values)
    if isinstance(params, int | np.integer) and not isinstance(params, bool) and params > 0:
        return int(params)
    if isinstance(params, float) and 0 < params <= 1:
        return int(params * int(values.attrs["total_params"]))
    raise ScoresError(f"params is a share in (0.0, 1.0] or a whole number of parameters; not {params!r}")
