"""Edits add up, are cut down and pruned by the laws of the changes they make."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers.small_facts import made
from helpers.tiny_models import double_llama, hf_model, memory_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.algebra import Delta, restricted
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.errors import EditError, SiteError
from mechunlearn.models.arch import Slice
from mechunlearn.models.hooked import HookedModel

SITES = ("L0.mlp", "L1.head[2]", "L1.kv[0]", "L1.mlp.neuron[3]", "L1.mlp.neuron[9]", "embed")
PLACES = (
    *SITES,
    "L0.mlp.in",
    "L0.mlp.neuron[5]",
    "L0.attn",
    "L1.attn",
    "L1.head[2].q",
    "L1.mlp",
    "L1.mlp.out",
)
OUT = "model.layers.0.mlp.down_proj.weight"


def disjoint(names: tuple[str, ...]) -> bool:
    sites = [next(iter(Localization([name]))) for name in names]
    return not any(one.overlaps(other) for one, other in combinations(sites, 2))


edits = st.builds(
    lambda sites, seed: made(double_llama(), *sites, seed=seed, arch=double_llama().arch),
    st.sets(st.sampled_from(SITES), min_size=1),
    st.integers(0, 99),
)
factors = st.floats(-3, 3)
places = st.sets(st.sampled_from(PLACES)).map(sorted).map(tuple).filter(disjoint).map(Localization)
algebra = settings(max_examples=15, deadline=None)


def vector(edit: Edit) -> Tensor:
    """Everything an edit adds to the model, by its own deltas alone."""
    change = {name: torch.zeros_like(p) for name, p in double_llama().params.items()}
    for delta in edit.deltas:
        delta.slice.add_(change[delta.slice.name], delta.values)
    return torch.cat([part.flatten() for part in change.values()]).detach()


def inside(place: Localization) -> Tensor:
    """Which weights a localization holds."""
    holds = {name: torch.ones_like(p) for name, p in double_llama().params.items()}
    for part in double_llama().slices(place):
        part.zero_(holds[part.name])
    return torch.cat([part.flatten() for part in holds.values()]) == 0


def alike(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-12)


# -- sums ------------------------------------------------------------------------------------------------


@algebra
@given(edits, edits, edits)
def test_what_is_added_can_be_taken_away_in_any_order(one: Edit, two: Edit, three: Edit) -> None:
    assert alike(vector((one + two) - two), vector(one))
    assert alike(vector(one + two + three - one - three), vector(two))
    assert alike(vector(one - two), vector(one) - vector(two))
    assert not vector(one - one).any()


@algebra
@given(edits, edits, factors, factors)
def test_scaling_distributes_over_sums(one: Edit, two: Edit, first: float, second: float) -> None:
    assert alike(vector((one + two).scale(first)), vector(one.scale(first) + two.scale(first)))
    assert alike(vector(one.scale(first + second)), vector(one.scale(first) + one.scale(second)))


@algebra
@given(edits, edits)
def test_a_sum_holds_one_delta_for_each_parameter(one: Edit, two: Edit) -> None:
    both = one + two
    assert [d.slice.name for d in both.deltas] == list(both.shapes)
    assert alike(vector(both), vector(one) + vector(two))
    assert vector(both)[~inside(both.localization)].count_nonzero() == 0


def test_rows_and_columns_of_one_parameter_are_added_over_the_whole() -> None:
    rows, columns = Slice("w", 0, (1,)), Slice("w", 1, (0, 2))
    first = Edit((Delta(rows, torch.ones(1, 3)),), Localization(), {"w": (2, 3)})
    second = Edit((Delta(columns, torch.full((2, 2), 5.0)),), Localization(), {"w": (2, 3)})
    (delta,) = (first + second).deltas
    assert delta.slice == Slice("w") and delta.values.tolist() == [[5, 0, 5], [6, 1, 6]]


def test_a_sum_was_made_where_its_terms_were() -> None:
    made_here = made(double_llama(), "L0.mlp", made_on="here")
    nothing = Edit((), Localization())
    assert (made_here - made_here).made_on == (nothing + made_here).made_on == "here"
    assert (made_here + replace(made_here, made_on="there")).made_on == ""
    assert (nothing + made(double_llama(), "L0.mlp", arch=double_llama().arch)).arch is double_llama().arch


# -- restricting -----------------------------------------------------------------------------------------


@algebra
@given(edits, places)
def test_restricting_keeps_what_lies_inside_and_nothing_else(edit: Edit, place: Localization) -> None:
    cut = edit.restrict(place)
    assert torch.equal(vector(cut), vector(edit) * inside(place))
    assert vector(cut)[~inside(cut.localization)].count_nonzero() == 0
    again = cut.restrict(place)
    assert again.localization == cut.localization and torch.equal(vector(again), vector(cut))


@algebra
@given(edits, st.data())
def test_two_restrictions_that_share_a_place_out_make_the_edit(edit: Edit, data: st.DataObject) -> None:
    fine = edit.localization.refine("neuron", double_llama().sites)
    some = Localization(data.draw(st.sets(st.sampled_from(sorted(fine)))))
    assert torch.equal(vector(edit.restrict(some) + edit.restrict(fine - some)), vector(edit))
    assert edit.restrict(some).localization == some


def test_restricting_across_the_axis_of_a_delta_leaves_zeros_outside() -> None:
    columns = Delta(Slice(OUT, 1, (0, 5)), torch.ones(32, 2, dtype=torch.float64))
    edit = Edit((columns,), Localization(["L0.mlp"]), {OUT: (32, 48)}, arch=double_llama().arch)
    rows = Slice(OUT, 0, (3,))
    (cut,) = restricted(edit.deltas, [rows])
    assert cut.slice == columns.slice and cut.values.sum() == 2 and cut.values[3].tolist() == [1, 1]


def test_a_place_or_an_edit_that_cannot_be_restricted_is_refused() -> None:
    edit = made(double_llama(), "L0.mlp")
    with pytest.raises(
        EditError, match=r"which weights a site has is not known.*replace\(edit, arch=hm.arch\)"
    ):
        edit.restrict(Localization(["L0.mlp"]))
    with pytest.raises(SiteError, match=r"L7.mlp is not a site of this model: its layers are L0 to L1"):
        replace(edit, arch=double_llama().arch).restrict(Localization(["L7.mlp"]))


# -- pruning ---------------------------------------------------------------------------------------------


@algebra
@given(edits, edits, st.integers(0, 9000))
def test_pruning_keeps_the_largest_entries_of_the_whole_edit(one: Edit, two: Edit, k: int) -> None:
    edit = one + two.scale(0.5)
    whole, cut = vector(edit), vector(edit.prune(k))
    assert cut.count_nonzero() == min(k, int(whole.count_nonzero()))
    assert torch.equal(cut[cut != 0], whole[cut != 0])
    dropped = whole[(cut == 0) & (whole != 0)].abs()
    if len(dropped) and k:
        assert cut[cut != 0].abs().min() >= dropped.max()
    assert torch.equal(vector(edit.prune(len(whole))), whole)
    assert torch.equal(vector(edit.prune(k).prune(k)), cut)


def test_of_equally_large_entries_the_first_are_kept() -> None:
    values = torch.tensor([[1.0, -2.0, 2.0], [-2.0, 0.0, 2.0]])
    parts = (Delta(Slice("v"), values[0]), Delta(Slice("w"), values))
    edit = Edit(parts, Localization(), {"v": (3,), "w": (2, 3)})
    kept = [edit.prune(k).to_task_vector() for k in range(9)]
    counts = [sum(int(t.count_nonzero()) for t in tensors.values()) for tensors in kept]
    assert counts == [0, 1, 2, 3, 4, 5, 6, 7, 8] and kept[0] == {}
    assert kept[3]["v"].tolist() == [0, -2, 2] and kept[3]["w"].tolist() == [[0, -2, 0], [0, 0, 0]]
    order = np.argsort(-torch.cat([values[0], values.flatten()]).abs().numpy(), kind="stable")
    for k in range(1, 9):
        flat = torch.cat([kept[k].get(n, torch.zeros(s)).flatten() for n, s in (("v", 3), ("w", 6))])
        assert set(flat.nonzero()[:, 0].tolist()) == set(order[:k].tolist())
    with pytest.raises(EditError, match="k is -1; give how many entries to keep, 0 or more"):
        edit.prune(-1)


def test_what_meets_counts_once_when_it_is_pruned() -> None:
    parts = (Delta(Slice("w"), torch.tensor([3.0, 1.0])), Delta(Slice("w", 0, (0,)), torch.tensor([-3.0])))
    (delta,) = Edit(parts, Localization(), {"w": (2,)}).prune(1).deltas
    assert delta.values.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_were_pruned_or_cut_off_keep_their_very_bits(dtype: torch.dtype) -> None:
    hm = HookedModel.from_hf(hf_model("llama"), memory_tokenizer()).to(dtype)
    with torch.no_grad():
        hm.params[OUT][:, :3] = -0.0
    edit = made(hm, "L0.mlp", "L1.attn", arch=hm.arch)
    for cut in (edit.prune(500), edit.restrict(Localization(["L0.mlp.neuron[2]"])), edit - edit):
        vector = cut.to_task_vector()
        for name, after in cut.apply(hm).params.items():
            kept = vector.get(name, torch.zeros(after.shape)) == 0
            before = hm.params[name]
            same = after.detach()[kept].view(torch.uint8), before.detach()[kept].view(torch.uint8)
            assert torch.equal(*same), name


# -- for other tools -------------------------------------------------------------------------------------


def test_a_task_vector_added_to_a_state_dict_is_the_edit_applied(hm: HookedModel) -> None:
    edit = made(hm, "L0.head[1]", "L1.mlp.neuron[7]", "L1.attn", "embed")
    whole = edit.to_task_vector()
    by_hand = {name: p.detach() + whole.get(name, 0) for name, p in hm.hf.named_parameters()}
    for name, parameter in edit.apply(hm).params.items():
        assert torch.equal(parameter, by_hand[name])
    assert {name: tuple(tensor.shape) for name, tensor in whole.items()} == dict(edit.shapes)


# -- ranks -----------------------------------------------------------------------------------------------


def test_ranks_count_the_directions_of_each_sites_matrices(llama: HookedModel) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = {OUT: (32, 48), "model.layers.0.mlp.up_proj.weight": (48, 32)}
    thin = {
        name: torch.randn(rows, rank, generator=random) @ torch.randn(rank, columns, generator=random)
        for (name, (rows, columns)), rank in zip(shapes.items(), (1, 5), strict=True)
    }
    deltas = tuple(Delta(Slice(name), values) for name, values in thin.items())
    edit = Edit(deltas, Localization(["L0.mlp.in", "L0.mlp.out", "L1.attn"]), shapes)
    ranks = edit.ranks(llama)
    assert dict(zip(map(str, ranks.sites), ranks.values.values, strict=True)) == {
        "L0.mlp.in": 5, "L0.mlp.out": 1, "L1.attn": 0,
    }  # fmt: skip
    whole = replace(edit, localization=Localization(["L0.mlp", "L1.mlp.neuron[3]"]))
    assert whole.ranks(llama).values.values.tolist() == [5, 0]
    assert whole.ranks(llama, tolerance=0.999).values.values.tolist() == [1, 0]
    assert replace(edit, localization=Localization(["L0.mlp.neuron[3]"])).ranks(llama).values.values == [1]
    with pytest.raises(EditError, match=r"tolerance is 1.5; give a share from 0 to below 1, such as 0.01"):
        edit.ranks(llama, tolerance=1.5)


def test_a_full_rank_edit_has_the_rank_numpy_gives(hm: HookedModel) -> None:
    edit = made(hm, "L0.attn", "L1.head[2]", "L1.mlp")
    whole = edit.to_task_vector()
    largest = [
        max(
            np.linalg.matrix_rank(np.atleast_2d(part.of(whole[part.name]).numpy()))
            for part in hm.slices([site])
        )
        for site in edit.localization
    ]
    assert edit.ranks(hm).values.values.tolist() == largest
