"""What an audit asks: every question of every section, put together before any model runs.

1. The forget facts are asked in their training, validation and held-out phrasings and as multiple choice;
   so are the maintained facts, which no edit trained on.
2. Other facts of the same subjects and entailed facts are asked in their training and held-out phrasings,
   neighbours in their training phrasings. Other facts that stand in the retain set are a section of their
   own: an edit trained on them.
3. After an attack, the half of the forget facts that it did not see is asked in the same ways as the forget
   facts, and the maintained facts in training phrasings.
4. A section whose data is missing is listed as absent, with the field that would provide it.

A question belongs to a unit, over which intervals are taken: the fact it asks for, or, for entailed facts and
other facts of the same subject, the forget fact they go with, so that a subject counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact, Phrasing

PHRASINGS: Mapping[str, Phrasing] = {"train": "train", "validation": "validation", "held_out": "held_out"}
CHOICE = "multiple choice"
FORMATS = (*PHRASINGS, CHOICE)
SHORT = ("train", "held_out")
SHUFFLES = 3
"""Orders of the options in which a multiple-choice question about a forget fact is asked; others get one."""


RESERVED = ("forget", "entailed", "same subject", "maintained", "neighbours", "text", "probe")
"""What the audit's own sections are called, or begin with."""


class Question(NamedTuple):
    """One prompt to be scored, and where its outcome belongs."""

    section: str
    phrasing: str
    unit: str
    fact: Fact


@dataclass(frozen=True)
class SectionReader:
    """What a probe is fitted on and read out on, for one relation."""

    relation: str
    fitted: tuple[Fact, ...]
    scored: tuple[Fact, ...]


def questions(facts: Facts, *, seed: int) -> tuple[Question, ...]:
    """Every question that is put to a model as it is.

    Args:
        facts: the forget set and what goes with it.
        seed: of the orders of multiple-choice options.

    Example:
        >>> facts = Facts([Fact("Mary plays", "Mary", "golf", held_out=("Mary is known for",))])
        >>> [(q.section, q.phrasing) for q in questions(facts, seed=0)]
        [('forget', 'train'), ('forget', 'held_out')]
    """
    forget, retained = facts.forget, {_key(fact) for fact in facts.retain}
    entailed = [(about.prompt, fact) for about in forget for fact in about.entailed]
    others = [(about.prompt, fact) for about in forget for fact in about.others]
    asked = [
        _asked("forget", _own(forget), FORMATS, seed),
        _asked("entailed", entailed, SHORT, seed),
        _asked("same subject", [o for o in others if _key(o[1]) not in retained], SHORT, seed),
        _asked("same subject, retained", [o for o in others if _key(o[1]) in retained], SHORT, seed),
        _asked("maintained", _own(facts.maintained), FORMATS, seed),
    ]
    for kind in dict.fromkeys(kind for about in forget for kind in about.neighbours):
        alike = [fact for about in forget for fact in about.neighbours.get(kind, ())]
        asked.append(_asked(f"neighbours, {kind}", _own(alike), ("train",), seed))
    return tuple(question for part in asked for question in part)


def attacked(facts: Facts, judged: Sequence[Fact], name: str, *, seed: int) -> tuple[Question, ...]:
    """Every question that is put to a model after an attack.

    Args:
        facts: with the maintained facts.
        judged: the forget facts that the attack did not see.
        name: of the attack.
        seed: of the orders of multiple-choice options.
    """
    kept = _asked(f"{name}, maintained", _own(facts.maintained), ("train",), seed)
    return (*_asked(name, _own(judged), FORMATS, seed), *kept)


def readers(facts: Facts) -> tuple[SectionReader, ...]:
    """For every relation of the forget set with enough to fit on: what a probe reads.

    Args:
        facts: probes are fitted on the retain and maintained facts about other subjects.
    """
    found = []
    subjects = {fact.subject for fact in facts.forget}
    for relation in dict.fromkeys(fact.relation for fact in facts.forget):
        pool = {_key(f): f for f in (*facts.retain, *facts.maintained) if f.relation == relation}
        fitted = tuple(f for f in pool.values() if f.subject not in subjects)
        scored = tuple(f for f in facts.forget if f.relation == relation)
        if len({fact.answer.strip() for fact in fitted}) > 1:
            found.append(SectionReader(relation, fitted, scored))
    return tuple(found)


def absent(facts: Facts) -> dict[str, str]:
    """The sections that these facts cannot fill, with what would provide them.

    Args:
        facts: the forget set and what goes with it.

    Example:
        >>> absent(Facts([Fact("Mary plays", "Mary", "golf")]))["text"]
        'Facts(..., text=[...])'
    """
    forget, kept = facts.forget, facts.maintained
    missing = {
        "forget, validation": (any(f.validation for f in forget), "Fact(validation=...)"),
        "forget, held-out": (any(f.held_out for f in forget), "Fact(held_out=...)"),
        "forget, multiple choice": (any(f.choice for f in forget), "Fact(choice=..., options=...)"),
        "new answer": (any(f.new for f in forget), "Fact(new=...)"),
        "entailed": (any(f.entailed for f in forget), "Fact(entailed=...)"),
        "same subject": (any(f.others for f in forget), "Fact(others=...)"),
        "neighbours": (any(f.neighbours for f in forget), "Fact(neighbours={...})"),
        "maintained": (len(kept) > 0, 'Fact(..., split="test") or split="retain"'),
        "text": (len(facts.test_text) > 0, "Facts(..., text=[...])"),
        "probe": (
            len(readers(facts)) > 0,
            "retain or test facts of the same relation, with two answers or more, about other subjects",
        ),
    }
    return {section: field for section, (there, field) in missing.items() if not there}


def _key(fact: Fact) -> tuple[str, str, str]:
    return fact.subject, fact.relation, fact.answer


def _own(facts: Iterable[Fact]) -> list[tuple[str, Fact]]:
    """Facts that are their own units."""
    return [(fact.prompt, fact) for fact in facts]


def _asked(
    section: str, facts: Iterable[tuple[str, Fact]], formats: Sequence[str], seed: int
) -> Iterator[Question]:
    """One section's questions, each fact once, with the unit it belongs to."""
    unique = {_key(fact): (unit, fact) for unit, fact in facts}
    for unit, full in unique.values():
        fact = full.replace(entailed=(), others=(), neighbours={})
        for phrasing in formats:
            for asked in _forms(fact, phrasing, seed, SHUFFLES if fact.split == "forget" else 1):
                yield Question(section, phrasing, unit, asked)


def _forms(fact: Fact, phrasing: str, seed: int, shuffles: int) -> tuple[Fact, ...]:
    if phrasing != CHOICE:
        return fact.phrasings(PHRASINGS[phrasing])
    if fact.choice is None:
        return ()
    return tuple(fact.multiple_choice(SHUFFLES * seed + shuffle) for shuffle in range(shuffles))
