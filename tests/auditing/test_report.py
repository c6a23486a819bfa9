"""A report says what its rows say: means over facts, paired differences, a verdict by rule, one file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechunlearn.auditing.report.estimates import Row, differences, estimates, per_fact, with_controls
from mechunlearn.auditing.report.report import Report
from mechunlearn.core.statistics import paired_difference

FACTS = [f"fact {number}" for number in range(8)]


def row(
    model: str,
    fact: str,
    value: float,
    *,
    section: str = "forget",
    phrasing: str = "train",
    metric: str = "answer",
) -> Row:
    return Row(model, section, phrasing, "sport", fact, f"{fact}?", "golf", {metric: value}, 0.25)


def said(
    model: str,
    value: float | Sequence[float],
    *,
    section: str = "forget",
    phrasing: str = "train",
    metric: str = "answer",
) -> list[Row]:
    """What one model says to all facts, in one way of asking."""
    values = [value] * len(FACTS) if isinstance(value, float) else value
    return [
        row(model, f, v, section=section, phrasing=phrasing, metric=metric)
        for f, v in zip(FACTS, values, strict=True)
    ]


def report(
    asked: Mapping[tuple[str, str], float],
    *,
    gold: float | None = 0.0,
    attacks: Sequence[str] = (),
    **more: float,
) -> Report:
    """A report in which the untouched model knows all, and the edited one what is given."""
    rows = []
    for (section, phrasing), value in asked.items():
        rows += said("edited", value, section=section, phrasing=phrasing)
        rows += said("untouched", 1.0, section=section, phrasing=phrasing)
        forgotten = gold is not None and section in ("forget", "entailed", *attacks)
        if gold is not None:
            rows += said("gold", gold if forgotten else 1.0, section=section, phrasing=phrasing)
    for model, loss in more.items():
        rows += said(model, loss, section="text", phrasing="", metric="nll")
    return Report("an edit", tuple(rows), attacks=tuple(attacks))


GONE = {("forget", "train"): 0.0, ("forget", "held_out"): 0.0, ("maintained", "train"): 1.0}


# -- estimates ------------------------------------------------------------------------------------------


def test_phrasings_are_averaged_within_a_fact_before_facts() -> None:
    rows = [
        row("edited", "a", 1.0),
        row("edited", "a", 1.0),
        row("edited", "a", 1.0),
        row("edited", "b", 0.0),
    ]
    (found,) = estimates(rows, seed=0)
    assert (found.value, found.n) == (0.5, 2)


def test_controls_are_averaged_fact_by_fact() -> None:
    models = {
        "control 1": {"a": 0.0, "b": 1.0},
        "control 2": {"a": 1.0, "b": 1.0},
        "edited": {"a": 1.0, "b": 0.0},
    }
    assert with_controls(models)["controls"] == {"a": 0.5, "b": 1.0}
    assert differences(with_controls(models)) == {"edited − controls": {"a": 0.5, "b": -1.0}}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=9))
def test_differences_are_paired_by_fact(pairs: list[tuple[bool, bool]]) -> None:
    rows = [row(model, str(i), float(v)) for i, pair in enumerate(pairs)
            for model, v in zip(("edited", "untouched"), pair, strict=True)]  # fmt: skip
    found = {e.model: e for e in estimates(rows, seed=1)}["edited − untouched"]
    expected = paired_difference([a for a, _ in pairs], [b for _, b in pairs], seed=1)
    assert np.allclose([found.value, found.low, found.high], [expected.mean, expected.low, expected.high])


def test_one_fact_has_a_mean_and_no_bounds() -> None:
    (found,) = estimates([row("edited", "a", 1.0)], seed=0)
    assert found.value == 1.0 and math.isnan(found.low) and math.isnan(found.high)


def test_phrasings_can_be_chosen() -> None:
    rows = [row("edited", "a", 1.0), row("edited", "a", 0.0, phrasing="held_out")]
    assert per_fact(rows, "forget", "answer", phrasings=("held_out",)) == {"edited": {"a": 0.0}}
    assert per_fact(rows, "forget", "new") == {}


# -- verdicts -------------------------------------------------------------------------------------------


def test_no_difference_at_all_is_no_change() -> None:
    same = {("forget", "train"): 1.0, ("maintained", "train"): 1.0}
    assert report(same, edited=1.0, untouched=1.0).verdict.word == "no change"
    assert report(same, edited=1.0001, untouched=1.0).verdict.word != "no change"


def test_an_edit_that_fails_where_it_was_trained_is_not_achieved() -> None:
    verdict = report(GONE | {("forget", "train"): 0.5, ("forget", "held_out"): 1.0}).verdict
    assert verdict.word == "not achieved"
    assert "train .50 [.50, .50], recovery .50" in verdict.text


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (("forget", "held_out"), "other phrasings (held-out) 1.00"),
        (("forget", "multiple_choice"), "in multiple choice 1.00"),
        (("entailed", "train"), "entailed facts (train) 1.00"),
        (("relearning", "held_out"), "relearning (held-out) 1.00"),
    ],
)
def test_an_answer_that_comes_back_anywhere_was_concealed(where: tuple[str, str], text: str) -> None:
    verdict = report(GONE | {where: 1.0}, attacks=("relearning",)).verdict
    assert verdict.word == "concealed"
    assert text in verdict.text and verdict.text.count("recovery") == 1


def test_what_does_not_come_back_was_not_elicited_and_never_removed() -> None:
    found = report(GONE | {("relearning", "train"): 0.0}, attacks=("relearning",))
    assert found.verdict.word == "not elicited"
    assert found.verdict.text == "the old answer did not come back by other phrasings, relearning"
    assert "removed" not in repr(found) and "removed" not in found._repr_html_()


def test_guessing_is_no_recovery() -> None:
    assert report(dict.fromkeys(GONE, 0.25), gold=None).verdict.word == "not elicited"
    assert report(dict.fromkeys(GONE, 0.5), gold=0.5).verdict.word == "not elicited"
    assert report(dict.fromkeys(GONE, 0.5), gold=0.1).verdict.word == "not achieved"


def test_what_the_model_never_knew_cannot_be_tested() -> None:
    assert report(GONE, gold=0.9).verdict.word == "nothing to test"


def test_an_attack_that_breaks_the_model_does_not_count() -> None:
    broken = GONE | {("relearning", "train"): 1.0, ("relearning, maintained", "train"): 0.5}
    verdict = report(broken, attacks=("relearning",)).verdict
    assert verdict.word == "not elicited"
    assert "relearning cost 0.50 of the maintained facts and does not count" in verdict.text


def test_choice_that_answers_anyway_says_nothing_about_an_attack() -> None:
    asked = {
        ("forget", "multiple_choice"): 1.0,
        ("relearning", "train"): 0.0,
        ("relearning", "multiple_choice"): 1.0,
    }
    assert "relearning" not in report(GONE | asked, attacks=("relearning",)).verdict.text


@pytest.mark.parametrize("section", ["maintained", "same subject", "neighbours, same surname"])
def test_what_is_lost_beside_is_damage(section: str) -> None:
    verdict = report(GONE | {(section, "train"): 0.5}).verdict
    assert verdict.damage == (f"{section} (sport) -.50 [-.50, -.50]",)
    assert str(verdict).endswith(f"\ndamaged: {verdict.damage[0]}")
    assert report(GONE | {(section, "train"): 0.96}).verdict.damage == ()


def test_text_that_costs_more_is_damage() -> None:
    assert report(GONE, edited=1.5, untouched=1.0).verdict.damage == ("text +.50 [.50, .50] nats a token",)
    assert report(GONE, edited=1.05, untouched=1.0).verdict.damage == ()


def test_random_places_are_said_beside() -> None:
    plain = report(GONE)
    controls = [r for n in (1, 2) for r in said(f"control {n}", 0.5, phrasing="held_out")]
    verdict = Report("an edit", (*plain.rows, *controls)).verdict
    assert verdict.word == "not elicited"
    assert "forget, held-out: old answer .50 [.50, .50] at random places" in verdict.beside[0]


# -- tables and pictures --------------------------------------------------------------------------------


def full() -> Report:
    rows = report(
        GONE | {("relearning", "held_out"): 1.0, ("probe", "L0.resid_post"): 1.0}, attacks=("relearning",)
    )
    news = [r for model in ("edited", "untouched") for r in said(model, 1.0, metric="new")]
    text = [
        r
        for model in ("edited", "untouched")
        for r in said(model, 1.0, section="text", phrasing="", metric="nll")
    ]
    probed = [r for r in said("edited", 0.0, section="probe", phrasing="L0.resid_post", metric="new")]
    every = (*rows.rows, *news, *text, *probed)
    return Report(
        "<b>an edit</b>", every, ("relearning",), {"entailed": "Fact(entailed=...)"}, ("no control: <none>",)
    )


def test_the_frame_is_tidy() -> None:
    frame = full().to_frame()
    assert list(frame) == "model section phrasing relation metric value low high n".split()
    assert not frame.duplicated(["model", "section", "phrasing", "relation", "metric"]).any()
    rows = full().rows_frame()
    assert len(rows) == len(full().rows) and {"answer", "new", "nll", "text"} <= set(rows)


def test_a_number_can_be_looked_up() -> None:
    assert full().estimate("relearning", "held_out").value == 1.0
    assert full().estimate("forget", "train", model="edited − untouched").value == -1.0
    with pytest.raises(KeyError, match=r"0 numbers for 'edited', 'forgot'.*'forget', 'held_out', 'sport'"):
        full().estimate("forgot", "train")


def test_text_shows_every_section_what_is_absent_and_the_notes() -> None:
    shown = repr(full())
    for words in (
        "forget",
        "old answer",
        "new answer",
        "perplexity",
        "2.72 [2.72, 2.72]",
        "edited − untouched",
    ):
        assert words in shown
    assert "note: no control: <none>" in shown
    assert "absent: entailed; give Fact(entailed=...)" in shown
    assert shown.splitlines()[1].startswith("concealed: ")


def test_there_is_a_picture_for_every_kind_of_number() -> None:
    figures = full().figures
    assert list(figures) == ["overview", "maintained", "relearning", "probe"]
    dots = figures["overview"].data
    assert [trace.name for trace in dots] == ["edited", "untouched", "gold"]
    assert list(dots[1].x) == [1.0, 1.0] and list(dots[0].error_x.array) == [0.0, 0.0]
    assert [trace.name for trace in figures["probe"].data if trace.name][-1] == "edited, new answer"


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    full().to_html(path)
    page = path.read_text(encoding="utf-8")
    assert page.count("plotly.js v") == 1
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert page.count("Plotly.newPlot(") >= 4
    assert "<b>an edit</b>" not in page and "&lt;b&gt;an edit&lt;/b&gt;" in page
    assert "no control: &lt;none&gt;" in page


def test_an_empty_report_shows_itself() -> None:
    empty = Report("nothing", ())
    assert empty.verdict.word == "no change" and not empty.figures and empty.models == ()
    assert len(empty.to_frame()) == 0 and "nothing" in empty._repr_html_() and "nothing" in repr(empty)
