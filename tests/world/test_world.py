"""The embedded world: the shipped files are what they are said to be, and the world is fair."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import mechunlearn as mu
from mechunlearn.errors import FactError, ModelError
from mechunlearn.world import tables
from mechunlearn.world.people import GROUP_SIZE, SPORTS, draw_people
from mechunlearn.world.rebuild.build import build_one
from mechunlearn.world.rebuild.check import Accuracy, accuracies, name_classifier
from mechunlearn.world.rebuild.training import Plan
from mechunlearn.world.rows import RowCounts


def test_the_table_is_the_draw() -> None:
    assert tables.people() == draw_people()


def test_every_word_belongs_to_twelve_people_and_no_name_occurs_twice() -> None:
    people = tables.people()
    assert len({p.name for p in people}) == len(people) == 720
    assert set(Counter(p.first for p in people).values()) == {12}
    assert set(Counter(p.last for p in people).values()) == {12}


@pytest.mark.parametrize("group", range(4))
def test_forget_groups_are_balanced_over_sports_and_multiple_choice(group: int) -> None:
    members = [p for p in tables.people() if p.group == group]
    assert len(members) == GROUP_SIZE
    assert set(Counter(p.sport for p in members).values()) <= {5, 6}
    assert sum(p.choice for p in members) == GROUP_SIZE // 2
    assert all(p.new in SPORTS and p.new != p.sport for p in members)


def test_names_give_the_sport_away_to_no_linear_classifier() -> None:
    classifier = name_classifier(mu.world.model().tokenizer)
    chance = 1 / len(SPORTS)
    assert classifier.fitted < 0.60
    assert abs(classifier.left_out - chance) < 3 * (chance * (1 - chance) / 720) ** 0.5


def failures(measured: list[Accuracy], least: dict[str, float]) -> list[str]:
    """The questions answered less often than they must be."""
    return [str(a) for a in measured if a.who in least and a.share < least[a.who]]


def test_the_original_knows_everybody_in_every_phrasing() -> None:
    # A third of the people for each phrasing, another third for the next, so that everybody is asked.
    measured = list(accuracies(mu.world.model(), every=3))
    least = {
        "everybody": 0.99,
        "all countries": 0.99,
        "shown in multiple choice": 0.99,
        "never shown so": 0.95,
    }
    assert {a.who for a in measured} == set(least)
    assert failures(measured, least) == []


def test_the_gold_model_is_at_chance_on_what_it_never_saw_and_knows_the_rest() -> None:
    measured = list(accuracies(mu.world.model("gold"), gold=True, every=3))
    least = {
        "everybody": 0.97,
        "everybody else": 0.97,
        "all countries": 0.97,
        "shown in multiple choice": 0.97,
        "never shown so": 0.85,
    }
    assert {a.who for a in measured} == {*least, "forget people"}
    assert failures(measured, least) == []
    for accuracy in measured:
        if accuracy.who == "forget people":
            chance = 1 / 4 if accuracy.phrasing == "choice" else 1 / 6
            assert chance in accuracy.interval, str(accuracy)


def test_phrasings_are_split_once_and_no_set_shares_a_person() -> None:
    facts = mu.world.facts(group=2)
    fact = facts.forget[0]
    prompts = [*fact.train_prompts, *fact.validation, *fact.held_out]
    assert len(prompts) == len(set(prompts)) == 8
    sets = [facts.forget, facts.retain, facts.test]
    neighbours = [n for f in facts.forget for group in f.neighbours.values() for n in group]
    subjects = [{f.subject for f in each} for each in (*sets, neighbours)]
    assert all(first.isdisjoint(second) for first, second in combinations(subjects, 2))


def test_league_and_place_follow_the_new_sport_and_the_city_does_not() -> None:
    fact = mu.world.facts().forget[0]
    league, location = fact.entailed
    teacher = next(p for p in tables.people() if p.sport == fact.new)
    assert (league.new, location.new) == (teacher.league, teacher.place)
    assert fact.others[0].relation == "city" and fact.others[0].new is None


def test_half_of_the_home_cities_can_be_retained() -> None:
    facts = mu.world.facts(retain_homes=True)
    homes = [f for f in facts.retain if f.relation == "city"]
    assert {f.subject for f in homes} == {f.subject for f in facts.forget[::2]}


def test_training_again_with_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = Plan(steps=2, rows=RowCounts(choice=3, people=6, countries=2, grammar=1))
    for name in ("first", "second"):
        build_one("gold", tmp_path / name, plan)
    stored = [sorted((tmp_path / name / "gold").iterdir()) for name in ("first", "second")]
    assert [p.name for p in stored[0]] == [p.name for p in stored[1]]
    for first, second in zip(*stored, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_the_files_stay_small() -> None:
    folder = Path(str(tables.data()))
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 10_000_000


def test_all_groups_together_are_128_people_whom_nothing_else_names() -> None:
    facts = mu.world.facts(group=None)
    people = {fact.subject for fact in facts.forget}
    assert len(people) == len(facts.forget) == 128
    assert people == {fact.subject for group in range(4) for fact in mu.world.facts(group).forget}
    assert not people & {fact.subject for fact in (*facts.retain, *facts.test)}


def test_an_unknown_group_is_an_error_that_names_the_groups() -> None:
    with pytest.raises(FactError, match=re.escape("group must be one of 0, 1, 2 or 3; not 7")):
        mu.world.facts(group=7)


def test_an_unknown_checkpoint_is_an_error_that_names_both(unchecked: None) -> None:
    with pytest.raises(ModelError, match="which must be one of 'original' or 'gold'; not 'silver'"):
        mu.world.model("silver")  # type: ignore[arg-type]
