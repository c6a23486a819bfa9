"""Probes: how well a linear reader names the answer, layer by layer.

1. The residual stream is read at one position of every prompt: the embedding (``L0.resid_pre``), and every
   layer's ``resid_mid`` and ``resid_post`` (see ``readers``).
2. At each of these sites a logistic regression on standardised states learns to name the fact's answer.
3. It is scored on facts it was not fitted on. Without `test=`, subjects are dealt into folds, answer by
   answer so that folds are balanced, and each fold is scored by a probe fitted on the others; all facts of
   one subject are in one fold.
4. The control repeats this with the answers of the fitted subjects shuffled: what a probe of this size reads
   from names that say nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from tqdm.auto import tqdm

from mechunlearn.errors import FactError, ScoresError
from mechunlearn.facts.fact import Fact
from mechunlearn.model import HookedModel
from mechunlearn.readers import (
    LayerProbe,
    Position,
    fit_linear,
    fit_probes,
    probe_sites,
    require_two,
    states_at,
)
from mechunlearn.scores import Scores

__all__ = ["METRICS", "LayerProbe", "fit_probes", "probe"]

METRICS = ("accuracy", "shuffled control")


def probe(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    at: Position = "last subject",
    test: Sequence[Fact] | None = None,
    folds: int = 5,
    C: float = 1.0,
    control: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Scores:
    """Measure how well a linear reader names the answer, at every layer.

    Args:
        hm: the model.
        facts: what the probes are fitted on.
        at: where to read: at the last token of the subject, or of the prompt.
        test: facts about other subjects to score on; None scores `facts` themselves, in folds.
        folds: how many folds, at most one per subject.
        C: inverse strength of the regularisation, as in scikit-learn.
        control: also fit on shuffled answers.
        seed: of the folds and the shuffling.
        batch_size: prompts per forward pass.
        progress: show a progress bar.

    Returns:
        Scores over ``fact`` (those scored on), ``site`` and ``metric``: 1 where the answer is named rightly,
        else 0; their mean over facts is the accuracy.

    Raises:
        FactError: there are fewer than two answers or subjects, or a subject stands on both sides.
        ScoresError: for an unknown `at`.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> curve = mu.probe(hm, facts.forget, progress=False).sel(metric="accuracy")

    Source: Alain and Bengio 2016; the control after Hewitt and Liang 2019.
    """
    sites = probe_sites(hm)
    every = [*facts, *(test or ())]
    states = states_at(hm, every, sites, at=at, batch_size=batch_size)
    labels = np.array([fact.answer.strip() for fact in every])
    splits = _folds(facts, folds, seed) if test is None else [_outside(facts, test)]
    scored = np.concatenate([split.scored for split in splits])
    metrics = METRICS if control else METRICS[:1]
    values = np.full((len(every), len(sites), len(metrics)), np.nan)
    for s in tqdm(range(len(sites)), desc="probe", disable=not progress):
        x = states[s].numpy()
        for number, split in enumerate(splits):
            shuffled = _shuffled(every, labels, split.fitted, random.Random(f"{seed} {number}"))
            given = (labels[split.fitted], shuffled)
            for m, known in zip(range(len(metrics)), given, strict=False):
                said = fit_linear(x[split.fitted], known, C).predict(x[split.scored])
                values[split.scored, s, m] = said == labels[split.scored]
    return Scores.of(
        values[np.sort(scored)],
        sites,
        dims=("fact", "site", "metric"),
        metrics=metrics,
        title=f"Probe for the answer at the {at} token",
        unit="accuracy",
    )


class _Split(NamedTuple):
    """Rows to fit on and rows to score on."""

    fitted: Int[np.ndarray, "fitted"]
    scored: Int[np.ndarray, "scored"]


def _folds(facts: Sequence[Fact], folds: int, seed: int) -> list[_Split]:
    """Deal the subjects into folds, answer by answer, in a seeded order."""
    answer = {fact.subject: fact.answer for fact in reversed(facts)}
    require_two("subjects", list(answer))
    if folds < 2:
        raise ScoresError(f"folds must be at least 2; not {folds}")
    order = random.Random(seed).sample(sorted(answer), len(answer))
    order.sort(key=lambda subject: answer[subject])
    fold_of = {subject: place % min(folds, len(order)) for place, subject in enumerate(order)}
    fold = np.array([fold_of[fact.subject] for fact in facts])
    splits = [_Split((fold != k).nonzero()[0], (fold == k).nonzero()[0]) for k in sorted(set(fold.tolist()))]
    for split in splits:
        require_two("answers", [facts[i].answer for i in split.fitted.tolist()])
    return splits


def _outside(facts: Sequence[Fact], test: Sequence[Fact]) -> _Split:
    """Fit on the first facts and score on the second, which must be about other subjects."""
    shared = sorted({fact.subject for fact in facts} & {fact.subject for fact in test})
    if shared:
        raise FactError(
            f"{len(shared)} subjects, such as {shared[0]!r}, are both fitted and scored on; take them out of "
            "one side, or leave out test= for folds by subject"
        )
    require_two("answers", [fact.answer for fact in facts])
    return _Split(np.arange(len(facts)), len(facts) + np.arange(len(test)))


def _shuffled(
    facts: Sequence[Fact], labels: Any, fitted: Int[np.ndarray, "fitted"], rng: random.Random
) -> Any:
    """Answers dealt anew among subjects; the facts of one subject that agreed still agree."""
    keys = [(facts[i].subject, labels[i]) for i in fitted.tolist()]
    unique = sorted(set(keys))
    dealt = rng.sample([answer for _, answer in unique], len(unique))
    # A fit needs two answers, and dealing keeps their counts over subjects.
    answer = dict(zip(unique, dealt, strict=True))
    return np.array([answer[key] for key in keys])
