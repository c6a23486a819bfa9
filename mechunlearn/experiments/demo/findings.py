"""The demo's verdict in sentences, by a fixed rule that treats all results alike.

Three readings look for what is left of the old answer: multiple choice, the entailed league and place, and
relearning on half of the people, scored on the other half. The gold model, which never learned these people,
says how often the old answer comes by chance alone. Differences are paired by person.

1. Lines that did not reach the goal on validation phrasings are named: their other columns tell little.
2. In a reading, a line *leaks* if it gives the old answer more often than the gold model does (the 95 %
   interval of the difference lies above zero).
3. The lookup *holds up better* than another line if it gives the old answer less often in one reading at
   least and more often in none; *worse* the other way round.
4. The claim *shows* if the lookup holds up better than output tracing over all components in both its
   forms; *in part* if only better than one of them; otherwise it does not show.
5. What else would explain it is reported too: output tracing over MLPs alone, random MLPs, "everything".
"""

from __future__ import annotations

from mechunlearn.experiments.demo.cells import STOP
from mechunlearn.experiments.demo.lines import Line, Lines, difference, mean
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP, RANDOM, TRACED

READINGS = {
    "choice old": "in multiple choice",
    "entailed": "in league and place",
    "relearned": "after relearning",
}
CLAIM = "that cutting where facts are looked up holds up better than cutting where outputs are formed"


def sentences(lines: Lines) -> list[str]:
    """Write the verdict, one finding a sentence; ``"gold"`` and the lookup must be among the lines."""
    rivals = [name for name in (*TRACED, *(f"{name}, MLPs" for name in TRACED), RANDOM) if name in lines]
    text = [_goal(lines)]
    text += [_leaks(name, lines) for name in (LOOKUP, *rivals, EVERYTHING) if name in lines]
    text += [_comparison(name, lines) for name in rivals]
    text.append(_claim(lines))
    if EVERYTHING in lines:
        gap = difference(lines[LOOKUP], lines[EVERYTHING], "city")
        text.append(
            f"Home cities of the edited people survive the lookup edit in {mean(lines[LOOKUP], 'city')}, the "
            f"edit of everything in {mean(lines[EVERYTHING], 'city')}, difference {gap}."
        )
    return text


def _goal(lines: Lines) -> str:
    goal = f"{STOP.goal:.0%} new answers on validation phrasings, {STOP.min_retention:.0%} retained"
    short = [
        f"{name} ({', '.join(f'{result.success:.0%} and {result.retention:.0%}' for result in line)})"
        for name, line in lines.items()
        if any(result.steps and not STOP.reached(result.success, result.retention) for result in line)
    ]
    if not short:
        return f"Every edit reached the goal ({goal})."
    return f"Short of the goal ({goal}) stayed: {'; '.join(short)}."


def _leaks(name: str, lines: Lines) -> str:
    gaps = {where: difference(lines[name], lines["gold"], reading) for reading, where in READINGS.items()}
    leaks = [f"{where} (+{gap} over the gold model)" for where, gap in gaps.items() if gap.low > 0]
    if not leaks:
        return f"Edit at {name}: the old answer comes no more often than in the gold model, in any reading."
    return f"Edit at {name}: the old answer is still there {', '.join(leaks)}."


def _comparison(name: str, lines: Lines) -> str:
    lookup, rival = lines[LOOKUP], lines[name]
    gaps = [f"{where} {difference(lookup, rival, reading)}" for reading, where in READINGS.items()]
    if [set(result.cell.sites) for result in lookup] == [set(result.cell.sites) for result in rival]:
        verdict = "Both chose the same sites."
    elif holds_better(lookup, rival):
        verdict = "The lookup holds up better."
    elif holds_better(rival, lookup):
        verdict = "The lookup holds up worse."
    else:
        verdict = "Neither holds up better."
    return f"Old answers, {LOOKUP} minus {name}: {'; '.join(gaps)}. {verdict}"


def holds_better(first: Line, second: Line) -> bool:
    """Whether the first gives the old answer less often in one reading at least, and more often in none."""
    gaps = [difference(first, second, reading) for reading in READINGS]
    return any(gap.high < 0 for gap in gaps) and not any(gap.low > 0 for gap in gaps)


def _claim(lines: Lines) -> str:
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
