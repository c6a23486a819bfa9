"""Edits one after another: what each is fitted on, and what peeling promises and what it does not."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_facts import FORGET, RETAIN, TEXT, bits, unchecked, weights
from helpers.tiny_models import tiny_llama

import mechunlearn as mu
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.objectives.likelihood import Inject
from mechunlearn.editing.studies.sequence import EditSequence, edit_sequence
from mechunlearn.editing.training.fitting import edit
from mechunlearn.errors import EditError, FactError, LocalizationError
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.scorer import score

EVE = Fact("Eve plays", "Eve", "judo", new="polo")
GROUPS = [Facts([fact, *RETAIN], text=TEXT) for fact in (*FORGET, EVE)]
QUICK: dict[str, Any] = {"steps": 2, "lr": 0.05, "stop": None, "progress": False}
PLACE = Localization(["L0.mlp", "L1.mlp"])


@cache
def three() -> EditSequence:
    """Three stages, each at a place of its own that meets the others'."""
    places = iter([["L0.mlp"], ["L0.mlp", "L1.attn"], ["L1.attn", "L1.mlp"]])
    return edit_sequence(
        tiny_llama(), GROUPS, Inject(), localizer=lambda hm, facts: Localization(next(places)), **QUICK
    )


# -- fitting ----------------------------------------------------------------------------------------------


def test_a_stage_is_what_fitting_the_model_with_the_earlier_edits_gives() -> None:
    before = weights(tiny_llama())
    fitted = edit_sequence(tiny_llama(), GROUPS, Inject(), localization=PLACE, **QUICK)
    first = edit(tiny_llama(), PLACE, Inject(), GROUPS[0], **QUICK)
    second = edit(first.apply(tiny_llama()), PLACE, Inject(), GROUPS[1], **QUICK)
    for mine, theirs in zip(fitted.edits[:2], (first, second), strict=True):
        assert [bits(d.values) for d in mine.deltas] == [bits(d.values) for d in theirs.deltas]
    assert weights(tiny_llama()) == before


def test_a_localizer_looks_at_the_model_and_the_facts_of_each_stage() -> None:
    seen: list[tuple[str, str]] = []

    def localizer(hm: HookedModel, facts: Facts) -> Localization:
        seen.append((hm.identity, facts.forget[0].subject))
        return Localization([f"L{len(seen) % 2}.mlp"])

    fitted = edit_sequence(tiny_llama(), GROUPS, Inject(), localizer=localizer, **QUICK)
    assert [subject for _, subject in seen] == ["Bo", "Al", "Eve"]
    assert [identity for identity, _ in seen] == [one.made_on for one in fitted.edits]
    assert len(set(seen)) == 3 and seen[0][0] == tiny_llama().identity
    assert [str(*place) for place in fitted.localizations] == ["L1.mlp", "L0.mlp", "L1.mlp"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_localizer_may_differentiate_a_stage_in_a_notebook_without_gradients(mode: Any) -> None:
    def localizer(hm: HookedModel, facts: Facts) -> Localization:
        scores = mu.attribution(hm, facts.forget, corrupt=mu.OtherSubject(FORGET), progress=False)
        return scores.top(2)

    groups = GROUPS[:2]
    plain = edit_sequence(tiny_llama(), groups, Inject(), localizer=localizer, **QUICK)
    with mode():
        same = edit_sequence(tiny_llama(), groups, Inject(), localizer=localizer, **QUICK)
        changed = same.apply(tiny_llama())
    assert same.localizations == plain.localizations and all(plain.localizations)
    assert weights(changed) == weights(plain.apply(tiny_llama()))
    assert not any(parameter.is_inference() for parameter in changed.params.values())


def test_no_stage_is_held_to_a_fact_that_any_stage_changes() -> None:
    sport: Any = {"relation": "sport", "new": "golf"}
    one, two = (Fact(f"{name} plays", name, "judo", **sport) for name in ("Bo", "Al"))
    again = Fact("The sport of Al is", "Al", "judo", relation="sport", split="retain")
    home = Fact("Al lives in", "Al", "Rome", relation="city", split="retain")
    groups = [
        Facts([one, two.replace(split="retain", new=None), home]),
        Facts([two, *RETAIN]),
        Facts([EVE, again]),
    ]
    held: list[tuple[str, ...]] = []

    def localizer(hm: HookedModel, facts: Facts) -> Localization:
        held.append(tuple(fact.prompt for fact in facts.retain))
        return PLACE

    edit_sequence(tiny_llama(), groups, Inject(retain=0.0, text=0.0), localizer=localizer, **QUICK)
    assert held == [("Al lives in",), ("Cy plays",), ()]


def test_every_stage_resumes_from_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    options: Any = {"localization": PLACE, "checkpoint": tmp_path, **QUICK}
    first, again = (edit_sequence(tiny_llama(), GROUPS[:2], Inject(), **options) for _ in range(2))
    assert {path.name for path in tmp_path.iterdir()} == {"stage_0", "stage_1"}
    assert weights(first.apply(tiny_llama())) == weights(again.apply(tiny_llama()))


# -- what peeling promises --------------------------------------------------------------------------------


def test_the_whole_is_the_model_with_every_delta_added() -> None:
    """Against one dense sum in float64, to the rounding of float32."""
    dense = {name: p.detach().double() for name, p in tiny_llama().params.items()}
    for one in three().edits:
        for delta in one.deltas:
            dense[delta.slice.name] = delta.slice.add(dense[delta.slice.name], delta.values.double())
    changed = three().apply(tiny_llama()).params
    assert set(map(str, three().total.localization)) == {"L0.mlp", "L1.attn", "L1.mlp"}
    for name, value in dense.items():
        torch.testing.assert_close(changed[name].double(), value, rtol=3e-7, atol=3e-8)


def test_stages_come_off_in_any_order_without_a_trace_of_the_order() -> None:
    for gone in ((0, 1), (1, 2), (0, 2), (0, 1, 2)):
        orders = permutations(gone)
        left = {frozenset(weights(_peeled(order).apply(tiny_llama())).items()) for order in orders}
        assert left == {frozenset(weights(three().without(*gone).apply(tiny_llama())).items())}
    assert weights(three().without(0, 1, 2).apply(tiny_llama())) == weights(tiny_llama())


def _peeled(order: tuple[int, ...]) -> EditSequence:
    found = three()
    for stage in order:
        found = found.without(stage)
    return found


def test_without_its_last_stage_it_is_the_very_model_that_stage_was_fitted_on() -> None:
    for stage in (1, 2):
        before = three().without(*range(stage, 3))
        assert before.apply(tiny_llama()).identity == three().edits[stage].made_on


def test_a_sequence_belongs_on_the_model_of_its_first_stage_whatever_was_peeled_off() -> None:
    """Warnings are errors here: neither the whole nor what is left takes the model for another one."""
    for left in (three(), three().without(0), three().without(0, 1)):
        assert left.total.made_on == left.made_on == tiny_llama().identity
        left.apply(tiny_llama())
    rebuilt = EditSequence(three().edits)
    assert rebuilt.stages == (0, 1, 2) and rebuilt.made_on == tiny_llama().identity


# -- and what it does not ---------------------------------------------------------------------------------


def test_a_later_edit_is_not_what_it_would_have_been_without_the_earlier_one() -> None:
    both = edit_sequence(tiny_llama(), GROUPS[:2], Inject(), localization=PLACE, **QUICK)
    alone = edit(tiny_llama(), PLACE, Inject(), GROUPS[1], **QUICK)
    left, fresh = both.without(0).apply(tiny_llama()).params, alone.apply(tiny_llama()).params
    assert max(float((left[name] - fresh[name]).detach().abs().max()) for name in alone.shapes) > 0.01


def test_what_a_later_stage_taught_may_go_with_an_earlier_one() -> None:
    """In the embedded model the second stage leans on the first; fitted alone it stands by itself."""
    hm, facts = mu.world.model(), [mu.world.facts(0), mu.world.facts(1)]
    groups = [Facts([*some.forget[:4], *some.retain[:8]]) for some in facts]
    place = Localization(["L2.mlp", "L3.mlp"])
    quick: Any = {"steps": 20, "lr": 3e-3, "limits": mu.Limits(8), "stop": None, "progress": False}
    objective = Inject(text=0.0)
    both = edit_sequence(hm, groups, objective, localization=place, **quick)
    alone = edit(hm, place, objective, groups[1], **quick)

    def succeeds(edited: Edit) -> float:
        return float(score(edited.apply(hm), groups[1].forget).says_new.mean())

    assert succeeds(both.total) >= 0.75 <= succeeds(alone)
    assert succeeds(both.without(0).total) <= 0.25


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [{}, {"localization": PLACE, "localizer": lambda hm, facts: PLACE}])
def test_one_place_or_one_localizer_is_given(places: dict[str, Any]) -> None:
    with pytest.raises(LocalizationError, match="give one of them: one place for every stage, or a function"):
        edit_sequence(tiny_llama(), GROUPS, Inject(), **places, **QUICK)


def test_a_localizer_gives_sites_and_not_their_scores() -> None:
    with unchecked(), pytest.raises(LocalizationError, match=r"stage 0 is \['L0.mlp'\]; give a Localization"):
        odd: Any = lambda hm, facts: ["L0.mlp"]  # noqa: E731
        edit_sequence(tiny_llama(), GROUPS, Inject(), localizer=odd, **QUICK)


def test_places_that_cannot_be_added_are_refused_before_the_stage_is_fitted() -> None:
    places, steps = iter(["L0.mlp.in", "L0.mlp.neuron[7]"]), []
    with pytest.raises(LocalizationError):
        edit_sequence(
            tiny_llama(), GROUPS, Inject(), localizer=lambda hm, facts: Localization([next(places)]),
            callback=lambda step, values: steps.append(step), **QUICK,
        )  # fmt: skip
    assert steps == [1, 2]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], r"the groups are \[\]; give at least one, each as Facts"),
        ([GROUPS[0], list(FORGET)], r"the groups are \['Facts', 'list'\]; give at least one, each as Facts"),
        ([GROUPS[0], Facts(RETAIN)], "the forget set is empty"),
    ],
)
def test_groups_are_facts_with_something_to_forget(groups: Any, message: str) -> None:
    with unchecked(), pytest.raises(FactError, match=message):
        edit_sequence(tiny_llama(), groups, Inject(), localization=PLACE, **QUICK)


def test_a_stage_comes_off_once() -> None:
    with pytest.raises(EditError, match=r"stage 1 is not in this sequence; its stages are \(0, 2\)"):
        three().without(1).without(1)


@pytest.mark.parametrize("stages", [(0,), (1, 0, 2), (0, 0, 1)])
def test_every_edit_has_a_stage_of_its_own_in_rising_order(stages: tuple[int, ...]) -> None:
    with pytest.raises(EditError, match="3 edits; give one number for each edit, rising"):
        EditSequence(three().edits, stages)
