"""What the table says, in sentences made by a rule that does not know which answer is hoped for.

Two lines are compared by differences paired by person; one is *less* where the 95 % interval lies below zero.

1. Lines whose edit did not reach the goal on validation phrasings are counted and named, place by place.
2. For the lookup against each other place: with how many methods the old answer is given less often, more
   often, or neither; and the same of what is maintained. Once over all methods, which tells where an equal
   budget goes further, and once over those that reached the goal at both, asked as multiple choice and by
   league and place, which tells what is left by edits that look alike.
3. The paper's claim *shows in these readings* if, of the methods that reached the goal both at the lookup
   and at random and tell the two apart, all leave less of the old answer at the lookup; *in part* if most
   do; else it does not. Where fewer than three reached it at both, that cannot be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mechunlearn.editing.edits.recipes import Stop
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP
from mechunlearn.experiments.method_comparison.cells import Cell
from mechunlearn.experiments.method_comparison.places import RANDOM
from mechunlearn.experiments.method_comparison.table import difference

FEWEST = 3
REACH = {"old": "the old answer in held-out phrasings", "maintained": "other people's sports kept"}
READINGS = {"choice old": "the old answer as multiple choice", "entailed": "as league and place"}
KEPT = {"maintained": "other people's sports kept", "city": "home cities of the edited people kept"}


@dataclass(frozen=True)
class Compared:
    """For how many methods one place gives less than another, more, and neither."""

    less: tuple[str, ...]
    more: tuple[str, ...]
    neither: tuple[str, ...]

    def __str__(self) -> str:
        """The counts; the smaller sides by name."""
        told = [f"{word} with {_named(names)}" for word, names in (("less", self.less), ("more", self.more))]
        return f"{', '.join(told)}, neither with {len(self.neither)}"


def sentences(found: Sequence[Cell], stop: Stop) -> list[str]:
    """What was found, one finding a sentence.

    Args:
        found: the lines of the table.
        stop: whose goal was to be reached.
    """
    said = _goal(found, stop)
    for other in (RANDOM, EVERYTHING):
        beside = f"{LOOKUP} beside {other}"
        every = pairs(found, other)
        if every:
            told = [f"{what}: {compared(every, column)}" for column, what in REACH.items()]
            said.append(f"Edit at {beside}, {len(every)} methods, whatever they reached: {'; '.join(told)}.")
        alike = pairs(found, other, stop)
        if not alike:
            said.append(f"No method reached the goal both at {LOOKUP} and at {other}.")
            continue
        told = [f"{what}: {compared(alike, column)}" for column, what in (READINGS | KEPT).items()]
        said.append(f"The same, {len(alike)} methods that reached the goal at both: {'; '.join(told)}.")
    said.append(_claim(pairs(found, RANDOM, stop)))
    return said


def pairs(found: Sequence[Cell], other: str, stop: Stop | None = None) -> list[tuple[Cell, Cell]]:
    """The lookup's line and another place's, for every method that was fitted at both.

    Args:
        found: the lines of the table.
        other: the other place.
        stop: only methods that reached its goal at both; None for all.
    """
    lines = {
        (cell.method, cell.place): cell
        for cell in found
        if cell.chosen and (stop is None or cell.chosen.reached(stop))
    }
    return [
        (cell, lines[method, other])
        for (method, place), cell in lines.items()
        if place == LOOKUP and (method, other) in lines
    ]


def compared(both: Sequence[tuple[Cell, Cell]], column: str) -> Compared:
    """Sort methods by whether the first of two lines gives less, more, or neither.

    Args:
        both: two lines of each method.
        column: one of the table's.
    """
    gaps = {first.method: difference(first, second, column) for first, second in both}
    less = tuple(method for method, gap in gaps.items() if gap.high < 0)
    more = tuple(method for method, gap in gaps.items() if gap.low > 0)
    return Compared(less, more, tuple(method for method in gaps if method not in less + more))


def _goal(found: Sequence[Cell], stop: Stop) -> list[str]:
    fitted = [cell for cell in found if cell.chosen]
    short = [cell for cell in fitted if cell.chosen and not cell.chosen.reached(stop)]
    goal = f"{stop.goal:.0%} success on validation phrasings, {stop.min_retention:.0%} retained"
    said = [f"{len(fitted) - len(short)} of {len(fitted)} edits reached the goal ({goal})."]
    for place in dict.fromkeys(cell.place for cell in fitted):
        missed = [cell.method for cell in short if cell.place == place]
        count = sum(cell.place == place for cell in fitted)
        named = f" Short of it stayed {', '.join(missed)}." if missed else ""
        said.append(f"At {place}, {count - len(missed)} of {count} did.{named}")
    return said


def _claim(both: Sequence[tuple[Cell, Cell]]) -> str:
    claim = (
        "The claim, that an edit where facts are looked up leaves less of the old answer than one elsewhere,"
    )
    if len(both) < FEWEST:
        reached = f"{len(both)} method{'s' * (len(both) != 1)} reached the goal at {LOOKUP} and at {RANDOM}"
        return f"{claim} cannot be told from this table: only {reached}."
    counts = [compared(both, column) for column in READINGS]
    told = {name for each in counts for name in (*each.less, *each.more)}
    worse = {name for each in counts for name in each.more}
    better = told - worse
    if not told:
        return f"{claim} does not show: no method tells {LOOKUP} and {RANDOM} places apart."
    shows = "shows" if not worse else "shows in part" if len(better) > len(told) / 2 else "does not show"
    return (
        f"{claim} {shows} in these two readings against one random place: of {len(both)} methods {len(told)} "
        f"tell the two apart, and {len(better)} of these leave less at {LOOKUP} and more in no reading."
    )


def _named(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if 0 < len(names) <= 4 else str(len(names))
