"""What each objective declares to read and returns, and that it is a value."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from helpers.handmade_readings import TWO, answering, map_parts, reading, shares
from helpers.small_facts import unchecked
from torch import Tensor

from mechunlearn.editing import objectives
from mechunlearn.editing.objectives import losses
from mechunlearn.editing.objectives.ascent import GradientAscent, GradientDifference
from mechunlearn.editing.objectives.distillation import CEU, UNDIAL
from mechunlearn.editing.objectives.likelihood import Forget, Inject
from mechunlearn.editing.objectives.losses import log1m_prob, nll
from mechunlearn.editing.objectives.masking import WeightMask
from mechunlearn.editing.objectives.preference import DPO, NPO, AltPO, SimNPO
from mechunlearn.editing.objectives.primal_dual import PDU
from mechunlearn.editing.objectives.relabel import Relabel
from mechunlearn.editing.objectives.representation import RMU, CircuitBreaker
from mechunlearn.editing.objectives.requests import Masking, Objective, Request, Sampled, Stateful
from mechunlearn.editing.objectives.retain_terms import RetainTerms
from mechunlearn.editing.objectives.weighted import WGA, SatImp

LABELS: Any = "label_logprobs"
# An objective, its term on the forget set, the aim, and what it reads of the forget set.
KINDS: list[tuple[Any, str, str, Mapping[str, Request]]] = [
    (GradientAscent(), "ascent", "forget", {"forget": Request("forget")}),
    (GradientDifference(), "ascent", "forget", {"forget": Request("forget")}),
    (Inject(), "inject", "new", {"forget": Request("forget", answer="new")}),
    (Forget(), "forget", "forget", {"forget": Request("forget")}),
    (NPO(), "forget", "forget", {"forget": Request("forget", reference=LABELS)}),
    (SimNPO(), "forget", "forget", {"forget": Request("forget")}),
    (
        DPO(alternative=("no",)), "forget", "forget",
        {
            "win": Request("forget", answer=("no",), reference=LABELS),
            "lose": Request("forget", reference=LABELS),
        },
    ),
    (
        DPO(alternative="new"), "forget", "new",
        {
            "win": Request("forget", answer="new", reference=LABELS),
            "lose": Request("forget", reference=LABELS),
        },
    ),
    (
        AltPO(samples=3), "forget", "forget",
        {"win": Request("forget", Sampled(3), reference=LABELS), "lose": Request("forget", reference=LABELS)},
    ),
    (UNDIAL(), "forget", "forget", {"forget": Request("forget", reference="logprobs")}),
    (CEU(), "forget", "forget", {"forget": Request("forget")}),
    (WGA(), "ascent", "forget", {"forget": Request("forget")}),
    (SatImp(), "ascent", "forget", {"forget": Request("forget")}),
    (PDU(), "forget", "forget", {"forget": Request("forget")}),
    (Relabel(), "relabel", "forget", {"forget": Request("corpus")}),
    (RMU(layer=2), "forget", "forget",
        {"forget": Request("forget", positions="all", hidden=2, logits=False)}),
    (CircuitBreaker(layers=(1, 3)), "forget", "forget",
        {f"forget {layer}": Request("forget", positions="all", hidden=layer, reference="hidden", logits=False)
         for layer in (1, 3)}),
    (WeightMask(loss=Forget()), "forget", "forget", {"forget": Request("forget")}),
]  # fmt: skip
every_kind = pytest.mark.parametrize(
    ("objective", "term", "aim", "requests"), KINDS, ids=[type(kind[0]).__name__ for kind in KINDS]
)
WITHOUT_KEEPING = (GradientAscent, UNDIAL, CEU, Relabel)
OTHER = reading(shares([0.1, 0.9]), [1], [0])


def call(objective: Any, readings: Any, state: Any = None) -> Mapping[str, Tensor]:
    """Call an objective as a trainer does at its first step."""
    if isinstance(objective, Stateful):
        state = objective.init(readings, seed=0) if state is None else state
        return objective(readings, state)
    terms: Mapping[str, Tensor] = objective(readings)
    return terms


# -- what is read and returned --------------------------------------------------------------------------


@every_kind
def test_an_objective_reads_what_it_says_and_gives_its_terms(
    objective: Any, term: str, aim: str, requests: Mapping[str, Request]
) -> None:
    assert isinstance(objective, Objective) and objective.aim == aim
    kept = {name: read for name, read in objective.requests.items() if read.split in ("retain", "text")}
    assert {name: read for name, read in objective.requests.items() if name not in kept} == requests
    terms = call(objective, answering(objective.requests))
    assert list(terms) == [term, *({read.split: 0 for read in kept.values()})]
    assert all(value.shape == () and value.isfinite() for value in terms.values())
    assert bool(kept) == (not isinstance(objective, WITHOUT_KEEPING) or type(objective) is GradientDifference)


@every_kind
def test_a_weight_scales_its_term_and_0_drops_what_it_reads(
    objective: Any, term: str, aim: str, requests: Mapping[str, Request]
) -> None:
    if isinstance(objective, WeightMask | PDU):
        return  # the weights are the inner objective's; the retain term is the constraint
    single = replace(objective, forget=1.0, retain=1.0, text=1.0)
    triple = replace(objective, forget=3.0, retain=2.0, text=0.5)
    readings, state = answering(single.requests), None
    if isinstance(objective, CircuitBreaker):
        state = {"step": 30}
    plain, weighted = call(single, readings, state), call(triple, readings, state)
    scale = {term: 3.0, "retain": 2.0, "text": 0.5}
    assert {name: float(value / plain[name]) for name, value in weighted.items()} == pytest.approx(scale)
    alone = replace(objective, retain=0, text=0)
    assert alone.requests == requests
    assert list(call(alone, {name: readings[name] for name in requests}, state)) == [term]


@pytest.mark.parametrize("objective", [kind[0] for kind in KINDS if isinstance(kind[0], RetainTerms)])
def test_every_objective_on_logits_keeps_by_likelihood_or_by_divergence(objective: Any) -> None:
    if isinstance(objective, PDU):
        return
    by_nll, by_kl = (replace(objective, retain=2.0, text=3.0, retain_loss=how) for how in ("nll", "kl"))
    assert (by_nll.requests["retain"], by_nll.requests["text"]) == (Request("retain"), Request("text"))
    assert by_kl.requests["text"] == Request("text", reference="logprobs")
    readings = answering(by_kl.requests)
    for one, loss in ((by_nll, losses.nll), (by_kl, losses.kl)):
        terms = one(readings)
        assert float(terms["retain"]) == pytest.approx(2 * float(loss(readings["retain"])))
        assert float(terms["text"]) == pytest.approx(3 * float(loss(readings["text"])))


@pytest.mark.parametrize(
    ("objective", "name", "value"),
    [
        (Inject(retain=2.0, text=3.0), "inject", float(nll(TWO))),
        (Forget(retain=2.0, text=3.0), "forget", -float(log1m_prob(TWO))),
        (Forget(retain=2.0, text=3.0, threshold=-1), "forget", math.log(4) / 2),
        (GradientDifference(forget=0.5, retain=2.0, text=3.0), "ascent", -0.5 * float(nll(TWO))),
        (GradientAscent(retain=2.0, text=3.0), "ascent", -float(nll(TWO))),
        (
            SimNPO(beta=1.0, retain=2.0, text=3.0),
            "forget",
            0.125 * float(losses.simnpo(TWO, beta=1, delta=0)),
        ),
        (WGA(retain=2.0, text=3.0), "ascent", float(losses.weighted_ascent(TWO, power=1))),
        (SatImp(retain=2.0, text=3.0), "ascent", 0.1 * float(losses.weighted_ascent(TWO, power=5, doubt=1))),
        (CEU(retain=2.0, text=3.0, skip=1), "forget", float(losses.ceu(TWO, skip=1))),
        (Relabel(retain=2.0, text=3.0), "relabel", float(nll(TWO))),
    ],
)
def test_an_objective_returns_its_weighted_terms(objective: Any, name: str, value: float) -> None:
    terms = objective({"forget": TWO, "retain": OTHER, "text": TWO})
    kept = {"retain": -2 * math.log(0.9), "text": 3 * float(nll(TWO))}
    assert {key: float(term) for key, term in terms.items()} == pytest.approx({name: value, **kept})


@every_kind
def test_each_objective_lowers_what_it_should_by_a_step_down_its_gradient(
    objective: Any, term: str, aim: str, requests: Mapping[str, Request]
) -> None:
    """Of the sum of its terms, and for those on logits also the old answer, or it raises the new one."""
    readings = answering(objective.requests, seed=3)
    leaf = "hidden" if isinstance(objective, RMU | CircuitBreaker) else "logits"
    state = objective.init(readings, seed=0) if isinstance(objective, Stateful) else None
    tracked = {n: replace(r, **{leaf: getattr(r, leaf).requires_grad_()}) for n, r in readings.items()}
    loss = torch.stack(list(call(objective, tracked, state).values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    lower = {
        n: replace(r, **{leaf: getattr(r, leaf).detach() - 1e-4 * getattr(r, leaf).grad})
        for n, r in tracked.items()
    }
    after = call(objective, lower, state)
    if not isinstance(objective, PDU):  # whose retain term is worth its excess, whatever its multiplier
        assert float(torch.stack(list(after.values())).sum()) < float(loss.detach())
    name = {"win": "lose"}.get(next(iter(requests)), next(iter(requests)))
    if leaf == "logits" and not isinstance(objective, PDU):
        raised = float(nll(readings[name]).detach()) - float(nll(lower[name]))
        assert raised > 0 if term in ("inject", "relabel") else raised < 0


# -- as values ------------------------------------------------------------------------------------------


def test_objectives_are_values_that_print_their_fields() -> None:
    assert Inject() == Inject(retain=1.0, text=1.0) and hash(Inject()) == hash(Inject())
    assert repr(NPO(text=0.5)) == "NPO(forget=1.0, retain=1.0, text=0.5, retain_loss='nll', beta=0.1)"


@every_kind
def test_the_fields_of_an_objective_go_through_json(
    objective: Any, term: str, aim: str, requests: Mapping[str, Request]
) -> None:
    record = json.loads(json.dumps(asdict(objective), allow_nan=False))
    if isinstance(objective, WeightMask):
        record["loss"] = Forget(**record["loss"])
    with unchecked():  # JSON knows lists, where fields are tuples
        assert type(objective)(**record) == objective


@every_kind
def test_every_option_of_an_objective_is_explained_with_source_and_failure(
    objective: Any, term: str, aim: str, requests: Mapping[str, Request]
) -> None:
    text = inspect.getdoc(type(objective)) or ""
    assert all(f"\n    {field.name}: " in text for field in fields(objective))
    assert all(part in text for part in ("\nSource: ", "\nWhen it fails: ", ">>> ", "oss"))


def test_only_what_carries_state_or_masks_says_so() -> None:
    stateful = {type(kind[0]) for kind in KINDS if isinstance(kind[0], Stateful)}
    assert stateful == {PDU, RMU, CircuitBreaker, WeightMask}
    assert {type(kind[0]) for kind in KINDS if isinstance(kind[0], Masking)} == {WeightMask}


def test_the_public_names_are_pinned() -> None:
    protocols = {"Objective", "Stateful", "Masking", "Request", "Outputs", "Sampled"}
    parts = {"RetainTerms", "Weights", "losses", "hidden_losses"}
    assert {type(kind[0]).__name__ for kind in KINDS} | protocols | parts == set(objectives.__all__)


def test_a_dropped_reading_is_never_asked_for() -> None:
    half = map_parts(TWO, lambda part: part.half() if part.is_floating_point() else part)
    assert Forget(retain=0, text=0)({"forget": half})["forget"].dtype == torch.float32
