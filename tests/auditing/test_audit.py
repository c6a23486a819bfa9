"""Laws 6 and 8: an audit says nothing of nothing, tells shallow from deep, and sets controls beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from helpers.small_facts import fit, weights

import mechunlearn as mu
from mechunlearn.auditing import sections
from mechunlearn.auditing.attacks.attack import Context
from mechunlearn.auditing.attacks.relearning import Relearn
from mechunlearn.auditing.audit import audit
from mechunlearn.auditing.controls import refits
from mechunlearn.auditing.evaluation import Exam
from mechunlearn.auditing.report.report import Report
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.statistics import Interval
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.errors import EditError, FactError, MechUnlearnError
from mechunlearn.models.arch import Slice
from mechunlearn.models.hooked import HookedModel

NOTHING = Edit((), Localization())
# A third of the steps at three times the rate brings back as much as the defaults do.
RELEARN = (Relearn(steps=10, lr=6e-3),)


def planted(hm: HookedModel, gold: HookedModel) -> Edit:
    """The deep cut: what turns one model into the other."""
    deltas = [Delta(Slice(name), (gold.params[name] - p).detach()) for name, p in hm.params.items()]
    return Edit(tuple(deltas), hm.sites, {name: tuple(p.shape) for name, p in hm.params.items()})


def bounds(report: Report, section: str, phrasing: str, metric: str = "answer", **more: str) -> Interval:
    return report.estimate(section, phrasing, metric, **more).interval


@pytest.fixture(scope="module")
def original() -> HookedModel:
    return mu.world.model()


@pytest.fixture(scope="module")
def gold() -> HookedModel:
    return mu.world.model("gold")


@pytest.fixture(scope="module")
def people() -> Facts:
    """A dozen people to forget, a dozen to retain and eight facts to maintain, of the embedded world."""
    every = mu.world.facts(0)
    cities = [fact for fact in every.test if fact.relation == "city"]
    sports = [fact for fact in every.test if fact.relation == "sport"]
    forget = [
        *every.forget[:3],
        *(replace(fact, neighbours={}, entailed=fact.entailed[:1]) for fact in every.forget[3:12]),
    ]
    return Facts([*forget, *every.retain[:12], *sports[:6], *cities[:2]], text=every.text[:8])


@pytest.fixture(scope="module")
def deep(original: HookedModel, gold: HookedModel, people: Facts) -> Report:
    return audit(
        original, planted(original, gold), people, gold=gold, controls=0, attacks=RELEARN, progress=False
    )


@pytest.fixture(scope="module")
def mask(original: HookedModel, people: Facts) -> Edit:
    """The shallow cut: the new answer written into the last two MLPs, where outputs are formed."""
    last = Localization(["L6.mlp", "L7.mlp"], source="outputs")
    objective = mu.objectives.Inject(text=0.0)
    return mu.edit(
        original, last, objective, people, steps=40, lr=3e-3, limits=mu.Limits(12), progress=False
    )  # fmt: skip


@pytest.fixture(scope="module")
def shallow(original: HookedModel, gold: HookedModel, people: Facts, mask: Edit, deep: Report) -> Report:
    return audit(original, mask, people, gold=gold, controls=0, attacks=RELEARN, progress=False, reuse=deep)


# -- law 8: the instruments tell planted cases apart ----------------------------------------------------


def test_a_planted_deep_cut_comes_out_as_deep(deep: Report) -> None:
    assert deep.verdict.word == "not elicited" and not deep.verdict.damage
    for row in deep.table():
        assert row.model != "edited − gold" or row.section == "text" or abs(row.value) < 0.05, row


def test_a_planted_shallow_cut_comes_out_as_shallow(shallow: Report) -> None:
    assert shallow.verdict.word == "concealed"
    assert "multiple choice" in shallow.verdict.text
    assert bounds(shallow, "forget", "train").mean < 0.1
    assert bounds(shallow, "relearning", "held_out").mean > 0.5
    assert bounds(shallow, "entailed", "train", relation="league").mean > 0.6
    assert bounds(shallow, "probe", "L2.resid_post").mean > 0.8


def test_the_original_keeps_everything_through_relearning(deep: Report) -> None:
    assert bounds(deep, "relearning", "held_out", model="untouched").mean == 1.0
    assert bounds(deep, "relearning, maintained", "train", model="untouched", relation="sport").mean > 0.9
    assert bounds(deep, "relearning", "held_out", model="gold").mean < 0.5


# -- law 6: nothing is reported of nothing, and random places stand beside ------------------------------


def test_an_empty_edit_changes_nothing(
    original: HookedModel, gold: HookedModel, people: Facts, deep: Report
) -> None:
    nothing = audit(original, NOTHING, people, gold=gold, attacks=RELEARN, progress=False, reuse=deep)
    assert nothing.verdict.word == "no change"
    changes = [row for row in nothing.table() if row.model == "edited − untouched"]
    assert changes and all((row.value, row.low, row.high) == (0.0, 0.0, 0.0) for row in changes)
    assert any("no control: the edit carries no recipe" in note for note in nothing.notes)


def test_random_places_of_equal_size_stand_beside(original: HookedModel, people: Facts) -> None:
    few = Facts([*people.forget[:2], *people.retain[:2]], text=people.text[:2])
    edit = fit(original, "L6.mlp", facts=few, steps=1, lr=1e-3)
    made, notes = refits(original, edit, few, count=2, seed=5)
    assert not notes and len({control.localization for control in made}) == 2
    for control in made:
        assert control.recipe == edit.recipe and control.localization != edit.localization
        assert abs(original.size(control.localization) / original.size(edit.localization) - 1) < 0.05
    report = audit(original, edit, few, controls=2, seed=5, attacks=(), progress=False)
    assert report.models == ("edited", "untouched", "control 1", "control 2")
    assert {"controls", "edited − controls"} <= {row.model for row in report.table()}
    assert [note for note in report.notes if "control 1: Localization(" in note and "random, like" in note]


def test_where_no_control_is_possible_the_reason_is_given(original: HookedModel, people: Facts) -> None:
    edit = replace(NOTHING, recipe=fit(original, facts=people, steps=1).recipe)
    assert refits(original, NOTHING, people, count=0, seed=0)[1] == ("no control: controls=0",)
    assert "no recipe, so it cannot be refitted" in refits(original, NOTHING, people, count=1, seed=0)[1][0]
    assert "an empty localization" in refits(original, edit, people, count=1, seed=0)[1][0]
    everything = replace(edit, localization=original.sites)
    assert "fewer than the" in refits(original, everything, people, count=1, seed=0)[1][0]
    blocks = replace(edit, localization=original.sites.attns() | original.sites.mlps())
    note = "0 of 1 controls: no other localization has this size"
    assert refits(original, blocks, people, count=1, seed=0) == ((), (note,))


# -- what is asked --------------------------------------------------------------------------------------


def test_what_is_retained_of_the_same_subjects_is_scored_apart() -> None:
    asked = sections.questions(mu.world.facts(0, retain_homes=True), seed=0)
    apart = {name: {q.fact.subject for q in asked if q.section == name} for name in
             ("same subject", "same subject, retained")}  # fmt: skip
    assert {name: len(subjects) for name, subjects in apart.items()} == dict.fromkeys(apart, 16)
    assert not apart["same subject"] & apart["same subject, retained"]


def test_every_format_is_asked_and_options_are_shuffled(people: Facts) -> None:
    asked = [q for q in sections.questions(people, seed=0) if q.section == "forget"]
    mine = [q for q in asked if q.unit == people.forget[0].prompt]
    assert [q.phrasing for q in mine] == [*["train"] * 2, *["validation"] * 2, *["held_out"] * 4,
                                          *["multiple_choice"] * 3]  # fmt: skip
    assert len({q.fact.prompt for q in mine}) == len(mine)
    assert len({q.fact.answer for q in asked if q.phrasing == "multiple_choice"}) == 4


def test_probes_are_fitted_on_other_subjects(people: Facts) -> None:
    (reader,) = sections.readers(people)
    assert reader.relation == "sport" and len(reader.fitted) == 18
    assert not {f.subject for f in reader.fitted} & {f.subject for f in reader.scored}


def test_what_is_missing_is_listed_as_absent_with_what_would_provide_it(original: HookedModel) -> None:
    bare = Facts([Fact("Mary Lee plays the sport of", "Mary Lee", "golf")])
    report = audit(original, NOTHING, bare, progress=False)
    assert report.absent["forget, held-out"] == "Fact(held_out=...)"
    assert report.absent["neighbours"] == "Fact(neighbours={...})"
    assert report.absent["gold model"] == "audit(..., gold=hm)"
    assert report.absent["relearning"] == "at least two forget facts, one for each half"
    assert {"new answer", "entailed", "same subject", "maintained", "text", "probe"} <= set(report.absent)
    assert {row.section for row in report.rows} == {"forget"}


# -- attacks --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scribble:
    """An attack that notes what it was given, and asks everything in capitals."""

    seen: list[Any]
    lose: int = 0
    name: str = "scribble"
    summary: ClassVar[str] = "capitals"

    def search(self, hm: HookedModel, context: Context, *, seed: int) -> Scribble:
        self.seen.append((hm, context, seed))
        return self

    def apply(self, hm: HookedModel) -> HookedModel:
        return hm

    def ask(self, facts: Sequence[Fact]) -> Sequence[Fact]:
        shouted = [
            replace(f, prompt=f"OK. {f.prompt}", validation=(), held_out=(), choice=None) for f in facts
        ]
        return shouted[self.lose :]


def test_an_attack_of_ones_own_needs_no_registration(original: HookedModel, people: Facts) -> None:
    few = Facts([*people.forget[:4], *people.retain[:2]])
    attack = Scribble([])
    report = audit(original, NOTHING, few, attacks=(attack,), seed=3, progress=False)
    asked = [row for row in report.rows if row.section == "scribble"]
    assert asked and all(row.prompt.startswith("OK. ") for row in asked)
    for hm, context, seed in attack.seen:
        assert seed == 3 and context.original is original
        assert hm is original or hm.identity == original.identity
        assert not {f.prompt for f in context.forget} & {row.fact for row in asked}


def test_an_attack_that_loses_questions_is_an_error(original: HookedModel, people: Facts) -> None:
    with pytest.raises(
        FactError, match=r"scribble: ask\(\) gave \d+ questions for \d+; it must give one for each"
    ):
        audit(original, NOTHING, people[:4], attacks=(Scribble([], lose=1),), progress=False)


def test_attacks_need_names_of_their_own(llama: HookedModel, people: Facts) -> None:
    with pytest.raises(
        MechUnlearnError, match=r"2 attacks are called 'relearning'.*give each a name of its own"
    ):
        audit(llama, NOTHING, people, attacks=(Relearn(), Relearn(steps=1)))
    with pytest.raises(MechUnlearnError, match="'probe', but the audit has a section of that name"):
        audit(llama, NOTHING, people, attacks=(Relearn(name="probe"),))


# -- bad input, and what is left alone ------------------------------------------------------------------


def test_an_audit_changes_no_model(
    original: HookedModel, gold: HookedModel, shallow: Report, deep: Report
) -> None:
    assert deep.basis[:2] == (original.identity, gold.identity)
    assert not any("lora" in name for name, _ in original.hf.named_modules())
    assert all(p.requires_grad and p.grad is None for p in original.params.values())


def test_an_empty_forget_set_is_an_error(llama: HookedModel, people: Facts) -> None:
    with pytest.raises(FactError, match="the forget set is empty"):
        audit(llama, NOTHING, people.retain)


def test_an_edit_of_another_model_is_an_error(llama: HookedModel, people: Facts, mask: Edit) -> None:
    before = weights(llama)
    with pytest.raises(EditError, match="the edit"):
        audit(llama, mask, people)
    assert weights(llama) == before


def test_only_a_report_on_the_same_can_be_reused(original: HookedModel, people: Facts, deep: Report) -> None:
    with pytest.raises(
        MechUnlearnError, match=r"the report to reuse is about another gold model.*leave out reuse="
    ):
        audit(original, NOTHING, people, reuse=deep)


def test_an_audit_of_another_base_says_so(original: HookedModel, people: Facts) -> None:
    report = audit(original, replace(NOTHING, made_on="0" * 16), people[:1], attacks=(), progress=False)
    assert any(
        note.startswith("the edit was made on another model (0000000000000000)") for note in report.notes
    )


def test_the_same_seed_gives_the_same_rows(original: HookedModel, people: Facts) -> None:
    few = Facts([*people.forget[:4], *people.retain[:4]], text=people.text[:2])
    first, again = (Exam.of(original, few, (Relearn(steps=2),), seed=1).take(original, "x") for _ in range(2))
    assert first == again
    assert torch.is_grad_enabled()
