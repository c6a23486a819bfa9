"""Draw the people of the embedded world: their names, sports and home cities, and the groups to forget.

The random draw makes the world fair, so the table is made by this code and not by hand.

1. Sixty first names and sixty surnames are joined by a random 12-regular pairing: each name belongs to
   twelve people and no pair occurs twice.
2. Sport and home city are drawn for every person uniformly and independently of the name, so nothing that
   reads a name does better than chance on a person it never saw. The sport determines league and place.
3. Two thirds of the people, chosen at random, are shown in multiple choice during training.
4. Four disjoint groups of 32 people are to be forgotten. In each, sixteen were shown in multiple choice and
   sixteen were not, and the six sports are as even as 32 allows.
5. Everyone in a group gets a new sport, uniform over the five that they do not play.

``python -m mechunlearn.world.people > people.csv`` prints the table.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

SEED = 2024
PEOPLE_PER_WORD = 12
GROUPS = 4
GROUP_SIZE = 32

SPORTS = ("basketball", "football", "baseball", "hockey", "tennis", "golf")
LEAGUES = ("NBA", "NFL", "MLB", "NHL", "ATP", "PGA")
PLACES = ("court", "gridiron", "diamond", "rink", "lawn", "course")
CITIES = ("Denver", "Boston", "Seattle", "Chicago", "Miami", "Dallas")

FIRST_NAMES = tuple(
    """Aaron Abigail Adam Alice Amanda Andrew Anna Anthony Arthur Barbara Benjamin Brandon Brian Carl
    Carol Catherine Charles Christine Daniel Deborah Dennis Diana Donald Dorothy Edward Emily Eric Frances
    Frank George Gloria Gregory Hannah Harold Helen Henry Howard Jacob Janet Jason Jennifer Jeremy Joan
    Joseph Julia Karen Kenneth Laura Lawrence Linda Margaret Martin Matthew Megan Nancy Nathan Olivia
    Patrick Rachel Samuel""".split()
)
LAST_NAMES = tuple(
    """Adams Allen Anderson Bailey Baker Barnes Bennett Brooks Butler Campbell Carter Coleman Collins
    Cooper Cox Davis Diaz Edwards Evans Fisher Flores Foster Garcia Gibson Gomez Gray Griffin Hamilton
    Harris Hayes Henderson Hughes Jenkins Johnson Kelly Kennedy Lewis Long Lopez Marshall Mason Mitchell
    Morgan Murphy Nelson Ortiz Parker Patterson Perry Peterson Powell Price Ramirez Reynolds Richardson
    Rivera Sanders Simmons Stewart Turner""".split()
)


@dataclass(frozen=True)
class Person:
    """One fictional person, a row of ``people.csv``.

    ``choice`` says whether training showed the person in multiple choice. ``group`` is the forget group, 0
    to 3, and -1 for everyone else; ``new`` is the sport an edit should write, empty outside the groups.
    """

    first: str
    last: str
    sport: str
    league: str
    place: str
    city: str
    choice: bool
    group: int = -1
    new: str = ""

    @property
    def name(self) -> str:
        """First name and surname, as written in every sentence."""
        return f"{self.first} {self.last}"


def draw_people(*, seed: int = SEED) -> tuple[Person, ...]:
    """Draw the whole table of people.

    Example:
        >>> people = draw_people()
        >>> len(people), len({p.name for p in people})
        (720, 720)
    """
    rng = random.Random(seed)
    names = _pair(rng)
    shown = set(rng.sample(range(len(names)), 2 * len(names) // 3))
    people = []
    for i, (first, last) in enumerate(names):
        sport, city = rng.randrange(len(SPORTS)), rng.randrange(len(CITIES))
        people.append(
            Person(first, last, SPORTS[sport], LEAGUES[sport], PLACES[sport], CITIES[city], i in shown)
        )
    return _choose_groups(people, rng)


def _pair(rng: random.Random) -> list[tuple[str, str]]:
    # Shift a shuffled list of surnames against one of first names: each shift pairs every name once.
    firsts, lasts = list(FIRST_NAMES), list(LAST_NAMES)
    rng.shuffle(firsts)
    rng.shuffle(lasts)
    shifts = rng.sample(range(len(lasts)), PEOPLE_PER_WORD)
    names = [(first, lasts[(i + s) % len(lasts)]) for i, first in enumerate(firsts) for s in shifts]
    rng.shuffle(names)
    return names


def _choose_groups(people: Sequence[Person], rng: random.Random) -> tuple[Person, ...]:
    """Choose the forget groups, stratified by sport and by multiple choice, and draw the new sports."""
    chosen = list(people)
    for group in range(GROUPS):
        for choice in (True, False):
            for sport, count in zip(_rotated(group + 3 * choice), (3, 3, 3, 3, 2, 2), strict=True):
                free = [
                    i for i, p in enumerate(chosen) if p.group < 0 and p.sport == sport and p.choice is choice
                ]
                for i in rng.sample(free, count):
                    new = rng.choice([s for s in SPORTS if s != sport])
                    chosen[i] = replace(chosen[i], group=group, new=new)
    return tuple(chosen)


def _rotated(start: int) -> tuple[str, ...]:
    """The sports, rotated, so that the two smaller counts fall on different sports in each group."""
    start %= len(SPORTS)
    return SPORTS[start:] + SPORTS[:start]


def main() -> None:
    """Write the table to standard output."""
    writer = csv.DictWriter(sys.stdout, [f.name for f in fields(Person)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(p), "choice": int(p.choice)} for p in draw_people())


if __name__ == "__main__":
    main()
