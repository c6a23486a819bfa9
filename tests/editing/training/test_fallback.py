"""A model that cannot be entered from the middle is run whole, says so, and is edited all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.deep_models import DEEP, deep_model, naive_gradients, tolerance
from helpers.partial_runs import STEP, double, gap
from helpers.small_facts import FACTS, fit
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mechunlearn.core.facts.collection import Facts
from mechunlearn.editing.edits.recipes import Stop
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.scorer import score


class Shelf(dict[str, Tensor]):
    """What blocks leave for each other; a copy begins empty."""

    def __deepcopy__(self, memo: Any) -> Shelf:
        return Shelf()


class Sharing(LlamaDecoderLayer):  # type: ignore[no-untyped-call]
    """A block that leaves its input on a shelf if it is the first, and adds what is there if the last."""

    layer: int
    shelf: Shelf
    clears: bool

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.layer == 0:
            self.shelf["state"] = hidden_states
        elif self.layer == DEEP - 1:
            shared = self.shelf.pop("state") if self.clears else self.shelf["state"]
            hidden_states = hidden_states + 0.5 * shared
        return super().forward(hidden_states, *args, **kwargs)


def sharing(*, clears: bool) -> HookedModel:
    """A model whose last block cannot be run without its first."""
    hm = deep_model().to(torch.float64)
    shelf = Shelf()
    for layer, block in enumerate(hm.hf.model.layers):
        block.__class__, block.layer, block.shelf, block.clears = Sharing, layer, shelf, clears
    return hm


@contextmanager
def told() -> Iterator[None]:
    why = "(its blocks cannot be entered from the middle|entered at block 3 it does not give its own logits)"
    with pytest.warns(UserWarning, match="^the whole model is run at every step: " + why):
        yield


@pytest.mark.parametrize("clears", [True, False], ids=["nothing is left", "something stale is left"])
def test_a_model_that_cannot_be_entered_is_run_whole_and_says_so(clears: bool) -> None:
    hm = sharing(clears=clears)
    assert (hm.hf(input_ids=hm.to_tokens("Bo")).logits - double("llama")("Bo")).abs().max() > 0.1
    with told():
        fitted = fit(hm, "L3.mlp", "L3.head[1]", **STEP)
    assert gap(hm, fitted, naive_gradients(hm, FACTS)) < tolerance("llama")


PLAIN = Facts([fact.replace(train=(), validation=()) for fact in FACTS], text=FACTS.text)


def test_what_is_run_whole_is_judged_too() -> None:
    hm = sharing(clears=True)
    with told():
        fitted = fit(hm, "L3.mlp", steps=9, lr=0.01, stop=Stop(1.0, 1.0, every=3), facts=PLAIN)
    edited, judged = fitted.apply(hm), fitted.history[fitted.step - 1]
    assert judged["success"] == score(edited, PLAIN.forget).says_new.mean()
    assert judged["retention"] == score(edited, PLAIN.retain).correct.mean()
