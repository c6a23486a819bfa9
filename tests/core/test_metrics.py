"""Metrics are the textbook's, whole answers, and blind to what is not asked."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from mechunlearn.core import metrics

LOGITS = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0], [9.0, -9.0]]])
LABELS = torch.tensor([[1, 0, -100]])


def test_an_answer_is_as_likely_as_its_tokens_one_after_the_other() -> None:
    assert torch.allclose(metrics.token_logprobs(LOGITS, LABELS).exp(), torch.tensor([[0.75, 0.8, 1.0]]))
    assert torch.allclose(metrics.answer_logprob(LOGITS, LABELS).exp(), torch.tensor([0.6]))
    assert torch.allclose(metrics.answer_logprob(LOGITS, LABELS), torch.tensor([math.log(0.6)]))


def test_half_precision_logits_are_read_in_float32() -> None:
    value = metrics.answer_logprob(LOGITS.bfloat16(), LABELS)
    assert value.dtype == torch.float32
    assert metrics.answer_logprob(LOGITS.double(), LABELS).dtype == torch.float64


def test_divergence_agrees_with_torch_and_stands_impossible_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(3, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    assert torch.allclose(metrics.kl(p, q), expected)
    p[:, 0] = q[:, 0] = -torch.inf
    assert metrics.kl(p, q).isfinite().all()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8), st.data())
def test_the_rank_is_the_place_in_the_order(values: list[int], data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, len(values) - 1))
    rank = metrics.rank(torch.tensor([values], dtype=torch.float32), torch.tensor([chosen]))
    assert rank.item() == sorted(values, reverse=True).index(values[chosen])
