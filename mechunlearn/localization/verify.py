"""Verify estimates: measure the highest of them exactly.

1. Attributions are first-order estimates of what corrupting a component, or an edge, would do to the answer.
2. The k largest are measured: each is corrupted by itself, with the subjects that the estimate used, and the
   effect on the answer's logit difference is computed. A component is patched (`activation_patch`); an edge
   is patched on the path from its sender to its receiver alone (`path_patch`, heads and MLPs between frozen).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import numpy as np

from mechunlearn.core.scores.edges import EdgeScores
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError
from mechunlearn.localization.patching.activation import activation_patch
from mechunlearn.localization.path_patching.patch import path_patch
from mechunlearn.models.hooked import HookedModel


@overload
def verify(
    hm: HookedModel, scores: Scores, k: int = 10, *, batch_size: int = 64, progress: bool = True
) -> Scores: ...
@overload
def verify(
    hm: HookedModel, scores: EdgeScores, k: int = 10, *, batch_size: int = 64, progress: bool = True
) -> EdgeScores: ...
def verify(
    hm: HookedModel, scores: Scores | EdgeScores, k: int = 10, *, batch_size: int = 64, progress: bool = True
) -> Scores | EdgeScores:
    """Measure the k highest attributions exactly.

    Args:
        hm: the model that was attributed.
        scores: from `attribution` or `edge_attribution`, or the latter's ``.nodes()``; their recipe
            holds their facts and subjects.
        k: number of sites or edges, the largest first.
        batch_size: rows per captured run.
        progress: show progress bars.

    Returns:
        For components: scores of those k, over ``fact``, ``site`` and ``metric`` (``"exact"`` and
        ``"estimate"``), and ``pos`` if positions were attributed. For edges: exact scores in place of the
        estimates, NaN for all other edges between these senders and receivers.

    Raises:
        ScoresError: the scores do not say what they were measured on, are averaged over it already, or there
            are fewer than k.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> scores = mu.attribution(hm, facts[:4], progress=False)
        >>> checked = mu.verify(hm, scores, 2, progress=False)
        >>> checked.values.sizes["site"], checked.values["metric"].values.tolist()
        (2, ['exact', 'estimate'])
    """
    options = _options(scores) | {"direction": "noising", "batch_size": batch_size, "progress": progress}
    if isinstance(scores, EdgeScores):
        return _edges(hm, scores, k, options)
    return _nodes(hm, scores, k, options)


def _options(scores: Scores | EdgeScores) -> dict[str, Any]:
    """The facts and options of the estimate, as patching takes them."""
    recipe, dims = scores.recipe, scores.values.dims
    if "facts" not in recipe:
        raise ScoresError(
            f"{scores.title!r} does not say on which facts it was measured; verify takes what attribution or "
            "edge_attribution returned. For other scores call activation_patch on their sites"
        )
    needed = ["fact", *(["pos"] if recipe["positions"] != "all" else [])]
    if missing := [dim for dim in needed if dim not in dims]:
        raise ScoresError(
            f"these scores are no longer over {' and '.join(missing)}; verify measures each by itself, so "
            "give it the scores before .mean(), .sel() or .reduce(), and reduce what it returns"
        )
    return {name: recipe[name] for name in ("facts", "corrupt", "positions")}


def _nodes(hm: HookedModel, scores: Scores, k: int, options: Mapping[str, Any]) -> Scores:
    best = scores.top(k)
    sites = [site for site in scores.sites if site in best]
    # All that enters the first block is what the embeddings write; a sweep can only write the former.
    start = {Site("embed"): Site("resid_pre", 0)}
    exact = activation_patch(hm, sites={site: [start.get(site, site)] for site in sites}, **options).values
    estimate = scores.values.sel(site=[str(site) for site in sites]).transpose(*exact.dims)
    return Scores.of(
        np.stack([exact.values, estimate.values], axis=-1),
        sites,
        dims=(*map(str, exact.dims), "metric"),
        params=hm.sites,
        tokens=exact["token"].values.tolist() if "pos" in exact.dims else None,
        facts=exact["fact"].values.tolist(),
        metrics=("exact", "estimate"),
        fact_tokens=exact["fact_token"].values.tolist() if "fact_token" in exact.coords else None,
        change_signs=-1,
        title=_titled(scores, k),
        unit=str(scores.values.attrs["unit"]),
        recipe=scores.recipe,
    )


def _edges(hm: HookedModel, scores: EdgeScores, k: int, options: Mapping[str, Any]) -> EdgeScores:
    best = scores.top(k)
    senders, receivers = (list(dict.fromkeys(ends)) for ends in zip(*best, strict=True))
    exact = scores.values.sel(
        sender=[str(site) for site in senders], receiver=[str(site) for site in receivers]
    )
    exact = exact.copy(data=np.full(exact.shape, np.nan)).transpose("fact", "sender", "receiver", ...)
    for column, receiver in enumerate(receivers):
        rows = [row for row, sender in enumerate(senders) if (sender, receiver) in best]
        measured = path_patch(hm, sites=[senders[row] for row in rows], receivers=[receiver], **options)
        exact.values[:, rows, column] = measured.values.values
    return EdgeScores.of(
        exact.values,
        senders,
        receivers,
        dims=tuple(map(str, exact.dims)),
        params=hm.sites,
        tokens=exact["token"].values.tolist() if "pos" in exact.dims else None,
        facts=exact["fact"].values.tolist(),
        change_sign=-1,
        title=_titled(scores, k),
        unit=str(scores.values.attrs["unit"]),
        recipe=scores.recipe,
    )


def _titled(scores: Scores | EdgeScores, k: int) -> str:
    return f"{scores.title}: the {k} highest, measured"
