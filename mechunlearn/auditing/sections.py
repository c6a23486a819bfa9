"""The questions of an audit: every section's, collected before any model runs.

1. The forget facts are asked in their training, validation and held-out phrasings and as multiple choice;
   so are the maintained facts, which no edit trained on.
2. Other facts of the same subjects and entailed facts are asked in their training and held-out phrasings,
   neighbours in their training phrasings. Other facts that are in the retain set are a section of their own,
   because an edit trained on them.
3. After an attack, the half of the forget facts that it did not see is asked in the same formats as the
   forget facts, and the maintained facts in training phrasings.
4. A section whose data is missing is listed as absent, with the field that would provide it.

Every question has a unit, over which intervals are taken: the fact it asks for or, for entailed facts and
other facts of the same subject, the forget fact they belong to, so that a subject counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, get_args

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import Format, in_words

CHOICE: Final = "multiple_choice"
FORMATS: tuple[Format, ...] = get_args(Format)
SHORT: tuple[Format, ...] = ("train", "held_out")
SHUFFLES = 3
"""Number of orders of the options in which each forget fact is asked as multiple choice; others: one."""

RESERVED = ("forget", "entailed", "same subject", "maintained", "neighbours", "text", "probe")
"""Names of the audit's own sections, or their beginnings; no attack may use them."""


class Question(NamedTuple):
    """One prompt to score, and the section, format and unit that its outcome belongs to."""

    section: str
    phrasing: Format
    unit: str
    fact: Fact


@dataclass(frozen=True)
class SectionReader:
    """The facts of one relation that a probe is fitted on, and those that it is scored on."""

    relation: str
    fitted: tuple[Fact, ...]
    scored: tuple[Fact, ...]


def questions(facts: Facts, *, seed: int) -> tuple[Question, ...]:
    """Every question that is scored without an attack; ``seed`` orders the multiple-choice options.

    Example:
        >>> facts = Facts([Fact("Mary plays", "Mary", "golf", held_out=("Mary is known for",))])
        >>> [(q.section, q.phrasing) for q in questions(facts, seed=0)]
        [('forget', 'train'), ('forget', 'held_out')]
    """
    forget, retained = facts.forget, {_key(fact) for fact in facts.retain}
    entailed = [(fact.prompt, follows) for fact in forget for follows in fact.entailed]
    others = [(fact.prompt, related) for fact in forget for related in fact.others]
    parts = [
        _questions("forget", _units(forget), FORMATS, seed),
        _questions("entailed", entailed, SHORT, seed),
        _questions("same subject", [o for o in others if _key(o[1]) not in retained], SHORT, seed),
        _questions("same subject, retained", [o for o in others if _key(o[1]) in retained], SHORT, seed),
        _questions("maintained", _units(facts.maintained), FORMATS, seed),
    ]
    for kind in dict.fromkeys(kind for fact in forget for kind in fact.neighbours):
        similar = [neighbour for fact in forget for neighbour in fact.neighbours.get(kind, ())]
        parts.append(_questions(f"neighbours, {kind}", _units(similar), ("train",), seed))
    return tuple(question for part in parts for question in part)


def attacked(facts: Facts, judged: Sequence[Fact], name: str, *, seed: int) -> tuple[Question, ...]:
    """Every question after the attack ``name``: forget facts that it did not see, and maintained facts."""
    maintained = _questions(f"{name}, maintained", _units(facts.maintained), ("train",), seed)
    return (*_questions(name, _units(judged), FORMATS, seed), *maintained)


def readers(facts: Facts) -> tuple[SectionReader, ...]:
    """The facts of probes, for every relation of the forget set that has two answers or more to fit on.

    Probes are fitted on retain and maintained facts about subjects that are not in the forget set.
    """
    sections = []
    subjects = {fact.subject for fact in facts.forget}
    for relation in dict.fromkeys(fact.relation for fact in facts.forget):
        pool = {_key(f): f for f in (*facts.retain, *facts.maintained) if f.relation == relation}
        fitted = tuple(f for f in pool.values() if f.subject not in subjects)
        scored = tuple(f for f in facts.forget if f.relation == relation)
        if len({fact.answer.strip() for fact in fitted}) > 1:
            sections.append(SectionReader(relation, fitted, scored))
    return tuple(sections)


def absent(facts: Facts) -> dict[str, str]:
    """The sections that these facts cannot fill, each with the field that would provide it.

    Example:
        >>> absent(Facts([Fact("Mary plays", "Mary", "golf")]))["text"]
        'Facts(..., text=[...])'
    """
    forget = facts.forget
    sections = {
        "forget, validation": (any(f.validation for f in forget), "Fact(validation=...)"),
        f"forget, {in_words('held_out')}": (any(f.held_out for f in forget), "Fact(held_out=...)"),
        f"forget, {in_words(CHOICE)}": (any(f.choice for f in forget), "Fact(choice=..., options=...)"),
        "new answer": (any(f.new for f in forget), "Fact(new=...)"),
        "entailed": (any(f.entailed for f in forget), "Fact(entailed=...)"),
        "same subject": (any(f.others for f in forget), "Fact(others=...)"),
        "neighbours": (any(f.neighbours for f in forget), "Fact(neighbours={...})"),
        "maintained": (len(facts.maintained) > 0, 'Fact(..., split="test") or split="retain"'),
        "text": (len(facts.test_text) > 0, "Facts(..., text=[...])"),
        "probe": (
            len(readers(facts)) > 0,
            "retain or test facts of the same relation, with two answers or more, about other subjects",
        ),
    }
    return {section: field for section, (present, field) in sections.items() if not present}


def _key(fact: Fact) -> tuple[str, str, str]:
    return fact.subject, fact.relation, fact.answer


def _units(facts: Iterable[Fact]) -> list[tuple[str, Fact]]:
    """Pairs of unit and fact, where each fact is a unit of its own."""
    return [(fact.prompt, fact) for fact in facts]


def _questions(
    section: str, facts: Iterable[tuple[str, Fact]], formats: Sequence[Format], seed: int
) -> Iterator[Question]:
    """The questions of one section, each fact once, from pairs of unit and fact."""
    unique = {_key(fact): (unit, fact) for unit, fact in facts}
    for unit, fact in unique.values():
        bare = fact.replace(entailed=(), others=(), neighbours={})
        for phrasing in formats:
            for question in _forms(bare, phrasing, seed, SHUFFLES if fact.split == "forget" else 1):
                yield Question(section, phrasing, unit, question)


def _forms(fact: Fact, phrasing: Format, seed: int, shuffles: int) -> tuple[Fact, ...]:
    if phrasing != "multiple_choice":
        return fact.phrasings(phrasing)
    if fact.choice is None:
        return ()
    # The seeds of the orders do not overlap between audits with different seeds.
    return tuple(fact.multiple_choice(SHUFFLES * seed + shuffle) for shuffle in range(shuffles))
