"""Runs with hooks and caches: every hook that is asked for fires, or it is an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_models import D_MODEL, hf_model
from torch import Tensor

from mechunlearn.errors import HookError
from mechunlearn.models.hooked import HookedModel


def nothing(activation: Tensor, hook: Any) -> None:
    """A hook that only looks."""


def double(activation: Tensor, hook: Any) -> Tensor:
    """A hook that writes."""
    return 2 * activation


def test_runs_give_what_is_asked_for(llama: HookedModel) -> None:
    logits, loss = llama("in pens", return_type="both")
    assert torch.equal(logits, llama("in pens"))
    assert loss.ndim == 0
    assert llama("in pens", return_type=None) is None
    _, cache = llama.run_with_cache("in pens", names_filter="blocks.1.hook_resid_pre")
    assert torch.equal(llama("in pens", stop_at_layer=1), cache["blocks.1.hook_resid_pre"])


def test_a_cache_keeps_what_is_asked_for(llama: HookedModel) -> None:
    one, two = "blocks.0.hook_mlp_out", "blocks.1.attn.hook_z"
    assert llama.run_with_cache("a", names_filter=one)[1][one].shape[-1] == D_MODEL
    assert {one, two} <= set(llama.run_with_cache("a", names_filter=[one, two])[1].keys())
    assert list(llama.run_with_cache("a", names_filter=lambda name: name == one)[1].keys()) == [one]
    assert len(llama.run_with_cache("a")[1]) > 40
    assert one in llama.hook_dict


def test_hooks_read_write_and_go_away(llama: HookedModel) -> None:
    clean = llama("in pens")
    hooked = llama.run_with_hooks("in pens", fwd_hooks=[("blocks.0.hook_mlp_out", double)])
    assert (hooked - clean).abs().max() > 1e-3
    with llama.hooks([("blocks.0.hook_mlp_out", double)]) as inside:
        assert torch.equal(inside("in pens"), hooked)
    assert torch.equal(llama("in pens"), clean)
    llama.bridge.add_hook("blocks.0.hook_mlp_out", double)
    assert torch.equal(llama("in pens"), hooked)
    llama.reset_hooks()
    assert torch.equal(llama("in pens"), clean)


def test_hooks_go_away_when_something_fails(llama: HookedModel) -> None:
    def fail(activation: Tensor, hook: Any) -> None:
        raise RuntimeError("on purpose")

    clean = llama("in pens")
    with pytest.raises(RuntimeError, match="on purpose"):
        llama.run_with_hooks("in pens", fwd_hooks=[("hook_embed", double), ("blocks.1.hook_mlp_out", fail)])
    assert torch.equal(llama("in pens"), clean)


def test_gradient_hooks_see_gradients(llama: HookedModel) -> None:
    seen: list[Tensor] = []
    pair = ("blocks.0.hook_mlp_out", lambda gradient, hook: seen.append(gradient))
    llama.run_with_hooks("in pens", bwd_hooks=[pair], return_type="loss").backward()
    with llama.hooks(bwd_hooks=[pair]):
        llama("in pens", return_type="loss").backward()
    llama.hf.zero_grad()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


def test_an_unknown_hook_is_refused_with_the_nearest(llama: HookedModel) -> None:
    with pytest.raises(
        HookError, match=r"no hook 'blocks\.0\.hook_mlp_ot'; the nearest are 'blocks\.0\.hook_mlp_out'"
    ):
        llama.run_with_hooks("a", fwd_hooks=[("blocks.0.hook_mlp_ot", nothing)])
    with pytest.raises(HookError, match="no hook 'hook_embd'"):
        llama.run_with_cache("a", names_filter=["hook_embed", "hook_embd"])
    with pytest.raises(HookError, match=r"list\(hm\.hook_dict\)"), llama.hooks(bwd_hooks=[("x", nothing)]):
        pass


def test_a_hook_that_never_fires_is_an_error(llama: HookedModel) -> None:
    why = "'hook_pos_embed' was requested and never fired in LlamaForCausalLM: models with rotary positions"
    with pytest.raises(HookError, match=why):
        llama.run_with_hooks("a", fwd_hooks=[("hook_embed", nothing), ("hook_pos_embed", nothing)])
    with pytest.raises(HookError, match=why):
        llama.run_with_hooks("a", bwd_hooks=[("hook_pos_embed", nothing)])
    with pytest.raises(HookError, match=why):
        llama.run_with_cache("a", names_filter="hook_pos_embed")
    with pytest.raises(HookError, match=r"'hook_embed' was requested and never fired.*hm.hf has no hooks"):
        with llama.hooks([("hook_embed", nothing)]):
            llama.hf(torch.tensor([[3]]))
    with (
        pytest.raises(HookError, match="a backward pass has to reach it"),
        llama.hooks(bwd_hooks=[("hook_embed", nothing)]),
    ):
        llama("a")
    with pytest.raises(HookError, match="a filter of names was requested and never fired"):
        llama.run_with_hooks("a", fwd_hooks=[(lambda name: False, nothing)])
    with pytest.raises(HookError, match=r"'blocks\.1\.hook_mlp_out' was requested and never fired"):
        llama.run_with_hooks("a", fwd_hooks=[("blocks.1.hook_mlp_out", nothing)], stop_at_layer=1)


def test_a_hook_that_is_switched_off_is_an_error(llama: HookedModel) -> None:
    with pytest.raises(HookError, match=r"Call set_use_attn_result\(True\) first.*on hm\.bridge"):
        llama.run_with_hooks("a", fwd_hooks=[("blocks.0.attn.hook_result", nothing)])


def test_fused_points_say_where_to_look_instead(tokenizer: Any) -> None:
    hm = HookedModel.from_hf(hf_model("gpt2"), tokenizer)
    with pytest.raises(HookError, match=r"never fired in GPT2LMHeadModel: fused Q, K, V.*attn\.hook_q"):
        hm.run_with_hooks("a", fwd_hooks=[("blocks.0.attn.qkv.hook_out", nothing)])
