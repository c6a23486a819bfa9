"""The table of families: the names of their matrices, and how these are laid out.

A row gives the parameter names of one Hugging Face class, relative to a block, and

1. how Q, K and V share a matrix: ``split`` (three matrices), ``joined`` (all of Q, then K, then V), or
   ``interleaved`` (Q, K, V of head 0, then of head 1, …);
2. whether matrices are stored ``(outputs, inputs)``, or ``(inputs, outputs)`` as GPT-2's Conv1D does.

The keys of ``FAMILIES`` are the supported architectures. To add a family, add a row here and a tiny model of
it to the tests, which then check every law on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from mechunlearn.errors import ModelError, one_of


class Family(NamedTuple):
    """One family of models; ``names`` are those of a block's matrices by part: ``q k v o in gate out``."""

    embed: str
    block: str
    names: Mapping[str, str]
    layout: Literal["split", "joined", "interleaved"] = "split"
    outputs_axis: int = 0
    # Whether the family's models were trained with a BOS token in front.
    prepends_bos: bool = True
    # Whether TransformerLens computes the softmax of attention in float32 whatever the precision is. Hugging
    # Face's eager attention then does too; its faster sdpa never does.
    softmax32: bool = True


_GPT2 = Family(
    embed="transformer.wte.weight",
    block="transformer.h",
    names={"q": "attn.c_attn", "k": "attn.c_attn", "v": "attn.c_attn", "o": "attn.c_proj",
           "in": "mlp.c_fc", "out": "mlp.c_proj"},
    layout="joined",
    outputs_axis=1,
    softmax32=False,
)  # fmt: skip
_NEOX = Family(
    embed="gpt_neox.embed_in.weight",
    block="gpt_neox.layers",
    names={"q": "attention.query_key_value", "k": "attention.query_key_value",
           "v": "attention.query_key_value", "o": "attention.dense",
           "in": "mlp.dense_h_to_4h", "out": "mlp.dense_4h_to_h"},
    layout="interleaved",
    prepends_bos=False,
    softmax32=False,
)  # fmt: skip
_LLAMA = Family(
    embed="model.embed_tokens.weight",
    block="model.layers",
    names={"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
           "in": "mlp.up_proj", "gate": "mlp.gate_proj", "out": "mlp.down_proj"},
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "GPT2LMHeadModel": _GPT2,
    "GPTNeoXForCausalLM": _NEOX,
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA._replace(prepends_bos=False),
    "Gemma2ForCausalLM": _LLAMA,
}

HOOKS = {
    "attn": "hook_attn_out", "head": "attn.hook_z", "head.q": "attn.hook_q", "head.k": "attn.hook_k",
    "head.v": "attn.hook_v", "head.o": "attn.hook_z", "mlp": "hook_mlp_out", "mlp.in": "mlp.hook_pre",
    "mlp.gate": "mlp.hook_pre", "mlp.out": "hook_mlp_out", "neuron": "mlp.hook_post",
    "resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "resid_post": "hook_resid_post",
    "pattern": "attn.hook_pattern",
}  # fmt: skip


def family_of(architecture: str) -> Family:
    """The table's row of an architecture; ModelError if there is none."""
    if architecture not in FAMILIES:
        raise ModelError(
            f"{one_of('the architecture', architecture, FAMILIES)}. Load a model of one of these families."
        )
    return FAMILIES[architecture]
