"""The parts of a block are trusted where they reproduce the model, and nowhere else."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from helpers import tiny_models
from helpers.patching_twin import full_softmax as full_softmax
from helpers.path_twin import SENDERS, Setup, deep
from helpers.tiny_models import VOCAB, hf_model, memory_tokenizer
from torch import Tensor

from mechunlearn.errors import FallbackWarning
from mechunlearn.localization.engine.block_functions import BlockFunctions
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.path_patching.paths import Paths
from mechunlearn.models.activations import probe_sites
from mechunlearn.models.hooked import HookedModel


def test_the_parts_of_every_family_are_trusted_in_any_precision(hm: HookedModel) -> None:
    for model in (hm, hm.to(torch.bfloat16)):
        assert BlockFunctions.of(model).reason == ""


def test_the_loaded_model_says_whether_its_blocks_are_parallel() -> None:
    with patch.dict(tiny_models._COMMON, use_parallel_residual=False):
        hm = HookedModel.from_hf(hf_model("neox"), memory_tokenizer()).to(torch.float64)
    assert not hm.arch.parallel
    assert BlockFunctions.of(hm).reason == Engine.of(hm).reason == Engine.of(hm).slower == ""
    assert [str(site) for site in probe_sites(hm)][1:3] == ["L0.resid_mid", "L0.resid_post"]


@torch.no_grad()
def test_queries_keys_values_heads_and_mlps_are_those_of_a_run(hm: HookedModel) -> None:
    tokens = torch.randint(2, VOCAB, (1, 7), generator=torch.Generator().manual_seed(0))
    _, cache = hm.run_with_cache(tokens)
    functions, shape = BlockFunctions.of(hm), hm.arch.shape
    for layer in range(shape.n_layers):
        block = f"blocks.{layer}."
        stream = cache[f"{block}hook_resid_pre"][0]
        for part, unit in (("q", shape.n_heads - 1), ("k", 1), ("v", 0)):
            expected = cache[f"{block}attn.hook_{part}"][0, :, unit]
            close(functions.project(layer, part, stream, (unit,))[:, 0], expected)
        # The bias of the output is nobody's.
        z = cache[f"{block}attn.hook_z"][0]
        out = torch.stack([functions.head(layer, h, z[:, h]) for h in range(shape.n_heads)]).sum(0)
        bias = getattr(hm.bridge.blocks[layer].attn, "b_O", None)
        out = out if bias is None else out + bias
        close(functions.post_norm(layer, out), cache[f"{block}hook_attn_out"][0])
        middle = stream if hm.arch.parallel else stream + cache[f"{block}hook_attn_out"][0]
        close(functions.mlp(layer, middle), cache[f"{block}hook_mlp_out"][0])


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


REASONS: Any = {
    "L0: q of the heads is not a matrix after the norm": lambda b: b.blocks[0].ln1,
    "L1: v of the heads is not a matrix after the norm": lambda b: b.blocks[1].attn.v.original_component,
    "L1: heads do not write their values mixed by the pattern": lambda b: b.blocks[1].attn.o.hook_in,
    "L0: attention does not write the sum over its heads": lambda b: b.blocks[0].attn.o,
    "L1: the MLP does more than read the stream through its norm": lambda b: b.blocks[1].ln2,
    "L0: the block adds more to the stream than attention and MLP": lambda b: b.blocks[0].original_component,
    "the embedding does not add to the residual stream": lambda b: b.embed,
}


# The engine falls back as well.
@pytest.mark.filterwarnings("ignore:(blocks do not|every patch)")
@pytest.mark.parametrize("reason", REASONS)
def test_a_model_with_a_part_of_its_own_is_patched_by_hooks_instead(reason: str) -> None:
    hm = HookedModel.from_hf(hf_model("llama"), memory_tokenizer()).to(torch.float64)
    # A part of the model, not a hook of TransformerLens.
    REASONS[reason](hm.bridge).register_forward_hook(twisted)
    with pytest.warns(FallbackWarning, match=f"paths are patched by hooks, since {reason}; each sender"):
        assert BlockFunctions.of(hm).reason == reason
    setup, receivers = Setup(hm), ["L1.head[0].q", "L1.mlp"]
    paths = Paths.of(hm, ["embed", "L0.mlp", "L0.head[2]"], receivers, mlps="recompute")
    setup.agree(setup.twins(), paths, receivers, setup.sweep(paths))


def test_a_part_that_cannot_be_called_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hm = HookedModel.from_hf(hf_model("llama"), memory_tokenizer())
    monkeypatch.setattr(BlockFunctions, "mlp", broken)
    with pytest.warns(FallbackWarning, match="since a part of a block could not be run on its own"):
        assert BlockFunctions.of(hm).reason.endswith("on its own (TypeError: no)")


def broken(self: Any, layer: Any, resid: Any) -> Any:
    raise TypeError("no")


def twisted(module: Any, args: Any, out: Any) -> Any:
    return (twisted(module, args, out[0]), *out[1:]) if isinstance(out, tuple) else out + 0.1 * out.sin()


def test_an_edit_between_two_sweeps_is_seen() -> None:
    hm = deep("neox").to(torch.float64)
    setup, receivers = Setup(hm), ["L2.head[1].k", "L3.mlp"]
    paths = Paths.of(hm, SENDERS, receivers, mlps="recompute")
    before = setup.sweep(paths)
    with torch.no_grad():
        for parameter in hm.hf.parameters():
            parameter.mul_(1.05)
    hm.sync()
    after = setup.sweep(paths)
    assert float((after - before).abs().max()) > 1e-3
    setup.agree(setup.twins(), paths, receivers, after)
