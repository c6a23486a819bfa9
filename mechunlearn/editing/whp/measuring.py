"""Measure how familiar a model is with a text, by what it writes and by what it holds probable.

1. *By completion*: the model goes on from every prompt, greedily or sampled with a seed; a judge classes what
   it wrote.
2. *By probability*: the probability of every specific and generic word, scored whole (the product over its
   tokens), summed over each kind. The mass on specific words is the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mechunlearn.core import metrics
from mechunlearn.core.checks import positive
from mechunlearn.editing.whp.familiarity import (
    Familiar,
    Familiarity,
    Judge,
    Prompt,
    StringJudge,
    judged,
    require_prompts,
)
from mechunlearn.editing.whp.text_blocks import tokens_of
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.models.encoding.batch import IGNORED
from mechunlearn.models.encoding.encoder import encode_text, joined
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.passes import HasModel, forward


def completion_familiarity(
    hm: HookedModel,
    prompts: Sequence[Prompt | str],
    judge: Judge | None = None,
    *,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> Familiarity:
    """Let a model go on from prompts, and judge whether it knows the text.

    Args:
        hm: the model.
        prompts: beginnings of sentences, with or without continuations (which are not read here).
        judge: gives each prompt and completion one of four classes, such as ``StringJudge(tuple(anchors))``
            or a function that asks another model; None looks for the prompts' specific continuations.
        max_new_tokens: how much is written.
        do_sample: sample instead of taking the likeliest token.
        temperature: of the sampling.
        seed: of the sampling.
        batch_size: prompts written on at a time.

    Raises:
        FactError: there are no prompts, or there is nothing to judge by.
        ScoresError: the judge gives another class, or `batch_size` is not positive.

    Example:
        >>> hm, text = mu.world.model(), mu.whp.corpus()
        >>> mu.whp.completion_familiarity(hm, text.prompts, text.judge)
        Familiarity by completion: ...

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 3 (where GPT-4 judges).
    """
    require_prompts(prompts)
    positive(ScoresError, batch_size=batch_size, max_new_tokens=max_new_tokens)
    texts = [prompt if isinstance(prompt, str) else prompt.text for prompt in prompts]
    classed = judge or _by_specific(prompts)
    rows: list[Familiar] = []
    for start in range(0, len(texts), batch_size):
        asked = texts[start : start + batch_size]
        written = hm.generate(
            asked, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature,
            seed=seed + start,
        )  # fmt: skip
        for text, whole in zip(asked, written, strict=True):
            completion = _after(hm, text, whole)
            rows.append(judged(text, completion, classed(text, completion)))
    return Familiarity("completion", tuple(rows))


def probability_familiarity(hm: HasModel, prompts: Sequence[Prompt]) -> Familiarity:
    """Measure the probability a model gives to what only the text says.

    Args:
        hm: the model.
        prompts: beginnings of sentences, each with specific continuations; generic ones are reported beside.

    Raises:
        FactError: there are no prompts, or one has no specific continuation.

    Example:
        >>> prompt = mu.whp.Prompt("Frank Kennedy plays the sport of", ("hockey",), ("golf", "tennis"))
        >>> round(mu.whp.probability_familiarity(mu.world.model(), [prompt]).score, 1)
        1.0

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 3.
    """
    require_prompts(prompts)
    for prompt in prompts:
        if not prompt.specific:
            raise FactError(f"the prompt {prompt.text!r} has no specific continuation; give it `specific=`")
    asked = [(p.text, word) for p in prompts for word in (*p.specific, *p.generic)]
    p_word = dict(zip(asked, _probabilities(hm, asked), strict=True))
    return Familiarity("probability", tuple(_massed(prompt, p_word) for prompt in prompts))


def _by_specific(prompts: Sequence[Prompt | str]) -> StringJudge:
    """Judge by what the prompts call specific."""
    words = {
        word.strip(): None for prompt in prompts if isinstance(prompt, Prompt) for word in prompt.specific
    }
    if not words:
        raise FactError(
            "no prompt has a specific continuation to judge by; give them `specific=`, or a judge such as "
            "StringJudge(tuple(anchors))"
        )
    return StringJudge(tuple(words))


def _massed(prompt: Prompt, p_word: Mapping[tuple[str, str], float]) -> Familiar:
    specific, generic = (
        sum(p_word[prompt.text, word] for word in words) for words in (prompt.specific, prompt.generic)
    )
    return Familiar(prompt.text, float(specific), generic=float(generic))


def _probabilities(hm: HasModel, asked: Sequence[tuple[str, str]]) -> list[float]:
    """The probability of each whole word after its prompt."""
    texts = [joined(prompt, word) for prompt, word in asked]
    batch = encode_text(hm, texts)
    labels = batch.labels.clone()
    for row, ((prompt, word), tokens) in enumerate(zip(asked, tokens_of(hm, texts), strict=True)):
        # Spaces at the prompt's end count to the word, as the space that joins them otherwise does.
        end = len(prompt.rstrip(" "))
        first = next((i for i, (_, stop) in enumerate(tokens.spans) if stop > end), len(tokens))
        if not 0 < first < len(tokens):
            raise FactError(f"the tokenizer gives no token for {word!r} after {prompt!r}")
        labels[row, : first - 1] = IGNORED
    found = forward(hm, replace(batch, labels=labels), read=metrics.answer_logprob)
    return [float(p) for p in found.to(torch.float64).exp()]


def _after(hm: HookedModel, prompt: str, whole: str) -> str:
    """What was written after a prompt, which comes back as the tokenizer spells it."""
    ids = hm.to_tokens(prompt)
    shown = str(hm.tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return whole[len(shown) :] if whole.startswith(shown) else whole
