"""Shares of facts that models answer in some way, with intervals: what experiments on edits tabulate.

1. Every fact is asked in each of its training, validation and held-out phrasings, and its outcomes are
   averaged within a kind of phrasing, so that a fact counts once.
2. A share is the mean over facts, with its 95 % bootstrap interval over facts; two models are compared by
   the differences of the same facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Phrasing
from mechunlearn.core.statistics import Interval, bootstrap_interval, paired_difference
from mechunlearn.errors import FactError, one_of
from mechunlearn.models.scoring.passes import HasModel
from mechunlearn.models.scoring.scorer import Outcome, score

if TYPE_CHECKING:
    import pandas as pd

EDITED, UNTOUCHED = "edited", "untouched"
CHANGE = f"{EDITED} − {UNTOUCHED}"
PHRASINGS: tuple[Phrasing, ...] = get_args(Phrasing)

Metric = Callable[[Outcome], Bool[np.ndarray, "fact"]]


class Share(NamedTuple):
    """A mean over facts, or a mean paired difference, with its 95 % interval.

    Attributes:
        model: ``"untouched"``, ``"edited"``, or their difference ``"edited − untouched"``.
        facts: which facts were asked, such as ``"maintained"``.
        phrasing: ``"train"``, ``"validation"`` or ``"held_out"``.
        metric: what was counted, such as ``"answer"``: the fact's own answer was given.
        value: the mean.
        low: lower end of the interval; not-a-number for a single fact.
        high: upper end.
        n: number of facts.
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
    """The fact's own answer was given."""
    return outcome.correct


def new(outcome: Outcome) -> Bool[np.ndarray, "fact"]:
    """The new answer was given."""
    return outcome.says_new


def forgotten(outcome: Outcome) -> Bool[np.ndarray, "fact"]:
    """The fact's own answer was not given."""
    return ~outcome.correct


def success(aim: str) -> Metric:
    """What counts as success on facts to forget.

    Args:
        aim: the objective's, ``"new"`` or ``"forget"``.
    """
    return new if aim == "new" else forgotten


def shares(
    models: Mapping[str, HasModel], facts: Facts, name: str, metrics: Mapping[str, Metric], *, seed: int
) -> tuple[Share, ...]:
    """Ask models the same facts in every phrasing there is.

    Args:
        models: by name; where an edited and an untouched one are among them, their difference is added.
        facts: what is asked.
        name: what to call these facts.
        metrics: what to count, by name.
        seed: of the bootstrap.
    """
    found = []
    for phrasing in PHRASINGS:
        asked = [(row, ask) for row, fact in enumerate(facts) for ask in fact.phrasings(phrasing)]
        if not asked:
            continue
        rows = np.array([row for row, _ in asked])
        said = {model: score(runs, [ask for _, ask in asked]) for model, runs in models.items()}
        for metric, count in metrics.items():
            means = {model: _by_fact(rows, count(outcome)) for model, outcome in said.items()}
            bounds = {model: bootstrap_interval(values, seed=seed) for model, values in means.items()}
            if EDITED in means and UNTOUCHED in means:
                bounds[CHANGE] = paired_difference(means[EDITED], means[UNTOUCHED], seed=seed)
            for model, at in bounds.items():
                n = len(set(rows.tolist()))
                found.append(Share(model, name, phrasing, metric, at.mean, at.low, at.high, n))
    return tuple(found)


def frame(table: Sequence[Share]) -> pd.DataFrame:
    """The shares in pandas, one a row."""
    import pandas as pd

    return pd.DataFrame(table, columns=Share._fields)


def pick(table: Iterable[Share], **wanted: str) -> Interval:
    """The one share of a table with these fields.

    Args:
        table: the shares.
        **wanted: its model, facts, phrasing and metric.

    Raises:
        FactError: nothing was measured under a name; says under which there is something.
    """
    left = list(table)
    for field, value in wanted.items():
        there = list(dict.fromkeys(getattr(share, field) for share in left))
        if value not in there:
            raise FactError(one_of(field, value, there))
        left = [share for share in left if getattr(share, field) == value]
    return left[0].interval


def require_facts(facts: Any) -> None:
    """Refuse what is not a collection of facts.

    Raises:
        FactError: it is something else.
    """
    if not isinstance(facts, Facts):
        raise FactError(f"the facts are a {type(facts).__name__}; give them as Facts, as in Facts([...])")


def _by_fact(
    rows: Int[np.ndarray, "question"], values: Bool[np.ndarray, "question"]
) -> Float[np.ndarray, "fact"]:
    """Means over the questions of each fact."""
    return np.array([values[rows == row].mean() for row in np.unique(rows)], dtype=np.float64)
