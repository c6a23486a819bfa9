"""From the rows of an audit to means over facts with intervals and to paired differences.

1. Outcomes are averaged within a fact over its phrasings of one kind, so that a fact counts once.
2. Every mean over facts has a 95 % bootstrap interval over facts.
3. Controls are averaged fact by fact. The edited model is compared with the untouched model, the gold model
   and the controls fact by fact, and these differences have intervals of their own.
4. The bootstrap resamples the same facts for all models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mechunlearn.core.estimates import EDITED, UNTOUCHED, fact_differences, fact_means, mean_interval
from mechunlearn.core.statistics import Interval

GOLD, CONTROL, CONTROLS = "gold", "control", "controls"
COMPARED = (UNTOUCHED, GOLD, CONTROLS)

PerFact = Mapping[str, float]
"""A value by fact."""


class Row(NamedTuple):
    """The outcome of one model on one question, of one probe on one fact, or of one model on one text.

    Attributes:
        model: ``"edited"``, ``"untouched"``, ``"gold"``, ``"control 1"``, …
        phrasing: ``"train"``, ``"validation"``, ``"held_out"``, ``"multiple_choice"``, or a probe's site.
        fact: the unit over which intervals are taken, named by the fact's first prompt.
        text: the model's answer, or the probe's label.
        values: ``answer`` and ``new`` (1 if that was answered), ``p_answer`` and ``p_new`` (their
            probabilities); for a text, ``nll`` in nats per token.
        chance: the accuracy of guessing among the options.
    """

    model: str
    section: str
    phrasing: str
    relation: str
    fact: str
    prompt: str
    text: str
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

    ``phrasings`` None stands for all of them.
    """
    outcomes: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        selected = row.section == section and (phrasings is None or row.phrasing in phrasings)
        if selected and metric in row.values:
            outcomes.setdefault(row.model, []).append((row.fact, row.values[metric]))
    return with_controls({model: fact_means(pairs) for model, pairs in outcomes.items()})


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
    """Subtract from the edited model each model that it is compared with, fact by fact.

    Example:
        >>> differences({"edited": {"a": 0.0}, "untouched": {"a": 1.0}})
        {'edited − untouched': {'a': -1.0}}
    """
    if EDITED not in models:
        return {}
    return {
        f"{EDITED} − {model}": fact_differences(models[EDITED], models[model])
        for model in COMPARED
        if model in models
    }


def estimates(rows: Iterable[Row], *, seed: int) -> tuple[Estimate, ...]:
    """Every mean and every difference of an audit, in the order of the questions."""
    outcomes: dict[tuple[str, str, str, str], dict[str, list[tuple[str, float]]]] = {}
    for row in rows:
        for metric, value in row.values.items():
            by_model = outcomes.setdefault((row.section, row.phrasing, row.relation, metric), {})
            by_model.setdefault(row.model, []).append((row.fact, value))
    table = []
    for key, by_model in outcomes.items():
        models = with_controls({model: fact_means(pairs) for model, pairs in by_model.items()})
        for model, facts in (models | differences(models)).items():
            # With one seed for all models the bootstrap resamples the same facts for each.
            mean = mean_interval(facts, seed=seed)
            table.append(Estimate(model, *key, mean.mean, mean.low, mean.high, len(facts)))
    return tuple(table)
