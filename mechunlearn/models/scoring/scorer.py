"""Score a model on facts and running text: whole answers, options, perplexity.

1. Facts and candidate answers are encoded in one call and run by `forward`; an answer's log-probability is
   the sum over its tokens.
2. A fact with options is answered by the option with the highest log-probability, the first on a tie.
3. A fact without options is answered by greedy decoding: each token of the answer must be the likeliest after
   those before it. An alias counts as the answer, and probabilities of different spellings add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.core import metrics
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.texts import texts_of
from mechunlearn.errors import FactError
from mechunlearn.models.encoding.batch import IGNORED, Batch
from mechunlearn.models.encoding.encoder import HasTokenizer, encode, encode_text
from mechunlearn.models.scoring.passes import HasModel, forward


@dataclass(frozen=True)
class Outcome:
    """A model's answers to facts.

    Args:
        correct: True where the model gives the answer.
        says_new: True where it gives the new answer; False where a fact has none.
        p_answer: probability of the whole answer after the prompt.
        p_new: probability of the new answer; not-a-number where a fact has none.
        text: the model's answer: an option, or (without options) text up to the first wrong token.
    """

    correct: Bool[np.ndarray, "fact"]
    says_new: Bool[np.ndarray, "fact"]
    p_answer: Float[np.ndarray, "fact"]
    p_new: Float[np.ndarray, "fact"]
    text: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.text)


class Dropped(NamedTuple):
    """A fact that the model does not know, and why."""

    fact: Fact
    reason: str


@dataclass(frozen=True)
class Validation:
    """Which facts a model knows.

    Args:
        known: the facts that it answers correctly, with at least the threshold's probability.
        dropped: the other facts, each with a reason.
    """

    known: Facts
    dropped: tuple[Dropped, ...]

    def __repr__(self) -> str:
        total = len(self.known) + len(self.dropped)
        lines = [f"known: {len(self.known)} of {total} facts"]
        lines += [f"  dropped: {reason}" for _, reason in self.dropped[:8]]
        more = len(self.dropped) - 8
        return "\n".join([*lines, f"  ... {more} more"] if more > 0 else lines)


def answer_logprobs(
    hm: HasModel, facts: Sequence[Fact], answers: str | Sequence[str] = "answer"
) -> Float[Tensor, "fact"]:
    """The log-probability of one whole answer per fact, in nats; `encode` explains ``answers``."""
    if not len(facts):
        return torch.zeros(0)
    return forward(hm, encode(hm, facts, answer=answers), read=metrics.answer_logprob)


def option_logprobs(hm: HasModel, facts: Sequence[Fact]) -> Float[Tensor, "fact option"]:
    """The log-probability of every whole option, in the order of `Fact.options`.

    Rows of facts with fewer options end in minus infinity. FactError if a fact has no options.
    """
    for fact in facts:
        if not fact.options:
            raise FactError(f"the fact {fact.prompt!r} has no options; give it `options=`, or use `score`")
    pairs = [(fact, option) for fact in facts for option in fact.options]
    scored = answer_logprobs(hm, [fact for fact, _ in pairs], [option for _, option in pairs])
    counts = [len(fact.options) for fact in facts]
    table = scored.new_full((len(facts), max(counts, default=0)), -torch.inf)
    for row, values in zip(table, torch.split(scored, counts), strict=True):
        row[: len(values)] = values
    return table


@dataclass(frozen=True)
class Prepared:
    """Facts encoded once, a row per candidate answer, to score a model several times while it changes."""

    facts: tuple[Fact, ...]
    batch: Batch | None


def prepare(hm: HasTokenizer, facts: Sequence[Fact]) -> Prepared:
    """Encode facts for :func:`score`; only the model's tokenizer is used."""
    pairs = [(fact, word) for fact in facts for word in _candidates(fact)]
    if not pairs:
        return Prepared((), None)
    batch = encode(hm, [fact for fact, _ in pairs], answer=[word for _, word in pairs])
    return Prepared(tuple(facts), batch)


def score(hm: HasModel, facts: Sequence[Fact] | Prepared) -> Outcome:
    """Find out which facts the model answers correctly, which in the new way, and with what probability.

    Args:
        hm: the model.
        facts: the facts, with options (the likeliest whole option counts) or without (greedy decoding);
            or the result of `prepare` for a model with the same tokenizer.

    Raises:
        FactError: see `encode`.

    Example:
        >>> import mechunlearn as mu
        >>> outcome = mu.score(mu.world.model(), mu.world.facts().forget)
        >>> float(outcome.correct.mean())
        1.0
    """
    prepared = facts if isinstance(facts, Prepared) else prepare(hm, facts)
    batch = prepared.batch
    if batch is None:
        empty = np.zeros(0)
        return Outcome(empty.astype(bool), empty.astype(bool), empty, empty, ())
    both = forward(hm, batch, read=_logprobs_and_guesses).double().cpu()
    ids, guesses = batch.answer_ids.cpu(), both[..., 1].long()
    logprobs = both[..., 0].sum(-1).tolist()
    greedy = ((guesses == ids) | (ids == IGNORED)).all(-1).tolist()
    rows, start = [], 0
    for fact in prepared.facts:
        here = slice(start, start + len(_candidates(fact)))
        # The spelling that the model writes, if it writes one; else its text instead of the answer.
        row = next((i for i in range(start, start + len(fact.answers)) if greedy[i]), start)
        text = "" if fact.options else _decoded(hm, guesses[row], ids[row])
        rows.append(_answered(fact, logprobs[here], greedy[here], text))
        start = here.stop
    correct, says_new, p_answer, p_new, texts = zip(*rows, strict=True)
    return Outcome(np.array(correct), np.array(says_new), np.array(p_answer), np.array(p_new), texts)


def perplexity(hm: HasModel, texts: Sequence[str]) -> Float[np.ndarray, "text"]:
    """The mean negative log-likelihood per token of each text, in nats.

    The perplexity of a corpus is the exponential of a mean of these; intervals are taken over texts.
    """
    chosen = texts_of(FactError, texts, name="texts")
    if not chosen:
        return np.zeros(0)
    batch = encode_text(hm, chosen)
    total = forward(hm, batch, read=metrics.answer_logprob)
    count = (batch.labels != IGNORED).sum(1)
    return (-total / count).double().cpu().numpy()


def validate(hm: HasModel, facts: Sequence[Fact], *, threshold: float = 0.5) -> Validation:
    """Find the facts that the model knows, and give a reason for each other one.

    A fact is known if the model gives its answer (see `score`) with at least the threshold's probability.

    Args:
        hm: the model.
        facts: the facts, whose `prompt` is completed.
        threshold: smallest probability of the whole answer; at 0 only the answer has to be correct.

    Example:
        >>> import mechunlearn as mu
        >>> mu.validate(mu.world.model(), mu.world.facts().forget)
        known: 32 of 32 facts
    """
    readable, dropped = _readable(hm, facts)
    outcome = score(hm, readable)
    unknown = _unknown(hm, readable)
    accepted = []
    for row, fact in enumerate(readable):
        p = f"with probability {outcome.p_answer[row]:.2f}"
        reason = ""
        if unknown[row]:
            reason = f"the answer {fact.answer!r} of {fact.prompt!r} has a token unknown to the tokenizer"
        elif not outcome.correct[row]:
            reason = (
                f"{fact.prompt!r} gives {outcome.text[row].strip()!r}; the answer {fact.answer!r} comes {p}"
            )
        elif outcome.p_answer[row] < threshold:
            reason = f"{fact.prompt!r} gives {fact.answer!r}, but only {p}, below {threshold}"
        if reason:
            dropped.append(Dropped(fact, reason))
        else:
            accepted.append(fact)
    texts, name = (facts.text, facts.name) if isinstance(facts, Facts) else ((), "")
    return Validation(Facts(accepted, text=texts, name=name), tuple(dropped))


def _readable(hm: HasModel, facts: Sequence[Fact]) -> tuple[list[Fact], list[Dropped]]:
    """The facts that can be encoded; the others with the reason, so that one row does not stop a file."""
    readable, dropped = list(facts), []
    try:
        prepare(hm, readable)
    except FactError:
        readable = []
        for fact in facts:
            try:
                prepare(hm, [fact])
                readable.append(fact)
            except FactError as error:
                dropped.append(Dropped(fact, f"{fact.prompt[:60]!r} cannot be read: {error}"))
    return readable, dropped


def _logprobs_and_guesses(
    logits: Float[Tensor, "batch answer d_vocab"], ids: Int[Tensor, "batch answer"]
) -> Float[Tensor, "batch answer 2"]:
    logprobs = metrics.token_logprobs(logits, ids)
    # `read` returns one tensor, so ids become floats; float32 holds them exactly up to 2**24.
    return torch.stack([logprobs, logits.argmax(-1).to(logprobs.dtype)], dim=-1)


def _candidates(fact: Fact) -> tuple[str, ...]:
    return fact.options or (*fact.answers, *fact.new_answers)


def _decoded(hm: HasModel, guesses: Int[Tensor, "answer"], ids: Int[Tensor, "answer"]) -> str:
    """The text of the guesses up to the first wrong token; later guesses follow the answer's tokens."""
    wrong = ((guesses != ids) & (ids != IGNORED)).nonzero()[:, 0].tolist()
    stop = wrong[0] + 1 if wrong else int((ids != IGNORED).sum())
    return str(hm.tokenizer.decode(guesses[:stop].tolist()))


def _answered(
    fact: Fact, logprobs: Sequence[float], greedy: Sequence[bool], text: str
) -> tuple[bool, bool, float, float, str]:
    words = _candidates(fact)
    p = {word: math.exp(value) for word, value in zip(words, logprobs, strict=True)}
    if fact.options:
        text = words[list(logprobs).index(max(logprobs))]
        correct, says_new = text == fact.answer, text == fact.new
    else:
        count = len(fact.answers)
        correct, says_new = any(greedy[:count]), any(greedy[count:])
    p_new = math.nan if fact.new is None else _together(p, fact.new_answers, fact.end)
    return correct, says_new, _together(p, fact.answers, fact.end), p_new, text


def _together(p: Mapping[str, float], words: Sequence[str], end: str) -> float:
    """The probability of any of some spellings; one that goes on from a shorter is in that one already."""
    first = [w for w in words if end or not any(w != v and w.startswith(v) for v in words)]
    return min(1.0, sum(p[word] for word in first))


def _unknown(hm: HasModel, facts: Sequence[Fact]) -> list[bool]:
    unknown = hm.tokenizer.unk_token_id
    if unknown is None or not len(facts):
        return [False] * len(facts)
    return [bool(row) for row in (encode(hm, facts).answer_ids == unknown).any(1).tolist()]
