"""Draw plausible wrong answers to questions from the model itself.

1. Where a question has options, one of the wrong ones is drawn, by the model's probabilities.
2. Elsewhere tokens are drawn one by one, as many as the right answer has. The first is none that the right
   answer could begin with, however it is cut into tokens.

Source: Mekala et al., "Alternate Preference Optimization for Unlearning" (2024), who prompt an instructed
model for its alternatives; a base model is sampled instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.editing.objectives.requests import Sampled
from mechunlearn.models.encoding.batch import IGNORED, Batch
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.scoring.passes import forward
from mechunlearn.models.scoring.scorer import option_logprobs

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


def sample_answers(
    hm: HookedModel, facts: Sequence[Fact], how: Sampled, *, seed: int
) -> list[tuple[str, ...]]:
    """``how.samples`` wrong answers to every question, drawn from the model; they may repeat.

    The global random state is neither used nor moved.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[int, tuple[str, ...]] = {}
    closed = [i for i, fact in enumerate(facts) if len(set(fact.options)) > 1]
    if closed:
        drawn |= zip(closed, _options(hm, [facts[i] for i in closed], how, generator), strict=True)
    words = _words(hm) if len(closed) < len(facts) else []
    for i in sorted(set(range(len(facts))) - set(closed)):
        drawn[i] = _tokens(hm, facts[i], how, generator, words)
    return [drawn[i] for i in range(len(facts))]


def _options(
    hm: HookedModel, facts: Sequence[Fact], how: Sampled, generator: torch.Generator
) -> list[tuple[str, ...]]:
    # Drawn on the CPU, where the generator is, so that a seed means the same on every device.
    scores = option_logprobs(hm, facts).double().cpu() / how.temperature
    for row, fact in zip(scores, facts, strict=True):
        for column, option in enumerate(fact.options):
            if option == fact.answer:
                row[column] = -torch.inf
    picks = torch.multinomial(scores.softmax(-1), how.samples, replacement=True, generator=generator)
    return [tuple(f.options[i] for i in row) for f, row in zip(facts, picks.tolist(), strict=True)]


def _words(hm: HookedModel) -> list[str]:
    """Every token as text, without spaces around it."""
    ids = [[i] for i in range(hm.hf.config.get_text_config().vocab_size)]
    return [word.strip() for word in hm.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _tokens(
    hm: HookedModel, fact: Fact, how: Sampled, generator: torch.Generator, words: Sequence[str]
) -> tuple[str, ...]:
    question = encode(hm, [fact])
    start, right = int(question.answer_positions[0, 0]) + 1, question.answer_ids[0]
    tokens = question.tokens[:, :start].expand(how.samples, -1)
    answer = fact.answer.strip()
    # Tokens that are blank as text are among them, since the right answer could still follow these.
    begins = torch.tensor([answer.startswith(word) for word in words], device=tokens.device)
    for step in range(int((right != IGNORED).sum())):
        logits = _next(hm, tokens) / how.temperature
        if step == 0:
            logits[:, begins] = -torch.inf
        picked = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator).to(tokens.device)
        tokens = torch.cat([tokens, picked], dim=1)
    answers = hm.tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True)
    return tuple(each.strip() for each in answers)


def _next(hm: HookedModel, tokens: Tensor) -> Tensor:
    """The logits after the last token, without gradient."""
    batch = Batch.of_tokens(tokens.contiguous())
    # Without labels, the logits of the last token alone are formed.
    unlabelled = replace(batch, labels=torch.full_like(batch.tokens, IGNORED))
    return forward(hm, unlabelled)[:, 0].double()
