"""Select sites by their scores: rank them, then spend a budget from the top.

1. Scores of states select nothing, since an edit could not write there; nor does NaN, which has no rank.
2. The best sites are taken until the next does not fit the budget. A lower one that would fit is not taken in
   its place: the selection is always a head of the ranking.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechunlearn.errors import ScoresError, one_of
from mechunlearn.sites import ModelSites, Site
from mechunlearn.sites.budget import gap


def rank(values: xr.DataArray, *, by: str, above: float | int = -np.inf) -> list[Site]:
    """List the sites whose value exceeds a threshold, the best first; ties keep their order.

    Args:
        values: labelled scores with the one dimension ``site``.
        by: ``"abs"`` or ``"signed"``.
        above: the threshold.

    Raises:
        ScoresError: if a site is a state, or a score is NaN.
    """
    if by not in ("abs", "signed"):
        raise ScoresError(one_of("by", by, ("abs", "signed")))
    sites = [Site.parse(str(site)) for site in values["site"].values]
    if states := [site for site in sites if not site.has_weights]:
        raise ScoresError(
            f"scores of states draw and compare but select nothing: {states[0]} has no weights; score what "
            "writes to it instead, such as causal_trace(..., restore='mlp')"
        )
    if np.isnan(values.values).any():
        raise ScoresError(
            f"the score of {sites[int(np.isnan(values.values).argmax())]} is NaN and has no rank"
        )
    ranks = np.abs(values.values) if by == "abs" else values.values
    return [sites[place] for place in np.argsort(-ranks, kind="stable") if ranks[place] > above]


def within(
    params: float | int,
    ranked: list[Site],
    values: xr.DataArray,
    *,
    overshoot: bool,
    fill: ModelSites | None,
    seed: int,
) -> tuple[list[Site], str]:
    """Take ranked sites within a budget of parameters, and say how the budget was met.

    The arguments are those of ``Scores.top``.

    Raises:
        ScoresError: if the budget is no budget, or below the best site.
    """
    if fill is not None and overshoot:
        raise ScoresError("fill never goes above the budget; leave out either fill or overshoot=True")
    budget = _budget(params, values)
    asked = (
        f"top {100 * params:g} % of parameters" if isinstance(params, float) else f"top {params:,} parameters"
    )
    if fill is not None:
        filled = fill.fill(ranked, params=budget, seed=seed)
        return list(filled), f"{asked} ({filled.source})"
    sizes = values["params"].sel(site=[str(site) for site in ranked]).values
    spent = np.cumsum(sizes)
    count = int(np.searchsorted(spent, budget, side="right"))
    if overshoot and (count == 0 or spent[count - 1] < budget):
        count = min(count + 1, len(ranked))
    if count == 0:
        raise ScoresError(
            f"the best site, {ranked[0]}, has {sizes[0]:,} parameters, more than the budget of {budget:,}; "
            "raise params, or pass fill=hm.sites or overshoot=True"
        )
    return ranked[:count], f"{asked} ({gap(int(spent[count - 1]), budget)})"


def _budget(params: float | int, values: xr.DataArray) -> int:
    if not values["params"].values.all():
        raise ScoresError("these scores know no parameter counts; give params to Scores.of, or select by k")
    if isinstance(params, int | np.integer) and not isinstance(params, bool) and params > 0:
        return int(params)
    if isinstance(params, float) and 0 < params <= 1:
        return int(params * int(values.attrs["total_params"]))
    raise ScoresError(f"params is a share in (0.0, 1.0] or a whole number of parameters; not {params!r}")
