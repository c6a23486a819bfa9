"""The comparison of methods: table, picture and words say what was found; a command goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mechunlearn as mu
from mechunlearn.cli import app
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.errors import DataError, MechUnlearnError
from mechunlearn.experiments.choosing import Trial
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP
from mechunlearn.experiments.method_comparison import (
    catalogue,
    cells,
    closed,
    findings,
    picture,
    running,
    table,
)
from mechunlearn.experiments.method_comparison.cells import MethodCell
from mechunlearn.experiments.method_comparison.localizations import RANDOM
from mechunlearn.experiments.method_comparison.results import GOLD, UNTOUCHED, MethodResult

PEOPLE = 20


# -- the table ------------------------------------------------------------------------------------------


def cell(method: str, place: str = LOOKUP, *, reached: bool = True, **shares: float) -> MethodResult:
    """A line in which so large a share of people counts in a column, the same people first."""
    shares = {"old": 0.0, "choice_old": 0.0, "entailed": 0.0, "city": 1.0, "maintained": 1.0} | shares
    values = {
        name.replace("_", " "): {f"person {n}": float(n < round(share * PEOPLE)) for n in range(PEOPLE)}
        for name, share in shares.items()
    }
    if method in (UNTOUCHED, GOLD):
        return MethodResult(method, values=values)
    one = Trial("lr 0.001", success=float(reached), retention=1.0, step=5, steps=10)
    return MethodResult(method, place, values, one, (one,), size=1000, changed=500)


def test_means_are_over_people_and_differences_are_paired() -> None:
    half, none = cell("a", choice_old=0.5), cell("a", RANDOM)
    found = table.mean(half, "choice old")
    assert found.mean == 0.5 and 0.2 < found.low < 0.5 < found.high < 0.8
    gap = table.difference(half, none, "choice old")
    assert (gap.mean, gap.low, gap.high) == (found.mean, found.low, found.high)
    assert table.difference(half, half, "choice old").high == 0.0


def test_a_line_shows_new_answers_only_where_they_were_aimed_at() -> None:
    aimed = replace(cell("a", new=0.5), aim="new")
    head, _, *lines = table.outcome_table([aimed, cell("b", new=0.5), cell(GOLD, new=0.5)]).splitlines()
    place = head.split(" | ").index(table.COLUMNS["new"].title)
    assert [line.split(" | ")[place][:3] for line in lines] == [".50", "–", ".50"]


def test_a_method_that_is_not_applicable_says_why_and_takes_no_part() -> None:
    absent = MethodResult("MEMIT", RANDOM, note=cells.NOT_APPLICABLE)
    line = table.outcome_table([absent]).splitlines()[-1]
    assert cells.NOT_APPLICABLE in line and line.count("|") == table.outcome_table([cell("a")]).splitlines()[
        0
    ].count("|")
    assert "MEMIT" not in table.fit_table([absent], total=1)
    assert "| 10 | 5 | 1.00 | 1.00 | 1 k (50.0%) | 0 k (25.0%) |" in table.fit_table([cell("a")], total=2000)


# -- the words ------------------------------------------------------------------------------------------


def claim(*found: MethodResult) -> str:
    """What is said of the claim, with two methods more that do not tell places apart."""
    more = [cell(method, place) for method in "xy" for place in (LOOKUP, RANDOM)]
    return findings.sentences([*found, *more], mu.Stop())[-1]


def test_the_claim_shows_if_every_method_that_tells_places_apart_leaves_less_at_the_lookup() -> None:
    said = claim(cell("a"), cell("a", RANDOM, choice_old=0.8))
    assert ", shows in these two readings" in said and "of 3 methods 1 tell the two apart, and 1 of" in said


def test_the_claim_does_not_show_where_nothing_differs_or_most_leave_more() -> None:
    assert "does not show: no method" in claim(cell("a"), cell("a", RANDOM))
    lines = [cell("a"), cell("a", RANDOM, choice_old=0.8), cell("b", entailed=0.9), cell("b", RANDOM)]
    assert ", does not show in these two readings" in claim(*lines)
    assert ", shows in part in these" in claim(*lines, cell("c"), cell("c", RANDOM, entailed=0.8))


def test_the_claim_is_left_open_where_few_methods_reached_the_goal_at_both_places() -> None:
    said = claim(cell("a"), cell("a", RANDOM, reached=False, entailed=0.9))
    assert (
        "cannot be told from this table: only 2 methods reached the goal at fact lookup and at rand" in said
    )


def test_edits_short_of_the_goal_are_named_and_not_compared() -> None:
    said = findings.sentences([cell("a"), cell("b", EVERYTHING, reached=False)], mu.Stop())
    assert said[0].startswith("1 of 2 edits reached the goal")
    assert said[1] == "At fact lookup, 1 of 1 did."
    assert said[2] == "At everything, 0 of 1 did. Short of it stayed b."
    assert any(f"No method reached the goal both at {LOOKUP} and at {EVERYTHING}" in each for each in said)


def test_what_is_kept_is_compared_by_method() -> None:
    lines = [cell("a", city=0.3), cell("a", EVERYTHING), cell("b"), cell("b", EVERYTHING, city=0.2)]
    (said,) = [
        each for each in findings.sentences(lines, mu.Stop()) if each.startswith("The same, 2 methods")
    ]
    assert "home cities of the edited people kept: less with 1 (a), more with 1 (b), neither with 0" in said


def test_methods_that_fell_short_count_only_for_how_far_the_budget_goes() -> None:
    lines = [cell("a", maintained=0.4), cell("a", RANDOM, reached=False, old=0.9)]
    (said,) = [each for each in findings.sentences(lines, mu.Stop()) if "whatever they reached" in each]
    assert "the old answer in held-out phrasings: less with 1 (a)" in said
    assert "other people's sports kept: less with 1 (a), more with 0, neither with 0" in said


# -- the picture ----------------------------------------------------------------------------------------


def test_every_method_has_a_panel_with_its_places_where_they_belong() -> None:
    lines = [cell(UNTOUCHED, old=1.0), cell(GOLD, old=0.2), cell("<a>", old=0.25, maintained=0.5)]
    lines += [cell("b", place) for place in (LOOKUP, RANDOM)] + [
        MethodResult("c", RANDOM, note="not applicable")
    ]
    figure = picture.tradeoff(lines)
    titles = [note.text for note in figure.layout.annotations]
    assert titles[:2] == ["&lt;a&gt;", "b"] and titles[2:] == [picture.FORGOTTEN, picture.MAINTAINED]
    (drawn,) = [t for t in figure.data if t.text and t.text[0].startswith("&lt;a&gt;, fact lookup")]
    assert (drawn.x[0], drawn.y[0]) == (0.75, 0.5) and drawn.error_x.array[0] > 0
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == ["untouched model", "gold model", LOOKUP, RANDOM]


# -- the command ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few() -> mu.Facts:
    facts = mu.world.facts()
    some = [*facts.forget[:3], *facts.retain[:4], *facts.test[:2]]
    short = [fact.replace(entailed=fact.entailed[:1], neighbours={}) for fact in some]
    return mu.Facts(short, text=facts.text[:6])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, few: mu.Facts) -> Iterator[None]:
    """The comparison at two places and one rate, on a handful of facts."""
    found = {LOOKUP: mu.Localization(["L0.mlp"]), RANDOM: mu.Localization(["L5.mlp"])}
    monkeypatch.setattr(running, "localizations", lambda hm, facts, *, seed: found)
    for module in (running, cells):
        monkeypatch.setattr(module, "facts_of", lambda seed: few)
    monkeypatch.setattr(catalogue, "RATES", (1e-2,))
    monkeypatch.setattr(closed, "WEIGHTS", (15.0,))
    cells._exam.cache_clear()
    yield
    cells._exam.cache_clear()


def invoke(*given: object) -> str:
    shell = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    done = shell.invoke(app, ["methods", *map(str, given)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.usefixtures("small")
def test_the_command_writes_its_table_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, out = tmp_path / "page.md", tmp_path / "out"
    page.write_text(f"before\n{running.BEGIN}\nold table\n{running.END}\nafter\n", encoding="utf-8")
    given = ("--out", out, "--steps", 2, "--only", "Inject", "--only", "MEMIT", "--page", page)
    printed = invoke(*given)
    written = page.read_text(encoding="utf-8")
    assert written.startswith("before\n") and written.endswith("after\n") and "old table" not in written
    for line in (
        "| untouched | – |",
        "| gold | – |",
        "| Inject | fact lookup |",
        "| MEMIT | random | not appl",
    ):
        assert (
            line in printed and line in written and line in (out / "methods.md").read_text(encoding="utf-8")
        )
    assert "plotly" in (out / "tradeoff.html").read_text(encoding="utf-8")

    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    assert len(before) == 6
    again: list[str] = []
    real = MethodCell.run

    def noted(cell: MethodCell) -> dict[str, Any]:
        again.append(cell.method)
        return real(cell)

    monkeypatch.setattr(MethodCell, "run", noted)
    (lost,) = [path for path in before if path.name.startswith("untouched")]
    lost.unlink()
    assert invoke(*given) == printed and again == ["untouched"]
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before


def test_what_cannot_be_run_or_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MechUnlearnError, match=r"method must be one of 'Inject', .*; not 'Guess'"):
        running.run(tmp_path, only=["Guess"])
    with pytest.raises(MechUnlearnError, match="steps must be above zero; not 0"):
        running.run(tmp_path, steps=0)
    (tmp_path / "page.md").write_text(running.END + running.BEGIN, encoding="utf-8")
    comparison = running.Comparison((cell("a"),), 1, 0, (), 1000)
    with pytest.raises(DataError, match=r"page.md does not have the lines .*, in this order; add them"):
        comparison.write_into(tmp_path / "page.md")


def test_a_result_comes_back_from_json_as_it_was() -> None:
    result = cell("a", choice_old=0.5)
    assert MethodResult.from_json(json.loads(json.dumps(asdict(result)))) == result


def test_a_cell_is_known_by_all_that_its_result_depends_on() -> None:
    one = MethodCell("NPO", LOOKUP, ("L0.mlp",), (Recipe(mu.objectives.NPO(), lr=1e-3),))
    others = [
        replace(one, sites=("L1.mlp",)),
        replace(one, seed=1),
        replace(one, candidates=(Recipe(mu.objectives.NPO(beta=0.2), lr=1e-3),)),
        replace(one, checkpoint="gold"),
    ]
    assert len({each.key for each in (one, *others)}) == 5 and one.key == replace(one).key
    assert one.key.startswith("NPO--fact-lookup--")
