"""The demo's verdict in words, by a rule that says what was found, whatever it is.

Three readings look for what is left of the old answer: multiple choice, the entailed league and place, and
relearning on half of the people, scored on the other half. The gold model, which never learned these people,
says how often the old answer comes by chance alone. Differences are paired by person.

1. Rows that did not reach the goal on validation phrasings are named: their other cells tell little.
2. In a reading, a row *leaks* if it gives the old answer more often than the gold model does (the 95 %
   interval of the difference lies above zero).
3. The lookup *holds up better* than another row if it gives the old answer less often in one reading at
   least and more often in none; *worse* the other way round.
4. The claim *shows* if the lookup holds up better than output tracing over all components in both its
   forms; *in part* if against one; otherwise it does not show.
5. Whatever else would explain it is said too: output tracing over MLPs alone, random MLPs, "everything".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mechunlearn.core.statistics import Interval
from mechunlearn.experiments.demo.jobs import STOP, Done
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP, RANDOM, TRACED
from mechunlearn.experiments.demo.table import COLUMNS, difference, mean

READINGS = {
    "choice old": "in multiple choice",
    "entailed": "in league and place",
    "relearned": "after relearning",
}
CLAIM = "that cutting where facts are looked up holds up better than cutting where outputs are formed"

Lines = Mapping[str, Sequence[Done]]


def sentences(lines: Lines) -> list[str]:
    """The verdict, one finding a sentence.

    Args:
        lines: the jobs of each line of the table, ``"untouched"`` and ``"gold"`` among them.
    """
    said = [_goal(lines)]
    said += [_leaks(name, lines) for name in (LOOKUP, *_others(lines), EVERYTHING) if name in lines]
    said += [_compared(name, lines) for name in _others(lines)]
    said.append(_claim(lines))
    if EVERYTHING in lines:
        city = COLUMNS["city"]
        gap = difference(lines[LOOKUP], lines[EVERYTHING], city)
        said.append(
            f"Home cities of the edited people survive the lookup edit in {mean(lines[LOOKUP], city)}, the "
            f"edit of everything in {mean(lines[EVERYTHING], city)}, difference {gap}."
        )
    return said


def _others(lines: Lines) -> list[str]:
    """The other rows of the lookup's size."""
    names = (*TRACED, *(f"{traced}, MLPs" for traced in TRACED), RANDOM)
    return [name for name in names if name in lines]


def _goal(lines: Lines) -> str:
    """Name the rows whose edit fell short of the goal."""
    goal = f"{STOP.goal:.0%} new answers on validation phrasings, {STOP.min_retention:.0%} retained"
    short = {
        name: ", ".join(f"{each.success:.0%} and {each.retention:.0%}" for each in done)
        for name, done in lines.items()
        if any(each.steps and not STOP.reached(each.success, each.retention) for each in done)
    }
    if not short:
        return f"Every edit reached the goal ({goal})."
    return f"Short of the goal ({goal}) stayed: " + "; ".join(f"{n} ({s})" for n, s in short.items()) + "."


def _leaks(name: str, lines: Lines) -> str:
    """What is left of the old answer, beyond what a model gives that never learned it."""
    found = []
    for reading, where in READINGS.items():
        gap = difference(lines[name], lines["gold"], COLUMNS[reading])
        if gap.low > 0:
            found.append(f"{where} (+{gap} over the gold model)")
    if not found:
        return f"Edit at {name}: the old answer comes no more often than in the gold model, in any reading."
    return f"Edit at {name}: the old answer is still there {', '.join(found)}."


def _compared(name: str, lines: Lines) -> str:
    """The lookup against another row, reading by reading."""
    gaps = [
        f"{where} {difference(lines[LOOKUP], lines[name], COLUMNS[reading])}"
        for reading, where in READINGS.items()
    ]
    return f"Old answers, {LOOKUP} minus {name}: {'; '.join(gaps)}. {_word(name, lines)}"


def _word(name: str, lines: Lines) -> str:
    places = [[sorted(each.job.sites) for each in lines[row]] for row in (LOOKUP, name)]
    if places[0] == places[1]:
        return "Both chose the same sites."
    better = holds_better(lines[LOOKUP], lines[name])
    worse = holds_better(lines[name], lines[LOOKUP])
    return (
        "The lookup holds up better."
        if better
        else "The lookup holds up worse."
        if worse
        else "Neither holds up better."
    )


def holds_better(first: Sequence[Done], second: Sequence[Done]) -> bool:
    """Whether the first gives the old answer less often in one reading at least, and more often in none.

    Args:
        first: the jobs of one line.
        second: the jobs of another, with the same draws.
    """
    gaps: list[Interval] = [difference(first, second, COLUMNS[reading]) for reading in READINGS]
    return any(gap.high < 0 for gap in gaps) and not any(gap.low > 0 for gap in gaps)


def _claim(lines: Lines) -> str:
    """Whether cutting at the lookup holds up better than cutting where outputs are formed."""
    compared = [name for name in TRACED if name in lines]
    better = [name for name in compared if holds_better(lines[LOOKUP], lines[name])]
    if not compared:
        return "Output tracing was not among the rows, so the paper's claim was not tested."
    untested = [name for name in TRACED if name not in lines]
    aside = f" ({' and '.join(untested)} not tested)" if untested else ""
    if better == list(TRACED):
        return f"Here the paper's claim, {CLAIM}, shows (against {' and '.join(better)})."
    if better:
        return f"Here the paper's claim, {CLAIM}, shows in part: against {' and '.join(better)} only{aside}."
    return f"Here the paper's claim, {CLAIM}, does not show (against {' and '.join(compared)}){aside}."
