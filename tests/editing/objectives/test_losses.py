"""Every loss: the published formula in plain floats, its gradient, and the edge of precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.handmade_readings import VOCAB, map_parts, whole_reading
from helpers.loss_cases import CASES, gradient
from hypothesis import given, settings
from hypothesis import strategies as st

from mechunlearn.errors import TrainingError

every_loss = pytest.mark.parametrize("name", CASES)
of_logits = pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.leaf == "logits"])
ROWS = st.lists(st.integers(0, 3), min_size=1, max_size=7).map(tuple)


@every_loss
@settings(max_examples=25, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 2**31), unasked=st.sets(st.integers(0, 6)))
def test_every_loss_is_the_published_formula(
    name: str, rows: tuple[int, ...], seed: int, unasked: set[int]
) -> None:
    one = whole_reading(seed, rows)
    asked = torch.tensor([i not in unasked or i == 0 for i in range(len(rows))])
    one = replace(one, labels=one.labels.where(asked, -100))
    case = CASES[name]
    assert float(case.loss(one)) == pytest.approx(case.plain(one), rel=1e-9, abs=1e-12)


@every_loss
@given(order=st.permutations(range(6)), seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_no_loss_depends_on_the_order_or_the_numbers_of_the_examples(
    name: str, order: list[int], seed: int
) -> None:
    if name == "ceu skipping":
        order = sorted(order, key=lambda i: order.index(i) if i == 0 else i)  # which token is first matters
    one, case = whole_reading(seed), CASES[name]
    other = map_parts(one, lambda part: part[torch.tensor(order)])
    other = replace(other, row=torch.tensor([9, 4, 700])[other.row])
    assert float(case.loss(other)) == pytest.approx(float(case.loss(one)), rel=1e-12)


@every_loss
def test_a_position_without_a_label_gets_no_gradient_and_gives_none(name: str) -> None:
    one = whole_reading(1)
    asked = torch.tensor([True, True, False, True, True, False])
    some, case = replace(one, labels=one.labels.where(asked, -100)), CASES[name]
    fewer = map_parts(one, lambda part: part[asked])
    assert float(case.loss(some)) == pytest.approx(float(case.loss(fewer)), rel=1e-12)
    found = gradient(case, some)
    torch.testing.assert_close(found[asked], gradient(case, fewer))
    assert (found[~asked] == 0).all()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.frozen])
def test_gradients_agree_with_finite_differences(name: str) -> None:
    one, case = whole_reading(2), CASES[name]
    leaf = getattr(one, case.leaf).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: case.loss(replace(one, **{case.leaf: x})), leaf)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_in_float32(name: str, dtype: torch.dtype) -> None:
    half = map_parts(whole_reading(3), lambda part: part.to(dtype) if part.is_floating_point() else part)
    single = map_parts(half, lambda part: part.float() if part.is_floating_point() else part)
    found = CASES[name].loss(half)
    assert found.dtype in (torch.float32, torch.float64)  # float64 comes from the target of steering
    assert float(found) == float(CASES[name].loss(single))
    assert gradient(CASES[name], half).dtype == dtype


@of_logits
@pytest.mark.parametrize("size", [80.0, 1e4, 1e30])
def test_no_loss_or_gradient_is_infinite_for_certain_or_impossible_answers(name: str, size: float) -> None:
    one, case = map_parts(whole_reading(4), lambda x: x.float() if x.is_floating_point() else x), CASES[name]
    certain = torch.arange(VOCAB)[None] == one.labels[:, None]
    for sign in (1, -1):
        if name == "flatness" and size > 1e4:
            continue  # the square of a logit, as published
        extreme = replace(one, logits=(sign * size * certain).float())
        assert case.loss(extreme).isfinite() and gradient(case, extreme).isfinite().all()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.bounded])
@given(st.integers(0, 2**31), st.floats(0.1, 50.0))
@settings(max_examples=10, deadline=None)
def test_bounded_losses_are_never_below_0(name: str, seed: int, spread: float) -> None:
    assert float(CASES[name].loss(whole_reading(seed, spread=spread))) >= -1e-12


@every_loss
def test_a_batch_that_asks_for_nothing_is_refused(name: str) -> None:
    nothing = map_parts(whole_reading(), lambda part: part[:0])
    for one in (nothing, replace(whole_reading(), labels=torch.full((6,), -100))):
        with pytest.raises(TrainingError, match="a loss was asked for no position at all"):
            CASES[name].loss(one)


@pytest.mark.parametrize(
    ("name", "missing", "declared"),
    [
        ("kl", "reference_logprobs", "log-probabilities .*reference='logprobs'"),
        ("undial", "reference_logprobs", "log-probabilities .*reference='logprobs'"),
        ("npo", "reference_label_logprobs", "log-probabilities .*reference='label_logprobs'"),
        ("steering", "hidden", "needs hidden states and none were read"),
        ("drift", "reference_hidden", "the unedited model's hidden states .*reference='hidden'"),
    ],
)
def test_a_loss_says_what_was_not_read(name: str, missing: str, declared: str) -> None:
    with pytest.raises(TrainingError, match=declared):
        CASES[name].loss(replace(whole_reading(), **dict[str, Any]({missing: None})))
