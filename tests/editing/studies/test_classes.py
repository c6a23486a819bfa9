"""Forgetting a class: who is a member, what is trained on, what is scored, and how it compares by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.small_facts import TEXT, unchecked, weights
from helpers.tiny_models import tiny_llama

import mechunlearn as mu
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.halving import halves
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.statistics import bootstrap_interval, paired_difference
from mechunlearn.editing.objectives.likelihood import Forget, Inject
from mechunlearn.editing.studies import classes
from mechunlearn.editing.studies.classes import ClassResult, forget_class
from mechunlearn.errors import FactError
from mechunlearn.models.scoring.scorer import score

SPORTS = ("golf", "polo", "judo")
SPLITS: Any = ("forget", "retain", "test")
PEOPLE = "Al Bo Cy Di Ed Fay Gus Hal Ike Jo Kim Lou".split()
# Three athletes of a sport and a split, and one more golfer, each with something that would follow.
FACTS = Facts(
    [
        Fact(
            f"{name} plays", name, SPORTS[i % 3], new=SPORTS[(i + 1) % 3], split=SPLITS[i // 3 % 3],
            options=SPORTS, held_out=(f"It is {name} who has", f"Ask {name}:"),
            entailed=(Fact(f"{name} wears", name, "a"),),
        )
        for i, name in enumerate(PEOPLE)
    ],
    text=TEXT,
)  # fmt: skip
QUICK: dict[str, Any] = {"steps": 2, "lr": 0.05, "stop": None, "progress": False}
PLACE = Localization(["L0.mlp", "L1.mlp"])


def forget(objective: Any = None, answer: str = "golf", **options: Any) -> ClassResult:
    return forget_class(tiny_llama(), PLACE, objective or Inject(), FACTS, answer, **{**QUICK, **options})


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Facts]:
    """The facts that edits are fitted on."""
    seen: list[Facts] = []

    def spied(hm: Any, localization: Any, objective: Any, facts: Facts, **options: Any) -> Any:
        seen.append(facts)
        return mu.edit(hm, localization, objective, facts, **options)

    monkeypatch.setattr(classes, "edit", spied)
    return seen


# -- halves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_halves_are_those_of_an_audit(seed: int) -> None:
    some = Facts([*FACTS, *(fact.asking(f"So {fact.prompt}") for fact in FACTS[:5])])
    first, second = halves(some, seed=seed)
    assert (first, second) == mu.attacks.halves(some, seed=seed)
    assert not {fact.subject for fact in first} & {fact.subject for fact in second}
    assert sorted(f.prompt for f in first + second) == sorted(f.prompt for f in some)


def test_facts_of_one_subject_are_dealt_one_by_one() -> None:
    one = Facts([Fact(f"{verb} Al", "Al", "golf") for verb in ("Ask", "See", "Call", "Tell")])
    assert [len(half) for half in halves(one, seed=0)] == [2, 2]


def test_another_seed_deals_otherwise() -> None:
    deals = {tuple(fact.subject for fact in halves(FACTS, seed=seed)[0]) for seed in range(5)}
    assert len(deals) > 1


# -- who is trained on, and who is not --------------------------------------------------------------------


def test_members_are_found_in_every_split_and_only_half_of_them_is_trained_on(
    trained_on: list[Facts],
) -> None:
    result = forget(new="judo")
    (given,) = trained_on
    golfers = {fact.subject for fact in FACTS if fact.answer == "golf"}
    trained, unseen = ({fact.subject for fact in half} for half in (result.trained, result.unseen))
    assert trained | unseen == golfers and not trained & unseen and len(trained) == len(unseen) == 2
    assert {fact.subject for fact in given.forget} == trained
    assert not unseen & {fact.subject for fact in given}
    assert all(fact.answer != "golf" for fact in (*given.retain, *given.test))


def test_what_has_another_answer_is_kept_and_what_was_to_be_forgotten_with_it_is_retained(
    trained_on: list[Facts],
) -> None:
    forget(new="judo")
    (given,) = trained_on
    others = [fact for fact in FACTS if fact.answer != "golf"]
    assert {f.subject for f in given.retain} == {f.subject for f in others if f.split != "test"}
    assert {f.subject for f in given.test} == {f.subject for f in others if f.split == "test"}
    assert given.text == FACTS.text


def test_one_new_answer_is_for_all_members_and_nothing_follows_from_their_old_ones() -> None:
    result = forget(new="judo")
    for fact in (*result.trained, *result.unseen):
        assert (fact.new, fact.entailed, fact.split) == ("judo", (), "forget")
    own = forget()
    assert {fact.new for fact in own.trained} == {"polo"} and own.trained[0].entailed


def test_the_model_stays_as_it_was_and_the_same_seed_gives_the_same_numbers() -> None:
    before = weights(tiny_llama())
    assert forget(seed=3).table == forget(seed=3).table
    assert weights(tiny_llama()) == before


# -- what is scored ---------------------------------------------------------------------------------------


def test_the_shares_are_those_of_scoring_by_hand() -> None:
    result = forget(new="judo", seed=1)
    models = {"untouched": tiny_llama(), "edited": result.edit.apply(tiny_llama())}
    kept = FACTS.test.where(lambda fact: fact.answer != "golf")
    for name, facts in {"trained": result.trained, "unseen": result.unseen, "maintained": kept}.items():
        by_fact = {}
        for model, runs in models.items():
            right = [score(runs, fact.phrasings("held_out")).correct.mean() for fact in facts]
            by_fact[model] = np.array(right)
            found = result.interval(name, model=model)
            assert found == bootstrap_interval(by_fact[model], seed=1)
        change = paired_difference(by_fact["edited"], by_fact["untouched"], seed=1)
        assert result.interval(name, model="edited − untouched") == change
    said = score(models["edited"], result.unseen).says_new.mean()
    assert result.interval("unseen", phrasing="train", metric="new").mean == said


def test_the_table_has_a_row_for_every_share_and_the_figure_a_bar() -> None:
    result = forget(new="judo")
    frame = result.to_frame()
    assert len(frame) == len(result.table) == 3 * 2 * (2 + 2 + 1)
    assert set(frame["facts"]) == {"trained", "unseen", "maintained"}
    assert set(frame["phrasing"]) == {"train", "held_out"} and set(frame["metric"]) == {"answer", "new"}
    bars = {bar.name: bar for bar in result.plot().data}
    assert set(bars) == {"untouched, old answer", "edited, old answer", "edited, new answer"}
    assert bars["edited, old answer"].y[3] == result.interval("unseen").mean
    assert np.isnan(bars["edited, new answer"].y[-1])
    assert "unseen, held-out, answer" in result._repr_mimebundle_()["text/plain"]
    assert repr(result).startswith("ClassResult(golf to judo; 2 members trained on, 2 unseen)")


def test_an_objective_that_only_forgets_needs_no_new_answer() -> None:
    bare = Facts([fact.replace(new=None) for fact in FACTS], text=TEXT)
    result = forget_class(tiny_llama(), PLACE, Forget(), bare, "golf", **QUICK)
    assert {share.metric for share in result.table} == {"answer"}
    assert repr(result).startswith("ClassResult(forgetting golf;")


def test_a_class_of_the_embedded_model_is_forgotten_on_the_half_that_was_trained_on() -> None:
    hm, facts = mu.world.model(), mu.world.facts()
    few = Facts([*facts.forget, *facts.retain[:24], *facts.test[:12]])
    place = Localization(["L2.mlp", "L3.mlp", "L4.mlp"])
    result = forget_class(
        hm, place, Inject(text=0.0), few, "hockey", new="golf", steps=20, lr=2e-3, limits=mu.Limits(12),
        stop=mu.Stop(every=5), progress=False,
    )  # fmt: skip
    assert result.interval("unseen", model="untouched").mean == 1.0
    assert result.interval("trained").mean < 0.2 < 0.8 < result.interval("trained", metric="new").mean
    assert result.interval("maintained").mean > 0.7


# -- errors -----------------------------------------------------------------------------------------------


def test_a_class_has_two_members() -> None:
    with pytest.raises(FactError, match=r"'chess' has 0 of 12 facts, .* are 'golf' \(4\), 'polo' \(4\)"):
        forget(answer="chess", new="judo")


def test_an_objective_that_writes_an_answer_needs_one() -> None:
    bare = Facts([fact.replace(new=None) for fact in FACTS])
    with pytest.raises(FactError, match=r"4 of 4 members of the class 'golf' have no new .* give new="):
        forget_class(tiny_llama(), PLACE, Inject(), bare, "golf", **QUICK)


def test_facts_are_a_collection() -> None:
    with unchecked(), pytest.raises(FactError, match=r"the facts are a list; give them as Facts"):
        odd: Any = list(FACTS)
        forget_class(tiny_llama(), PLACE, Inject(), odd, "golf", **QUICK)


def test_a_share_that_was_not_measured_is_named() -> None:
    result = forget(new="judo")
    for phrasing in ("validation", "held-out"):
        wanted = f"phrasing must be one of 'train' or 'held_out'; not '{phrasing}'"
        with pytest.raises(FactError, match=wanted):
            result.interval("trained", phrasing=phrasing)
