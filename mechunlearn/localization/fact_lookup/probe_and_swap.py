"""Fact lookup: which MLPs turn a subject into the answer.

An MLP is credited by a written rule, whose two thresholds are arguments:

1. *Probe.* A linear probe for the answer is scored at the last token of the subject, before and after every
   MLP (``resid_mid`` and ``resid_post``). The MLP's gain is the accuracy after it minus that before it. In
   families that run attention and MLP in parallel there is no ``resid_mid``; the gain is then counted over
   the whole block, and only the next step tells the two apart.
2. *Swap.* Every fact is set beside the same prompt about another subject with equally many tokens and
   another answer. The model's preference is the log-probability of the fact's own answer minus that of the
   other subject's: for answers of one token, a difference of logits. The MLP's output at the last token of
   the subject is replaced by what it writes in the other prompt. Its effect is the share of the preference
   that moves: 0 if nothing changes, 1 if the model now prefers the other's answer as in the other's prompt.
3. *Credit.* An MLP whose gain reaches `min_gain` and is no accident of these facts (its 95 % bootstrap
   interval lies above 0), and whose mean effect reaches `min_effect`, scores its effect (per fact); every
   other MLP scores 0. So ``.above(0)`` are the MLPs that look the facts up.

The probe alone also credits layers that only make the answer easier to read; the swap alone credits every
layer on the way out of the subject. The evidence of the scores is ``"probe"`` (the curve with its control),
``"gain"``, ``"swap"`` (the effects before thresholding), and ``"attention gain"``, from ``resid_pre`` to
``resid_mid``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.core.statistics import bootstrap_interval
from mechunlearn.errors import FactError, ScoresError, one_of
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Patches, writes_of
from mechunlearn.localization.fact_lookup.preference import require_preference
from mechunlearn.localization.patching.answer_metrics import Measure, answer_rows
from mechunlearn.localization.patching.corruption import OtherSubject, corruption_of
from mechunlearn.localization.patching.pairs import Pairs
from mechunlearn.localization.probing.probe import probe
from mechunlearn.localization.subject_swaps import Swaps, swap_subjects
from mechunlearn.models.hooked import HookedModel

Where = Literal["last_subject", "subject"]
_SHARE = "share of the preference moved"


def fact_lookup(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    fitted_on: Sequence[Fact] | None = None,
    corrupt: Literal["subject"] | OtherSubject = "subject",
    positions: Where = "last_subject",
    min_gain: float | int = 0.05,
    min_effect: float | int = 0.05,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Scores:
    """Find the MLPs that look the facts up: after them the answer can be read, and swapping them changes it.

    Args:
        hm: the model; it is left as it was.
        facts: the facts; the model has to know them.
        fitted_on: facts to fit the probes on; those of other relations or about the subjects of `facts` are
            left out. None fits and scores on `facts`, in folds by subject.
        corrupt: another ``"subject"`` of equally many tokens; `OtherSubject` names a pool of facts.
        positions: swap the output at the ``"last_subject"`` token, or at all tokens of the ``"subject"``.
        min_gain: least gain in probe accuracy for credit; its interval must lie above 0 besides.
        min_effect: least mean share of the preference moved for credit.
        seed: seed of folds and control, and of the choice of subjects unless `corrupt` has one.
        batch_size: prompts per forward pass.
        progress: show progress bars.

    Returns:
        Scores over ``fact`` and ``site`` (every MLP), with evidence; see above. Facts for which no other
        subject has equally many tokens are left out, which the title says.

    Raises:
        FactError: no fact finds another subject, the model does not prefer the facts' answers, or a probe
            has too few answers to tell apart.
        ScoresError: for unknown `positions`, or a `batch_size` below 1.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> mu.fact_lookup(hm, facts.forget[:16], fitted_on=facts.retain, progress=False).above(0)
        Localization(L0.mlp; ...)

    Source: Guo et al. 2024, Mechanistic Unlearning, whose lookup layers were picked by eye.
    """
    if positions not in get_args(Where):
        raise ScoresError(one_of("positions", positions, get_args(Where)))
    subject = corruption_of(corrupt, (OtherSubject,), seed=seed)
    swaps = swap_subjects(
        hm, facts, pool=subject.pool, other_answer=True, mention=subject.mention, seed=subject.seed or 0
    )
    effects = _effects(hm, swaps, positions, batch_size, progress)
    fitted, test = (facts, None) if fitted_on is None else (_fitting(facts, fitted_on), facts)
    curve = probe(hm, fitted, test=test, seed=seed, batch_size=batch_size, progress=progress)
    gain, low, attention = _gains(hm, curve, seed)
    # A single fact has no interval; a threshold below 0 asks for no gain at all.
    sure = np.isnan(low) | (low > min(min_gain, 0.0))
    credited = torch.tensor(sure & (gain >= min_gain)) & (effects.mean(0) >= min_effect)
    note = f", {swaps.note}" if swaps.note else ""
    swap = _over_mlps(
        hm, effects, facts=swaps.index, title=f"MLPs swapped at the {positions}{note}", unit=_SHARE
    )
    gains = _over_mlps(hm, torch.tensor(gain)[None], title="Probe gain of MLPs", unit="accuracy").reduce()
    return _over_mlps(
        hm,
        effects.where(credited, torch.zeros((), dtype=effects.dtype)),
        facts=swaps.index,
        title=f"Fact lookup: probe gain ≥ {min_gain:g} and swap effect ≥ {min_effect:g}{note}",
        unit=_SHARE,
        evidence={"probe": curve, "gain": gains, "swap": swap, **attention},
    ).explained(_zero_means(gain, sure, folds=fitted_on is None, facts=len(facts)))


def _zero_means(
    gain: Float[np.ndarray, "layer"], sure: Bool[np.ndarray, "layer"], *, folds: bool, facts: int
) -> str:
    """Why MLPs are not credited, and the remedy."""
    unsure = [f"L{layer}" for layer in range(len(gain)) if gain[layer] > 0 and not sure[layer]]
    why = "a site scores 0 if its probe gain or its swap effect misses the rule"
    if unsure:
        why += f" (the gain at {', '.join(unsure)} may be an accident of {facts} facts)"
    elif not (gain > 0).any():
        why += f" (the probe gains nothing at any MLP on {facts} facts)"
    remedy = "give fitted_on= facts about other people, " if folds else "give more facts, "
    return f"{why}; {remedy}see .evidence, or take fewer sites"


def _effects(
    hm: HookedModel, swaps: Swaps, positions: Where, batch_size: int, progress: bool
) -> Float[Tensor, "fact layer"]:
    """The share of each fact's preference that moves when one MLP's output is another subject's."""
    positive(ScoresError, batch_size=batch_size)
    words = [
        {fact.answer: 1.0, swapped.answer: -1.0}
        for fact, swapped in zip(swaps.facts, swaps.swapped, strict=True)
    ]
    answers = answer_rows(hm, swaps.facts, words)
    corrupted = answer_rows(hm, swaps.facts, words, prompts=swaps.swapped).batch
    pairs = Pairs(answers, corrupted, None, swaps.index)
    writes = [writes_of(hm, [Site("mlp", layer)]) for layer in range(hm.arch.shape.n_layers)]
    names = [write.name for (write,) in writes]
    # Columns: the fact's own prompt, the other subject's prompt, then one per swapped MLP.
    preference = torch.zeros(len(swaps.facts), 2 + len(names), dtype=torch.float64)
    engine = Engine.of(hm)
    with tqdm(total=len(answers) * len(names), desc="swap", disable=not progress) as bar:
        for _, part in pairs.parts(batch_size):
            both, batch = part.runs(hm, keep=names), part.answers.batch
            measure = Measure(part.answers, ("logit_diff",))
            last = torch.nn.functional.one_hot(batch.subject_last, batch.tokens.shape[1]).bool()
            patches = Patches.grid(writes, (last if positions == "last_subject" else batch.subject)[None])
            swapped = engine.sweep(both.clean, both.corrupt.activations, patches, measure, bar=bar)
            runs = [engine.baseline(run, measure)[:, 0] for run in (both.clean, both.corrupt)]
            columns = torch.stack([*runs, *swapped.view(len(writes), -1)], dim=1)
            preference.index_add_(0, part.answers.fact, columns)
    clean, corrupt = preference[:, 0], preference[:, 1]
    gap = float((clean - corrupt).mean())
    require_preference(gap)
    return (clean[:, None] - preference[:, 2:]) / gap


def _fitting(facts: Sequence[Fact], pool: Sequence[Fact]) -> list[Fact]:
    """The facts of the same relations about other subjects."""
    relations, subjects = {fact.relation for fact in facts}, {fact.subject for fact in facts}
    chosen = [fact for fact in pool if fact.relation in relations and fact.subject not in subjects]
    if not chosen:
        raise FactError(
            f"fitted_on has no fact of the relations {sorted(relations)} about another subject; give such "
            "facts, or leave it out for folds by subject"
        )
    return chosen


def _gains(
    hm: HookedModel, curve: Scores, seed: int
) -> tuple[Float[np.ndarray, "layer"], Float[np.ndarray, "layer"], dict[str, Scores]]:
    """The probe's gain over every MLP, the lower end of its interval, and the gain over every attention."""
    correct = curve.sel(metric="accuracy").values.transpose("site", "fact").values
    by_site = dict(zip(curve.sites, correct, strict=True))
    layers = range(hm.arch.shape.n_layers)
    after = np.array([by_site[Site("resid_post", layer)] for layer in layers])
    before = np.array([by_site[Site("resid_pre", 0)], *after[:-1]])
    parallel = hm.arch.parallel
    between = before if parallel else np.array([by_site[Site("resid_mid", layer)] for layer in layers])
    gains = after - between
    low = np.array([bootstrap_interval(gain, seed=seed).low for gain in gains])
    if parallel:
        return gains.mean(1), low, {}
    sites = [Site("attn", layer) for layer in layers]
    attention = Scores.of(
        (between - before).mean(1),
        sites,
        params=hm.sites,
        title="Probe gain of attention",
        unit="accuracy",
    )
    return gains.mean(1), low, {"attention gain": attention}


def _over_mlps(
    hm: HookedModel,
    values: Float[Tensor, "fact layer"],
    *,
    title: str,
    unit: str,
    facts: Sequence[int] | None = None,
    evidence: Mapping[str, Scores] | None = None,
) -> Scores:
    sites = [Site("mlp", layer) for layer in range(hm.arch.shape.n_layers)]
    return Scores.of(
        values,
        sites,
        dims=("fact", "site"),
        params=hm.sites,
        facts=facts,
        title=title,
        unit=unit,
        evidence=evidence,
    )
