"""Tiny models with a middle to enter, and the plain way to get the gradients that a step should have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from helpers import tiny_models
from helpers.tiny_models import hf_model, memory_tokenizer
from mechunlearn.core.facts.collection import Facts
from mechunlearn.models.hooked import HookedModel

DEEP = 4


def deep_model(family: str = "llama", *, seed: int = 0) -> HookedModel:
    """A tiny model of a family, of four blocks."""
    with patch.dict(tiny_models._COMMON, num_hidden_layers=DEEP):
        return HookedModel.from_hf(hf_model(family, seed=seed), memory_tokenizer())


def tolerance(family: str) -> float:
    """How far float64 results may be apart: some families have softmax, norms or rotations in float32."""
    return 1e-10 if family in ("gpt2", "neox") else 1e-5


def spoken_parts(facts: Facts) -> dict[str, list[tuple[str, str]]]:
    """What ``Inject`` trains on, as prompt and continuation."""
    asked = {"forget": facts.forget, "retain": facts.retain}
    parts = {
        split: [
            (ask.prompt, f" {ask.new if split == 'forget' else ask.answer}")
            for fact in chosen
            for ask in fact.phrasings("train")
        ]
        for split, chosen in asked.items()
    }
    return {**parts, "text": [("", text) for text in facts.train_text]}


def mean_nll(hm: HookedModel, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Mean negative log-likelihood per token of continuations, each text run alone by the plain model."""
    losses = []
    for prompt, rest in pairs:
        tokens = hm.to_tokens(prompt + rest)
        first = hm.to_tokens(prompt).shape[1] if prompt else 1
        logprobs = hm.hf(input_ids=tokens, use_cache=False).logits[0].log_softmax(-1)
        losses.append(-logprobs[first - 1 : -1].gather(-1, tokens[0, first:, None])[:, 0])
    return torch.cat(losses).mean()


def naive_gradients(hm: HookedModel, facts: Facts) -> dict[str, Tensor]:
    """The gradient of ``Inject``'s loss at every parameter of the model."""
    for parameter in hm.params.values():
        assert parameter.requires_grad
    loss: Any = sum(mean_nll(hm, pairs) for pairs in spoken_parts(facts).values())
    gradients = torch.autograd.grad(loss, list(hm.params.values()))
    return dict(zip(hm.params, gradients, strict=True))
