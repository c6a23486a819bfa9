"""Fact lookup by paths: which MLPs reach the answer through the heads that carry it out.

1. *Extraction heads.* Every head's direct effect on the preference for the fact's own answer over that of
   another subject: its output is swapped for the other subject's, other heads keep theirs, and MLPs after
   it are computed anew. Chosen are the heads whose mean effect reaches `min_head_effect` and is no accident
   of these facts (its 95 % bootstrap interval leaves out 0), the strongest first, at most `heads`.
2. *Through those heads.* Every MLP's output is swapped as the extraction heads alone read it, in their
   queries, keys and values, with all MLPs between frozen.
3. *The null path.* The same through as many other heads: for every extraction head the one of its layer that
   extracts least, or where none is left one of a later layer, or else of an earlier one. So, as far
   as heads are left, as many MLPs come before them. An MLP is credited when its effect through the
   extraction heads reaches `min_effect`, exceeds that through the null heads, and differs from it by no
   accident; it scores its effect, with its sign, and every other MLP scores 0.

Effects are shares of the preference: 1 is what swapping the whole subject does. So ``.above(0)`` are the
MLPs that speak for the answer through these heads, and what is below 0 speaks against it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.core.statistics import bootstrap_interval
from mechunlearn.errors import ScoresError
from mechunlearn.localization.fact_lookup.preference import preference_gap, require_preference
from mechunlearn.localization.patching.corruption import OtherSubject, corruption_of
from mechunlearn.localization.path_patching.patch import path_patch
from mechunlearn.localization.subject_swaps import swap_subjects
from mechunlearn.models.hooked import HookedModel


def path_lookup(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    heads: int = 10,
    min_head_effect: float | int = 0.02,
    min_effect: float | int = 0.02,
    corrupt: Literal["subject"] | OtherSubject = "subject",
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Scores:
    """Find the MLPs that look the facts up, by their paths through the heads that extract the answer.

    Args:
        hm: the model; it is left as it was.
        facts: the facts; the model has to know them.
        heads: greatest number of extraction heads, at most half of all heads.
        min_head_effect: least mean direct effect of an extraction head, in size.
        min_effect: least mean effect of an MLP through those heads, in size.
        corrupt: another ``"subject"`` of equally many tokens; `OtherSubject` names a pool of facts.
        seed: seed of the intervals, and of the choice of subjects unless `corrupt` has one.
        batch_size: prompts per forward pass.
        progress: show progress bars.

    Returns:
        Scores over ``fact`` and ``site`` (every MLP), signed. Their evidence is ``"heads"`` (direct effects
        of all heads), ``"paths"`` (effects of all MLPs through the extraction heads) and ``"null"``
        (through the others).

    Raises:
        FactError: no fact finds another subject, or the model does not prefer the facts' answers.
        ScoresError: no head extracts the answer, more than half of them do, or a number is not above zero.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> scores = mu.path_lookup(hm, facts[:4], progress=False)
        >>> scores.above(0)
        Localization(L0.mlp, L1.mlp, L2.mlp; ...)

    Source: Guo et al. 2024, Mechanistic Unlearning, whose receiver layers and thresholds were set by hand.
    """
    positive(ScoresError, heads=heads, batch_size=batch_size)
    subject = corruption_of(corrupt, (OtherSubject,), seed=seed)
    swaps = swap_subjects(
        hm, facts, pool=subject.pool, other_answer=True, mention=subject.mention, seed=subject.seed or 0
    )
    contrasted = [
        fact.replace(foil=swapped.answer, new=None, new_aliases=(), options=(), choice=None)
        for fact, swapped in zip(swaps.facts, swaps.swapped, strict=True)
    ]
    require_preference(preference_gap(hm, contrasted, swaps.swapped, batch_size=batch_size))
    options: dict[str, Any] = {
        "corrupt": swaps.swapped, "normalized": True, "batch_size": batch_size, "progress": progress,
    }  # fmt: skip
    direct = path_patch(hm, contrasted, "head", "logits", mlps="recompute", **options)
    extraction = _extraction(direct, heads, min_head_effect, seed)
    null = _null(direct, extraction)
    through = path_patch(hm, contrasted, "mlp", _reading(hm, extraction), **options)
    control = path_patch(hm, contrasted, "mlp", _reading(hm, null), **options)
    credited = _credited(through, control, min_effect, seed)
    names = ", ".join(map(str, sorted(extraction))) if len(extraction) < 5 else f"{len(extraction)} heads"
    return Scores.of(
        np.stack(list(credited.values()), axis=1), list(credited), dims=("fact", "site"), params=hm.sites,
        facts=swaps.index,
        title=f"Fact lookup by paths through {names}" + (f", {swaps.note}" if swaps.note else ""),
        unit="share of the preference moved",
        evidence={
            name: replace(each, values=each.values.assign_coords(fact=list(swaps.index)))
            for name, each in {"heads": direct, "paths": through, "null": control}.items()
        },
    ).explained(
        f"an MLP scores 0 if the paths through the heads miss the rule (min_effect={min_effect:g}); "
        "give more facts, see .evidence, or take fewer sites"
    )  # fmt: skip


def _extraction(direct: Scores, heads: int, least: float | int, seed: int) -> list[Site]:
    """The heads that extract the answer, the strongest first."""
    effects, ranked = _per_fact(direct), _ranked(direct)
    chosen = [s for s in ranked if abs(effects[s].mean()) >= least and _sure(effects[s], seed)][:heads]
    if not chosen:
        best = abs(effects[ranked[0]].mean())
        raise ScoresError(
            f"no head extracts the answer: the strongest, {ranked[0]}, moves {best:.3g} of the preference, "
            f"below min_head_effect={least:g}, or its interval holds 0; lower it or give more facts"
        )
    return chosen


def _null(direct: Scores, heads: Sequence[Site]) -> list[Site]:
    """As many heads that extract least, of the same layers where they have any left, then of later ones."""
    least, null = _ranked(direct)[::-1], dict[Site, Site]()
    if 2 * len(heads) > len(least):
        raise ScoresError(
            f"{len(heads)} of {len(least)} heads extract the answer, which leaves fewer than as many for the "
            f"null path; pass heads={len(least) // 2} or less, or raise min_head_effect"
        )
    # Every head is first matched within its layer, so that none from another layer uses that match up.
    for near in (operator.eq, operator.gt, operator.lt):
        for head in (head for head in heads if head not in null):
            unused = [site for site in least if site not in (*heads, *null.values())]
            if free := [site for site in unused if near(site.layer or 0, head.layer or 0)]:
                null[head] = free[0]
    return list(null.values())


def _ranked(direct: Scores) -> list[Site]:
    """All heads, the one that extracts most first."""
    effects = _per_fact(direct)
    return sorted(effects, key=lambda site: -abs(effects[site].mean()))


def _credited(
    through: Scores, control: Scores, least: float | int, seed: int
) -> dict[Site, Float[np.ndarray, "fact"]]:
    """Every MLP's effect per fact where it is credited, else 0."""
    effects, null = _per_fact(through), _per_fact(control)
    return {
        site: effects[site]
        if abs(mean := effects[site].mean()) >= least
        and abs(mean) > abs(null[site].mean())
        and _sure(effects[site] - null[site], seed)
        else 0 * effects[site]
        for site in through.sites
    }


def _reading(hm: HookedModel, heads: Sequence[Site]) -> list[Site]:
    """Queries, keys and values of some heads; under grouped queries the last two belong to their groups."""
    shape, sites = hm.arch.shape, list(heads)
    if shape.grouped:
        width = shape.n_heads // shape.n_kv_heads
        sites += dict.fromkeys(Site("kv", head.layer, (head.index or 0) // width) for head in heads)
    return sites


def _per_fact(scores: Scores) -> dict[Site, Float[np.ndarray, "fact"]]:
    return dict(zip(scores.sites, scores.values.transpose("site", "fact").values, strict=True))


def _sure(effects: Float[np.ndarray, "fact"], seed: int) -> bool:
    """Whether the interval of the mean leaves out 0; a single fact has none and is taken as it is."""
    interval = bootstrap_interval(effects, seed=seed)
    return bool(np.isnan(interval.low) or 0.0 not in interval)
