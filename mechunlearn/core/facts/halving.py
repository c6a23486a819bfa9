"""A random half of the facts, for what is trained on one half and scored on the other."""

from __future__ import annotations

import random
from collections.abc import Iterable

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact


def halves(facts: Iterable[Fact], *, seed: int) -> tuple[Facts, Facts]:
    """Split facts at random into two halves, with all facts of a subject in the same half.

    One fact of a subject could give another away. Facts that are all about one subject are split one by one.

    Args:
        facts: the facts; of an odd number of subjects, the second half gets one more.
        seed: seed of the random generator.

    Example:
        >>> first, second = halves([Fact(f"{name} plays", name, "golf") for name in "ABCD"], seed=0)
        >>> len(first), len(second), {f.subject for f in first} & {f.subject for f in second}
        (2, 2, set())
    """
    pool = facts if isinstance(facts, Facts) else Facts(facts)
    several = len({fact.subject for fact in pool}) > 1

    def key(fact: Fact) -> str:
        return fact.subject if several else fact.prompt

    # Sorted, since the order of a set of strings differs between processes.
    unique = sorted({key(fact) for fact in pool})
    chosen = set(random.Random(seed).sample(unique, len(unique) // 2))
    return pool.where(lambda fact: key(fact) in chosen), pool.where(lambda fact: key(fact) not in chosen)
