"""A labelled array of scores over sites, which selects, reduces and draws itself.

1. The values are an xarray with one stacked dimension ``site``; layer, kind, head and parameter count are
   its coordinates, so a selection by budget needs no model. Other dimensions are ``fact``, ``sample``,
   ``pos`` and ``metric``. Tokens label positions and never index them, since they repeat.
2. Reductions are explicit: facts and samples by their mean, positions by the value farthest from 0 with its
   sign, and a metric has to be selected. What does not exist (the middle of a subject of one token) is NaN
   and left out.
3. A selection ranks the reduced scores and takes sites from the top: a number of them, those above a
   threshold, or as many as a budget of parameters allows, which is never exceeded unless asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mechunlearn.errors import ScoresError, one_of
from mechunlearn.scores.drawing import curves, heatmap
from mechunlearn.scores.labels import label
from mechunlearn.scores.selection import rank, within
from mechunlearn.sites import Localization, ModelSites, Site

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """One number per site, and per fact, sample, position or metric where there are several.

    Build one with ``Scores.of``; every localizer returns one.

    Args:
        values: an array with a dimension ``site`` and the coordinates that ``Scores.of`` writes.
        evidence: other scores that these were derived from, by name.

    Example:
        >>> sites = [Site.parse(text) for text in ("L0.mlp", "L1.mlp", "L2.mlp")]
        >>> scores = Scores.of(np.array([0.1, -0.9, 0.5]), sites, params=dict.fromkeys(sites, 100))
        >>> scores.top(1)
        Localization(L1.mlp; scores, top 1)
        >>> scores.top(params=0.4, by="signed")
        Localization(L2.mlp; scores, top 40 % of parameters (100 parameters, gap -16.7 %))
    """

    values: xr.DataArray
    evidence: Mapping[str, Scores] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "..."] | Float[torch.Tensor, "..."],
        sites: Sequence[Site],
        *,
        dims: tuple[str, ...] = ("site",),
        params: Mapping[Site, int] | None = None,
        total_params: int | None = None,
        tokens: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
        title: str = "scores",
        unit: str = "score",
        evidence: Mapping[str, Scores] | None = None,
    ) -> Scores:
        """Label an array.

        Args:
            values: the scores; NaN where there is none. Copied.
            sites: the sites along the dimension ``site``.
            dims: name of every dimension of ``values``; among ``fact sample site pos metric``.
            params: number of parameters of every weight site; default 0, which no budget can select from.
            total_params: parameters of all weight sites at this grain, of which ``top(params=0.1)`` is a
                share; default those of ``sites``.
            tokens: label of every position; may repeat.
            metrics: name of every metric.
            title: what was measured; written above figures and into the source of selections.
            unit: what the numbers are.
            evidence: other scores that these were derived from, by name.

        Raises:
            ScoresError: if dimensions, labels and array do not fit each other.
        """
        labelled = label(
            values, sites, dims, params=params, total_params=total_params, tokens=tokens, metrics=metrics
        )
        return cls(labelled.assign_attrs(title=title, unit=unit), dict(evidence or {}))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in the order of the array."""
        return tuple(Site.parse(str(site)) for site in self.values["site"].values)

    @property
    def title(self) -> str:
        """What was measured."""
        return str(self.values.attrs["title"])

    def __eq__(self, other: object) -> bool:
        return self.values.identical(other.values) if isinstance(other, Scores) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def only(self, *kinds: str) -> Scores:
        """Keep the sites of some kinds, such as ``"mlp"``; ``total_params`` stays.

        Raises:
            ScoresError: if there is no site of a kind.
        """
        there = list(dict.fromkeys(self.values["kind"].values.tolist()))
        for kind in kinds:
            if kind not in there:
                raise ScoresError(one_of("a kind of these scores", kind, there))
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
        for dim, wanted in {"fact": fact, "sample": sample, "pos": pos, "metric": metric}.items():
            if wanted is not None:
                self._require(dim)
                choices = values["token" if isinstance(wanted, str) and dim == "pos" else dim].values.tolist()
                places = [place for place, choice in enumerate(choices) if choice == wanted]
                if not places:
                    raise ScoresError(one_of(dim, wanted, choices))
                if len(places) > 1:
                    raise ScoresError(f"{wanted!r} stands at positions {places}; select one by its number")
                values = values.isel({dim: places[0]}, drop=True)
        return self._with(values)

    def mean(self, *dims: str) -> Scores:
        """Average over some dimensions, leaving out what is NaN.

        Raises:
            ScoresError: if a dimension is not there.
        """
        for dim in dims:
            self._require(dim)
        return self._with(self.values.mean(dims, keep_attrs=True))

    def reduce(self) -> Scores:
        """Reduce to one number per site: means of facts and samples, then the extreme over positions.

        Raises:
            ScoresError: if there are several metrics, of which one has to be selected first.
        """
        if self.values.sizes.get("metric") == 1:
            return self._with(self.values.isel(metric=0)).reduce()
        if "metric" in self.values.dims:
            metrics = self.values["metric"].values.tolist()
            raise ScoresError(f"several metrics give no one number per site; .sel(metric=) one of {metrics}")
        values = self._averaged()
        if "pos" in values.dims:
            farthest = abs(values).fillna(-1).argmax("pos")
            values = values.isel(pos=farthest).drop_vars(("pos", "token"))
        return self._with(values)

    def top(
        self,
        k: int | None = None,
        *,
        params: float | int | None = None,
        by: Literal["abs", "signed"] = "abs",
        overshoot: bool = False,
        fill: ModelSites | None = None,
        seed: int = 0,
    ) -> Localization:
        """Select the best sites, by number or by a budget of parameters.

        Sites are taken in order until the next does not fit; ties keep the order of the array.

        Args:
            k: number of sites.
            params: budget; a float in (0, 1] is a share of ``total_params``, an int a number of parameters.
            by: rank by absolute or by signed value.
            overshoot: take the site that crosses the budget as well.
            fill: the sites of the model, ``hm.sites``; the site that does not fit is broken into heads or
                neurons that do, so that localizations of equal budget are of equal size.
            seed: of the choice of those heads or neurons.

        Raises:
            ScoresError: if not exactly one of ``k`` and ``params`` is given, if it selects nothing or more
                than there is, or if the scores are of states, NaN, or of several metrics.
        """
        if (k is None) == (params is None):
            raise ScoresError(f"top takes either k or params, one of them; not k={k} and params={params}")
        ranked = rank(self.reduce().values, by=by)
        if params is not None:
            chosen, size = within(params, ranked, self.values, overshoot=overshoot, fill=fill, seed=seed)
            return Localization(chosen, source=f"{self.title}, {size}")
        if fill is not None or overshoot:
            raise ScoresError(f"fill and overshoot belong to a budget; write top(params=), not top({k})")
        if k is None or not 1 <= k <= len(ranked):
            raise ScoresError(f"top selects 1 to {len(ranked)} sites, as many as were scored; not {k}")
        return Localization(ranked[:k], source=f"{self.title}, top {k}")

    def above(self, threshold: float | int, *, by: Literal["abs", "signed"] = "signed") -> Localization:
        """Select every site whose value exceeds a threshold; possibly none.

        Raises:
            ScoresError: if the scores are of states, NaN, or of several metrics.
        """
        chosen = rank(self.reduce().values, by=by, above=threshold)
        return Localization(chosen, source=f"{self.title}, above {threshold:g}")

    def _require(self, dim: str) -> None:
        if dim not in self.values.dims:
            raise ScoresError(one_of("a dimension of these scores", dim, self.values.dims))

    def _with(self, values: xr.DataArray) -> Scores:
        values.values.flags.writeable = False
        return Scores(values, self.evidence)

    def to_frame(self) -> pd.DataFrame:
        """One row per number, with its site, layer, kind, parameters and the other labels."""
        return self.values.to_dataframe(name="score").reset_index()

    def heatmap(self) -> go.Figure:
        """Draw the mean over facts and samples: layer by component, or layer by position."""
        return heatmap(self._averaged())

    def curves(self) -> go.Figure:
        """Draw the reduced scores over depth, a curve for every component of a layer and every metric."""
        if "pos" in self.values.dims:
            return curves(self.reduce().values)
        return curves(self._averaged())

    def _averaged(self) -> xr.DataArray:
        return self.mean(*(dim for dim in ("fact", "sample") if dim in self.values.dims)).values

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim} {size}" for dim, size in self.values.sizes.items())
        return f"Scores({self.title}; {sizes})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**self.heatmap()._repr_mimebundle_(include, exclude), "text/plain": repr(self)}
