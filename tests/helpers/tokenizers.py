"""Tokenizers of every kind, trained in memory, and a tiny model to speak with: no network, no wrapper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "Mary Lee plays the sport of basketball",
    "Zoë Quinn plays golf and Mary Lee plays tennis",
    "The player Mary Lee is good at ice hockey",
    "Q: What sport does Mary Lee play? A golf B tennis C hockey Answer: A",
)


@dataclass(frozen=True)
class Speaker:
    """The little that encoding and scoring ask of a model."""

    tokenizer: Any
    hf: Any = None
    prepend_bos: bool = True
    truncate: Literal["left"] | None = None
    context_length: int | None = None
    pad_id: int = 0

    def refresh(self) -> None:
        """Nothing can be done to it from outside."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


def _fast(inner: Any, **special: str) -> Any:
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=inner, **special)


def byte_level(*, trim: bool, prefix: bool = False, merges: int = 40) -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.post_processor = processors.ByteLevel(trim_offsets=trim)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=257 + merges, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _fast(inner, bos_token="<s>")


def metaspace(*, scheme: str = "always", size: int = 60) -> Any:
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "<s>"], show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    return _fast(inner, bos_token="<s>", unk_token="<unk>")


def sentencepiece(*, size: int = 60) -> Any:
    """As Llama's: the space mark is put in by a normalizer, and merges may cross words."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "<s>"], show_progress=False)
    inner.train_from_iterator([word for line in CORPUS for word in line.split()], trainer)
    return _fast(inner, bos_token="<s>", unk_token="<unk>")


def words(*, bos: bool = True) -> Any:
    inner = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>"], show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    return _fast(inner, unk_token="<unk>", **({"bos_token": "<s>"} if bos else {}))


TOKENIZERS = {
    "byte-level, trimmed offsets": byte_level(trim=True),
    "byte-level, offsets with the space": byte_level(trim=False),
    "byte-level, no merges": byte_level(trim=True, merges=0),
    "byte-level, no merges, offsets with the space": byte_level(trim=False, merges=0),
    "byte-level, space put before the text": byte_level(trim=True, prefix=True),
    "metaspace": metaspace(),
    "metaspace, letters": metaspace(size=40),
    "metaspace, none before the text": metaspace(scheme="never"),
    "sentencepiece": sentencepiece(),
    "sentencepiece, letters": sentencepiece(size=10),
    "words": words(),
}


def tiny_llama(vocab: int, *, seed: int = 0) -> Any:
    """A random Llama in float64, with weights large enough that it has opinions."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
    return model
