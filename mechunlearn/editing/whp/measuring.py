"""Measure how familiar a model is with a text, by its completions and by its probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mechunlearn.core import metrics
from mechunlearn.core.checks import positive
from mechunlearn.core.facts.joining import joined
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
from mechunlearn.models.encoding.encoder import encode_text
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
    """Let a model complete prompts, and judge whether it knows the text.

    Args:
        hm: the model.
        prompts: beginnings of sentences, with or without continuations.
        judge: maps each prompt and completion to one of four classes, such as ``StringJudge(tuple(anchors))``
            or a function that calls another model; None looks for the prompts' specific continuations.
        max_new_tokens: number of generated tokens.
        do_sample: sample instead of choosing the most likely token.
        temperature: sampling temperature.
        seed: seed of the sampling.
        batch_size: prompts completed at a time.

    Raises:
        FactError: there are no prompts; or there is neither a judge nor a specific continuation.
        ScoresError: the judge returns another class, or `batch_size` or `max_new_tokens` is not positive.

    Example:
        >>> hm, text = mu.world.model(), mu.whp.corpus()
        >>> mu.whp.completion_familiarity(hm, text.prompts, text.judge)
        Familiarity by completion: ...

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 3 (where GPT-4 judges).
    """
    require_prompts(prompts)
    positive(ScoresError, batch_size=batch_size, max_new_tokens=max_new_tokens)
    texts = [prompt if isinstance(prompt, str) else prompt.text for prompt in prompts]
    judge = judge or _by_specific(prompts)
    rows: list[Familiar] = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        generated = hm.generate(
            batch, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature,
            seed=seed + start,
        )  # fmt: skip
        for text, generated_text in zip(batch, generated, strict=True):
            completion = _after(hm, text, generated_text)
            rows.append(judged(text, completion, judge(text, completion)))
    return Familiarity("completion", tuple(rows))


def probability_familiarity(hm: HasModel, prompts: Sequence[Prompt]) -> Familiarity:
    """Measure the probability that a model gives to continuations that only the text gives.

    Args:
        hm: the model.
        prompts: beginnings of sentences, each with specific continuations; generic ones are reported as well.

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
    pairs = [(p.text, word) for p in prompts for word in (*p.specific, *p.generic)]
    p_word = dict(zip(pairs, _probabilities(hm, pairs), strict=True))
    return Familiarity("probability", tuple(_probable(prompt, p_word) for prompt in prompts))


def _by_specific(prompts: Sequence[Prompt | str]) -> StringJudge:
    words = {
        word.strip(): None for prompt in prompts if isinstance(prompt, Prompt) for word in prompt.specific
    }
    if not words:
        raise FactError(
            "no prompt has a specific continuation to judge by; give them `specific=`, or a judge such as "
            "StringJudge(tuple(anchors))"
        )
    return StringJudge(tuple(words))


def _probable(prompt: Prompt, p_word: Mapping[tuple[str, str], float]) -> Familiar:
    specific, generic = (
        sum(p_word[prompt.text, word] for word in words) for words in (prompt.specific, prompt.generic)
    )
    return Familiar(prompt.text, float(specific), generic=float(generic))


def _probabilities(hm: HasModel, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The probability of each whole word after its prompt, for pairs of prompt and word."""
    texts = [joined(prompt, word) for prompt, word in pairs]
    batch = encode_text(hm, texts)
    labels = batch.labels.clone()
    for row, ((prompt, word), tokens) in enumerate(zip(pairs, tokens_of(hm, texts), strict=True)):
        # Spaces at the prompt's end belong to the word, as the space between prompt and word would.
        end = len(prompt.rstrip(" "))
        first = next((i for i, (_, stop) in enumerate(tokens.spans) if stop > end), len(tokens))
        if not 0 < first < len(tokens):
            raise FactError(f"the tokenizer gives no token for {word!r} after {prompt!r}")
        # The word's first token is predicted at the position before it.
        labels[row, : first - 1] = IGNORED
    logprobs = forward(hm, replace(batch, labels=labels), read=metrics.answer_logprob)
    return [float(p) for p in logprobs.to(torch.float64).exp()]


def _after(hm: HookedModel, prompt: str, generated: str) -> str:
    """The generated text without its prompt, which is returned in the tokenizer's spelling."""
    ids = hm.to_tokens(prompt)
    shown = str(hm.tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return generated[len(shown) :] if generated.startswith(shown) else generated
