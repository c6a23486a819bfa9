"""The findings of the comparison in sentences, by a fixed rule that treats all results alike.

Two lines are compared by differences paired by person; the first is *less* if the 95 % interval lies below 0.

1. Lines whose edit did not reach the goal on validation phrasings are counted and named, by localization.
2. The lookup is compared with each other localization, by the number of methods with which the old answer is
   given less often, more often, or neither; and likewise for what is maintained. This is done over all
   methods, to see where an equal budget achieves more, and over those that reached the goal at both, in
   multiple choice and by league and place, to see what is left by edits that look alike.
3. The paper's claim is judged by the methods that reached the goal both at the lookup and at random and tell
   the two apart. It *shows in these readings* if all of them leave less of the old answer at the lookup, and
   *shows in part* if most do; otherwise it does not show. It cannot be told where fewer than three methods
   reached the goal at both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mechunlearn.editing.edits.recipes import Stop
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP
from mechunlearn.experiments.method_comparison.localizations import RANDOM
from mechunlearn.experiments.method_comparison.results import MethodResult
from mechunlearn.experiments.method_comparison.table import difference

FEWEST = 3
REACH = {"old": "the old answer in held-out phrasings", "maintained": "other people's sports kept"}
READINGS = {"choice old": "the old answer as multiple choice", "entailed": "as league and place"}
MAINTAINED = {"maintained": "other people's sports kept", "city": "home cities of the edited people kept"}

Pairs = Sequence[tuple[MethodResult, MethodResult]]
"""Two lines of each method: at the lookup, and at another localization."""


@dataclass(frozen=True)
class Compared:
    """The methods with which one localization gives less than another, more, and neither."""

    less: tuple[str, ...]
    more: tuple[str, ...]
    neither: tuple[str, ...]

    def __str__(self) -> str:
        """The counts; the smaller sides by name."""
        return (
            f"less with {_named(self.less)}, more with {_named(self.more)}, neither with {len(self.neither)}"
        )


def sentences(results: Sequence[MethodResult], stop: Stop) -> list[str]:
    """Write the findings, one a sentence; ``stop`` is the goal of every edit."""
    text = _goal(results, stop)
    for rival in (RANDOM, EVERYTHING):
        every = pairs(results, rival)
        if every:
            text.append(
                f"Edit at {LOOKUP} beside {rival}, {len(every)} methods, whatever they reached: "
                f"{_counts(every, REACH)}."
            )
        alike = pairs(results, rival, stop)
        if alike:
            counts = _counts(alike, READINGS | MAINTAINED)
            text.append(f"The same, {len(alike)} methods that reached the goal at both: {counts}.")
        else:
            text.append(f"No method reached the goal both at {LOOKUP} and at {rival}.")
    return [*text, _claim(pairs(results, RANDOM, stop))]


def pairs(
    results: Sequence[MethodResult], rival: str, stop: Stop | None = None
) -> list[tuple[MethodResult, MethodResult]]:
    """Pair the lookup's line with that of another localization, for every method that was fitted at both.

    With ``stop``, only methods that reached its goal at both are paired.
    """
    lines = {
        (result.method, result.localization): result
        for result in results
        if result.chosen and (stop is None or result.chosen.reached(stop))
    }
    return [
        (result, lines[method, rival])
        for (method, localization), result in lines.items()
        if localization == LOOKUP and (method, rival) in lines
    ]


def compared(both: Pairs, column: str) -> Compared:
    """Sort methods by whether the first of two lines gives less, more, or neither in a column."""
    gaps = {first.method: difference(first, second, column) for first, second in both}
    less = tuple(method for method, gap in gaps.items() if gap.high < 0)
    more = tuple(method for method, gap in gaps.items() if gap.low > 0)
    return Compared(less, more, tuple(method for method in gaps if method not in less + more))


def _counts(both: Pairs, columns: Mapping[str, str]) -> str:
    return "; ".join(f"{title}: {compared(both, column)}" for column, title in columns.items())


def _goal(results: Sequence[MethodResult], stop: Stop) -> list[str]:
    reached = {
        (result.localization, result.method): result.chosen.reached(stop)
        for result in results
        if result.chosen
    }
    goal = f"{stop.goal:.0%} success on validation phrasings, {stop.min_retention:.0%} retained"
    text = [f"{sum(reached.values())} of {len(reached)} edits reached the goal ({goal})."]
    for localization in dict.fromkeys(name for name, _ in reached):
        methods = {method: ok for (name, method), ok in reached.items() if name == localization}
        short = [method for method, ok in methods.items() if not ok]
        names = f" Short of it stayed {', '.join(short)}." if short else ""
        text.append(f"At {localization}, {sum(methods.values())} of {len(methods)} did.{names}")
    return text


def _claim(both: Pairs) -> str:
    claim = (
        "The claim, that an edit where facts are looked up leaves less of the old answer than one elsewhere,"
    )
    if len(both) < FEWEST:
        reached = f"{len(both)} method{'s' * (len(both) != 1)} reached the goal at {LOOKUP} and at {RANDOM}"
        return f"{claim} cannot be told from this table: only {reached}."
    counts = [compared(both, column) for column in READINGS]
    differing = {name for count in counts for name in (*count.less, *count.more)}
    # A method is better if it differs in one reading at least, and leaves more in none.
    better = differing - {name for count in counts for name in count.more}
    if not differing:
        return f"{claim} does not show: no method tells {LOOKUP} and {RANDOM} places apart."
    most = "shows in part" if len(better) > len(differing) / 2 else "does not show"
    shows = "shows" if better == differing else most
    return (
        f"{claim} {shows} in these two readings against one random place: of {len(both)} methods "
        f"{len(differing)} tell the two apart, and {len(better)} of these leave less at {LOOKUP} and more in "
        "no reading."
    )


def _named(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if 0 < len(names) <= 4 else str(len(names))
