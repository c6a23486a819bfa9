"""Shares of facts that models answer in some way, with intervals: the tables of experiments on edits.

1. Every fact is asked in each of its training, validation and held-out phrasings, and its outcomes are
   averaged within a kind of phrasing, so that a fact counts once.
2. A share is the mean over facts, with its 95 % bootstrap interval over facts; two models are compared by
   the differences of the same facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool

from mechunlearn.core.estimates import (
    CHANGE,
    EDITED,
    UNTOUCHED,
    fact_differences,
    fact_means,
    mean_interval,
)
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.kinds import Phrasing
from mechunlearn.core.statistics import Interval
from mechunlearn.errors import FactError, one_of
from mechunlearn.models.scoring.passes import HasModel
from mechunlearn.models.scoring.scorer import Outcome, score

if TYPE_CHECKING:
    import pandas as pd

PHRASINGS: tuple[Phrasing, ...] = get_args(Phrasing)

Metric = Callable[[Outcome], Bool[np.ndarray, "fact"]]


class Share(NamedTuple):
    """A mean over ``n`` facts, or a mean paired difference, with its 95 % interval.

    ``model`` is ``"untouched"``, ``"edited"`` or their difference, ``"edited − untouched"``. ``facts`` names
    the set of facts, such as ``"maintained"``; ``metric`` the outcome that is counted, such as ``"answer"``:
    the model gives the fact's answer. The interval of a single fact is not-a-number.
    """

    model: str
    facts: str
    phrasing: str
    metric: str
    value: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> Interval:
        """Value and bounds together."""
        return Interval(self.value, self.low, self.high)


def answer(outcome: Outcome) -> Bool[np.ndarray, "fact"]:
    """Whether the model gives the fact's answer."""
    return outcome.correct


def new(outcome: Outcome) -> Bool[np.ndarray, "fact"]:
    """Whether the model gives the new answer."""
    return outcome.says_new


def forgotten(outcome: Outcome) -> Bool[np.ndarray, "fact"]:
    """Whether the model does not give the fact's answer."""
    return ~outcome.correct


def success(aim: str) -> Metric:
    """The outcome that counts as success for an objective whose aim is ``"new"`` or ``"forget"``."""
    return new if aim == "new" else forgotten


def shares(
    models: Mapping[str, HasModel], facts: Facts, name: str, metrics: Mapping[str, Metric], *, seed: int
) -> tuple[Share, ...]:
    """Shares of models that are asked the same facts, a set named ``name``, in all of their phrasings.

    ``metrics`` are the outcomes to count. If an edited and an untouched model are among ``models``, their
    difference is added. ``seed`` is that of the bootstrap.
    """
    table = []
    for phrasing in PHRASINGS:
        pairs = [(row, phrased) for row, fact in enumerate(facts) for phrased in fact.phrasings(phrasing)]
        if not pairs:
            continue
        rows = [row for row, _ in pairs]
        outcomes = {model: score(hm, [phrased for _, phrased in pairs]) for model, hm in models.items()}
        for metric, count in metrics.items():
            means = {
                model: fact_means(zip(rows, count(outcome).tolist(), strict=True))
                for model, outcome in outcomes.items()
            }
            if EDITED in means and UNTOUCHED in means:
                means[CHANGE] = fact_differences(means[EDITED], means[UNTOUCHED])
            for model, values in means.items():
                mean = mean_interval(values, seed=seed)
                share = Share(model, name, phrasing, metric, mean.mean, mean.low, mean.high, len(values))
                table.append(share)
    return tuple(table)


def frame(table: Sequence[Share]) -> pd.DataFrame:
    """The shares in pandas, one a row."""
    import pandas as pd

    return pd.DataFrame(table, columns=Share._fields)


def pick(table: Iterable[Share], **fields: str) -> Interval:
    """The one share with these fields; a ``FactError`` lists the names if there is none."""
    shares = list(table)
    for field, value in fields.items():
        choices = list(dict.fromkeys(getattr(share, field) for share in shares))
        if value not in choices:
            raise FactError(one_of(field, value, choices))
        shares = [share for share in shares if getattr(share, field) == value]
    return shares[0].interval


def require_facts(facts: Any) -> None:
    """Raise a ``FactError`` for anything but ``Facts``."""
    if not isinstance(facts, Facts):
        raise FactError(f"the facts are a {type(facts).__name__}; give them as Facts, as in Facts([...])")
