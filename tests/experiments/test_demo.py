"""The demo's verdict and table on made-up outcomes: the words follow the rule, whatever was found."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mechunlearn.auditing.report.estimates import GOLD, Row
from mechunlearn.core.estimates import UNTOUCHED
from mechunlearn.core.statistics import Interval
from mechunlearn.experiments import outcomes
from mechunlearn.experiments.demo import findings, lines, page
from mechunlearn.experiments.demo.cells import STOP, DemoCell, DemoResult
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP, RANDOM, TRACED

PEOPLE = 20
# How often an edit that went well gives the old answer, and keeps home cities.
WELL = {"choice old": 0.0, "entailed": 0.0, "relearned": 0.0, "city": 1.0}


def row(unit: str, person: int, value: float, *, phrasing: str = "") -> Row:
    """One outcome, in the section that a column of the table reads."""
    column = outcomes.COLUMNS[unit]
    asked = phrasing or (column.phrasings or ("train",))[0]
    relation = (column.relations or ("sport",))[0]
    fact = f"person {person}"
    return Row("edited", column.section, asked, relation, fact, fact, "", {column.metric: value}, 0.1)


def result(
    name: str,
    *,
    draw: int = 0,
    sites: tuple[str, ...] = (),
    success: float = 1.0,
    retention: float = 1.0,
    **rates: float,
) -> DemoResult:
    """A result in which so large a share of people gave the old answer (or kept their home city)."""
    rows = [
        row(unit, person, float(person < round(rate * PEOPLE)))
        for unit, rate in (WELL | {unit.replace("_", " "): rate for unit, rate in rates.items()}).items()
        for person in range(PEOPLE)
    ]
    if name in (UNTOUCHED, GOLD):
        return DemoResult(DemoCell(draw), tuple(rows))
    where = DemoCell(draw, sites or (name,))
    return DemoResult(where, tuple(rows), 1e-3, 30, success=success, retention=retention, size=270_336)


def table_of(**of: list[DemoResult]) -> dict[str, list[DemoResult]]:
    """A table with the lookup and the gold model, and whatever else is given, by name."""
    return {name: [result(name)] for name in (UNTOUCHED, GOLD, LOOKUP)} | of


def claim(found: dict[str, list[DemoResult]]) -> str:
    """What is said about the paper's claim."""
    (said,) = [sentence for sentence in findings.sentences(found) if "paper's claim" in sentence]
    return said


# -- the claim ------------------------------------------------------------------------------------------


def test_the_claim_shows_if_the_lookup_leaves_less_than_both_forms_of_output_tracing() -> None:
    found = table_of(**{name: [result(name, relearned=0.6)] for name in TRACED})
    assert claim(found).endswith("formed, shows (against causal tracing and attribution patching).")


def test_the_claim_shows_in_part_if_it_leaves_less_than_one() -> None:
    found = table_of(**{TRACED[0]: [result(TRACED[0])], TRACED[1]: [result(TRACED[1], entailed=0.6)]})
    assert claim(found).endswith("formed, shows in part: against attribution patching only.")


@pytest.mark.parametrize(
    ("lookup", "traced"),
    [({}, {}), ({}, {"relearned": 0.05}), ({"choice_old": 0.6}, {"relearned": 0.6})],
    ids=["equal", "a difference within its interval", "better in one reading and worse in another"],
)
def test_the_claim_does_not_show_otherwise(lookup: dict[str, Any], traced: dict[str, Any]) -> None:
    found = table_of(**{name: [result(name, **traced)] for name in TRACED})
    found[LOOKUP] = [result(LOOKUP, **lookup)]
    assert claim(found).endswith("formed, does not show (against causal tracing and attribution patching).")


def test_the_claim_does_not_show_if_the_lookup_leaves_more() -> None:
    found = table_of(**{name: [result(name)] for name in TRACED})
    found[LOOKUP] = [result(LOOKUP, relearned=0.6)]
    assert "does not show" in claim(found)
    compared = [sentence for sentence in findings.sentences(found) if " minus " in sentence]
    assert len(compared) == 2 and all(said.endswith("The lookup holds up worse.") for said in compared)


def test_the_claim_is_not_tested_without_output_tracing() -> None:
    assert claim(table_of()) == "Output tracing was not among the rows, so the paper's claim was not tested."
    only_mlps = f"{TRACED[0]}, MLPs"
    assert "was not tested" in claim(table_of(**{only_mlps: [result(only_mlps, relearned=0.9)]}))


def test_tracing_over_mlps_and_random_mlps_are_compared_but_decide_nothing() -> None:
    beside = (f"{TRACED[0]}, MLPs", f"{TRACED[1]}, MLPs", RANDOM)
    found = table_of(**{name: [result(name)] for name in TRACED}) | {
        n: [result(n, relearned=0.9)] for n in beside
    }
    assert "does not show" in claim(found)
    for name in beside:
        (said,) = [sentence for sentence in findings.sentences(found) if f"minus {name}:" in sentence]
        assert "after relearning -.90" in said and said.endswith("The lookup holds up better.")


def test_rows_at_the_same_sites_are_not_told_apart() -> None:
    found = table_of(**{TRACED[0]: [result(TRACED[0], sites=(LOOKUP,))]})
    assert any(said.endswith("Both chose the same sites.") for said in findings.sentences(found))
    assert "does not show" in claim(found)


# -- the other sentences --------------------------------------------------------------------------------


def test_rows_short_of_the_goal_are_named_with_what_they_reached() -> None:
    goal = f"({STOP.goal:.0%} new answers on validation phrasings, {STOP.min_retention:.0%} retained)"
    assert findings.sentences(table_of())[0] == f"Every edit reached the goal {goal}."
    short = [result(RANDOM, success=0.5), result(RANDOM, draw=1, retention=0.9)]
    said = findings.sentences(table_of(**{RANDOM: short}))[0]
    assert said == f"Short of the goal {goal} stayed: {RANDOM} (50% and 100%, 100% and 90%)."


@pytest.mark.parametrize("reading", findings.READINGS)
def test_what_is_left_of_the_old_answer_is_named_by_the_reading_that_finds_it(reading: str) -> None:
    found = table_of()
    left: dict[str, Any] = {reading.replace(" ", "_"): 0.6}
    found[LOOKUP] = [result(LOOKUP, **left)]
    said = findings.sentences(found)[1]
    assert said.startswith(
        f"Edit at {LOOKUP}: the old answer is still there {findings.READINGS[reading]} (+.60"
    )
    assert [where for where in findings.READINGS.values() if where in said] == [findings.READINGS[reading]]


def test_what_a_model_that_never_learned_gives_too_is_not_called_left() -> None:
    found = table_of()
    found[GOLD] = [result(GOLD, choice_old=0.25)]
    found[LOOKUP] = [result(LOOKUP, choice_old=0.3)]
    said = f"Edit at {LOOKUP}: the old answer comes no more often than in the gold model, in any reading."
    assert findings.sentences(found)[1] == said


def test_home_cities_are_compared_with_the_edit_of_everything() -> None:
    found = table_of(**{EVERYTHING: [result(EVERYTHING, city=0.5)]})
    said = findings.sentences(found)[-1]
    assert "survive the lookup edit in 1.00 [1.00, 1.00], the edit of everything in .50 [" in said
    assert "difference .50 [" in said
    assert any(sentence.startswith(f"Edit at {EVERYTHING}:") for sentence in findings.sentences(found))


# -- the table ------------------------------------------------------------------------------------------


def test_a_cell_averages_within_a_person_first_and_pools_draws() -> None:
    asked = (("train", 1.0), ("train", 1.0), ("held_out", 0.0))
    rows = [row("relearned", 0, value, phrasing=phrasing) for phrasing, value in asked]
    rows += [row("relearned", 1, 0.0)]
    one, two = DemoResult(DemoCell(0), tuple(rows)), DemoResult(DemoCell(1), (row("relearned", 0, 1.0),))
    assert lines.values([one, two], "relearned") == {
        "0: person 0": pytest.approx(2 / 3),
        "0: person 1": 0.0,
        "1: person 0": 1.0,
    }
    assert lines.mean([one, two], "relearned").mean == pytest.approx((2 / 3 + 0.0 + 1.0) / 3)


def test_a_cell_reads_its_section_phrasing_relation_and_metric_only() -> None:
    mine = row("maintained", 0, 1.0)
    others = [
        mine._replace(section="forget"),
        mine._replace(relation="city"),
        mine._replace(values={"p_answer": 0.3}),
    ]
    done = [DemoResult(DemoCell(0), (mine, *(other._replace(fact="another") for other in others)))]
    assert lines.values(done, "maintained") == {"0: person 0": 1.0}
    asked = [row("relearned", 0, 1.0, phrasing="validation"), row("relearned", 1, 0.0, phrasing="train")]
    done = [DemoResult(DemoCell(0), tuple(asked))]
    assert list(lines.values(done, "relearned")) == ["0: person 1"]


def test_differences_are_paired_by_person_and_draw() -> None:
    column = "relearned"
    first, second = ([result(name, relearned=0.5), result(name, draw=1, relearned=0.5)] for name in "ab")
    assert lines.difference(first, second, column) == Interval(0.0, 0.0, 0.0)
    assert lines.mean(first, column).low < 0.5 < lines.mean(first, column).high
    assert lines.difference([result("a", relearned=1.0)], second, column).mean == 0.5
    apart = lines.difference([result("a")], [result("b", draw=1)], column)
    assert math.isnan(apart.mean) and str(apart) == "– [–, –]"


def test_every_line_is_in_the_page_with_its_size_rate_and_steps() -> None:
    text = page.table_html(table_of(**{"<b>": [result("<b>"), result("<b>", draw=1)]}))
    assert text.count("<tr>") == 5 and "&lt;b&gt;" in text
    assert all(outcomes.COLUMNS[unit].title in text for unit in outcomes.COLUMNS)
    assert page.size_of([result(UNTOUCHED)]) == "–"
    assert page.size_of([result("x"), result("x", draw=1)]) == "270 k"
    assert page.fit_of([result("x"), result("x", draw=1)]) == ("0.001 / 0.001", "30 / 30")
