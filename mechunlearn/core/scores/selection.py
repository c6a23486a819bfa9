"""Select sites by their scores: rank them, then spend a budget from the top.

1. Scores of states select nothing, since an edit could not write there; nor does NaN, which has no rank.
2. The best sites are taken until the next does not fit the budget. A lower one that would fit is not taken in
   its place: the selection is always a head of the ranking.
3. By the convention of Guo et al. 2024, parts are first summed into whole components. These are walked down
   by absolute value until the budget is used up, and whatever scores as high as the last is kept: the
   selection goes over the budget by up to one component, and by more where scores tie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Int

from mechunlearn.core.sites.budget import gap
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.core.sites.universe import ModelSites
from mechunlearn.errors import ScoresError, one_of


class Selecting(ABC):
    """What ``Scores`` select sites with."""

    values: xr.DataArray

    @property
    @abstractmethod
    def title(self) -> str:
        """What was measured."""

    @abstractmethod
    def reduce(self) -> Selecting:
        """Reduce to one number per site."""

    @abstractmethod
    def combine(self, how: Literal["sum", "mean", "max"] = "sum") -> Selecting:
        """Combine parts into whole components."""

    def top(
        self,
        k: int | None = None,
        *,
        params: float | int | None = None,
        by: Literal["abs", "signed"] = "abs",
        per_parameter: bool = False,
        overshoot: bool = False,
        fill: ModelSites | None = None,
        seed: int = 0,
        convention: Literal["guo2024"] | None = None,
    ) -> Localization:
        """Select the best sites, by number or by a budget of parameters.

        Sites are taken in order until the next does not fit; ties keep the order of the array.

        Args:
            k: number of sites.
            params: budget; a float in (0, 1] is a share of ``total_params``, an int a number of parameters.
            by: rank by absolute or by signed value.
            per_parameter: rank by score per parameter, so that a large site has to earn its size.
            overshoot: take the site that crosses the budget as well.
            fill: the sites of the model, ``hm.sites``; the site that does not fit is broken into heads or
                neurons that do, so that localizations of equal budget are of equal size.
            seed: of the choice of those heads or neurons.
            convention: ``"guo2024"`` selects as Guo et al. 2024 do, for comparison with their figures: parts
                are summed into whole components, which are taken by absolute value until the budget is used
                up. It goes over by up to one component, and keeps all that tie with the last.

        Raises:
            ScoresError: if not exactly one of ``k`` and ``params`` is given, if it selects nothing or more
                than there is, if the scores are of states, NaN, or of several metrics, or if an option
                contradicts the convention.

        Source: Guo et al. 2024, Mechanistic Unlearning (the convention).
        """
        if (k is None) == (params is None):
            raise ScoresError(f"top takes either k or params, one of them; not k={k} and params={params}")
        if convention is not None:
            options = {"k": k, "by": by != "abs" and by, "per_parameter": per_parameter}
            return self._by_convention(convention, params, options | {"overshoot": overshoot, "fill": fill})
        ranked = rank(self.reduce().values, by=by, per_parameter=per_parameter)
        title = f"{self.title}{' per parameter' * per_parameter}"
        if params is not None:
            chosen, size = within(params, ranked, self.values, overshoot=overshoot, fill=fill, seed=seed)
            return Localization(chosen, source=f"{title}, {size}")
        if fill is not None or overshoot:
            raise ScoresError(f"fill and overshoot belong to a budget; write top(params=), not top({k})")
        if k is None or not 1 <= k <= len(ranked):
            raise ScoresError(f"top selects 1 to {len(ranked)} sites, as many as were scored; not {k}")
        return Localization(ranked[:k], source=f"{title}, top {k}")

    def _by_convention(
        self, convention: str, params: float | int | None, options: Mapping[str, object]
    ) -> Localization:
        if convention != "guo2024":
            raise ScoresError(one_of("convention", convention, ("guo2024",)))
        for name, given in options.items():
            if params is None or given:
                raise ScoresError(
                    f"convention='guo2024' fixes how sites are ranked and spends a budget; leave out {name}, "
                    "and write top(params=, convention='guo2024')"
                )
        if "pos" in self.values.dims:
            raise ScoresError(
                "convention='guo2024' ranks scores without positions; select one with .sel(pos=), or score "
                "all positions together"
            )
        whole = self.combine("sum").reduce().values
        chosen, size = guo2024(params or 0, whole)
        return Localization(chosen, source=f"{whole.attrs['title']}, {size}")

    def above(self, threshold: float | int, *, by: Literal["abs", "signed"] = "signed") -> Localization:
        """Select every site whose value exceeds a threshold; possibly none.

        Raises:
            ScoresError: if the scores are of states, NaN, or of several metrics.
        """
        chosen = rank(self.reduce().values, by=by, above=threshold)
        return Localization(chosen, source=f"{self.title}, above {threshold:g}")


def rank(
    values: xr.DataArray, *, by: str, above: float | int = -np.inf, per_parameter: bool = False
) -> list[Site]:
    """List the sites whose value exceeds a threshold, the best first; ties keep their order.

    Args:
        values: labelled scores with the one dimension ``site``.
        by: ``"abs"`` or ``"signed"``.
        above: the threshold.
        per_parameter: divide every value by the site's parameters first.

    Raises:
        ScoresError: if a site is a state, a score is NaN, or parameters are wanted and not known.
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
    ranks = np.abs(values.values) if by == "abs" else values.values
    if per_parameter:
        ranks = ranks / _sizes(values)
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
    asked = _asked(params)
    if fill is not None:
        filled = fill.fill(ranked, params=budget, seed=seed)
        return list(filled), f"{asked} ({filled.source})"
    sizes = _sizes(values.sel(site=[str(site) for site in ranked]))
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


def guo2024(params: float | int, values: xr.DataArray) -> tuple[list[Site], str]:
    """Select whole components as Guo et al. 2024 do, and say how far that went over the budget.

    Args:
        params: the budget; see ``Scores.top``.
        values: labelled scores of whole components, with the one dimension ``site``.

    Raises:
        ScoresError: if the budget is no budget, a site is a state, or a score is NaN.
    """
    ranked, budget = rank(values, by="abs"), _budget(params, values)
    ordered = values.sel(site=[str(site) for site in ranked])
    heights, spent = np.abs(ordered.values), np.cumsum(_sizes(ordered))
    last = min(int(np.searchsorted(spent, budget)), len(ranked) - 1)
    count = int((heights >= heights[last]).sum())
    return ranked[:count], f"{_asked(params)} as in Guo et al. 2024 ({gap(int(spent[count - 1]), budget)})"


def _asked(params: float | int) -> str:
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
