"""An edit is a value: it adds up, and is put on and taken off without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.small_facts import fit, made, weights
from helpers.tiny_models import double_llama, hf_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.editing.objectives.likelihood import Inject
from mechunlearn.errors import EditError, LocalizationError
from mechunlearn.models.hooked import HookedModel

TOKENS = torch.arange(2, 26).reshape(2, 12)
SITES = ("L0.mlp", "L1.head[2]", "L1.kv[0]", "L1.mlp.neuron[3]", "L1.mlp.neuron[9]", "embed")


def changes(hm: HookedModel, edit: Edit) -> dict[str, Tensor]:
    """What an edit adds to each parameter."""
    after = edit.apply(hm).params
    return {name: after[name].detach() - p.detach() for name, p in hm.params.items()}


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=0, atol=1e-12) for name in one)


# -- putting on and taking off --------------------------------------------------------------------------


def gap(hm: HookedModel) -> float:
    """How far TransformerLens's and Hugging Face's logits are apart, in units of the largest one (from 1)."""
    with torch.no_grad():
        plain = hm.hf(TOKENS).logits
        return float((hm(TOKENS) - plain).abs().max() / plain.abs().max().clamp(min=1.0))


def test_both_views_agree_under_any_edit_and_every_bit_comes_back(hm: HookedModel) -> None:
    edit = made(hm, "L0.attn", "L1.head[2]", "L1.mlp.neuron[7]", "embed")
    before, clean = weights(hm), hm(TOKENS)
    fork = edit.apply(hm)
    assert gap(fork) < 1e-5 and weights(hm) == before
    with edit.applied(hm) as changed:
        assert changed is hm and gap(hm) < 1e-5
        assert weights(hm) == weights(fork) != before
        assert (hm(TOKENS) - clean).abs().max() > 1e-2
    assert weights(hm) == before and torch.equal(hm(TOKENS), clean)


def test_every_bit_comes_back_after_an_error_and_out_of_nested_edits(llama: HookedModel) -> None:
    first, second = made(llama, "L0.mlp"), made(llama, "L0.mlp", "L1.head[2]", seed=1)
    before = weights(llama)
    with pytest.raises(KeyboardInterrupt), first.applied(llama):
        inner = weights(llama)
        with pytest.raises(ZeroDivisionError), second.applied(llama):
            assert weights(llama) != inner
            raise ZeroDivisionError
        assert weights(llama) == inner != before
        raise KeyboardInterrupt
    assert weights(llama) == before


def test_negative_zero_and_nan_come_back_too(tokenizer: Any) -> None:
    hm = HookedModel.from_hf(hf_model("llama"), tokenizer)
    with torch.no_grad():
        hm.params["model.layers.0.mlp.down_proj.weight"][0, :2] = torch.tensor([-0.0, torch.nan])
    before = weights(hm)
    with made(hm, "L0.mlp").applied(hm):
        assert weights(hm) != before
    assert weights(hm) == before


def test_a_fork_shares_what_the_edit_leaves_alone(llama: HookedModel) -> None:
    fork = made(llama, "L1.mlp.out", recipe=Recipe(Inject())).apply(llama)
    own = {name for name, p in fork.params.items() if p.data_ptr() != llama.params[name].data_ptr()}
    assert own == {"model.layers.1.mlp.down_proj.weight"}
    assert fork.edits == ("Inject at Localization(L1.mlp.out)",) and llama.edits == ()
    assert fork.identity != llama.identity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edited_model_is_saved_as_plain_hugging_face(
    hm: HookedModel, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = hm if dtype == hm.dtype else hm.to(dtype)
    edited = made(hm, "L0.head[1]", "L1.mlp", "embed").apply(model)
    edited.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, edited.hf(TOKENS).logits)
        assert (loaded(TOKENS).logits - model.hf(TOKENS).logits).abs().max() > 1e-2


# -- algebra --------------------------------------------------------------------------------------------

edits = st.builds(
    lambda sites, seed: made(double_llama(), *sites, seed=seed),
    st.sets(st.sampled_from(SITES), min_size=1),
    st.integers(0, 99),
)
algebra = settings(max_examples=20, deadline=None)


@algebra
@given(edits, edits)
def test_a_sum_changes_what_both_change_together(one: Edit, other: Edit) -> None:
    together = changes(double_llama(), one + other)
    first, second = changes(double_llama(), one), changes(double_llama(), other)
    assert alike(together, {name: first[name] + second[name] for name in first})
    assert alike(together, changes(double_llama(), other + one))
    assert (one + other).localization == one.localization | other.localization


@algebra
@given(edits, st.floats(-3, 3))
def test_a_scaled_edit_changes_so_many_times_as_much(edit: Edit, factor: float) -> None:
    whole = changes(double_llama(), edit)
    assert alike(changes(double_llama(), edit.scale(factor)), {name: factor * whole[name] for name in whole})
    assert alike(changes(double_llama(), edit + edit.scale(-1.0)), {name: 0 * whole[name] for name in whole})
    assert weights(edit.scale(1.0).apply(double_llama())) == weights(edit.apply(double_llama()))
    assert weights((edit + edit.scale(-1.0)).apply(double_llama())) == weights(double_llama())


@algebra
@given(edits, edits)
def test_a_sum_equals_one_edit_after_the_other(one: Edit, other: Edit) -> None:
    after = other.apply(one.apply(double_llama()))
    summed = (one + other).apply(double_llama())
    for name, parameter in after.params.items():
        assert torch.allclose(parameter, summed.params[name], rtol=0, atol=1e-12)


def test_scaling_and_adding_forget_the_recipe(llama: HookedModel) -> None:
    fitted = fit(llama)
    for changed in (fitted.scale(0.5), fitted + fitted):
        assert (changed.recipe, len(changed.history), changed.step) == (None, 0, 0)
        assert changed.made_on == llama.identity
    assert (fitted + replace(fitted, made_on="another")).made_on == ""
    assert repr(fitted.scale(0.5)).endswith("Localization(L0.mlp); no recipe)")


def test_a_sum_of_a_whole_and_its_part_is_confined_to_the_whole(llama: HookedModel) -> None:
    whole, part = made(llama, "L0.mlp", "L1.attn"), made(llama, "L0.mlp.neuron[3]", "L1.head[1]")
    both = whole + part
    assert both.localization == whole.localization
    first, second = changes(llama, whole), changes(llama, part)
    for name, change in changes(llama, both).items():
        assert torch.allclose(change, first[name] + second[name], atol=1e-6)
    with pytest.raises(LocalizationError, match=r"L0.mlp.in and L0.mlp.neuron\[3\] share weights"):
        made(llama, "L0.mlp.in") + part


def test_an_edit_of_nothing_changes_nothing(llama: HookedModel) -> None:
    nothing = Edit((), Localization())
    assert weights(nothing.apply(llama)) == weights(llama)
    assert weights((nothing + made(llama, "L0.mlp")).apply(llama)) == weights(
        made(llama, "L0.mlp").apply(llama)
    )
    assert list(nothing.norms(llama).sites) == []


def test_norms_are_those_of_each_sites_own_weights(llama: HookedModel) -> None:
    edit = made(llama, "L0.mlp.neuron[3]", "L1.head[2]")
    change = changes(llama.to(torch.float64), edit)
    mlp, attention = "model.layers.0.mlp", "model.layers.1.self_attn"
    neuron = [change[f"{mlp}.{part}_proj.weight"][3] for part in ("gate", "up")]
    neuron.append(change[f"{mlp}.down_proj.weight"][:, 3])
    head = [change[f"{attention}.q_proj.weight"][16:24], change[f"{attention}.o_proj.weight"][:, 16:24]]
    norms = edit.norms(llama)
    by_hand = [float(torch.cat([x.flatten() for x in parts]).norm()) for parts in (neuron, head)]
    assert [str(site) for site in norms.sites] == ["L0.mlp.neuron[3]", "L1.head[2]"]
    assert np.asarray(norms.values).tolist() == pytest.approx(by_hand, rel=1e-6)
    assert norms.values.attrs["unit"] == "Frobenius norm"
    with_untouched = replace(edit, localization=Localization(["L0.mlp.neuron[3]", "L1.mlp"]))
    assert np.asarray(with_untouched.norms(llama).values).tolist() == pytest.approx([by_hand[0], 0.0])


# -- another model --------------------------------------------------------------------------------------


def verbs(edit: Edit, hm: HookedModel) -> Iterator[Any]:
    yield lambda: edit.apply(hm)
    yield lambda: edit.applied(hm).__enter__()
    yield lambda: edit.norms(hm)


def test_an_edit_of_another_family_is_refused_and_nothing_changes(llama: HookedModel, tokenizer: Any) -> None:
    other = HookedModel.from_hf(hf_model("gpt2"), tokenizer)
    before = weights(other)
    for verb in verbs(made(llama, "L0.mlp"), other):
        with pytest.raises(
            EditError, match=r"'model.layers.0.mlp.gate_proj.weight', which this model does not have"
        ):
            verb()
    assert weights(other) == before


def test_an_edit_of_another_size_is_refused_and_nothing_changes(llama: HookedModel) -> None:
    edit = made(llama, "L0.mlp")
    name = "model.layers.0.mlp.down_proj.weight"
    wider = replace(edit, shapes={**edit.shapes, name: (32, 64)})
    before = weights(llama)
    for verb in verbs(wider, llama):
        with pytest.raises(EditError, match=rf"'{name}' of shape \(32, 64\), and this model's is \(32, 48\)"):
            verb()
    assert weights(llama) == before
    with pytest.raises(EditError, match=r"has shape \(32, 48\) in one edit and \(32, 64\) in the other"):
        edit + wider
