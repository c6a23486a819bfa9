"""From what each model said to each question, to means with intervals and to paired differences.

1. Outcomes are averaged within a fact over its phrasings of one kind, so that a fact counts once.
2. Every mean over facts has a 95 % bootstrap interval over facts.
3. Controls are averaged fact by fact; differences (edited minus untouched, minus gold, minus controls) are
   formed fact by fact and have intervals of their own.
4. The bootstrap draws the same facts for all models of a cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mechunlearn.core.statistics import Interval, bootstrap_interval

EDITED, UNTOUCHED, GOLD, CONTROL, CONTROLS = "edited", "untouched", "gold", "control", "controls"
BESIDE = (UNTOUCHED, GOLD, CONTROLS)

PerFact = Mapping[str, float]
"""A value by fact."""


class Row(NamedTuple):
    """What one model said to one question (or read, or lost, on one text).

    Attributes:
        model: ``"edited"``, ``"untouched"``, ``"gold"``, ``"control 1"``, …
        section: of the audit, such as ``"forget"``.
        phrasing: ``"train"``, ``"validation"``, ``"held_out"``, ``"multiple choice"``, or a probe's site.
        relation: of the fact.
        fact: the unit of intervals, named by the fact's first prompt.
        prompt: as it was asked.
        said: what was answered.
        values: ``answer`` and ``new`` (1 if that was given), ``p_answer`` and ``p_new``; ``nll`` of a text.
        chance: what guessing among the options would reach.
    """

    model: str
    section: str
    phrasing: str
    relation: str
    fact: str
    prompt: str
    said: str
    values: Mapping[str, float]
    chance: float


class Estimate(NamedTuple):
    """A mean over facts, or a mean paired difference, with its 95 % interval."""

    model: str
    section: str
    phrasing: str
    relation: str
    metric: str
    value: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> Interval:
        """Value and bounds together."""
        return Interval(self.value, self.low, self.high)


def per_fact(
    rows: Iterable[Row], section: str, metric: str, *, phrasings: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Average one metric within every fact: model -> fact -> value, with controls averaged as well.

    Args:
        rows: of one audit.
        section: which section.
        metric: which metric.
        phrasings: which phrasings; None for all.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        wanted = row.section == section and (phrasings is None or row.phrasing in phrasings)
        if wanted and metric in row.values:
            found.setdefault(row.model, {}).setdefault(row.fact, []).append(row.values[metric])
    return with_controls({model: _averaged(facts) for model, facts in found.items()})


def with_controls(models: Mapping[str, PerFact]) -> dict[str, dict[str, float]]:
    """Add the mean of all controls, fact by fact.

    Example:
        >>> with_controls({"control 1": {"a": 0.0}, "control 2": {"a": 1.0}})["controls"]
        {'a': 0.5}
    """
    every = {model: dict(facts) for model, facts in models.items()}
    controls = [facts for model, facts in models.items() if model.startswith(f"{CONTROL} ")]
    if controls:
        every[CONTROLS] = {fact: float(np.mean([c[fact] for c in controls])) for fact in controls[0]}
    return every


def differences(models: Mapping[str, PerFact]) -> dict[str, dict[str, float]]:
    """The edited model minus each of those beside it, fact by fact.

    Example:
        >>> differences({"edited": {"a": 0.0}, "untouched": {"a": 1.0}})
        {'edited − untouched': {'a': -1.0}}
    """
    if EDITED not in models:
        return {}
    return {
        f"{EDITED} − {other}": {fact: value - models[other][fact] for fact, value in models[EDITED].items()}
        for other in BESIDE
        if other in models
    }


def interval(facts: PerFact, *, seed: int) -> Interval:
    """The mean over facts with its interval.

    Args:
        facts: a value by fact.
        seed: of the bootstrap.
    """
    values = np.array(list(facts.values()))
    if len(values) > 1 and (values == values[0]).all():
        # Any resample has this mean; most accuracies are 0 or 1 throughout.
        return Interval(*[float(values[0])] * 3)
    return bootstrap_interval(values, seed=seed)


def estimates(rows: Iterable[Row], *, seed: int) -> tuple[Estimate, ...]:
    """Every mean and every difference of an audit, in the order in which it asked.

    Args:
        rows: what every model said.
        seed: of the bootstrap.
    """
    cells: dict[tuple[str, str, str, str], dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        for metric, value in row.values.items():
            cell = cells.setdefault((row.section, row.phrasing, row.relation, metric), {})
            cell.setdefault(row.model, {}).setdefault(row.fact, []).append(value)
    found = []
    for key, raw in cells.items():
        models = with_controls({model: _averaged(facts) for model, facts in raw.items()})
        for model, facts in (models | differences(models)).items():
            found.append(Estimate(model, *key, *_bounds(facts, seed), len(facts)))
    return tuple(found)


def _averaged(facts: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {fact: sum(values) / len(values) for fact, values in facts.items()}


def _bounds(facts: PerFact, seed: int) -> tuple[float, float, float]:
    found = interval(facts, seed=seed)
    return found.mean, found.low, found.high
