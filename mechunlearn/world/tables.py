"""Read the two tables that ship with the package."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from mechunlearn.world.people import Person
from mechunlearn.world.rows import Country


def data() -> Traversable:
    """The folder with the tables and the checkpoints."""
    return files("mechunlearn.world") / "data"


def people() -> tuple[Person, ...]:
    """The 720 people, in the order of the table.

    Example:
        >>> sum(p.group == 0 for p in people())
        32
    """
    return tuple(
        Person(
            first=row["first"],
            last=row["last"],
            sport=row["sport"],
            league=row["league"],
            place=row["place"],
            city=row["city"],
            choice=row["choice"] == "1",
            group=int(row["group"]),
            new=row["new"],
        )
        for row in _rows("people.csv")
    )


def countries() -> tuple[Country, ...]:
    """The 120 countries, in the order of the table.

    Example:
        >>> len(countries())
        120
    """
    return tuple(Country(**row) for row in _rows("countries.csv"))


def _rows(name: str) -> Iterator[dict[str, str]]:
    yield from csv.DictReader((data() / name).read_text(encoding="utf-8").splitlines())
