"""A model is two views of one set of tensors; a changed model is a fork of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import D_MLP, D_MODEL, HEADS, KV_HEADS, LAYERS, VOCAB, hf_model

from mechunlearn.errors import EditError, ModelError
from mechunlearn.models.hooked import HookedModel


def test_weights_have_transformer_lens_names(llama: HookedModel) -> None:
    d_head = D_MODEL // HEADS
    assert llama.W_E.shape == (VOCAB, D_MODEL)
    assert llama.W_U.shape == (D_MODEL, VOCAB)
    assert llama.W_Q.shape == (LAYERS, HEADS, D_MODEL, d_head)
    assert llama.W_K.shape == llama.W_V.shape == (LAYERS, KV_HEADS, D_MODEL, d_head)
    assert llama.W_O.shape == (LAYERS, HEADS, d_head, D_MODEL)
    assert llama.W_in.shape == llama.W_gate.shape == (LAYERS, D_MODEL, D_MLP)
    assert llama.W_out.shape == (LAYERS, D_MLP, D_MODEL)
    assert torch.equal(llama.W_in[1].T, llama.params["model.layers.1.mlp.up_proj.weight"])


def test_biases_are_stacked_where_a_family_has_them_and_missed_by_name_where_not(
    hm: HookedModel, family: str
) -> None:
    every, some = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out"), ("b_Q", "b_K", "b_V")
    biases = {"gpt2": every, "neox": every, "qwen2": some}.get(family, ())
    for name in every:
        if name in biases:
            assert len(getattr(hm, name)) == LAYERS
        else:
            with pytest.raises(AttributeError, match="no such parameter"):
                getattr(hm, name)
    assert hm.b_U.shape == (VOCAB,)
    if family == "gpt2":
        assert hm.W_pos.shape == (64, D_MODEL)


def test_looking_for_the_first_time_leaves_the_random_state(family: str, tokenizer: Any) -> None:
    hm = HookedModel.from_hf(hf_model(family), tokenizer)
    state = torch.get_rng_state()
    hm.run_with_cache("in pens")
    hm.fork().bridge, hm.folded()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fork_shares_what_it_does_not_replace(hm: HookedModel) -> None:
    name, untouched = list(hm.params)[3], list(hm.params)[4]
    identity, new = hm.identity, torch.randn(hm.params[name].shape)
    fork = hm.fork({name: new}, edit="mine")
    assert fork.params[untouched] is hm.params[untouched]
    assert fork.params[name].data_ptr() == new.data_ptr()
    assert fork.identity != identity == hm.identity
    assert (hm.edits, fork.edits, fork.fork(edit="then").edits) == ((), ("mine",), ("mine", "then"))
    assert hm.fork().identity == identity


def test_tied_embeddings_stay_tied(family: str, hm: HookedModel) -> None:
    name = hm.slices(hm.sites)[0].name
    fork = hm.fork({name: torch.randn(hm.params[name].shape)})
    tied = family in ("gpt2", "gemma2")
    assert hm.hf.config.tie_word_embeddings == tied
    assert (fork.hf.get_output_embeddings().weight is fork.params[name]) == tied
    assert (fork.bridge.original_model.get_output_embeddings().weight is fork.params[name]) == tied


def test_a_model_is_not_saved_into_a_file(llama: HookedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="is a file; give a folder"):
        llama.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_replacement_must_fit(llama: HookedModel) -> None:
    with pytest.raises(EditError, match=r"no parameter 'wte' .*edit made on another model"):
        llama.fork({"wte": torch.zeros(2)})
    with pytest.raises(EditError, match=r"'model.norm.weight' has shape \(32,\), its replacement \(2,\)"):
        llama.fork({"model.norm.weight": torch.zeros(2)})


def test_copies_of_fused_weights_follow_what_is_written(tokenizer: Any) -> None:
    hm = HookedModel.from_hf(hf_model("neox"), tokenizer)
    before = hm("in pens")
    with torch.no_grad():
        hm.params["gpt_neox.layers.0.attention.query_key_value.weight"].mul_(3)
    after = hm("in pens")
    assert (after - before).abs().max() > 0.1
    assert (after - hm.hf(hm.to_tokens("in pens")).logits).abs().max() < 1e-5


def test_a_bridge_first_used_in_inference_mode_still_has_gradients(family: str, tokenizer: Any) -> None:
    hm = HookedModel.from_hf(hf_model(family), tokenizer)
    with torch.inference_mode():
        hm("in pens")
    hm("in pens", return_type="loss").backward()


def test_another_precision_is_another_model(family: str, hm: HookedModel) -> None:
    half = hm.to(torch.bfloat16)
    assert (half.dtype, hm.dtype) == (torch.bfloat16, torch.float32)
    assert half.hf.config.dtype == torch.bfloat16
    buffers = dict(half.hf.named_buffers())
    assert all(buffer.dtype == torch.float32 for name, buffer in buffers.items() if "inv_freq" in name)
    assert hm.to("cpu").identity == hm.identity != half.identity


def test_a_folded_bridge_gives_the_same_probabilities_and_is_separate(hm: HookedModel) -> None:
    identity, tokens = hm.identity, hm.to_tokens("in pens")
    folded = hm.folded()
    assert folded.compatibility_mode
    gap = folded(tokens).log_softmax(-1) - hm(tokens).log_softmax(-1)
    assert gap.abs().max() < 1e-4
    assert hm.identity == identity


def test_identity_depends_on_every_weight_and_on_precision(llama: HookedModel) -> None:
    name = "lm_head.weight"
    nudged = llama.params[name].detach().clone()
    nudged[-1, -1] += 1e-6
    identities = {llama.identity, llama.fork({name: nudged}).identity, llama.to(torch.bfloat16).identity}
    assert len(identities) == 3
    assert all(len(identity) == 16 for identity in identities)


def test_sizes_are_counted_on_the_plain_model(hm: HookedModel) -> None:
    assert hm.size(hm.sites) == sum(part.numel(hm.params) for part in hm.slices(hm.sites)) == hm.sites.total
    assert hm.fraction(hm.sites) == 1.0
    assert 0 < hm.fraction(hm.sites.mlps()) < 1


def test_a_model_says_what_it_is(llama: HookedModel) -> None:
    text = repr(llama.fork(edit="inject"))
    count = sum(parameter.numel() for parameter in llama.hf.parameters())
    assert text.startswith("HookedModel(LlamaForCausalLM: 2 layers, 4 heads (2 key-value heads), d_model 32")
    assert text.endswith(f"{count:,} parameters in float32 on cpu, BOS prepended, edits: inject)")
