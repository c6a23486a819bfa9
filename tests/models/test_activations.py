"""What is kept at single positions, against whole caches of whole prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_facts import tiny_facts

from mechunlearn.errors import HookError, ScoresError
from mechunlearn.models.activations import capture, probe_sites, states_at
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel


@pytest.mark.parametrize("at", ["last_subject", "last"])
def test_states_are_read_where_they_are_asked_for(llama: HookedModel, at: str) -> None:
    facts, sites = tiny_facts(), probe_sites(llama)
    actual = states_at(llama, facts, sites, positions=at, batch_size=3)  # type: ignore[arg-type]
    for row, fact in enumerate(facts):
        one = encode(llama, [fact], answer=None)
        _, store = llama.run_with_cache(one.tokens)
        index = int(one.subject_last if at == "last_subject" else one.end)
        for s, site in enumerate(sites):
            expected = store[llama.arch.hooks(site)[0].name][0, index].detach()
            torch.testing.assert_close(actual[s, row].float(), expected, atol=2e-5, rtol=1e-4)


def test_every_layer_is_read_and_parallel_blocks_have_no_middle(hm: HookedModel, family: str) -> None:
    names = list(map(str, probe_sites(hm)))
    assert hm.arch.parallel == (family == "neox")
    middle = [] if family == "neox" else ["L0.resid_mid", "L1.resid_mid"]
    assert set(names) == {"L0.resid_pre", "L0.resid_post", "L1.resid_post", *middle}


def test_a_capture_of_cut_rows_is_what_a_cache_of_whole_rows_holds(hm: HookedModel) -> None:
    wide, draw = hm.to(torch.float64), torch.Generator().manual_seed(0)
    tokens, lengths = torch.randint(2, 90, (5, 8), generator=draw), torch.tensor([8, 3, 5, 8, 1])
    mask = (torch.arange(8) < lengths[:, None]).long()
    where = torch.stack([lengths - 1, lengths // 2], dim=1)
    names = ["blocks.1.attn.hook_z", "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]
    actual = capture(wide.bridge, tokens, names, where, mask=mask, batch_size=2)
    _, store = wide.run_with_cache(tokens, names_filter=names, attention_mask=mask)
    for name in names:
        expected = store[name][torch.arange(5)[:, None], where]
        # Some families compute their norms in float32 whatever the model's precision.
        torch.testing.assert_close(actual[name], expected, atol=2e-6, rtol=0)
        assert actual[name].dtype == torch.float64


def test_a_capture_computes_nothing_that_is_not_asked_for(llama: HookedModel) -> None:
    seen: list[tuple[str, int]] = []

    def watch(name: str) -> tuple[str, Any]:
        return name, lambda activation, hook: seen.append((name, activation.shape[1]))

    later = ["hook_embed", "blocks.1.hook_resid_pre", "unembed.hook_in"]
    with llama.bridge.hooks(fwd_hooks=[watch(name) for name in later]):
        capture(
            llama.bridge,
            torch.ones(2, 6, dtype=torch.long),
            ["blocks.0.hook_mlp_out"],
            torch.ones(2, 1).long(),
        )
    assert seen == [("hook_embed", 2)]
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())


@pytest.mark.parametrize(
    ("name", "index", "error", "message"),
    [
        (
            "blocks.0.hook_mlp",
            0,
            HookError,
            "no hook 'blocks.0.hook_mlp'; the nearest are 'blocks.0.hook_mlp_",
        ),
        (
            "hook_pos_embed",
            0,
            HookError,
            "'hook_pos_embed' was requested and never fired in LlamaForCausalLM",
        ),
        ("hook_embed", 3, ScoresError, "where= holds positions 3 to 3, but the rows have 3 tokens"),
    ],
)
def test_what_cannot_be_captured_is_an_error_and_leaves_no_hook(
    llama: HookedModel, name: str, index: int, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        capture(llama.bridge, torch.ones(1, 3, dtype=torch.long), [name], torch.tensor([[index]]))
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())


def test_no_rows_per_pass_are_an_error(llama: HookedModel) -> None:
    with pytest.raises(ScoresError, match="batch_size must be above zero; not 0"):
        states_at(llama, tiny_facts(), probe_sites(llama), batch_size=0)
