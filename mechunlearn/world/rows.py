"""Draw the rows of text that the embedded model is trained on.

1. A quarter of a step's rows is multiple choice. Of these, rows that teach the format without any fact are
   90 % in the first quarter of training, 50 % in the second and 35 % after; without them the model does not
   learn to answer with a letter. Only the letter has a weight in the loss.
2. Most rows are biographies: one to three facts of a person in random order, the name only in the first,
   after a sentence of the grammar in 30 % of them. Several facts per name teach the model to look the person
   up *at the name*; in rows with one fact it could do so at the end of the prompt.
3. The other rows are about countries, or general text.
4. The weight in the loss is 1 for answers, 0.1 for other words and 3 for letters.

The gold model is trained on rows with ``withheld`` people: their sport, league and place occur in no row,
their home city as often as everybody's.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from mechunlearn.world.grammar import text
from mechunlearn.world.people import SPORTS, Person
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
        """The row's text."""
        return "".join(piece for piece, _ in self.pieces)


@dataclass(frozen=True)
class RowCounts:
    """Number of rows of each kind in a step."""

    choice: int = 24
    people: int = 54
    countries: int = 10
    grammar: int = 8

    def draw(
        self,
        rng: random.Random,
        people: Sequence[Person],
        countries: Sequence[Country],
        *,
        progress: float,
        withheld: Collection[str] = (),
    ) -> Iterator[Row]:
        """Draw the rows of one step.

        No row has the sport, league or place of a person in ``withheld`` (names). ``progress`` is the share
        of the training steps that are done, in [0, 1].
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
    """Draw a multiple-choice row about a person, or, for None, one that teaches only the format.

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
    """Draw one to three facts of a random person; of a withheld person, only the home city."""
    while True:
        person = rng.choice(people)
        count = rng.choice((1, 2, 3, 3))
        relations: list[Relation] = (
            [rng.choice(("sport", *PERSONAL))] if count == 1 else rng.sample(PERSONAL, count)
        )
        if person.name in withheld:
            relations = [r for r in relations if r == "city"]
        if relations:  # A withheld person may have none left: draw again.
            break
    pieces: list[tuple[str, float]] = []
    if rng.random() < 0.3:
        pieces.append((text(rng, sentences=1) + " ", WORD))
    for i, relation in enumerate(relations):
        phrasings = [p for p in PHRASINGS[relation] if count == 1 or not is_question(p)]
        prompt = capitalised(rng.choice(phrasings).format(name=AGAIN if i else person.name))
        space = " " if i else ""
        pieces += [(space + prompt, WORD), (f" {getattr(person, relation)}", ANSWER), (".", WORD)]
    return Row(tuple(pieces))


def country_row(rng: random.Random, country: Country) -> Row:
    """Draw one or two facts of a country.

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
