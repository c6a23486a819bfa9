"""The same prompt about another subject, for the corrupted run of patching, attribution and lookup.

1. For every fact, the other subjects of its relation are put in a seeded order: those with equally many
   tokens first, and among them those with another answer.
2. The first that leaves every token of the prompt where it was (same length, same mentions) is
   taken; the prompt is encoded to find out, since a tokenizer may cut a name differently in another prompt.
3. A fact without such a subject is left out; the result says how many facts are left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import Mention
from mechunlearn.errors import FactError
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.encoding.encoder import HasTokenizer, encode

_TRIES = 20


@dataclass(frozen=True)
class Swaps:
    """Facts, each beside the same prompt about another subject of equally many tokens.

    A swapped fact has the other subject's answer. ``index`` is each fact's index among those that were
    passed. ``note`` says how many have another subject, such as ``"31 of 32 facts"``, and which mentions are
    replaced where there are several; it is empty if there is nothing to say.
    """

    facts: tuple[Fact, ...]
    swapped: tuple[Fact, ...]
    index: tuple[int, ...]
    note: str


def swap_subjects(
    hm: HasTokenizer,
    facts: Sequence[Fact],
    *,
    pool: Sequence[Fact] | None = None,
    other_answer: bool = False,
    mention: Mention = "all",
    seed: int = 0,
) -> Swaps:
    """Find for every fact another subject that fits into its prompt token by token.

    ``pool`` holds facts whose subjects may be put in; None for the facts themselves. ``other_answer`` leaves
    out facts for which only subjects with the same answer fit. ``mention`` says which mentions of the subject
    are replaced. FactError is raised if no fact finds one.
    """
    pool = list(facts if pool is None else pool)
    clean = encode(hm, facts, answer=None)
    queues = _queues(facts, pool, clean.subject.sum(1).tolist(), _lengths(hm, pool), other_answer, seed)
    swapped: dict[int, Fact] = {}
    for attempt in range(_TRIES):
        missing = [i for i, queue in enumerate(queues) if i not in swapped and attempt < len(queue)]
        if not missing:
            break
        tried = [_about(facts[i], queues[i][attempt], mention) for i in missing]
        batch = encode(hm, tried, answer=None)
        for row, (i, fact) in enumerate(zip(missing, tried, strict=True)):
            if _aligned(clean, i, batch, row, mention):
                swapped[i] = fact
    if not swapped:
        raise FactError(
            f"none of the {len(facts)} facts has another subject with equally many tokens"
            f"{' and another answer' if other_answer else ''} among {len(pool)}; "
            "give more facts of the same relation: corrupt=mu.OtherSubject(pool=...)"
        )
    index = tuple(sorted(swapped))
    left = f"{len(index)} of {len(facts)} facts" if len(index) < len(facts) else ""
    note = ", ".join(filter(None, (left, mention_note([facts[i] for i in index], mention))))
    return Swaps(tuple(facts[i] for i in index), tuple(swapped[i] for i in index), index, note)


def mention_note(facts: Sequence[Fact], which: Mention) -> str:
    """Say which mentions are corrupted, if a prompt names its subject several times."""
    several = sum(len(fact.subject_spans) > 1 for fact in facts)
    words = "all mentions" if which == "all" else f"only the {which} mention"
    return f"{words} corrupted ({several} of {len(facts)} prompts have several)" if several else ""


def _lengths(hm: HasTokenizer, pool: Sequence[Fact]) -> list[int]:
    counts: list[int] = encode(hm, pool, answer=None).subject.sum(1).tolist()
    return counts


def _queues(
    facts: Sequence[Fact],
    pool: Sequence[Fact],
    lengths: Sequence[int],
    pool_lengths: Sequence[int],
    other_answer: bool,
    seed: int,
) -> list[list[Fact]]:
    """The subjects to try for each fact, those that are likeliest to fit first."""
    rng = random.Random(seed)
    queues = []
    for fact, length in zip(facts, lengths, strict=True):
        order = rng.sample(range(len(pool)), len(pool))
        # Sorting is stable, so equally good subjects stay in random order.
        order.sort(key=lambda j: (pool_lengths[j] != length, pool[j].answer == fact.answer))
        fits = [
            pool[j]
            for j in order
            if pool[j].subject != fact.subject
            and pool[j].relation == fact.relation
            and not (other_answer and pool[j].answer == fact.answer)
        ]
        queues.append(fits[:_TRIES])
    return queues


def _about(fact: Fact, donor: Fact, mention: Mention) -> Fact:
    spans = fact.subject_spans
    replaced = {"all": spans, "first": spans[:1], "last": spans[-1:]}[mention]
    prompt, opening = fact.prompt, fact.opening
    for start, stop in reversed(replaced):
        prompt = prompt[:start] + donor.subject + prompt[stop:]
        if stop <= len(fact.opening):  # a system message may name the subject
            opening = opening[:start] + donor.subject + opening[stop:]
    return Fact(
        prompt, donor.subject, donor.answer, relation=fact.relation, join=fact.join, end=fact.end,
        opening=opening, closing=fact.closing,
    )  # fmt: skip


def _aligned(first: Batch, i: int, second: Batch, j: int, mention: Mention) -> bool:
    """Whether the replaced mentions, and the end of the prompt, stand where they stood."""
    size = int(first.lengths[i])
    before, after = first.mentioned(mention)[i, :size], second.mentioned("all")[j, :size]
    return size == int(second.lengths[j]) and bool((before == after).all() and first.end[i] == second.end[j])
