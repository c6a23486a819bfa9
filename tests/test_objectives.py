"""Losses against values worked by hand, and what each objective reads and returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import unchecked
from torch import Tensor

from mechunlearn import objectives
from mechunlearn.errors import TrainingError
from mechunlearn.objectives import Forget, GradientDifference, Inject, Objective, Read, Reading
from mechunlearn.objectives.losses import answer_logprobs, log1m_prob, nll


def reading(logits: Any, labels: list[int], row: list[int]) -> Reading:
    return Reading(logits=torch.as_tensor(logits), labels=torch.tensor(labels), row=torch.tensor(row))


def shares(*rows: list[float]) -> Tensor:
    """Logits whose softmax gives these shares."""
    return torch.tensor(rows, dtype=torch.float64).log()


# Two answers: "b" (p = 3/4), and the two tokens "a b" (p = 1/2 * 1/4 = 1/8).
TWO = reading(shares([0.25, 0.75], [0.5, 0.5], [0.75, 0.25]), [1, 0, 1], [0, 1, 1])


def margin(value: float) -> tuple[Reading, Tensor]:
    """One label whose logit is so far above two others, and the leaf that holds the logits."""
    leaf = torch.tensor([[value, 0.0, 0.0]], requires_grad=True)
    return reading(leaf, [0], [0]), leaf


def test_whole_answers_are_scored_token_by_token() -> None:
    assert answer_logprobs(TWO).exp().tolist() == pytest.approx([3 / 4, 1 / 8])
    assert float(nll(TWO)) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3)


def test_one_minus_p_is_of_the_whole_answer() -> None:
    assert float(log1m_prob(TWO)) == pytest.approx((math.log(1 / 4) + math.log(7 / 8)) / 2)
    half = reading(shares([0.5, 0.5]), [0], [0])
    assert float(log1m_prob(half)) == pytest.approx(math.log(0.5), abs=1e-15)


@pytest.mark.parametrize("value", [10.0, 20.0, 40.0, 80.0])
def test_a_certain_answer_has_an_exact_loss_and_a_gradient_of_ordinary_size(value: float) -> None:
    one, leaf = margin(value)
    loss = -log1m_prob(one)
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert float(loss.detach()) == pytest.approx(value - math.log(2), rel=1e-3)
    assert leaf.grad[0].tolist() == pytest.approx([1.0, -0.5, -0.5], rel=1e-3)


@pytest.mark.parametrize("value", [200.0, 1e6, -200.0, -1e6])
def test_the_loss_and_its_gradient_stay_finite_at_any_logit(value: float) -> None:
    one, leaf = margin(value)
    loss = -log1m_prob(one)
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None and leaf.grad.isfinite().all() and loss.isfinite()
    assert value > 0 or float(loss.detach()) == pytest.approx(0.0, abs=1e-30)


@given(st.integers(0, 2**31), st.integers(1, 4), st.floats(0.1, 3.0))
def test_losses_agree_with_the_plain_formula_in_float64(seed: int, tokens: int, spread: float) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(2 * tokens, 5, dtype=torch.float64, generator=random)
    labels = torch.randint(5, (2 * tokens,), generator=random)
    one = Reading(logits=logits, labels=labels, row=torch.arange(2).repeat_interleave(tokens))
    per_token = logits.softmax(-1)[torch.arange(2 * tokens), labels]
    p = per_token.reshape(2, tokens).prod(-1)
    assert float(log1m_prob(one)) == pytest.approx(float((1 - p).log().mean()), rel=1e-9)
    assert answer_logprobs(one).exp().tolist() == pytest.approx(p.tolist(), rel=1e-9)
    assert float(nll(one)) == pytest.approx(-float(per_token.log().mean()), rel=1e-9)


def test_half_precision_logits_are_read_in_float32() -> None:
    logits = torch.randn(1, 300).bfloat16()
    half, single = reading(logits, [3], [0]), reading(logits.float(), [3], [0])
    assert nll(half).dtype == log1m_prob(half).dtype == torch.float32
    assert float(nll(half)) == float(nll(single))
    assert float(log1m_prob(half)) == float(log1m_prob(single))


OTHER = reading(shares([0.1, 0.9]), [1], [0])
READINGS: Mapping[str, Reading] = {"forget": TWO, "retain": OTHER, "text": TWO}


@pytest.mark.parametrize(
    ("objective", "name", "value", "aim", "answer"),
    [
        (Inject(retain=2.0, text=3.0), "inject", float(nll(TWO)), "new", "new"),
        (Forget(retain=2.0, text=3.0), "forget", -float(log1m_prob(TWO)), "forget", "answer"),
        (GradientDifference(0.5, 2.0, 3.0), "ascent", -0.5 * float(nll(TWO)), "forget", "answer"),
    ],
)
def test_an_objective_returns_its_weighted_terms(
    objective: Any, name: str, value: float, aim: str, answer: str
) -> None:
    terms = {key: float(term) for key, term in objective(READINGS).items()}
    kept = {"retain": -2 * math.log(0.9), "text": 3 * float(nll(TWO))}
    assert terms == pytest.approx({name: value, **kept})
    assert isinstance(objective, Objective) and objective.aim == aim
    reads = {"forget": Read("forget", answer=answer), "retain": Read("retain"), "text": Read("text")}  # type: ignore[arg-type]
    assert objective.reads == reads


@pytest.mark.parametrize("kind", [Inject, Forget, GradientDifference])
def test_a_term_of_weight_0_is_neither_read_nor_returned(kind: Any) -> None:
    objective = kind(retain=0.0, text=0.0)
    assert set(objective.reads) == {"forget"}
    assert len(objective({"forget": TWO})) == 1


def test_objectives_are_values_that_print_their_fields() -> None:
    assert Inject() == Inject(retain=1.0, text=1.0) and hash(Inject()) == hash(Inject())
    assert repr(Forget(text=0.5)) == "Forget(retain=1.0, text=0.5)"


def test_the_public_names_are_pinned() -> None:
    assert objectives.__all__ == ["Forget", "GradientDifference", "Inject", "Objective", "Read", "Reading"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "test"}, "split of a Read must be one of 'forget', 'retain' or 'text'; not 'test'"),
        ({"split": "forget", "answer": "old"}, "answer of a Read must be .*'foil'; not 'old'"),
        ({"split": "text", "positions": "last"}, "positions of a Read must be .*'all'; not 'last'"),
    ],
)
def test_a_read_of_something_unknown_is_refused(fields: Any, message: str) -> None:
    with unchecked(), pytest.raises(TrainingError, match=message):
        Read(**fields)
