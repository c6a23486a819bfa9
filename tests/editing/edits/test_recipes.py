"""A recipe is a value: it checks itself, goes to JSON and back, and says when an edit is good enough."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from helpers.small_facts import unchecked
from hypothesis import given
from hypothesis import strategies as st

from mechunlearn.editing.edits.recipes import Optimizer, Recipe, Stop
from mechunlearn.editing.objectives.ascent import GradientDifference
from mechunlearn.editing.objectives.likelihood import Forget, Inject
from mechunlearn.editing.objectives.masking import WeightMask
from mechunlearn.editing.objectives.preference import DPO, AltPO
from mechunlearn.editing.objectives.requests import Outputs, Request
from mechunlearn.errors import TrainingError

weights = st.floats(0, 10)
shares = st.floats(0, 1)
losses = st.one_of(
    st.builds(Inject, retain=weights, text=weights),
    st.builds(Forget, retain=weights, text=weights),
    st.builds(GradientDifference, forget=weights, retain=weights, text=weights),
    st.builds(DPO, alternative=st.lists(st.text(min_size=1), min_size=1, max_size=3).map(tuple)),
    st.builds(AltPO, samples=st.integers(1, 9)),
)
objectives = losses | st.builds(WeightMask, loss=losses, patience=st.integers(0, 30))
stops = st.builds(
    Stop, goal=shares, min_retention=shares, every=st.integers(1, 100), give_up=st.none() | st.floats(0, 1)
)
optimizers = st.builds(
    Optimizer,
    st.sampled_from(["AdamW", "SGD"]),
    weight_decay=weights,
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=st.integers(0, 100),
    clip=st.none() | st.floats(1e-3, 10),
    micro_batches=st.integers(1, 8),
)
recipes = st.builds(
    Recipe,
    objectives,
    steps=st.integers(0, 1000),
    lr=st.floats(1e-8, 10),
    batch_size=st.integers(1, 100),
    seed=st.integers(-5, 2**40),
    stop=st.none() | stops,
    optimizer=optimizers,
)


@given(recipes)
def test_a_recipe_goes_to_json_and_back(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@dataclass(frozen=True)
class OneOfTheirOwn:
    """An objective of the user's."""

    weight: complex = 1j
    aim: ClassVar[Literal["new", "forget"]] = "forget"
    requests: ClassVar[Mapping[str, Request]] = {}

    def __call__(self, readings: Mapping[str, Outputs]) -> dict[str, Any]:
        return {}


def test_a_users_objective_is_named_in_json_and_cannot_be_made_again() -> None:
    recipe = Recipe(OneOfTheirOwn())
    assert recipe.to_json()["objective"] == {"name": "OneOfTheirOwn(weight=1j)", "fields": None}
    assert Recipe.from_json(recipe.to_json()) is None


def test_an_objective_that_wraps_a_users_own_cannot_be_made_again() -> None:
    recipe = Recipe(WeightMask(loss=OneOfTheirOwn()))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) is None


def test_a_recipe_of_an_older_version_is_read_with_the_options_of_its_time() -> None:
    record = Recipe(Inject(), steps=7).to_json()
    for later in ("schedule", "warmup", "clip", "micro_batches"):
        del record["optimizer"][later]
    del record["stop"]["give_up"]
    assert Recipe.from_json(record) == Recipe(Inject(), steps=7)


@given(optimizers, st.integers(0, 1000), st.integers(0, 1000))
def test_a_rate_is_a_share_of_the_peak(optimizer: Optimizer, step: int, steps: int) -> None:
    assert 0 <= optimizer.rate(min(step, steps), steps) <= 1
    assert optimizer.rate(optimizer.warmup, steps) == 1 or optimizer.warmup > steps


def test_an_objective_that_only_shares_a_name_is_not_taken_for_ours() -> None:
    namesake = type("Inject", (OneOfTheirOwn,), {})()
    assert Recipe.from_json(Recipe(namesake).to_json()) is None


def test_the_summary_says_whether_training_may_end_early() -> None:
    assert "up to 200 steps of AdamW at lr 0.001, seed 0" in Recipe(Inject()).summary
    assert "), 9 steps of SGD at lr 0.5, seed 3" in Recipe(
        Inject(), steps=9, lr=0.5, seed=3, stop=None, optimizer=Optimizer("SGD")
    ).summary  # fmt: skip


@given(stops, shares, shares, shares)
def test_nothing_is_gained_beyond_the_goal_and_more_is_never_worse(
    stop: Stop, success: float, retention: float, more: float
) -> None:
    value = stop.value(success, retention)
    assert stop.value(max(success, more), retention) >= value <= stop.value(success, max(retention, more))
    there = success >= stop.goal and retention >= stop.min_retention
    lost = stop.give_up is not None and retention < stop.give_up
    assert stop.reached(success, retention) == (there or lost)
    if there:
        assert value == stop.goal + stop.min_retention >= stop.value(more, retention)


def test_a_stop_by_default_asks_for_98_and_95_percent() -> None:
    assert Stop().reached(0.98, 0.95)
    assert not Stop().reached(0.97, 1.0) and not Stop().reached(1.0, 0.94)
    assert Stop().value(0.5, 0.9) == pytest.approx(1.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps is -1; give a whole number from 0"),
        ({"batch_size": 0}, "batch_size is 0; give a whole number from 1"),
        ({"lr": 0.0}, "lr is 0.0; give a number above 0"),
        ({"lr": math.nan}, "lr is nan; give a number above 0"),
        ({"objective": Inject}, r"objective is <class .*Inject'>; give .* such as objectives.Inject\(\)"),
        ({"objective": "Inject"}, "objective is 'Inject'; give an objective such as"),
        ({"steps": 2.5}, "steps is 2.5; give a whole number from 0"),
        ({"lr": "1e-3"}, "lr is '1e-3'; give a number above 0"),
        ({"stop": True}, "stop is True; give a Stop"),
        ({"optimizer": "SGD"}, "optimizer is 'SGD'; give an Optimizer"),
    ],
)  # fmt: skip
def test_an_option_out_of_range_says_what_to_give(options: Mapping[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(TrainingError, match=message):
        Recipe(**{"objective": Inject(), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": 98}, "goal is 98; give a share from 0 to 1"),
        ({"min_retention": -0.5}, "min_retention is -0.5; give a share from 0 to 1"),
        ({"every": 0}, "every is 0; give a whole number from 1"),
    ],
)
def test_a_stop_out_of_range_says_what_to_give(options: Mapping[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(TrainingError, match=message):
        Stop(**options)
