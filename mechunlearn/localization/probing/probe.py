"""Probes: how well a linear probe names the answer, layer by layer.

1. The residual stream is read at one position of every prompt: the embedding (``L0.resid_pre``), and every
   layer's ``resid_mid`` and ``resid_post``.
2. At each of these sites a linear probe learns to name the fact's answer (see ``linear_probes``).
3. It is scored on facts it was not fitted on. Without `test=`, subjects are dealt into folds, answer by
   answer so that folds are balanced, and each fold is scored by a probe fitted on the others; all facts of
   one subject are in one fold.
4. The control repeats this with the answers of the fitted subjects shuffled: it shows what a probe of this
   size reads where there is nothing to read.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.scores import Scores
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.localization.probing.linear_probes import (
    LinearProbe,
    ProbeKind,
    check_kind,
    fit_linear,
    fit_probes,
    in_parallel,
    require_two,
)
from mechunlearn.models.activations import Position, probe_sites, states_at
from mechunlearn.models.hooked import HookedModel

__all__ = ["METRICS", "LinearProbe", "fit_probes", "probe"]

METRICS = ("accuracy", "shuffled control")


def probe(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    positions: Position = "last_subject",
    test: Sequence[Fact] | None = None,
    folds: int = 5,
    kind: ProbeKind = "logistic",
    C: float | int = 1.0,
    control: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    n_jobs: int | None = None,
    progress: bool = True,
) -> Scores:
    """Measure how well a linear probe names the answer, at every layer.

    Args:
        hm: the model.
        facts: the facts to fit the probes on.
        positions: where to read: at the last token of the subject, or of the prompt.
        test: facts about other subjects to score on; None scores `facts` themselves, in folds.
        folds: number of folds, at most one per subject.
        kind: ``"logistic"`` regression, or one of two cheap ones: ``"ridge"`` regression, and
            ``"mean_difference"``, which names the answer with the nearest mean.
        C: inverse strength of the regularisation, as in scikit-learn (ridge has ``alpha = 1 / (2 C)``); a
            difference of means has none.
        control: also fit on shuffled answers.
        seed: seed of the folds and the shuffling.
        batch_size: prompts per forward pass.
        n_jobs: sites fitted at a time, as in scikit-learn; None for one, -1 for one per core. The result does
            not depend on it.
        progress: show a progress bar, which counts sites.

    Returns:
        Scores over ``fact`` (those scored on), ``site`` and ``metric``: 1 where the answer is named rightly,
        else 0; their mean over facts is the accuracy.

    Raises:
        FactError: there are fewer than two answers or subjects, or a subject stands on both sides.
        ScoresError: for unknown `positions` or `kind`, or a number out of range.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> curve = mu.probe(hm, facts.forget[:16], folds=2, progress=False).sel(metric="accuracy")

    Source: Alain and Bengio 2016; the control after Hewitt and Liang 2019.
    """
    check_kind(kind, C)
    every, sites = [*facts, *(test or ())], probe_sites(hm)
    states = states_at(hm, every, sites, positions=positions, batch_size=batch_size).numpy()
    labels = np.array([fact.answer.strip() for fact in every])
    splits = _folds(facts, folds, seed) if test is None else [_outside(facts, test)]
    scored = np.concatenate([split.scored for split in splits])
    tasks = [_task(every, labels, split, f"{seed} {number}") for number, split in enumerate(splits)]
    metrics = METRICS if control else METRICS[:1]
    correct = partial(_correct, labels=labels, tasks=tasks, metrics=len(metrics), C=C, kind=kind)
    fits = in_parallel(correct, states, n_jobs=n_jobs)
    values = np.stack([*tqdm(fits, total=len(sites), desc="probe", disable=not progress)], axis=1)
    return Scores.of(
        values[np.sort(scored)],
        sites,
        dims=("fact", "site", "metric"),
        metrics=metrics,
        title=f"Probe for the answer at the {positions} token" + (f" ({kind})" if kind != "logistic" else ""),
        unit="accuracy",
    )


class _Split(NamedTuple):
    """Rows to fit on and rows to score on."""

    fitted: Int[np.ndarray, "fitted"]
    scored: Int[np.ndarray, "scored"]


def _correct(
    x: Float[np.ndarray, "fact d_model"],
    *,
    labels: Any,
    tasks: Sequence[tuple[_Split, tuple[Any, Any]]],
    metrics: int,
    C: float | int,
    kind: ProbeKind,
) -> Float[np.ndarray, "fact metric"]:
    """1 where the probe of one site names the answer, else 0; not-a-number where none is scored."""
    correct = np.full((len(x), metrics), np.nan)
    for split, targets in tasks:
        for m, target in zip(range(metrics), targets, strict=False):
            predicted = fit_linear(x[split.fitted], target, C, kind=kind).predict(x[split.scored])
            correct[split.scored, m] = predicted == labels[split.scored]
    return correct


def _folds(facts: Sequence[Fact], folds: int, seed: int) -> list[_Split]:
    """Deal the subjects into folds, answer by answer, in a seeded order."""
    answer = {fact.subject: fact.answer for fact in reversed(facts)}
    require_two("subjects", list(answer))
    if folds < 2:
        raise ScoresError(f"folds must be at least 2; not {folds}")
    order = random.Random(seed).sample(sorted(answer), len(answer))
    # Sorting is stable: subjects of one answer are neighbours in random order, and go to folds in turn.
    order.sort(key=lambda subject: answer[subject])
    fold_of = {subject: index % min(folds, len(order)) for index, subject in enumerate(order)}
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


def _task(facts: Sequence[Fact], labels: Any, split: _Split, seed: str) -> tuple[_Split, tuple[Any, Any]]:
    return split, (labels[split.fitted], _shuffled(facts, labels, split.fitted, random.Random(seed)))


def _shuffled(
    facts: Sequence[Fact], labels: Any, fitted: Int[np.ndarray, "fitted"], rng: random.Random
) -> Any:
    """Answers dealt anew among subjects; the facts of one subject that agreed still agree."""
    keys = [(facts[i].subject, labels[i]) for i in fitted.tolist()]
    unique = sorted(set(keys))
    shuffled = rng.sample([answer for _, answer in unique], len(unique))
    # Shuffling keeps how often each answer stands, so that a fit still has two answers to tell apart.
    answer = dict(zip(unique, shuffled, strict=True))
    return np.array([answer[key] for key in keys])
