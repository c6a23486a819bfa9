"""Means over facts and paired differences: a fact counts once, and the bootstrap is that of statistics."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mechunlearn.core.estimates import fact_differences, fact_means, mean_interval
from mechunlearn.core.statistics import bootstrap_interval, paired_difference

SHARES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=9)


@given(SHARES, st.integers(0, 3))
def test_intervals_are_the_bootstrap_ones(values: list[float], seed: int) -> None:
    actual = mean_interval(dict(enumerate(values)), seed=seed)
    expected = bootstrap_interval(values, seed=seed)
    assert np.allclose([actual.mean, actual.low, actual.high], [expected.mean, expected.low, expected.high])


@given(SHARES, st.integers(0, 3))
def test_the_interval_of_differences_is_that_of_pairs(values: list[float], seed: int) -> None:
    first, second = dict(enumerate(values)), dict(enumerate(reversed(values)))
    actual = mean_interval(fact_differences(first, second), seed=seed)
    expected = paired_difference(values, values[::-1], seed=seed)
    assert np.allclose([actual.mean, actual.low, actual.high], [expected.mean, expected.low, expected.high])


def test_a_fact_counts_once_however_often_it_is_asked() -> None:
    means = fact_means([("a", 1.0), ("a", 1.0), ("b", 0.0), ("a", 0.0)])
    assert means == {"a": 2 / 3, "b": 0.0} and list(means) == ["a", "b"]


def test_facts_that_only_one_set_has_are_left_out_of_differences() -> None:
    assert fact_differences({"a": 1.0, "b": 0.5}, {"b": 1.0, "c": 0.0}) == {"b": -0.5}
    nothing = mean_interval(fact_differences({"a": 1.0}, {"c": 0.0}), seed=0)
    assert math.isnan(nothing.mean) and math.isnan(nothing.low)
