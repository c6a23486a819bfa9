"""What tests of partial forward passes share: a step to take, gaps, and counted calls."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaMLP

from helpers.deep_models import DEEP, deep_model
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Optimizer
from mechunlearn.models.hooked import HookedModel

STEP: dict[str, Any] = {"steps": 1, "lr": 1.0, "optimizer": Optimizer("SGD", schedule="constant")}


@cache
def double(family: str) -> HookedModel:
    """A model of four blocks in float64 (read-only)."""
    return deep_model(family).to(torch.float64)


def gap(hm: HookedModel, fitted: Edit, gradients: Mapping[str, Tensor]) -> float:
    """How far a step of plain descent at rate 1 is from minus the full gradient's entries."""
    apart = [(d.values + d.slice.of(gradients[d.slice.name])).abs().max() for d in fitted.deltas]
    return float(max(apart))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[HookedModel, list[int]]:
    """A model whose blocks count how often they run, whatever runs them and in whatever copy."""
    hm = deep_model()
    counts = [0] * DEEP
    for layer, block in enumerate(hm.hf.model.layers):
        block.mlp.layer = layer
    plain = LlamaMLP.forward

    def forward(self: Any, x: Tensor) -> Tensor:
        counts[self.layer] += 1
        return plain(self, x)  # type: ignore[no-any-return, no-untyped-call]

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    return hm, counts
