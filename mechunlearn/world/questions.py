"""Turn people and countries into facts, with phrasings and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import Split
from mechunlearn.world.people import CITIES, LEAGUES, PLACES, SPORTS, Person
from mechunlearn.world.phrasings import CHOICE, LETTERS, PHRASINGS, SPORT, Relation
from mechunlearn.world.rows import Country

OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "sport": SPORTS,
    "league": LEAGUES,
    "place": PLACES,
    "city": CITIES,
}


def sport_fact(person: Person, *, split: Split = "test") -> Fact:
    """Return the fact of which sport a person plays, in eight phrasings and multiple choice.

    Example:
        >>> from mechunlearn.world.people import draw_people
        >>> fact = sport_fact(draw_people()[0])
        >>> len(fact.train_prompts), len(fact.validation), len(fact.held_out), len(fact.options)
        (2, 2, 4, 6)
    """
    prompts = {which: tuple(p.format(name=person.name) for p in group) for which, group in SPORT.items()}
    return Fact(
        prompt=prompts["train"][0],
        train=prompts["train"][1:],
        validation=prompts["validation"],
        held_out=prompts["held_out"],
        subject=person.name,
        answer=person.sport,
        new=person.new or None,
        relation="sport",
        split=split,
        options=SPORTS,
        choice=CHOICE.format(name=person.name, **{letter: f"{{{letter}}}" for letter in LETTERS}),
    )


def person_fact(person: Person, relation: Relation, *, split: Split = "test") -> Fact:
    """Return the fact of a person's league, place or city.

    Where the person has a new sport, the new answer for league and place is what follows from it.
    """
    entailed = {"league": LEAGUES, "place": PLACES}.get(relation)
    first, *rest = (p.format(name=person.name) for p in PHRASINGS[relation])
    return Fact(
        prompt=first,
        held_out=tuple(rest),
        subject=person.name,
        answer=getattr(person, relation),
        new=entailed[SPORTS.index(person.new)] if entailed and person.new else None,
        relation=relation,
        split=split,
        options=OPTIONS[relation],
    )


def country_fact(country: Country, relation: Relation, *, split: Split = "test") -> Fact:
    """Return the fact of a country's capital or currency."""
    first, *rest = (p.format(country=country.country) for p in PHRASINGS[relation])
    return Fact(
        prompt=first,
        held_out=tuple(rest),
        subject=country.country,
        answer=getattr(country, relation),
        relation=relation,
        split=split,
    )
