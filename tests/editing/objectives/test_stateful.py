"""Objectives that carry something from step to step: multipliers, schedules, control vectors, masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.handmade_readings import WIDTH, answering

from mechunlearn.editing.objectives.hidden_losses import alignment, displacement, steering
from mechunlearn.editing.objectives.likelihood import Forget, Inject
from mechunlearn.editing.objectives.losses import flatness, nll
from mechunlearn.editing.objectives.masking import WeightMask
from mechunlearn.editing.objectives.primal_dual import PDU
from mechunlearn.editing.objectives.representation import RMU, CircuitBreaker, control_vector

# -- the multiplier of a constraint ---------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [0.0, 1.0, 7.5])
def test_the_retain_term_is_worth_its_excess_and_pulls_by_its_multiplier(multiplier: float) -> None:
    pdu = PDU(forget=2.0, retain=3.0, text=0.5, bound=0.3)
    readings = answering(pdu.requests)
    leaf = readings["retain"].logits.requires_grad_()
    terms = pdu(readings, {"multiplier": multiplier, "step": 4})
    plain = nll(readings["retain"])
    assert float(terms["retain"].detach()) == pytest.approx(float(plain.detach()) - 0.3)
    assert float(terms["forget"]) == pytest.approx(2 * float(flatness(readings["forget"])))
    assert float(terms["text"]) == pytest.approx(0.5 * float(nll(readings["text"])))
    (pulled,) = torch.autograd.grad(terms["retain"], leaf)
    (unit,) = torch.autograd.grad(plain, leaf)
    torch.testing.assert_close(pulled, multiplier * unit)


def test_the_multiplier_follows_the_excess_and_never_falls_below_0() -> None:
    pdu, found = PDU(retain=1.0, rate=2.0, warmup=1), []
    state = pdu.init({}, seed=0)
    assert state["multiplier"] == 1.0
    for excess in (5.0, 0.5, -0.25, -4.0, 1.0):
        state = pdu.after_step(state, {"retain": torch.tensor(excess)})
        found.append(state["multiplier"])
    assert found == [1.0, 2.0, 1.5, 0.0, 2.0]  # the first step is a warm-up


def test_a_constraint_can_be_on_the_divergence() -> None:
    pdu = PDU(retain_loss="kl", bound=0.0, text=0.0)
    readings = answering(pdu.requests)
    same = replace(readings["retain"], reference_logprobs=readings["retain"].logits.log_softmax(-1))
    terms = pdu({**readings, "retain": same}, pdu.init(readings, seed=0))
    assert float(terms["retain"]) == pytest.approx(0.0, abs=1e-12)


# -- control vectors ------------------------------------------------------------------------------------


def test_a_control_vector_depends_on_its_seed_alone() -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = control_vector(64, seed=3, zero_mean=True)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(5)
    assert torch.equal(first, control_vector(64, seed=3, zero_mean=True))
    assert not torch.equal(first, control_vector(64, seed=4, zero_mean=True))


def test_a_vector_of_mean_zero_loses_nothing_to_a_layer_norm_and_a_positive_one_three_quarters() -> None:
    for zero_mean, lost in ((True, 0.0), (False, 0.75)):
        drawn = control_vector(4096, seed=0, zero_mean=zero_mean)
        assert float(drawn.norm()) == pytest.approx(1.0)
        assert 1 - float((drawn - drawn.mean()).square().sum()) == pytest.approx(lost, abs=0.02)
        assert zero_mean or bool((drawn >= 0).all())


def test_the_target_is_of_the_length_asked_for_or_twice_what_is_usual() -> None:
    rmu = RMU(layer=1, text=0.0)
    readings = answering(rmu.requests)
    states = readings["forget"].hidden
    assert states is not None and readings["forget"].logits.shape[1] == 0
    usual = float(states.norm(dim=-1).median())
    for coefficient, length in ((None, 2 * usual), (6.5, 6.5)):
        one = replace(rmu, coefficient=coefficient)
        state = one.init(readings, seed=1)
        control = torch.as_tensor(state["control"])
        assert control.shape == (WIDTH,) and float(control.norm()) == pytest.approx(length)
        terms = one(readings, state)
        assert float(terms["forget"]) == pytest.approx(float(steering(readings["forget"], control)))
        assert one.after_step(state, terms) is state


# -- schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "progress"), [(0, 0.0), (75, 0.25), (150, 0.5), (300, 1.0), (900, 1.0)])
def test_circuits_are_broken_first_and_the_rest_is_kept_later(step: int, progress: float) -> None:
    breaker = CircuitBreaker(layers=(1, 2), strength=10.0, retain=2.0, text=0.5)
    readings = answering(breaker.requests)
    terms = breaker(readings, {"step": step})
    turned = sum(float(alignment(readings[f"forget {layer}"])) for layer in (1, 2)) / 2
    moved = {
        s: sum(float(displacement(readings[f"{s} {i}"])) for i in (1, 2)) / 2 for s in ("retain", "text")
    }
    expected = {
        "forget": 10 * (1 - progress) * turned,
        "retain": 2.0 * 10 * progress * moved["retain"],
        "text": 0.5 * 10 * progress * moved["text"],
    }
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected)


def test_a_schedule_counts_its_steps() -> None:
    breaker = CircuitBreaker(layers=(1,))
    state = breaker.init({}, seed=0)
    for _ in range(3):
        state = breaker.after_step(state, {})
    assert state == {"step": 3}


# -- masks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "factor"), [(0, -15.0), (10, -5.0), (15, 0.0), (16, 1.0), (49, 1.0)])
def test_masking_is_paid_for_at_first_and_costs_later(step: int, factor: float) -> None:
    removed = {"small": torch.tensor([1.0, 0.5]), "large": torch.zeros(10, 10)}
    terms = WeightMask(strength=0.2).penalty(removed, step=step)
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(
        {"mask": 0.2 * factor * 0.375}
    )


@pytest.mark.parametrize("inner", [Forget(threshold=-5.0), Inject(text=0.0), PDU(), RMU(layer=1)])
def test_a_mask_reads_returns_and_carries_what_its_objective_does(inner: Any) -> None:
    mask = WeightMask(loss=inner)
    readings = answering(inner.requests)
    assert mask.requests == inner.requests and mask.aim == inner.aim
    state = mask.init(readings, seed=0)
    stateful = hasattr(inner, "init")
    terms = mask(readings, state)
    alone = inner(readings, inner.init(readings, seed=0)) if stateful else inner(readings)
    assert {n: float(t) for n, t in terms.items()} == {n: float(t) for n, t in alone.items()}
    after = mask.after_step(state, terms)
    assert after == (inner.after_step(state, alone) if stateful else {})
