"""Intervals are seeded, contain what they should, and are honest about too few facts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechunlearn.core import statistics
from mechunlearn.core.statistics import Interval, bootstrap_interval, paired_difference


def test_an_interval_prints_as_in_a_table() -> None:
    assert str(Interval(0.84, 0.78, 0.9)) == ".84 [.78, .90]"
    assert str(Interval(1.0, 0.996, 1.0)) == "1.00 [1.00, 1.00]"
    assert str(Interval(-0.12, -0.2, -0.001)) == "-.12 [-.20, .00]"
    assert str(Interval(10.05, 9.5, 20.0)) == "10.05 [9.50, 20.00]"
    assert str(Interval(0.0, math.nan, math.nan)) == ".00 [–, –]"


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_a_share_has_the_binomial_interval() -> None:
    interval = bootstrap_interval([True] * 700 + [False] * 300, seed=0)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert interval.mean == 0.7
    assert interval.low == pytest.approx(0.7 - half, abs=0.004)
    assert interval.high == pytest.approx(0.7 + half, abs=0.004)


def test_ninety_five_intervals_in_a_hundred_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(200, 60))
    held = [0.0 in bootstrap_interval(draw, seed=i, samples=500) for i, draw in enumerate(draws)]
    assert 0.89 <= np.mean(held) <= 0.99


def test_blocks_change_nothing_but_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    at_once = bootstrap_interval(values, seed=3)
    monkeypatch.setattr(statistics, "_BLOCK", 500)
    assert bootstrap_interval(values, seed=3) == at_once


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.integers(0, 2**32))
@settings(max_examples=50)
def test_bounds_lie_within_the_values(values: list[float], seed: int) -> None:
    interval = bootstrap_interval(values, seed=seed, samples=100)
    slack = 1e-9 * max(map(abs, values)) + 1e-300
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


def test_differences_are_paired_by_fact() -> None:
    first = np.random.default_rng(0).normal(scale=10.0, size=100)
    paired = paired_difference(first + 0.5, first, seed=0)
    assert (paired.low, paired.high) == pytest.approx((0.5, 0.5))
    assert paired_difference([True, False], [False, False], seed=0).mean == 0.5


def test_no_fact_gives_nothing_and_one_gives_no_bounds() -> None:
    nothing = bootstrap_interval([], seed=0)
    assert math.isnan(nothing.mean) and math.isnan(nothing.low) and str(nothing) == "– [–, –]"
    assert str(bootstrap_interval([0.5], seed=0)) == ".50 [–, –]"
    assert math.isnan(paired_difference([], [], seed=0).mean)


def test_what_cannot_be_computed_says_why() -> None:
    with pytest.raises(ValueError, match=r"level must lie between 0 and 1, as 0.95 does; not 95.0"):
        bootstrap_interval([1.0, 2.0], seed=0, level=95.0)
    with pytest.raises(ValueError, match="samples must be 1 or more, such as 2000; not 0"):
        bootstrap_interval([1.0, 2.0], seed=0, samples=0)
    with pytest.raises(ValueError, match="first has 1 values and second 2; give one per fact"):
        paired_difference([1.0], [1.0, 2.0], seed=0)
