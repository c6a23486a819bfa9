"""The examples of an edit: questions with the answers that are read, texts, a corpus with labels of its own.

1. Every split is encoded once per answer that is read of it. An answer that varies (one of several texts,
   or one the model gives) is encoded once per variant; each pass over the questions uses the next.
2. All answers of a split come in one order: seeded permutations, so that no question comes twice before all
   came once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.editing.objectives.requests import Request, Sampled
from mechunlearn.editing.training.sampled_answers import sample_answers
from mechunlearn.errors import FactError
from mechunlearn.models.encoding.batch import IGNORED, Batch
from mechunlearn.models.encoding.encoder import encode, encode_text

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

MAX_TEXT_TOKENS = 512
QUESTIONS_PER_TEXT = 4

Answered = str | tuple[str, ...] | Sampled


@dataclass
class Order:
    """The order in which ``total`` examples come; ``queue`` holds the next, ``drawn`` counts the past."""

    total: int
    random: random.Random
    queue: list[int] = field(default_factory=list)
    drawn: int = 0

    def next(self, count: int) -> tuple[list[int], int]:
        """The next examples (all, if fewer than ``count`` exist), and the pass that the first belongs to."""
        count = min(count, self.total)
        turn, self.drawn = self.drawn // self.total, self.drawn + count
        # Where a step takes the whole set, its order does not matter, and no random number is used.
        if count == self.total:
            return list(range(self.total)), turn
        while len(self.queue) < count:
            self.queue += self.random.sample(range(self.total), self.total)
        rows, self.queue = self.queue[:count], self.queue[count:]
        return rows, turn

    def to_json(self) -> dict[str, Any]:
        """Where the order stands."""
        version, state, gauss = self.random.getstate()
        return {"queue": self.queue, "drawn": self.drawn, "random": [version, list(state), gauss]}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Go on from what :meth:`to_json` gave."""
        version, state, gauss = record["random"]
        self.random.setstate((version, tuple(state), gauss))
        self.queue, self.drawn = list(record["queue"]), record["drawn"]


def per_step(split: str, batch_size: int) -> int:
    """How many examples of a split a step takes: a quarter as many texts, since each has many tokens."""
    return -(-batch_size // QUESTIONS_PER_TEXT) if split in ("text", "corpus") else batch_size


def key_of(request: Request) -> tuple[str, str]:
    """What decides the examples of a request: the split, and the answer in words."""
    return request.split, "" if request.split in ("text", "corpus") else str(request.answer)


def variants(
    hm: HookedModel, facts: Facts, corpus: Batch | None, request: Request, *, seed: int
) -> tuple[Batch, ...]:
    """Encode the examples of a request, once per variant of its answer; ``seed`` is that of the answers.

    The unedited model is run only if it is to give answers itself. A ``FactError`` is raised if the split is
    empty, or if a fact lacks the answer.
    """
    if request.split == "corpus":
        return (_corpus(hm, corpus),)
    if request.split == "text":
        return (_text(hm, facts),)
    questions = _questions(facts, request)
    if isinstance(request.answer, str):
        return (encode(hm, questions, answer=request.answer),)
    answers = _answers(hm, questions, request.answer, seed)
    return tuple(encode(hm, questions, answer=list(each)) for each in answers)


def labels_of(batch: Batch, request: Request) -> Int[Tensor, "batch pos"]:
    """The token to predict at each position that is read, -100 at the others."""
    if request.positions == "answer":
        return batch.labels
    labels = torch.full_like(batch.tokens, IGNORED)
    # Position i predicts token i + 1; padding is not predicted.
    labels[:, :-1] = batch.tokens[:, 1:].masked_fill(batch.mask[:, 1:] == 0, IGNORED)
    return labels


def _answers(
    hm: HookedModel, questions: Sequence[Fact], answer: tuple[str, ...] | Sampled, seed: int
) -> list[tuple[str, ...]]:
    """The variants, each with one answer per question."""
    if isinstance(answer, Sampled):
        drawn = sample_answers(hm, questions, answer, seed=seed)
        return list(zip(*drawn, strict=True))
    # Seeded apart from the order of the questions, which must not depend on the answers.
    rng = random.Random(f"{seed} answers")
    shuffled = [rng.sample(answer, len(answer)) for _ in questions]
    return list(zip(*shuffled, strict=True))


def _corpus(hm: HookedModel, corpus: Batch | None) -> Batch:
    if corpus is None:
        raise FactError(
            "the objective reads a corpus with labels of its own and there is none; give corpus=..., "
            "such as what mu.whp.relabel gives"
        )
    if not len(corpus):
        raise FactError("the corpus has no rows, so there is nothing to train on; give at least one")
    if not bool((corpus.labels != IGNORED).any(1).all()):
        raise FactError(
            "a row of the corpus has no label (all are -100), so there is nothing to train on; leave it out"
        )
    return corpus.to(hm.device)


def _text(hm: HookedModel, facts: Facts) -> Batch:
    if not facts.train_text:
        raise FactError(
            "the objective reads text and the facts have none; give Facts(..., text=[...]) or set the "
            "objective's text=0.0"
        )
    longest = min(MAX_TEXT_TOKENS, hm.context_length or MAX_TEXT_TOKENS)
    return encode_text(hm, facts.train_text, max_tokens=longest)


def _questions(facts: Facts, request: Request) -> list[Fact]:
    chosen = facts.forget if request.split == "forget" else facts.retain
    if not len(chosen):
        raise FactError(
            f"the objective reads the {request.split} set and it is empty; give at least one "
            f"Fact(..., split={request.split!r}), or set the objective's weight of it to 0"
        )
    for fact in chosen:
        if isinstance(request.answer, str) and getattr(fact, request.answer) is None:
            kind = "new answer" if request.answer == "new" else request.answer
            raise FactError(
                f"{fact.prompt!r} ({request.split}) has no {kind}, and the objective writes one; give the "
                f"fact {request.answer}=..., or use an objective that only forgets, such as Forget()"
            )
    return [question for fact in chosen for question in fact.phrasings("train")]
