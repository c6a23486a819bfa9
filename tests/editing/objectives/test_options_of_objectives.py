"""Options of an objective, a read or a sampling that are out of their range are refused in clear words."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers.small_facts import unchecked

from mechunlearn.editing.objectives.distillation import CEU, UNDIAL
from mechunlearn.editing.objectives.likelihood import Forget, Inject
from mechunlearn.editing.objectives.masking import WeightMask
from mechunlearn.editing.objectives.preference import DPO, NPO, AltPO, SimNPO
from mechunlearn.editing.objectives.primal_dual import PDU
from mechunlearn.editing.objectives.representation import RMU, CircuitBreaker
from mechunlearn.editing.objectives.requests import Request, Sampled
from mechunlearn.editing.objectives.weighted import WGA, SatImp
from mechunlearn.errors import TrainingError


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Inject, {"retain": -1.0}, "retain is -1.0; give a number from 0"),
        (Forget, {"text": math.nan}, "text is nan; give a number from 0"),
        (NPO, {"forget": math.inf}, "forget is inf; give a number from 0"),
        (CircuitBreaker, {"layers": (1,), "text": "much"}, "text is 'much'; give a number from 0"),
        (WGA, {"retain_loss": "l2"}, "retain_loss must be one of 'nll' or 'kl'; not 'l2'"),
        (Forget, {"threshold": -math.inf}, "threshold is -inf; give a finite number"),
        (NPO, {"beta": 0}, "beta is 0; give a number above 0"),
        (SimNPO, {"beta": -1.0}, "beta is -1.0; give a number above 0"),
        (SimNPO, {"delta": math.nan}, "delta is nan; give a finite number"),
        (DPO, {"beta": 0.0}, "beta is 0.0; give a number above 0"),
        (DPO, {"alternative": "answer"}, r"alternative is 'answer'; give 'new', 'foil', or a tuple of texts"),
        (DPO, {"alternative": ()}, r"alternative is \(\); give 'new', 'foil', or a tuple of texts"),
        (DPO, {"alternative": ("no", "")}, r"alternative is \('no', ''\); give 'new', 'foil', or a tuple"),
        (AltPO, {"beta": True}, "beta is True; give a number above 0"),
        (AltPO, {"samples": 0}, "samples is 0; give a whole number from 1"),
        (AltPO, {"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        (UNDIAL, {"beta": 0.0}, "beta is 0.0; give a number above 0"),
        (CEU, {"skip": -1}, "skip is -1; give a whole number from 0"),
        (CEU, {"skip": 0.5}, "skip is 0.5; give a whole number from 0"),
        (WGA, {"beta": -0.1}, "beta is -0.1; give a number from 0"),
        (SatImp, {"beta1": -1}, "beta1 is -1; give a number from 0"),
        (SatImp, {"beta2": "1"}, "beta2 is '1'; give a number from 0"),
        (PDU, {"retain": 0.0}, "retain is 0.0; give a number above 0"),
        (PDU, {"rate": 0.0}, "rate is 0.0; give a number above 0"),
        (PDU, {"bound": math.nan}, "bound is nan; give a finite number"),
        (PDU, {"warmup": -1}, "warmup is -1; give a whole number from 0"),
        (RMU, {"layer": -1}, "layer is -1; give a whole number from 0"),
        (RMU, {"layer": 1, "coefficient": 0}, "coefficient is 0; give a number above 0"),
        (CircuitBreaker, {"layers": ()}, r"layers is \(\); give a tuple of blocks"),
        (CircuitBreaker, {"layers": 3}, "layers is 3; give a tuple of blocks"),
        (CircuitBreaker, {"layers": (1, -2)}, "layers is -2; give a whole number from 0"),
        (CircuitBreaker, {"layers": (1,), "strength": -1}, "strength is -1; give a number from 0"),
        (CircuitBreaker, {"layers": (1,), "horizon": 0}, "horizon is 0; give a whole number from 1"),
        (
            WeightMask,
            {"loss": "forget"},
            r"loss is 'forget'; give an objective such as objectives.Forget\(\)",
        ),
        (WeightMask, {"loss": Forget}, r"loss is <class .*; give an objective such as"),
        (WeightMask, {"loss": WeightMask()}, "loss is a WeightMask itself; give the objective that it wraps"),
        (WeightMask, {"strength": -1.0}, "strength is -1.0; give a number from 0"),
        (WeightMask, {"patience": 1.5}, "patience is 1.5; give a whole number from 0"),
    ],
)
def test_an_option_out_of_its_range_is_refused(kind: Any, options: Any, message: str) -> None:
    with unchecked(), pytest.raises(TrainingError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split": "test"},
            "split of a Request must be one of 'forget', 'retain', 'text' or 'corpus'; not 'test'",
        ),
        ({"split": "forget", "answer": "old"}, "answer of a Request must be .*'foil'; not 'old'"),
        ({"split": "forget", "answer": ()}, "answer of a Request is an empty tuple; give at least one text"),
        ({"split": "text", "positions": "last"}, "positions of a Request must be .*'all'; not 'last'"),
        ({"split": "text", "reference": "all"}, "reference of a Request must be .* or 'hidden'; not 'all'"),
        ({"split": "text", "reference": "hidden"}, "of reference 'hidden', needs hidden="),
        ({"split": "text", "logits": False}, "a Request without logits, .* needs hidden="),
    ],
)
def test_a_read_of_something_unknown_is_refused(options: Any, message: str) -> None:
    with unchecked(), pytest.raises(TrainingError, match=message):
        Request(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0; give a whole number from 1"),
        ({"temperature": -1.0}, "temperature is -1.0; give"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(options: Any, message: str) -> None:
    with unchecked(), pytest.raises(TrainingError, match=message):
        Sampled(**options)
