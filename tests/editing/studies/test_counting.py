"""The same recipe on more and more facts: what each count is fitted on, and what is scored."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_facts import TEXT, unchecked, weights
from helpers.tiny_models import tiny_llama

import mechunlearn as mu
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.statistics import bootstrap_interval
from mechunlearn.editing.objectives.likelihood import Forget, Inject
from mechunlearn.editing.studies import counting, shares
from mechunlearn.editing.studies.counting import CountCurve, count_curve
from mechunlearn.errors import FactError, TrainingError
from mechunlearn.models.scoring.scorer import score

NAMES = "Al Bo Cy Di Ed Fay".split()
FACTS = Facts(
    [
        *(Fact(f"{n} plays", n, "golf", new="judo", validation=(f"Ask {n}:", f"So {n}")) for n in NAMES),
        Fact("Gus plays", "Gus", "polo", split="retain"),
        Fact("Hal plays", "Hal", "golf", split="test", validation=("Ask Hal:",)),
    ],
    text=TEXT,
)
QUICK: dict[str, Any] = {"steps": 2, "lr": 0.05, "stop": None, "progress": False}
PLACE = Localization(["L0.mlp", "L1.mlp"])


def count(objective: Any = None, **options: Any) -> CountCurve:
    options = {"counts": (2, 4), **QUICK, **options}
    return count_curve(tiny_llama(), PLACE, objective or Inject(), FACTS, **options)


@cache
def curve() -> CountCurve:
    return count()


def test_every_count_is_the_recipe_fitted_anew_on_the_first_so_many_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Any, Facts, dict[str, Any]]] = []

    def spied(hm: Any, localization: Any, objective: Any, facts: Facts, **options: Any) -> Any:
        seen.append((hm, facts, options))
        return mu.edit(hm, localization, objective, facts, **options)

    monkeypatch.setattr(counting, "edit", spied)
    before = weights(tiny_llama())
    found = count(counts=(4, 2, 6, 4), seed=5)
    forgets = [tuple(facts.forget) for _, facts, _ in seen]
    assert [len(forget) for forget in forgets] == [2, 4, 6] and found.counts == (2, 4, 6)
    assert forgets[2][:4] == forgets[1] and forgets[1][:2] == forgets[0]
    assert set(forgets[2]) == set(FACTS.forget) and forgets[2] != tuple(FACTS.forget)
    for hm, facts, options in seen:
        assert hm is tiny_llama() and facts.retain == FACTS.retain and facts.text == FACTS.text
        assert options == {**QUICK, "seed": 5, "checkpoint": None}
    assert weights(tiny_llama()) == before


@pytest.mark.parametrize("objective", [Inject(), Forget()])
def test_the_shares_are_those_of_scoring_by_hand(monkeypatch: pytest.MonkeyPatch, objective: Any) -> None:
    edits: list[Any] = []

    def spied(*args: Any, **options: Any) -> Any:
        edits.append((mu.edit(*args, **options), args[3].forget))
        return edits[-1][0]

    monkeypatch.setattr(counting, "edit", spied)
    found = count(objective, seed=2)
    for fitted, forget in edits:
        edited = fitted.apply(tiny_llama())
        said = [score(edited, fact.phrasings("validation")) for fact in forget]
        done = [(s.says_new if objective.aim == "new" else ~s.correct).mean() for s in said]
        assert found.interval(len(forget), phrasing="validation") == bootstrap_interval(
            np.array(done), seed=2
        )
        old = found.interval(len(forget), phrasing="validation", metric="answer").mean
        assert old == np.mean([s.correct.mean() for s in said])
        kept = found.interval(len(forget), "maintained", phrasing="train")
        assert kept.mean == score(edited, FACTS.test).correct.mean() and math.isnan(kept.low)
    untouched = score(tiny_llama(), FACTS.test).correct.mean()
    assert found.interval(0, "maintained", phrasing="train").mean == untouched


def test_held_out_phrasings_are_asked_only_of_edits_that_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every held-out prompt is scored after the fit of its own count has ended."""
    order: list[str] = []

    def fits(*args: Any, **options: Any) -> Any:
        order.append("fit")
        return mu.edit(*args, **options)

    def asks(models: Any, *args: Any, **options: Any) -> Any:
        order.extend(models)
        return asked(models, *args, **options)

    asked = shares.shares
    monkeypatch.setattr(counting, "edit", fits)
    monkeypatch.setattr(shares, "shares", asks)
    count()
    assert order == [*["untouched"] * 2, *["fit", "edited", "edited"] * 2]


def test_the_table_and_the_histories_are_by_count() -> None:
    frame = curve().to_frame()
    assert set(frame["count"]) == {0, 2, 4} and set(frame["phrasing"]) == {"train", "validation"}
    assert set(frame["n"][(frame["facts"] == "forget") & (frame["count"] == 2)]) == {2}
    assert set(frame["model"][frame["count"] == 0]) == {"untouched"}
    assert [len(history) for history in curve().histories.values()] == [2, 2]
    assert curve().histories[4].step == 2


def test_the_figure_has_a_curve_for_every_phrasing_and_the_untouched_model_at_0() -> None:
    figure = curve().plot()
    drawn = {trace.name: trace for trace in figure.data if trace.name}
    assert list(drawn) == ["success, train", "success, validation", "maintained, validation"]
    assert figure.layout.xaxis.ticktext == ("0", "2", "4") and drawn["success, train"].x == (0, 1, 2)
    assert math.isnan(drawn["success, train"].y[0])
    assert drawn["success, train"].y[2] == curve().interval(4, phrasing="train").mean
    text = curve()._repr_mimebundle_()["text/plain"]
    assert text == repr(curve()) and "  4 facts: success, train" in text


def test_every_count_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    first, again = (count(checkpoint=tmp_path) for _ in range(2))
    assert {path.name for path in tmp_path.iterdir()} == {"2_facts", "4_facts"}
    assert first.tables == again.tables


def test_the_embedded_world_has_128_facts_to_edit_at_once() -> None:
    groups = [mu.world.facts(group) for group in range(4)]
    forget = [fact for facts in groups for fact in facts.forget]
    facts = Facts([*forget, *groups[0].retain, *groups[0].test], text=groups[0].text)
    assert len(facts.forget) == 128 and all(fact.new and fact.held_out for fact in facts.forget)


def test_a_few_facts_of_the_embedded_model_can_be_edited_at_once() -> None:
    hm, facts = mu.world.model(), mu.world.facts()
    few = Facts([*facts.forget[:4], *facts.retain[:12], *facts.test[:6]])
    place = Localization(["L2.mlp", "L3.mlp", "L4.mlp"])
    found = count_curve(
        hm, place, Inject(text=0.0), few, counts=(2, 4), steps=20, lr=3e-3, limits=mu.Limits(8),
        stop=mu.Stop(every=5), progress=False,
    )  # fmt: skip
    for number in (2, 4):
        assert found.interval(number, phrasing="train").mean >= 0.75
        assert found.interval(number, metric="answer").mean < found.interval(0, metric="answer").mean == 1.0
    assert found.interval(0).mean == 0.0 and found.interval(4, "maintained").mean > 0.5


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "remedy"), [((2, 8, 4), r"counts=\(2, 4\)"), ((8, 16), r"counts=\(6,\)")])
def test_there_are_enough_facts(counts: tuple[int, ...], remedy: str) -> None:
    with pytest.raises(FactError, match=f"{max(counts)} facts and the forget set has 6; .* {remedy}"):
        count(counts=counts)


@pytest.mark.parametrize("counts", [(), (0, 4), (2, 2.5), 4])
def test_there_are_counts_of_one_fact_or_more(counts: Any) -> None:
    said = re.escape(f"counts are {counts!r}; give at least one whole number of facts, each 1 or more")
    with unchecked(), pytest.raises(TrainingError, match=said):
        count(counts=counts)


def test_facts_are_asked_in_the_phrasings_that_facts_have() -> None:
    """One word for one thing: what :meth:`Fact.phrasings` takes is what the curve and its table say."""
    assert shares.PHRASINGS == ("train", "validation", "held_out")
    for phrasing in shares.PHRASINGS:
        FACTS[0].phrasings(phrasing)
    with pytest.raises(FactError, match="phrasing must be one of 'train' or 'validation'; not 'held_out'"):
        curve().interval(2)


def test_facts_are_a_collection() -> None:
    with unchecked(), pytest.raises(FactError, match="the facts are a list; give them as Facts"):
        odd: Any = list(FACTS)
        count_curve(tiny_llama(), PLACE, Inject(), odd, counts=(2,), **QUICK)


def test_a_count_that_was_not_fitted_is_named() -> None:
    with pytest.raises(FactError, match=r"no edit of 3 facts was fitted; the counts are \(2, 4\)"):
        curve().interval(3)
