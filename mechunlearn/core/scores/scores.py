"""A labelled array of scores over sites, with selections, reductions and pictures.

1. The values are an xarray with one stacked dimension ``site``; layer, kind, head and parameter count are
   its coordinates, so a selection by budget needs no model. Other dimensions are ``fact``, ``sample``,
   ``pos`` and ``metric``. Tokens label positions and never index them, since they repeat.
2. One sign everywhere: above 0 a site supports the answer. ``change`` gives the raw change of the metric.
3. Reductions are explicit: facts and samples by their mean, positions by the value farthest from 0 with its
   sign, and a metric has to be selected. NaN (no such position in a prompt) is left out.
4. A selection ranks the reduced scores and takes sites from the top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from mechunlearn.core.scores.combining import combine, farthest_position
from mechunlearn.core.scores.drawing import curves, heatmap
from mechunlearn.core.scores.intervals import intervals
from mechunlearn.core.scores.labelled import LabelledScores
from mechunlearn.core.scores.labels import label, raw_change, select_label
from mechunlearn.core.scores.selection import rank, require_convention, top_guo2024, top_k, top_params
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, one_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Scores(LabelledScores):
    """One number per site, and per fact, sample, position or metric where there are several.

    Build one with ``Scores.of``; every localizer returns one.

    Args:
        values: an array with a dimension ``site`` and the coordinates that ``Scores.of`` writes.
        evidence: other scores that these were derived from, by name.
        recipe: the facts and options they were measured with, with which `verify` measures again.

    Example:
        >>> sites = [Site.parse(text) for text in ("L0.mlp", "L1.mlp", "L2.mlp")]
        >>> scores = Scores.of(np.array([0.1, -0.9, 0.5]), sites, params=dict.fromkeys(sites, 100))
        >>> scores.top(1)
        Localization(L1.mlp; scores, top 1)
        >>> scores.top(params=0.4, by="signed")
        Localization(L2.mlp; scores, top 40 % of parameters (100 parameters, gap -16.7 %))
    """

    evidence: Mapping[str, Scores] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "..."] | Float[torch.Tensor, "..."],
        sites: Sequence[Site],
        *,
        dims: tuple[str, ...] = ("site",),
        params: Mapping[Site, int] | ModelSites | None = None,
        total_params: int | None = None,
        tokens: Sequence[str] | None = None,
        metrics: Sequence[str] | Mapping[str, str] | None = None,
        facts: Sequence[int] | None = None,
        fact_tokens: Sequence[Sequence[str]] | None = None,
        change_signs: int | Sequence[int] = 1,
        title: str = "scores",
        unit: str = "score",
        evidence: Mapping[str, Scores] | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> Scores:
        """Label an array.

        Args:
            values: the scores; NaN where there is none. Copied.
            sites: the sites along the dimension ``site``.
            dims: name of every dimension of ``values``; among ``fact sample site pos metric``.
            params: number of parameters of every weight site, and of the components they are parts of; or
                ``hm.sites``, which counts them. Default 0, which no budget can select from.
            total_params: parameters of all weight sites at this grain, of which ``top(params=0.1)`` is a
                share; default those of every ``attn`` and ``mlp`` where ``hm.sites`` is given, else those of
                ``sites``.
            tokens: label of every position; may repeat.
            metrics: name of every metric; or names with the unit of each, where units differ.
            facts: number of every fact in the collection that was scored, where some were left out.
            fact_tokens: for every fact its own token at every position; empty where it has none.
            change_signs: -1 where the raw change of the metric has the opposite sign of the score, else 1;
                one for all, or one for every metric. See ``change``.
            title: what was measured; written above figures and into the source of selections.
            unit: what the numbers are.
            evidence: other scores that these were derived from, by name.
            recipe: the facts and options they were measured with.

        Raises:
            ScoresError: if dimensions, labels and array do not fit each other.
        """
        labelled = label(
            values, sites, dims, params=params, total_params=total_params, tokens=tokens, metrics=metrics,
            facts=facts, fact_tokens=fact_tokens, change_signs=change_signs,
        )  # fmt: skip
        labelled = labelled.assign_attrs(title=title, unit=unit)
        return cls(labelled, dict(evidence or {}), dict(recipe or {}))

    @property
    def change(self) -> Scores:
        """The raw change of the metric by the intervention, where scores say how far it supports the answer.

        They are the scores themselves where the intervention restores something, and their negatives where it
        takes something away.
        """
        return self._with(raw_change(self.values))

    def explained(self, zero_means: str) -> Scores:
        """Say why a site scores 0, and the remedy, for the message of a selection of such sites."""
        return self._with(self.values.assign_attrs(zero_means=zero_means))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in the order of the array."""
        return tuple(Site.parse(str(site)) for site in self.values["site"].values)

    def only(self, *kinds: str) -> Scores:
        """Keep the sites of some kinds, such as ``"mlp"``; ``total_params`` stays.

        Raises:
            ScoresError: if there is no site of a kind.
        """
        present = list(dict.fromkeys(self.values["kind"].values.tolist()))
        for kind in kinds:
            if kind not in present:
                raise ScoresError(one_of("a kind of these scores", kind, present))
        return self._with(self.values.isel(site=np.isin(self.values["kind"], kinds)))

    def sel(
        self,
        *,
        fact: int | None = None,
        sample: int | None = None,
        pos: int | str | None = None,
        metric: str | None = None,
    ) -> Scores:
        """Pick one fact, sample, position (by number or by token) or metric, and drop that dimension.

        Raises:
            ScoresError: if a dimension or label is not there, or a token stands at several positions.
        """
        values = self.values
        for dim, choice in {"fact": fact, "sample": sample, "pos": pos, "metric": metric}.items():
            if choice is not None:
                self._require(dim)
                values = select_label(values, dim, choice)
        return self._with(values)

    def reduce(self) -> Scores:
        """Reduce to one number per site: means of facts and samples, then the extreme over positions.

        Raises:
            ScoresError: if there are several metrics, of which one has to be selected first.
        """
        if self.values.sizes.get("metric") == 1:
            return self.sel(metric=str(self.values["metric"].values[0])).reduce()
        if "metric" in self.values.dims:
            metrics = self.values["metric"].values.tolist()
            raise ScoresError(f"several metrics give no one number per site; .sel(metric=) one of {metrics}")
        return self._with(farthest_position(self._averaged()))

    def combine(
        self, how: Literal["sum", "mean", "max"] = "sum", *, sites: ModelSites | None = None
    ) -> Scores:
        """Combine heads into whole attentions, and neurons or halves into whole MLPs.

        Every fact, sample, position and metric is combined by itself; for the extreme of the means, write
        ``scores.reduce().combine("max")``.

        Args:
            how: ``"sum"``, ``"mean"``, or ``"max"``: the part farthest from 0, with its sign.
            sites: ``hm.sites``, which counts all parameters of a component (its parts hold no output bias).
                Not needed where the scores were made with ``params=hm.sites``.

        Raises:
            ScoresError: for an unknown `how`, a state, or a component scored both whole and in parts.

        Example:
            >>> heads = [Site("head", layer, head) for layer in range(2) for head in range(2)]
            >>> scores = Scores.of(np.array([0.5, -0.1, 0.3, 0.3]), heads)
            >>> scores.combine("sum").top(1), scores.combine("max").top(1)
            (Localization(L1.attn; ...), Localization(L0.attn; ...))
        """
        return self._with(combine(self.values, how, sites=sites))

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

        Sites are taken in order until the next does not fit. A selection that would take a site of score 0,
        or cut through sites of equal score, is an error.

        Args:
            k: number of sites.
            params: budget; a float in (0, 1] is a share of ``total_params``, an int a number of parameters.
            by: rank by absolute or by signed value.
            per_parameter: rank by score per parameter.
            overshoot: take the site that crosses the budget as well.
            fill: ``hm.sites``; the site that does not fit is broken into heads or neurons that do, so that
                localizations of equal budget are of equal size.
            seed: seed of the random choice of those heads or neurons.
            convention: ``"guo2024"`` selects as Guo et al. 2024 do: parts are summed into whole components,
                which are taken by absolute value until the budget is used up. It goes over the budget by up
                to one component, and takes all that tie with the last.

        Raises:
            ScoresError: if not exactly one of ``k`` and ``params`` is given, if it selects nothing or more
                than there is, if it would take sites of score 0 or some of several equal ones, if the
                scores are of states, NaN, or of several metrics, or if an option contradicts the convention.

        Source: Guo et al. 2024, Mechanistic Unlearning (the convention).
        """
        if (k is None) == (params is None):
            raise ScoresError(f"top takes either k or params, one of them; not k={k} and params={params}")
        if convention is not None:
            options = {"k": k is not None, "by": by != "abs", "per_parameter": per_parameter}
            options |= {"overshoot": overshoot, "fill": fill is not None}
            require_convention(convention, self.values, options)
            return top_guo2024(self.combine("sum").reduce().values, params or 0)
        values = self.reduce().values
        if params is not None:
            return top_params(
                values, params, by=by, per_parameter=per_parameter, overshoot=overshoot, fill=fill, seed=seed
            )
        if fill is not None or overshoot:
            raise ScoresError(f"fill and overshoot belong to a budget; write top(params=), not top({k})")
        return top_k(values, k or 0, by=by, per_parameter=per_parameter)

    def above(self, threshold: float | int, *, by: Literal["abs", "signed"] = "signed") -> Localization:
        """Select every site whose value exceeds a threshold; possibly none.

        Raises:
            ScoresError: if the scores are of states, NaN, or of several metrics.
        """
        sites = rank(self.reduce().values, by=by, above=threshold)
        return Localization(sites, source=f"{self.title}, above {threshold:g}")

    def to_frame(self) -> pd.DataFrame:
        """One row per number, with its site, layer, kind, parameters and the other labels."""
        return self.values.to_dataframe(name="score").reset_index()

    def intervals(self, *, level: float = 0.95, seed: int = 0, samples: int = 2000) -> pd.DataFrame:
        """Tabulate the mean over facts with its bootstrap interval, one row per site.

        Samples are averaged first; facts that are NaN for a site are left out there.

        Args:
            level: share of resampled means inside the interval, between 0 and 1.
            seed: seed of the resampling, which is the same for all sites.
            samples: number of resampled means.

        Returns:
            The labels of ``to_frame`` with ``mean``, ``low``, ``high`` and the number of ``facts`` behind
            them. One fact has a mean and no interval.

        Raises:
            ScoresError: if there are no facts, or `level` or `samples` is out of range.

        Example:
            >>> mlps = [Site("mlp", 0), Site("mlp", 1)]
            >>> scores = Scores.of(np.array([[1.0, 0.0], [3.0, 0.5]]), mlps, dims=("fact", "site"))
            >>> scores.intervals()[["site", "mean", "low", "high"]].round(2).values.tolist()
            [['L0.mlp', 2.0, 1.0, 3.0], ['L1.mlp', 0.25, 0.0, 0.5]]

        Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
        """
        self._require("fact")
        values = self.values.mean("sample") if "sample" in self.values.dims else self.values
        return intervals(values, level=level, seed=seed, samples=samples)

    def heatmap(self) -> go.Figure:
        """Draw the mean over facts and samples: layer by component, or layer by position."""
        return heatmap(self._averaged())

    def curves(self) -> go.Figure:
        """Draw the reduced scores over depth, a curve for every component of a layer and every metric."""
        return curves(self.reduce().values if "pos" in self.values.dims else self._averaged())
