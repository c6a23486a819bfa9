"""Losses against values worked by hand, and in their limits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import slow_losses as slow
from helpers.handmade_readings import TWO, VOCAB, reading, shares, whole_reading
from helpers.loss_cases import CASES, Case, gradient, unlike
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechunlearn.editing.objectives import hidden_losses, losses
from mechunlearn.editing.objectives.losses import answer_logprobs, log1m_prob, nll, npo
from mechunlearn.editing.objectives.requests import Outputs


def margin(value: float) -> tuple[Outputs, Tensor]:
    """One label whose logit is so far above two others, and the leaf that holds the logits."""
    leaf = torch.tensor([[value, 0.0, 0.0]], requires_grad=True)
    return reading(leaf, [0], [0]), leaf


# -- likelihood -----------------------------------------------------------------------------------------


def test_whole_answers_are_scored_token_by_token() -> None:
    assert answer_logprobs(TWO).exp().tolist() == pytest.approx([3 / 4, 1 / 8])
    assert float(nll(TWO)) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3)


def test_one_minus_p_is_of_the_whole_answer() -> None:
    assert float(log1m_prob(TWO)) == pytest.approx((math.log(1 / 4) + math.log(7 / 8)) / 2)
    half = reading(shares([0.5, 0.5]), [0], [0])
    assert float(log1m_prob(half)) == pytest.approx(math.log(0.5), abs=1e-15)


@pytest.mark.parametrize(("threshold", "kept"), [(math.log(0.1), 2), (math.log(0.2), 1), (-0.1, 0)])
def test_answers_below_the_threshold_contribute_nothing_and_still_count(threshold: float, kept: int) -> None:
    both = [math.log(1 / 4), math.log(7 / 8)]
    assert float(log1m_prob(TWO, threshold=threshold)) == pytest.approx(sum(both[:kept]) / 2)
    leaf = TWO.logits.clone().requires_grad_()
    log1m_prob(replace(TWO, logits=leaf), threshold=threshold).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert (leaf.grad != 0).any(-1).tolist() == [kept > 0, kept > 1, kept > 1]


@pytest.mark.parametrize("value", [10.0, 20.0, 80.0, 200.0, 1e6])
def test_a_certain_answer_has_an_exact_loss_and_a_gradient_of_ordinary_size(value: float) -> None:
    one, leaf = margin(value)
    loss = -log1m_prob(one)
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert float(loss.detach()) == pytest.approx(value - math.log(2), rel=1e-3)
    assert leaf.grad[0].tolist() == pytest.approx([1.0, -0.5, -0.5], rel=1e-3)


@pytest.mark.parametrize("value", [-200.0, -1e6])
def test_an_answer_that_is_gone_costs_nothing(value: float) -> None:
    one, leaf = margin(value)
    loss = -log1m_prob(one)
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-30)


def test_certain_tokens_of_a_long_answer_keep_every_digit() -> None:
    leaf = torch.tensor([[90.0, 0.0, 0.0], [100.0, 0.0, 0.0]], requires_grad=True)
    loss = -log1m_prob(reading(leaf, [0, 0], [0, 0]))
    expected = 90 - math.log(2) - math.log1p(math.exp(-10))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


# -- keeping --------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_the_divergence_is_0_with_no_gradient_where_nothing_changed(seed: int) -> None:
    one = whole_reading(seed)
    same = replace(one, reference_logprobs=one.logits.log_softmax(-1))
    assert float(losses.kl(one)) > 0
    assert float(losses.kl(same)) == pytest.approx(0.0, abs=1e-12)
    assert gradient(CASES["kl"], same).abs().max() < 1e-12


def test_the_divergence_weighs_by_the_unedited_model() -> None:
    one = reading(shares([0.25, 0.75]), [0], [0], reference_logprobs=shares([0.5, 0.5]))
    assert float(losses.kl(one)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    ruled_out = replace(one, reference_logprobs=torch.tensor([[0.0, -torch.inf]]))
    assert float(losses.kl(ruled_out)) == pytest.approx(math.log(4))
    assert gradient(CASES["kl"], ruled_out).isfinite().all()


# -- preference -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_preference_losses_start_at_exactly_two_over_beta_times_log_2(beta: float) -> None:
    one = whole_reading(5)
    start = replace(one, reference_label_logprobs=losses.token_logprobs(one))
    other = unlike(start)
    other = replace(other, reference_label_logprobs=losses.token_logprobs(other))
    assert float(npo(start, beta=beta)) == pytest.approx(2 / beta * math.log(2), rel=1e-15)
    assert float(losses.dpo(other, start, beta=beta)) == pytest.approx(2 / beta * math.log(2), rel=1e-15)
    if beta == 0.1:
        assert float(npo(start, beta=beta)) == pytest.approx(13.863, abs=5e-4)


def test_npo_tends_to_gradient_ascent_as_beta_tends_to_0() -> None:
    one = whole_reading(6)
    whole = Case(lambda r: answer_logprobs(r).mean(), slow.nll)
    tiny = Case(lambda r: npo(r, beta=1e-9), slow.nll)
    torch.testing.assert_close(gradient(tiny, one), gradient(whole, one), rtol=1e-6, atol=1e-9)


def test_npo_sums_over_tokens_and_simnpo_divides_by_the_length() -> None:
    short = reading(shares([0.25, 0.75]), [0], [0], reference_label_logprobs=torch.zeros(1))
    long = reading(shares(*[[0.25, 0.75]] * 3), [0] * 3, [0] * 3, reference_label_logprobs=torch.zeros(3))
    first, second = (float(losses.simnpo(one, beta=2.0, delta=0.0)) for one in (short, long))
    assert first == pytest.approx(second) == pytest.approx(-math.log(1 / (1 + 1 / 16)))
    assert float(npo(short, beta=1.0)) == pytest.approx(2 * math.log(1 + 1 / 4))
    assert float(npo(long, beta=1.0)) == pytest.approx(2 * math.log(1 + 1 / 64))


def test_dpo_compares_the_answers_of_each_question() -> None:
    before = torch.tensor([math.log(0.5)], dtype=torch.float64)
    win = reading(shares([0.8, 0.2]), [0], [3], reference_label_logprobs=before)
    lose = reading(shares([0.8, 0.2]), [1], [3], reference_label_logprobs=before)
    assert float(losses.dpo(win, lose, beta=2.0)) == pytest.approx(math.log(1 + 1 / 16))  # odds of 4, squared


# -- distillation ---------------------------------------------------------------------------------------


def test_undial_never_penalises_a_token_that_is_no_label() -> None:
    logits = torch.zeros(3, 120, dtype=torch.float64)
    one = reading(logits, [5, -100, -100], [0, 0, 0], reference_logprobs=logits.log_softmax(-1))
    found = gradient(Case(lambda r: losses.undial(r, beta=10.0), slow.nll), one)
    assert (found[1:] == 0).all()  # V - 100 is token 20, which a label of -100 would reach
    assert found[0, 5] > 0 > found[0, 20] and found[0, 20] == found[0, 21]


def test_undial_is_least_where_the_model_is_its_teacher() -> None:
    one = whole_reading(7)
    assert one.reference_logprobs is not None
    label = torch.arange(VOCAB)[None] == one.labels[:, None]
    taught = replace(one, logits=one.reference_logprobs - 3.0 * label)
    assert gradient(CASES["undial"], taught).abs().max() < 1e-12
    assert float(CASES["undial"].loss(taught)) < float(CASES["undial"].loss(one))


def test_ceu_pushes_the_answer_with_p_and_the_others_by_their_shares() -> None:
    one = reading(shares([0.6, 0.3, 0.1]), [0], [0])
    found = gradient(CASES["ceu"], one)[0]  # p - q, with q = (0, 3/4, 1/4)
    assert found.tolist() == pytest.approx([0.6, 0.3 - 0.75, 0.1 - 0.25])
    gone = gradient(CASES["ceu"], reading(torch.tensor([[-90.0, 1.0, 2.0]]), [0], [0]))
    assert gone.abs().max() < 1e-6


def test_ceu_skips_first_tokens_and_never_a_whole_answer() -> None:
    one = replace(whole_reading(8), row=torch.tensor([0, 1, 1, 1, 1, 2]))
    moved = gradient(Case(lambda r: losses.ceu(r, skip=2), slow.nll), one).abs().sum(-1) > 0
    assert moved.tolist() == [True, False, False, True, True, True]


# -- weighted ascent ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("power", "doubt"), [(0.0, 0.0), (1.0, 0.0), (5.0, 1.0)])
def test_the_weights_of_an_ascent_scale_its_gradient_and_have_none(power: float, doubt: float) -> None:
    one = whole_reading(9)
    p = losses.token_logprobs(one).exp()
    found = gradient(Case(lambda r: losses.weighted_ascent(r, power=power, doubt=doubt), slow.nll), one)
    plain = -gradient(CASES["nll"], one)
    torch.testing.assert_close(found, (p**power * (1 - p) ** doubt)[:, None] * plain)


def test_impossible_and_certain_tokens_weigh_nothing() -> None:
    logits = torch.tensor([[-torch.inf, 0.0], [200.0, 0.0]])
    one = reading(logits, [0, 0], [0, 1])
    assert float(losses.weighted_ascent(one, power=1.0, doubt=1.0)) == 0
    assert gradient(CASES["satimp"], one).isfinite().all()


# -- logits and hidden states ---------------------------------------------------------------------------


def test_flat_logits_are_flat_and_a_shift_of_all_changes_nothing() -> None:
    assert float(losses.flatness(reading([[3.0, 3.0, 3.0]], [0], [0]))) == 0
    one = reading([[5.0, 1.0, 0.0]], [2], [0])
    assert float(losses.flatness(one)) == pytest.approx(9.0)
    assert float(losses.flatness(replace(one, logits=one.logits + 4))) == pytest.approx(9.0)


def test_a_state_counts_by_its_example_also_if_lengths_differ() -> None:
    hidden = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
    one = reading(torch.zeros(4, 0), [1, 1, 1, 1], [0, 1, 1, 1], hidden=hidden)
    # Example 0: 4/2 = 2. Example 1: (0 + 0 + 16/2) / 3 = 8/3. Their mean is 7/3; over positions it is 10/4.
    assert float(hidden_losses.steering(one, torch.zeros(2))) == pytest.approx(7 / 3)


def test_states_as_they_were_have_no_drift_and_are_wholly_aligned() -> None:
    one = whole_reading(10)
    same = replace(one, reference_hidden=one.hidden)
    assert float(hidden_losses.drift(same)) == float(hidden_losses.displacement(same)) == 0
    assert float(hidden_losses.alignment(same)) == pytest.approx(1.0)
    assert gradient(CASES["displacement"], same).isfinite().all()
    assert one.hidden is not None
    turned = replace(one, reference_hidden=-one.hidden)
    assert float(hidden_losses.alignment(turned)) == 0


def test_the_typical_norm_is_not_swayed_by_one_huge_state() -> None:
    hidden = torch.tensor([[1e6, 0.0], [3.0, 4.0], [0.0, 5.0]])
    one = reading(torch.zeros(3, 0), [1, 1, 1], [0, 0, 0], hidden=hidden)
    assert hidden_losses.typical_norm(one) == 5.0
