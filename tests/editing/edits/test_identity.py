"""An edit on other weights than those it was made on warns, and asking costs next to nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.small_facts import fit, made, weights
from helpers.tiny_models import hf_model

from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.errors import IdentityWarning
from mechunlearn.models import identity
from mechunlearn.models.hooked import HookedModel

TOKENS = torch.arange(2, 26).reshape(2, 12)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often all weights of a model are hashed from now on."""
    hashed = [0]
    plain = identity.digest

    def digest(params: Any) -> str:
        hashed[0] += 1
        return plain(params)

    monkeypatch.setattr(identity, "digest", digest)
    return hashed


def test_an_edit_warns_on_other_weights_and_on_its_own_it_does_not(tokenizer: Any) -> None:
    hm, other = (HookedModel.from_hf(hf_model("llama", seed=seed), tokenizer) for seed in (0, 1))
    edit = made(hm, "L0.mlp", made_on=hm.identity)
    same = HookedModel.from_hf(hf_model("llama"), tokenizer)
    for model in (hm, same, hm.fork()):
        edit.apply(model)
        with edit.applied(model):
            pass
    before = weights(other)
    said = rf"made on the weights {hm.identity} and is applied to others \({other.identity}\).*made_on=\"\""
    with pytest.warns(IdentityWarning, match=said):
        edited = edit.apply(other)
    with pytest.warns(IdentityWarning, match=said), edit.applied(other):
        assert weights(other) == weights(edited) != before
    assert weights(other) == before
    with pytest.warns(IdentityWarning):
        edit.apply(hm.to(torch.bfloat16))
    replace(edit, made_on="").apply(other)
    Edit((), Localization(), made_on="elsewhere").apply(other)


def test_an_edit_fitted_on_an_edited_model_belongs_to_that_one(llama: HookedModel) -> None:
    first = fit(llama, "L0.mlp")
    edited = first.apply(llama)
    second = fit(edited, "L1.mlp")
    both = second.apply(edited)
    assert weights(second.apply(first.apply(llama))) == weights(both)
    with pytest.warns(IdentityWarning):
        second.apply(llama)
    with pytest.warns(IdentityWarning, match=r"which carries Inject at Localization\(L0.mlp\)\)"):
        first.apply(edited)
    (first + second).apply(llama)


def test_a_refused_warning_leaves_the_model_as_it_was(llama: HookedModel) -> None:
    before = weights(llama)
    edit = made(llama, "L0.mlp", made_on="elsewhere")
    with pytest.raises(IdentityWarning):
        edit.apply(llama)
    with pytest.raises(IdentityWarning), edit.applied(llama):
        pass
    assert weights(llama) == before


def test_weights_are_hashed_once_while_they_stay_as_they_are(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hm = HookedModel.from_hf(hf_model("llama"), tokenizer)
    one, two = (made(hm, *sites, made_on=hm.identity) for sites in (("L0.mlp",), ("L1.attn", "embed")))
    hashed = counted(monkeypatch)
    for edit in (one, two, one):
        edit.apply(hm)
        with edit.applied(hm):
            hm(TOKENS)
    assert hm.fork().identity == hm.identity and hashed == [1], "a fork's own"
    with one.applied(hm), pytest.warns(IdentityWarning), two.applied(hm):
        pass
    one.apply(hm)


@pytest.mark.parametrize("how", ["in place", "past the counter", "an optimiser", "inside", "replaced"])
def test_weights_that_changed_are_noticed(tokenizer: Any, how: str) -> None:
    hm = HookedModel.from_hf(hf_model("llama"), tokenizer)
    edit = made(hm, "L0.mlp", made_on=hm.identity)
    edit.apply(hm)
    parameter = hm.params["model.layers.1.self_attn.o_proj.weight"]
    if how == "in place":
        with torch.no_grad():
            parameter[5, 7] += 1
    elif how == "past the counter":
        parameter.data.mul_(2)
    elif how == "an optimiser":
        parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD([parameter], lr=0.1).step()
    elif how == "inside":
        with edit.applied(hm), torch.no_grad():
            parameter[5, 7] += 1
    else:
        parameter.data = parameter.data + 1
    with pytest.warns(IdentityWarning):
        edit.apply(hm)


def test_weights_made_without_a_counter_are_hashed_every_time(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        hm = HookedModel.from_hf(hf_model("llama"), tokenizer)
        edit = made(hm, "L0.mlp", made_on=hm.identity)
        hashed = counted(monkeypatch)
        edit.apply(hm)
        edit.apply(hm)
    assert hashed == [2]


def test_a_single_weight_written_past_the_counter_is_noticed_after_sync(tokenizer: Any) -> None:
    hm = HookedModel.from_hf(hf_model("llama"), tokenizer)
    before = hm.identity
    hm.params["model.layers.1.self_attn.o_proj.weight"].data[5, 7] += 1
    hm.sync()
    assert hm.identity != before == HookedModel.from_hf(hf_model("llama"), tokenizer).identity
