"""What the check of a model must not take for good: other people's hooks, and a full memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_facts import tiny_facts
from helpers.tiny_models import hf_model, memory_tokenizer
from torch import Tensor

from mechunlearn.core.hooks import ablate
from mechunlearn.errors import FallbackWarning
from mechunlearn.localization.engine import self_check
from mechunlearn.localization.engine.block_functions import BlockFunctions
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.patching.activation import activation_patch
from mechunlearn.models.hooked import HookedModel


def fresh() -> HookedModel:
    """A model that no engine has seen."""
    return HookedModel.from_hf(hf_model("llama"), memory_tokenizer()).to(torch.float64)


@pytest.mark.parametrize("name", ["hook_embed", "ln_final.hook_in", "blocks.0.hook_mlp_out"])
def test_a_model_is_not_judged_while_somebody_hooks_it(name: str) -> None:
    hm = fresh()
    # A position that the check's own short prompts do not have.
    with hm.bridge.hooks(fwd_hooks=[ablate(name, at=7)]):
        reasons = Engine.of(hm).reason, BlockFunctions.of(hm).reason
        assert all("hooks of the user" in reason for reason in reasons)
    assert Engine.of(hm).reason == BlockFunctions.of(hm).reason == ""


def test_hooks_before_the_blocks_count_on_a_model_seen_for_the_first_time_too() -> None:
    def louder(embedded: Tensor, hook: Any = None) -> Tensor:
        return 1.5 * embedded

    known, options = fresh(), {"sites": "mlp", "progress": False}
    Engine.of(known)
    actual = []
    for hm in (known, fresh()):
        with hm.bridge.hooks(fwd_hooks=[("hook_embed", louder)]):
            actual.append(activation_patch(hm, tiny_facts(), **options).values.values)  # type: ignore[arg-type]
    np.testing.assert_allclose(actual[0], actual[1], atol=1e-10)
    plain = activation_patch(known, tiny_facts(), **options).values.values  # type: ignore[arg-type]
    assert np.nanmax(np.abs(plain - actual[0])) > 1e-3


def test_a_full_memory_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    hm = fresh()
    with monkeypatch.context() as patched:
        patched.setattr(self_check, "run_block", full)
        with pytest.raises(torch.OutOfMemoryError):
            Engine.of(hm)
    assert Engine.of(hm).reason == ""


def test_why_blocks_do_not_run_in_their_fused_form_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: Any, positions: Tensor | None = None) -> Tensor:
        return torch.zeros(2, 3 if positions is None else 2, 32, dtype=torch.float64)

    monkeypatch.setattr(self_check, "run_fused_block", other)
    slower = "block 0 in its fused form differs from the block"
    with pytest.warns(FallbackWarning, match=f"do not run in their fused form, since {slower}; .* as long"):
        engine = Engine.of(fresh())
    assert (engine.reason, engine.slower) == ("", slower)


def test_scores_say_that_a_model_was_run_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(hm: HookedModel, run: Any, layer: int, state: Tensor, *_: Any) -> Tensor:
        return torch.zeros_like(state)

    known, hm = fresh(), fresh()
    plain = activation_patch(known, tiny_facts(), sites="mlp", progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(self_check, "run_block", wrong)
        cost = "each patch runs all 2 layers instead of those above it"
        with pytest.warns(FallbackWarning, match=f"a complete run, since .*unchanged state.*; {cost}"):
            assert "unchanged state" in Engine.of(hm).reason
    # Once: a second warning would be an error here.
    assert Engine.of(hm).reason
    slow = activation_patch(hm, tiny_facts(), sites="mlp", progress=False)
    assert slow.title.endswith("every patch a complete run") and "complete run" not in plain.title
    np.testing.assert_allclose(slow.values.values, plain.values.values, atol=1e-10)
