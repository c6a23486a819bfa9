"""The site table: a weight of a component belongs to one site, and a slice writes only itself."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_models import HEADS, KV_HEADS
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mechunlearn.core.hooks import ablate
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ModelError, SiteError
from mechunlearn.models.arch import HookIndex, Slice
from mechunlearn.models.families import family_of
from mechunlearn.models.hooked import HookedModel

parts = st.sets(st.integers(0, 4), min_size=1).map(lambda index: Slice("w", 1, tuple(sorted(index))))
wholes = st.just(Slice("w"))


def marked(hm: HookedModel, *sites: Site) -> dict[str, Tensor]:
    """How often each weight is covered when the sites are taken one by one."""
    counts = {name: torch.zeros(parameter.shape) for name, parameter in hm.params.items()}
    for site in sites:
        for part in hm.slices([site]):
            part.add_(counts[part.name], torch.ones(part.shape(counts[part.name].shape)))
    return counts


@given(parts | wholes)
def test_a_slice_writes_what_it_reads_and_nothing_else(part: Slice) -> None:
    tensor, delta = torch.randn(3, 5), torch.randn(part.shape((3, 5)))
    inside = torch.zeros(3, 5)
    part.add_(inside, torch.ones_like(delta))
    written = tensor.clone()
    part.add_(written, delta)
    assert torch.equal(part.of(written), part.of(tensor) + delta)
    assert torch.equal(written[inside == 0], tensor[inside == 0])
    assert torch.equal(part.add(tensor, delta), written)
    part.copy_(written, part.of(tensor))
    assert torch.equal(written, tensor)
    part.zero_(written)
    assert torch.equal(written, tensor * (1 - inside))
    assert part.numel({"w": tensor}) == int(inside.sum()) == part.of(tensor).numel()


def test_gradients_reach_a_delta_through_its_slice() -> None:
    delta = torch.zeros(2, 2, requires_grad=True)
    total = (Slice("w", 1, (0, 2)).add(torch.ones(2, 3), delta) * torch.tensor([1.0, 5.0, 7.0])).sum()
    (gradient,) = torch.autograd.grad(total, delta)
    assert gradient.tolist() == [[1.0, 7.0], [1.0, 7.0]]


def test_what_a_slice_reads_is_a_copy() -> None:
    tensor = torch.ones(3)
    Slice("w").of(tensor).zero_()
    assert tensor.sum() == 3


def test_components_share_no_weight_and_leave_only_norms_positions_and_the_unembedding(
    hm: HookedModel,
) -> None:
    counts = marked(hm, *hm.sites)
    assert all(float(count.max()) <= 1 for count in counts.values())
    left = [name for name, count in counts.items() if not count.any()]
    assert all(any(word in name for word in ("norm", "ln_", "wpe", "lm_head", "embed_out")) for name in left)
    assert sum(int(count.sum()) for count in counts.values()) == hm.sites.total


def test_heads_and_groups_make_up_attention_but_for_the_output_bias(hm: HookedModel) -> None:
    pieces = [site for site in hm.sites.heads() if site.layer == 1]
    assert len(pieces) == HEADS + (KV_HEADS if hm.arch.shape.grouped else 0)
    counts, whole = marked(hm, *pieces), marked(hm, Site("attn", 1))
    rest = {name: whole[name] - count for name, count in counts.items()}
    left = [name for name, count in rest.items() if count.any()]
    assert all(float(count.min()) >= 0 for count in rest.values())
    assert all(name.endswith(("c_proj.bias", "dense.bias")) for name in left)


def test_neurons_make_up_an_mlp_but_for_the_output_bias(hm: HookedModel) -> None:
    counts, whole = marked(hm, *hm.sites.neurons(0)), marked(hm, Site("mlp", 0))
    left = [name for name, count in counts.items() if not torch.equal(count, whole[name])]
    assert all(name.endswith(("c_proj.bias", "dense_4h_to_h.bias")) for name in left)


def test_parts_make_up_the_whole(hm: HookedModel) -> None:
    inner = ("in", "gate", "out") if hm.arch.shape.gated else ("in", "out")
    assert hm.size([Site("mlp", 0)]) == sum(hm.size([Site("mlp", 0, part=part)]) for part in inner)
    of_head = "qo" if hm.arch.shape.grouped else "qkvo"
    assert hm.size([Site("head", 0, 1)]) == sum(hm.size([Site("head", 0, 1, part)]) for part in of_head)
    if hm.arch.shape.grouped:
        whole = marked(hm, Site("kv", 0, 1))
        halves = marked(hm, Site("kv", 0, 1, "k"), Site("kv", 0, 1, "v"))
        assert all(torch.equal(halves[name], count) for name, count in whole.items())
        assert hm.size([Site("kv", 0, 1, "k")]) == hm.size([Site("kv", 0, 1, "v")])


def test_a_group_without_its_keys_or_its_values_is_hooked_where_its_slice_is(hm: HookedModel) -> None:
    if not hm.arch.shape.grouped:
        with pytest.raises(SiteError, match=r"every head has keys and values of its own, L1\.head\[1\]\.k"):
            hm.slices([Site("kv", 1, 1, "k")])
        return
    tokens = torch.arange(2, 14)[None]
    for part in "kv":
        site = Site("kv", 1, KV_HEADS - 1, part)
        assert hm.hook_points(site) == (HookIndex(f"blocks.1.attn.hook_{part}", KV_HEADS - 1),)
        by_hook = hm.run_with_hooks(
            tokens, fwd_hooks=[ablate(hm.hook_points(site)[0].name, index=site.index)]
        )
        params = {owned.name: hm.params[owned.name].detach().clone() for owned in hm.slices([site])}
        assert params and all(f"{part}_proj" in name for name in params)
        for owned in hm.slices([site]):
            owned.zero_(params[owned.name])
        assert (by_hook - hm.fork(params)(tokens)).abs().max() < 1e-5
        assert (by_hook - hm(tokens)).abs().max() > 1e-3


def test_many_sites_are_one_slice_per_parameter(hm: HookedModel) -> None:
    some = hm.slices(Site("neuron", 0, index) for index in (7, 3, 11))
    assert len({part.name for part in some}) == len(some)
    assert all(part.index == (3, 7, 11) for part in some)
    every = hm.slices(hm.sites.neurons(0))
    assert {part.index for part in every} == {None}


def test_states_have_hooks_and_no_weights(llama: HookedModel) -> None:
    assert [point.name for point in llama.hook_points("L1.resid_mid")] == ["blocks.1.hook_resid_mid"]
    assert llama.hook_points("L1.pattern[2]") == (HookIndex("blocks.1.attn.hook_pattern", 2, 1),)
    assert llama.hook_points("embed")[0].name == "hook_embed"
    with pytest.raises(SiteError, match=r"L1\.resid_mid is a state and has no weights"):
        llama.slices([Site("resid_mid", 1)])


def test_every_state_of_every_family_is_hooked_where_it_says(hm: HookedModel) -> None:
    parallel = hm.arch.parallel
    states = [Site("resid_pre", 1), Site("resid_post", 1), Site("pattern", 1, 2), Site("embed")]
    for site in [*states, *([] if parallel else [Site("resid_mid", 1)])]:
        (point,) = hm.hook_points(site)
        _, cache = hm.run_with_cache(torch.arange(2, 8)[None], names_filter=point.name)
        width = HEADS if point.axis == 1 else hm.cfg.d_model
        assert cache[point.name].shape[point.axis] == width
    if parallel:
        with pytest.raises(SiteError, match=r"there is no L1\.resid_mid; use L1\.resid_post"):
            hm.hook_points("L1.resid_mid")


def test_a_site_of_another_model_is_refused(llama: HookedModel) -> None:
    for text, problem in (("L7.mlp", "L0 to L1"), ("L0.head[2].k", r"L0\.kv\[1\]"), ("L0.head[9]", "0 to 3")):
        with pytest.raises(SiteError, match=problem):
            llama.slices([Site.parse(text)])
        with pytest.raises(SiteError, match=problem):
            llama.hook_points(text)


def test_an_architecture_outside_the_table_is_refused_with_the_list() -> None:
    with pytest.raises(ModelError, match=r"'GPT2LMHeadModel'.*'Gemma2ForCausalLM'; not 'BertForMaskedLM'"):
        family_of("BertForMaskedLM")
