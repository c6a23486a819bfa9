"""Six tiny random models, one per family, and a tokenizer that exists only in memory.

The models are small enough to build in a fraction of a second, and awkward on purpose: norms and biases are
not at their initial values, key and value heads are shared where the family shares them, embeddings are tied
where the family ties them, and the tokenizer has no pad token.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mechunlearn.models.hooked import HookedModel

FAMILIES = ("gpt2", "neox", "llama", "mistral", "qwen2", "gemma2")
LAYERS, HEADS, KV_HEADS, D_MODEL, D_MLP, VOCAB = 2, 4, 2, 32, 48, 96

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": D_MLP,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def _config(family: str) -> Any:
    grouped: dict[str, Any] = {**_COMMON, "num_key_value_heads": KV_HEADS}
    own: dict[str, dict[str, Any]] = {
        "gpt2": {"model_type": "gpt2", "n_inner": D_MLP, **_COMMON},
        "neox": {"model_type": "gpt_neox", **_COMMON},
        "llama": {"model_type": "llama", **grouped, "tie_word_embeddings": False},
        "mistral": {"model_type": "mistral", **grouped, "sliding_window": 16, "tie_word_embeddings": False},
        "qwen2": {"model_type": "qwen2", **grouped, "tie_word_embeddings": False},
        "gemma2": {"model_type": "gemma2", **grouped, "sliding_window": 16, "head_dim": 16},
    }
    return transformers.AutoConfig.for_model(**own[family])


def hf_model(family: str, *, seed: int = 0) -> Any:
    """A plain Hugging Face model of a family, with weights large enough that every part matters."""
    build: Any = transformers.AutoModelForCausalLM.from_config
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(_config(family)).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 0.0 if name.endswith("bias") or family == "gemma2" else 1.0
                parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=0.3 if "embed" in name or "wte" in name else 0.15)
    return model


def memory_tokenizer() -> Any:
    """A byte-level tokenizer of 96 tokens with BOS and EOS, without a pad token, never saved anywhere."""
    words = ["<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()]
    letters = sorted(word for word in words[2:] if word.isascii() or word == "Ġ")
    merges = [("Ġ", "p"), ("i", "n")]
    vocab = ["<s>", "</s>", *letters[: VOCAB - 4], *(a + b for a, b in merges)]
    if "Ġ" not in vocab:
        vocab[2] = "Ġ"
    inner = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(vocab)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    build: Any = transformers.PreTrainedTokenizerFast
    return build(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@cache
def tiny_llama() -> HookedModel:
    """One tiny model (read-only), for property tests, which take no fixture that is made anew."""
    return HookedModel.from_hf(hf_model("llama"), memory_tokenizer())


@cache
def double_llama() -> HookedModel:
    """The same in float64 (read-only)."""
    return tiny_llama().to(torch.float64)
