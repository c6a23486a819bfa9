"""From outcomes of questions to means over facts with intervals, and to differences of the same facts.

1. ``fact_means`` averages the outcomes of all questions about one fact, so that a fact counts once.
2. ``mean_interval`` is the mean over facts with its 95 % bootstrap interval over facts.
3. ``fact_differences`` subtracts two sets of outcomes fact by fact; ``mean_interval`` of the result is the
   paired difference. Intervals of one seed resample the same facts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import numpy as np

from mechunlearn.core.statistics import Interval, bootstrap_interval

EDITED, UNTOUCHED = "edited", "untouched"
CHANGE = f"{EDITED} − {UNTOUCHED}"

Key = TypeVar("Key", bound=Hashable)


def fact_means(outcomes: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    """Average outcomes (key of a fact, number) within every fact, in the order of first appearance.

    Example:
        >>> fact_means([("Mary plays", 1.0), ("Ann plays", 1.0), ("Mary plays", 0.0)])
        {'Mary plays': 0.5, 'Ann plays': 1.0}
    """
    grouped: dict[Key, list[float]] = {}
    for key, value in outcomes:
        grouped.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in grouped.items()}


def fact_differences(first: Mapping[Key, float], second: Mapping[Key, float]) -> dict[Key, float]:
    """Subtract the second from the first, fact by fact, for the facts that both have.

    Example:
        >>> fact_differences({"Mary plays": 0.5, "Ann plays": 1.0}, {"Mary plays": 1.0})
        {'Mary plays': -0.5}
    """
    return {key: value - second[key] for key, value in first.items() if key in second}


def mean_interval(values: Mapping[Key, float], *, seed: int) -> Interval:
    """Return the mean over facts, each with one number, with its bootstrap interval."""
    data = np.array(list(values.values()), dtype=np.float64)
    if len(data) > 1 and (data == data[0]).all():
        # Every resample has this mean; most accuracies are 0 or 1 throughout, so this saves much time.
        return Interval(*[float(data[0])] * 3)
    return bootstrap_interval(data, seed=seed)
