"""Attribution patching: to first order, what corrupting each component would do to the answer.

1. Every fact is set beside the same prompt about another subject with equally many tokens.
2. The metric of a fact is a logit difference: its answer against its foil; without a foil against the new
   answer; without that against the mean of its other options. Words are scored whole, by log-probability:
   for words of one token the normaliser cancels, and it is the difference of their logits.
3. One forward and backward pass on the clean prompt gives what each component wrote and the gradient of the
   metric there; one forward pass on the other prompt gives what it would have written.
4. The score is ``(corrupt - clean) · gradient``, summed over the components' width and over positions: an
   estimate of *how the metric changes when the component is corrupted*. Negative: it speaks for the answer.

The estimate is linear. Where it matters, check it against the exact change, for which `fact_lookup` swaps
MLPs one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.errors import FactError, ScoresError, one_of
from mechunlearn.facts.fact import Fact
from mechunlearn.hooks import Hook, cache
from mechunlearn.metrics import answer_logprob
from mechunlearn.model import HookedModel
from mechunlearn.scores import Scores
from mechunlearn.sites import Site
from mechunlearn.swaps import Rows, rows_of, swap_subjects

Grain = Literal["component", "head"]


def attribution(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    grain: Grain = "component",
    subjects: Sequence[Fact] | None = None,
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
        grain: ``"component"`` for whole attentions and MLPs, ``"head"`` for heads and whole MLPs.
        subjects: facts whose subjects may replace a fact's own; None for `facts` themselves.
        seed: of the draw of subjects.
        batch_size: rows (fact and word) per pass.
        progress: show a progress bar.

    Returns:
        Scores over ``fact`` and ``site``: the estimated change of the logit difference. Facts for which no
        other subject has equally many tokens are left out, which the title says.

    Raises:
        FactError: a fact has nothing to compare its answer with, or none finds another subject.
        ScoresError: for an unknown `grain`.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> len(mu.attribution(hm, facts, progress=False).top(2))
        2

    Source: Nanda 2023, Attribution Patching; Syed et al. 2023.
    """
    sites = _sites(hm, grain)
    words = [_contrast(fact) for fact in facts]
    swaps = swap_subjects(hm, facts, subjects=subjects, seed=seed)
    rows = rows_of(hm, swaps, [words[i] for i in swaps.index])
    values = torch.zeros(len(swaps.facts), len(sites), dtype=torch.float64)
    for part in tqdm(list(rows.parts(batch_size)), desc="attribution", disable=not progress):
        values.index_add_(0, part.fact, _estimates(hm, part, sites))
    return Scores.of(
        values,
        sites,
        dims=("fact", "site"),
        params={site: hm.arch.count(site) for site in sites},
        total_params=hm.sites.size(hm.sites.attns() | hm.sites.mlps()),
        title="Attribution patching (below 0: speaks for the answer)"
        + (f", {swaps.note}" if swaps.note else ""),
        unit="change of the logit difference",
    )


def _estimates(hm: HookedModel, rows: Rows, sites: Sequence[Site]) -> Float[Tensor, "row site"]:
    """The first-order effect of every site on every row's share of the metric."""
    points = {site: hm.arch.hooks(site)[0] for site in sites}
    names = dict.fromkeys(point.name for point in points.values())
    clean: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}
    with torch.enable_grad():
        logits = hm.run_with_hooks(
            rows.clean.tokens,
            attention_mask=rows.clean.mask,
            fwd_hooks=[_tap(name, clean, shifts) for name in names],
        )
        metric = (rows.weight * answer_logprob(logits, rows.clean.labels).cpu()).sum()
        gradients = dict(zip(names, torch.autograd.grad(metric, [shifts[n] for n in names]), strict=True))
    corrupt: dict[str, Tensor] = {}
    # Last, because a run without gradients also frees the graph that the bridge keeps of its patterns.
    with torch.no_grad():
        hm.run_with_hooks(
            rows.swapped.tokens,
            attention_mask=rows.swapped.mask,
            fwd_hooks=[cache(name, corrupt) for name in names],
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    effects = {n: ((corrupt[n] - clean[n]).to(wide) * gradients[n].to(wide)).sum(1) for n in names}
    columns = []
    for point in points.values():
        effect = effects[point.name]
        columns.append(effect.sum(-1) if point.index is None else effect[:, point.index].sum(-1))
    return torch.stack(columns, dim=1).cpu().double()


def _tap(name: str, clean: dict[str, Tensor], shifts: dict[str, Tensor]) -> Hook:
    """Add a zero whose gradient is the activation's own, so no parameter needs or gets a gradient."""

    def add(activation: Tensor, hook: Any = None) -> Tensor:
        clean[name] = activation.detach().clone()
        shifts[name] = torch.zeros_like(clean[name]).requires_grad_()
        return activation + shifts[name]

    return Hook(name, add)


def _contrast(fact: Fact) -> dict[str, float]:
    """What each word counts in the fact's logit difference."""
    wrong = [word for word in (fact.foil, fact.new) if word is not None][:1]
    wrong = wrong or [option for option in fact.options if option.strip() != fact.answer.strip()]
    if not wrong:
        raise FactError(
            f"the fact {fact.prompt!r} has nothing to compare its answer {fact.answer!r} with; give it "
            "`foil=`, `new=` or `options=`"
        )
    return {fact.answer: 1.0} | {word: -1.0 / len(wrong) for word in wrong}


def _sites(hm: HookedModel, grain: Grain) -> list[Site]:
    if grain not in ("component", "head"):
        raise ScoresError(one_of("grain", grain, ["component", "head"]))
    sites = []
    for layer in range(hm.arch.shape.n_layers):
        heads = [Site("head", layer, head) for head in range(hm.arch.shape.n_heads)]
        sites += [*(heads if grain == "head" else [Site("attn", layer)]), Site("mlp", layer)]
    return sites
