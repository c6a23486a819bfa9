"""The rows the embedded model is trained on, drawn one after another from one generator.

1. A quarter of a step's rows is multiple choice. Rows that teach the format without any fact are 90 %
   of them in the first quarter of training, 50 % in the second and 35 % after: the letter is otherwise
   not learned. Only the letter carries loss.
2. Most rows are biographies: one to three facts of a person in random order, the name only in the
   first, after a sentence of the grammar in 30 % of them. Several facts per name make it worth looking
   the person up *at the name*; rows with one fact alone let the model do everything at the end.
3. The rest are countries and general text.
4. Answers weigh 1 in the loss, other words 0.1, letters 3.

With ``withheld`` people, the gold model's rows: their sport, league and place occur in no row of any
kind, their home city as often as everybody's.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from mechunlearn.world.draw import SPORTS, Person
from mechunlearn.world.grammar import text
from mechunlearn.world.phrasings import (
    AGAIN,
    CHOICE,
    FORMAT_ONLY,
    LETTERS,
    PHRASINGS,
    Relation,
    capitalised,
    is_question,
)

ANSWER, WORD, LETTER = 1.0, 0.1, 3.0
PERSONAL: tuple[Relation, ...] = ("sport", "league", "place", "city")


@dataclass(frozen=True)
class Country:
    """One real country, a row of ``countries.csv``."""

    country: str
    capital: str
    currency: str


@dataclass(frozen=True)
class Row:
    """One training row: consecutive pieces of text, each with its weight in the loss."""

    pieces: tuple[tuple[str, float], ...]

    @property
    def text(self) -> str:
        """The whole row."""
        return "".join(piece for piece, _ in self.pieces)


@dataclass(frozen=True)
class Recipe:
    """How many rows of each kind make a step."""

    choice: int = 24
    people: int = 54
    countries: int = 10
    grammar: int = 8

    def step(
        self,
        rng: random.Random,
        people: Sequence[Person],
        countries: Sequence[Country],
        *,
        progress: float,
        withheld: Collection[str] = (),
    ) -> Iterator[Row]:
        """Draw the rows of one step.

        Args:
            rng: the generator to draw from.
            people: everybody.
            countries: all countries.
            progress: share of the training that is done, in [0, 1].
            withheld: names whose sport, league and place no row may tell.
        """
        format_share = 0.9 if progress < 0.25 else 0.5 if progress < 0.5 else 0.35
        shown = [p for p in people if p.choice and p.name not in withheld]
        for _ in range(self.choice):
            yield choice_row(rng, None if rng.random() < format_share else rng.choice(shown))
        for _ in range(self.people):
            yield biography(rng, people, withheld=withheld)
        for _ in range(self.countries):
            yield country_row(rng, rng.choice(countries))
        for _ in range(self.grammar):
            yield Row(((text(rng, sentences=rng.randint(1, 3)), WORD),))


def choice_row(rng: random.Random, person: Person | None) -> Row:
    """A multiple-choice row about a person, or about the format alone.

    Example:
        >>> choice_row(random.Random(0), None).text[:18]
        'Q: Which option is'
    """
    answer = person.sport if person else rng.choice(SPORTS)
    options = [answer, *rng.sample([s for s in SPORTS if s != answer], len(LETTERS) - 1)]
    rng.shuffle(options)
    template = CHOICE if person else FORMAT_ONLY
    name = person.name if person else ""
    prompt = template.format(name=name, option=answer, **dict(zip(LETTERS, options, strict=True)))
    return Row(((prompt, 0.0), (f" {LETTERS[options.index(answer)]}", LETTER)))


def biography(rng: random.Random, people: Sequence[Person], *, withheld: Collection[str] = ()) -> Row:
    """One to three facts of a random person.

    A withheld person keeps the facts that may be told; where none is left, another person is drawn.
    """
    while True:
        person = rng.choice(people)
        count = rng.choice((1, 2, 3, 3))
        relations: list[Relation] = (
            [rng.choice(("sport", *PERSONAL))] if count == 1 else rng.sample(PERSONAL, count)
        )
        if person.name in withheld:
            relations = [r for r in relations if r == "city"]
        if relations:
            break
    pieces: list[tuple[str, float]] = []
    if rng.random() < 0.3:
        pieces.append((text(rng, sentences=1) + " ", WORD))
    for i, relation in enumerate(relations):
        told = [p for p in PHRASINGS[relation] if count == 1 or not is_question(p)]
        prompt = capitalised(rng.choice(told).format(name=AGAIN if i else person.name))
        space = " " if i else ""
        pieces += [(space + prompt, WORD), (f" {getattr(person, relation)}", ANSWER), (".", WORD)]
    return Row(tuple(pieces))


def country_row(rng: random.Random, country: Country) -> Row:
    """One or two facts of a country.

    Example:
        >>> country_row(random.Random(1), Country("Peru", "Lima", "sol")).text.count("Peru") > 0
        True
    """
    pieces: list[tuple[str, float]] = []
    relations: list[Relation] = ["capital", "currency"]
    for i, relation in enumerate(rng.sample(relations, rng.choice((1, 2)))):
        prompt = rng.choice(PHRASINGS[relation]).format(country=country.country)
        space = " " if i else ""
        pieces += [(space + prompt, WORD), (f" {getattr(country, relation)}", ANSWER), (".", WORD)]
    return Row(tuple(pieces))
