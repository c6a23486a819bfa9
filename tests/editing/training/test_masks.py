"""Objectives that train masks of the weights instead of what is added to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
import torch
from helpers.edit_checks import inside, touched
from helpers.small_facts import fit
from torch import Tensor

from mechunlearn.editing.edits.recipes import Optimizer
from mechunlearn.editing.objectives.likelihood import Forget
from mechunlearn.editing.objectives.masking import WeightMask
from mechunlearn.editing.objectives.requests import Outputs, Request
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True)
class Masks:
    """Masks every second weight, and unmasks the others, as far as that goes."""

    seen: list[tuple[float, float]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    aim: ClassVar[Literal["new", "forget"]] = "forget"
    requests: ClassVar[Mapping[str, Request]] = {"forget": Request("forget")}

    def __call__(self, readings: Mapping[str, Outputs]) -> dict[str, Tensor]:
        return {"loss": 1e-6 * readings["forget"].logits.square().mean()}

    def penalty(self, removed: Mapping[str, Tensor], *, step: int) -> dict[str, Tensor]:
        self.steps.append(step)
        self.seen.extend((float(r.detach().min()), float(r.detach().max())) for r in removed.values())
        flat = [r.flatten() for r in removed.values()]
        pushed = [r[1::2].mean() - r[::2].mean() for r in flat]
        return {"mask": 5 * torch.stack(pushed).sum()}


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_masks_stay_between_0_and_1_and_take_away_that_share_of_the_weights(
    llama: HookedModel, optimizer: str
) -> None:
    objective, rate = Masks(), {"AdamW": 0.4, "SGD": 1e3}[optimizer]
    sites = ("L0.mlp.neuron[3]", "L1.head[2]", "L1.mlp.in")
    fitted = fit(llama, *sites, objective=objective, steps=5, lr=rate, optimizer=Optimizer(optimizer))
    assert min(low for low, _ in objective.seen) == 0.0 and max(high for _, high in objective.seen) == 1.0
    for d in fitted.deltas:
        weights = d.slice.of(llama.params[d.slice.name].detach())
        gone = -d.values / weights
        assert bool(((gone >= 0) & (gone <= 1 + 1e-6)).all())
        assert torch.equal(d.values.flatten()[::2], -weights.flatten()[::2])
        assert bool((d.values.flatten()[1::2] == 0).all())
    moved, allowed = touched(llama, fitted), inside(llama, fitted)
    assert not any(bool((moved[name] & ~allowed[name]).any()) for name in moved)
    assert any(bool(there.any()) for there in moved.values())
    assert objective.steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_the_masks_of_the_package_change_nothing_outside(llama: HookedModel, weight_decay: float) -> None:
    objective = WeightMask(loss=Forget(retain=0.0, text=0.0), patience=3)
    fitted = fit(
        llama, "L1.mlp", objective=objective, steps=4, optimizer=Optimizer(weight_decay=weight_decay)
    )
    moved, allowed = touched(llama, fitted), inside(llama, fitted)
    assert not any(bool((moved[name] & ~allowed[name]).any()) for name in moved)
    for d in fitted.deltas:
        weights = d.slice.of(llama.params[d.slice.name].detach())
        kept = (weights + d.values) / weights
        assert bool(((kept > -1e-6) & (kept < 1 + 1e-6)).all()) and bool((d.values != 0).any())
