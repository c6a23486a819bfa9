"""Facts, metrics and comparisons for tests of patching."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.patching_twin import full_softmax as full_softmax
from helpers.patching_twin import word_tokenizer
from helpers.tiny_models import hf_model
from mechunlearn.core.facts.fact import Fact
from mechunlearn.localization.patching.activation import activation_patch
from mechunlearn.localization.patching.answer_metrics import Metric
from mechunlearn.models.hooked import HookedModel

METRICS: tuple[Metric, ...] = ("logit_diff", "logprob", "probability", "kl")


LONG = " ".join(f"w{i}" for i in range(40, 58))


FACTS = (
    Fact("w5 w6 w7 w8 w9 w10", "w6 w7 w8", "w20", foil="w21"),
    Fact("w11 w12", "w11", "w22", new="w23 w24"),
    Fact("w14", "w14", "w24", options=("w24", "w25", "w26")),
    Fact(f"w3 {LONG}", "w45 w46", "w27 w28", foil="w29 w30 w31"),
)


OTHERS = (
    Fact("w5 w60 w61 w62 w9 w10", "w60 w61 w62", "w20"),
    Fact("w63 w12", "w63", "w20"),
    Fact("w64", "w64", "w20"),
    Fact(f"w3 {LONG}".replace("w45 w46", "w65 w66"), "w65 w66", "w20"),
)


SHORT = (
    FACTS[0],
    FACTS[2],
    Fact("w15 w16 w17 w18", "w16", "w20", foil="w22"),
    Fact("w70 w71 w72 w73 w74", "w71", "w21", foil="w20"),
)


@cache
def wide(family: str) -> HookedModel:
    """A family's tiny model in float64, to which every word is a token (read-only)."""
    return HookedModel.from_hf(hf_model(family), word_tokenizer()).to(torch.float64)


def last_logit(logits: Tensor, facts: Tensor) -> Tensor:
    """Any function of the last logits and of the facts' numbers."""
    return logits[:, 7] * (1 + facts.to(logits)) - logits.logsumexp(-1)


def patch(hm: HookedModel, facts: Sequence[Fact], **options: Any) -> np.ndarray[Any, Any]:
    """The raw change of the metrics, as a twin computes it."""
    scores = activation_patch(hm, facts, progress=False, **options)
    change: np.ndarray[Any, Any] = scores.change.values.values
    return change


def agrees(found: np.ndarray[Any, Any], wanted: Tensor, *, atol: float = 1e-10) -> None:
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0.0, atol=atol, equal_nan=True)
    assert np.nanmax(np.abs(found)) > 1e-4
