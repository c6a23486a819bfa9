"""Attribution patching: a first-order estimate of what corrupting each component would do to the answer.

1. Every fact is set beside the same prompt about another subject with equally many tokens.
2. The metric of a fact is a logit difference: its answer against its foil; without a foil against the new
   answer; without that against the mean of its other options. Words are scored whole, by log-probability:
   for words of one token the normaliser cancels, and it is the difference of their logits.
3. One forward and backward pass on the clean prompt gives what each component wrote and the gradient of the
   metric there; one forward pass on the other prompt gives what it would have written.
4. ``(corrupt - clean) · gradient``, summed over the components' width and over positions, estimates *how the
   metric changes when the component is corrupted*. The score is its negative: above 0 the component supports
   the answer. ``scores.change`` is the estimate itself.

The estimate is linear. Where it matters, `verify` measures the exact change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.labels import SUPPORT
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError
from mechunlearn.localization.attribution.gradients import (
    corrupt_activations,
    differentiable,
    gradients_at,
    run_with_taps,
)
from mechunlearn.localization.patching.corruption import OtherSubject, corruption_of
from mechunlearn.localization.patching.pairs import Pairs, pair
from mechunlearn.localization.patching.positions import (
    Component,
    Positions,
    Totals,
    fact_tokens_of,
    labels_of,
    layer_sites,
    shares_of,
)
from mechunlearn.models.hooked import HookedModel


@torch.inference_mode(False)  # a caller may have switched gradients off
def attribution(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    sites: Component | Sequence[Component] = ("attn", "mlp"),
    positions: Positions = "all",
    corrupt: Literal["subject"] | OtherSubject = "subject",
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Scores:
    """Estimate for every component what swapping the subject there alone would do to the answer.

    Two forward passes and one backward pass score all components together. Components that carry the answer
    out score as high as those that look it up.

    Args:
        hm: the model; its weights and their gradients are left as they were.
        facts: each needs a `foil`, a `new` answer or `options`.
        sites: ``"attn"`` for whole attentions, ``"mlp"`` for MLPs, ``"head"`` for heads; or several.
        positions: ``"all"`` tokens together, token ``"groups"``, or ``"each"`` token.
        corrupt: another ``"subject"`` of equally many tokens; `OtherSubject` names a pool of facts.
        seed: seed of the random choice of subjects, unless `corrupt` has one.
        batch_size: rows per pass; a fact is one row, and one more for every word of several tokens.
        progress: show a progress bar.

    Returns:
        Scores over ``fact`` and ``site``, and ``pos`` (not for ``"all"``): how much of the logit difference
        the component is estimated to support, not-a-number where a prompt has no token of a group. Facts for
        which no other subject has equally many tokens are left out, which the title says.

    Raises:
        FactError: a fact has nothing to compare its answer with, or none finds another subject.
        ScoresError: for unknown `sites` or `positions`, or a `batch_size` below 1.
        ModelError: the model was loaded inside ``torch.inference_mode()``.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> len(mu.attribution(hm, facts[:4], progress=False).top(2))
        2

    Source: Nanda 2023, Attribution Patching; Syed et al. 2023.
    """
    subject = corruption_of(corrupt, (OtherSubject,), seed=seed)
    named = layer_sites(hm, sites, get_args(Component))
    positive(ScoresError, batch_size=batch_size)
    pairs = pair(hm, facts, ("logit_diff",), corrupt=subject)
    totals = Totals.of(pairs.answers, positions, len(named))
    with tqdm(total=len(pairs.answers), desc="attribution", disable=not progress) as bar:
        for _, part in pairs.parts(batch_size):
            shares = shares_of(part, positions, places=totals.places)
            totals.add(part.answers, node_estimates(hm, part, named, shares=shares))
            bar.update(len(part.answers))
    note = f", {pairs.note}" if pairs.note else ""
    return Scores.of(
        -totals.values if positions != "all" else -totals.values[..., 0],
        named,
        dims=("fact", "site") if positions == "all" else ("fact", "site", "pos"),
        tokens=labels_of(pairs.answers, positions),
        facts=pairs.index,
        params=hm.sites,
        fact_tokens=fact_tokens_of(pairs.answers, positions),
        change_signs=-1,
        title=f"Attribution patching{note}",
        unit=f"{SUPPORT}logit difference",
        recipe={"facts": list(facts), "corrupt": subject, "positions": positions},
    )


def node_estimates(
    hm: HookedModel,
    pairs: Pairs,
    sites: Sequence[Site],
    *,
    shares: Float[Tensor, "row pos place"] | None = None,
) -> Float[Tensor, "row site place"]:
    """Give the first-order effect of every site on every row's metric, from one pass over the rows.

    `Pairs.at_end` makes the rows from token ids. Sites are heads, attentions and MLPs. ``shares`` is the
    weight of each token in each place, from `shares_of`; None for one place with all tokens.
    """
    points = {site: hm.arch.hooks(site)[0] for site in sites}
    names = list(dict.fromkeys(point.name for point in points.values()))
    with differentiable(hm):
        metric, taps = run_with_taps(hm, pairs.answers, names)
        gradients = gradients_at(names, metric, taps)
    corrupt = corrupt_activations(hm, pairs, names)
    shares = shares_of(pairs, "all", places=1) if shares is None else shares
    effects = {}
    for name in names:
        change = (corrupt[name] - taps[name].detach()).to(metric.dtype) * gradients[name].to(metric.dtype)
        effects[name] = torch.einsum("rp...,rpb->rb...", change.sum(-1), shares.to(metric.dtype))
    columns = [
        effects[point.name] if point.index is None else effects[point.name][..., point.index]
        for point in points.values()
    ]
    return torch.stack(columns, dim=1)
