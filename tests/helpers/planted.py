"""A model whose mechanism is known, because it was written by hand: what is there, localizers must find.

Four Llama blocks, names of one token, prompts of the form "Name is playing". At a name, the MLP of block 1
has one neuron per person, which writes the person's answer. Attention in block 2 carries it to the last
token, where the MLP of block 3 makes it louder. Everything else is zero. So ``L1.mlp`` looks facts up, while
``L2.attn`` and ``L3.mlp`` only carry them out.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.models.hooked import HookedModel

ANSWERS = ("golf", "judo", "polo", "chess")
NAMES = tuple(first + last for first in ("Al", "Bo", "Cy", "Di", "Ed") for last in "abdefgho")
WORDS = ("<s>", "</s>", "is", "playing", *ANSWERS, *NAMES)
WIDTH, D_HEAD, D_MLP, LAYERS = 64, 32, 48, 4

# One axis per word; then the answer as it is looked up, as it is carried to the end; and a constant.
LOOKED_UP, CARRIED, CONSTANT = len(WORDS), len(WORDS) + 4, len(WORDS) + 8


def answer_of(name: str) -> int:
    """Each name's answer by number, drawn independently of its letters, ten names each."""
    order = random.Random(0).sample(NAMES, len(NAMES))
    return order.index(name) % len(ANSWERS)


def planted_facts() -> Facts:
    """What each name plays; the other answers are its options."""
    return Facts(
        Fact(f"{name} is playing", name, ANSWERS[answer_of(name)], options=ANSWERS, relation="sport")
        for name in NAMES
    )


def planted_model() -> HookedModel:
    """The model, in float32."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = transformers.PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=2, head_dim=D_HEAD, intermediate_size=D_MLP, max_position_embeddings=16,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    build: Any = transformers.LlamaForCausalLM
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # norms stay at one
                parameter.zero_()
        _plant(model)
    return HookedModel.from_hf(model, tokenizer, prepend_bos=True)


def _plant(model: Any) -> None:
    layers, choices = model.model.layers, range(len(ANSWERS))
    embedding = model.model.embed_tokens.weight
    embedding[:, : len(WORDS)] += torch.eye(len(WORDS))
    embedding[:, CONSTANT] += 0.5
    lookup, amplifier, carrier = layers[1].mlp, layers[3].mlp, layers[2].self_attn
    for neuron, name in enumerate(NAMES):
        axis = WORDS.index(name)
        lookup.gate_proj.weight[neuron, axis] += 1
        lookup.up_proj.weight[neuron, axis] += 1
        lookup.down_proj.weight[LOOKED_UP + answer_of(name), neuron] += 0.06
    # The last rotary pair turns so slowly that distance does not matter.
    carrier.q_proj.weight[D_HEAD - 1, CONSTANT] += 1.5
    for choice in choices:
        carrier.k_proj.weight[D_HEAD - 1, LOOKED_UP + choice] += 1.5
        carrier.v_proj.weight[choice, LOOKED_UP + choice] += 1
        carrier.o_proj.weight[CARRIED + choice, choice] += 0.3
        amplifier.gate_proj.weight[choice, CARRIED + choice] += 1
        amplifier.up_proj.weight[choice, CARRIED + choice] += 1
        amplifier.down_proj.weight[CARRIED + choice, choice] += 0.02
        model.lm_head.weight[WORDS.index(ANSWERS[choice]), CARRIED + choice] += 1.5
