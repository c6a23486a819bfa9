"""How a method's options are chosen, where every method is run, and what it may choose from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

import mechunlearn as mu
from mechunlearn.editing.edits.history import History
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.errors import TrainingError
from mechunlearn.experiments import choosing
from mechunlearn.experiments.choosing import choose
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP
from mechunlearn.experiments.method_comparison import catalogue, closed
from mechunlearn.experiments.method_comparison.localizations import RANDOM, localizations

INJECT = mu.objectives.Inject()


@pytest.fixture(scope="module")
def hm() -> mu.HookedModel:
    return mu.world.model()


@pytest.fixture(scope="module")
def few() -> mu.Facts:
    facts = mu.world.facts()
    some = [*facts.forget[:3], *facts.retain[:4], *facts.test[:2]]
    short = [fact.replace(entailed=fact.entailed[:1], neighbours={}) for fact in some]
    return mu.Facts(short, text=facts.text[:6])


# -- choosing -------------------------------------------------------------------------------------------


def outcomes(
    monkeypatch: pytest.MonkeyPatch, found: Mapping[float, tuple[float, float] | None]
) -> list[float]:
    """Fits that end with the given success and retention by learning rate, or diverge; gives those tried."""
    tried: list[float] = []

    def fit(hm: Any, recipe: Recipe, *others: Any, **more: Any) -> mu.Edit:
        tried.append(recipe.lr)
        outcome = found[recipe.lr]
        if outcome is None:
            raise TrainingError("the loss diverged")
        entry = {"step": 1.0, "success": outcome[0], "retention": outcome[1]}
        return mu.Edit((), mu.Localization(), recipe=recipe, history=History([entry]), step=1)

    monkeypatch.setattr(choosing, "refit", fit)
    return tried


def chosen(hm: mu.HookedModel, rates: list[float]) -> choosing.Choice:
    grid = [Recipe(INJECT, steps=1, lr=lr, stop=mu.Stop(goal=0.9, min_retention=0.8)) for lr in rates]
    return choose(hm, mu.Localization(["L0.mlp"]), grid, mu.Facts())


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ({1.0: (0.5, 1.0), 2.0: (0.8, 1.0), 3.0: (0.7, 1.0)}, 2.0),
        ({1.0: (0.5, 0.9), 2.0: (0.5, 1.0)}, 1.0),
        ({1.0: (0.8, 0.2), 2.0: (0.3, 0.8)}, 2.0),
        ({1.0: None, 2.0: (0.0, 0.0)}, 2.0),
    ],
    ids=["most success", "no gain beyond the bound, so the first", "success and retention count", "diverged"],
)
def test_the_candidate_that_is_worth_most_is_chosen(
    hm: mu.HookedModel,
    monkeypatch: pytest.MonkeyPatch,
    found: dict[float, tuple[float, float] | None],
    best: float,
) -> None:
    tried = outcomes(monkeypatch, found)
    choice = chosen(hm, list(found))
    assert choice.recipe is not None and choice.recipe.lr == best
    assert tried == list(found) and [each.options for each in choice.trials] == [f"lr {lr:g}" for lr in found]
    assert choice.chosen in choice.trials and choice.chosen.options == f"lr {best:g}"


def test_nothing_is_tried_after_a_candidate_that_reached_the_goal(
    hm: mu.HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = outcomes(monkeypatch, {1.0: (0.5, 1.0), 2.0: (0.9, 0.8), 3.0: (1.0, 1.0)})
    assert chosen(hm, [1.0, 2.0, 3.0]).chosen.options == "lr 2" and tried == [1.0, 2.0]


def test_candidates_that_differ_in_their_objective_are_told_apart_by_it() -> None:
    grid = [Recipe(mu.objectives.NPO(beta=beta), lr=1e-3) for beta in (0.1, 0.5)]
    assert ["beta=0.1" in said and "lr 0.001" in said for said in choosing.in_words(grid)] == [True, False]


def test_candidates_that_cannot_be_judged_or_fitted_are_refused(
    hm: mu.HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = mu.Localization(["L0.mlp"])
    with pytest.raises(TrainingError, match="there is no candidate; give at least one Recipe"):
        choose(hm, place, [], mu.Facts())
    for recipe in (Recipe(INJECT, stop=None), Recipe(INJECT, steps=0)):
        with pytest.raises(TrainingError, match="it cannot be judged; give at least 1 step and stop=Stop"):
            choose(hm, place, [recipe], mu.Facts())
    outcomes(monkeypatch, {1.0: None, 2.0: None})
    with pytest.raises(TrainingError, match="none of 2 candidates could be fitted; the last: the loss"):
        chosen(hm, [1.0, 2.0])
    with pytest.raises(TrainingError, match=r"was not judged; fit it with stop=Stop\(\)"):
        choosing.validated(mu.Edit((), mu.Localization()))


def test_held_out_phrasings_decide_nothing(hm: mu.HookedModel, few: mu.Facts) -> None:
    place = mu.Localization(["L0.mlp"])
    grid = [Recipe(INJECT, steps=2, lr=lr, stop=mu.Stop(every=1)) for lr in (1e-3, 3e-3)]
    blind = mu.Facts([fact.replace(held_out=()) for fact in few], text=few.text)
    with_them, without = (choose(hm, place, grid, facts) for facts in (few, blind))
    assert with_them.trials == without.trials and len(with_them.trials) == 2
    for one, other in zip(with_them.edit.deltas, without.edit.deltas, strict=True):
        assert torch.equal(one.values, other.values)


# -- methods and places ---------------------------------------------------------------------------------


def test_the_places_are_the_lookup_a_random_choice_of_its_size_and_everything(hm: mu.HookedModel) -> None:
    found = localizations(hm, mu.world.facts(), seed=0)
    assert found[LOOKUP] == mu.Localization(["L0.mlp"])  # as the demo finds it in this group
    assert abs(hm.size(found[RANDOM]) / hm.size(found[LOOKUP]) - 1) <= 0.05
    assert found[RANDOM] == hm.sites.sample(like=found[LOOKUP], seed=0)
    assert hm.size(found[EVERYTHING]) == hm.sites.total


def test_every_trained_method_has_the_same_grid_and_budget(hm: mu.HookedModel) -> None:
    for method in catalogue.TRAINED:
        grid = catalogue.options(method, hm, hm.sites.mlps(), steps=40, seed=3)
        recipes = [recipe for recipe in grid if isinstance(recipe, Recipe)]
        assert {(r.steps, r.seed, r.stop) for r in recipes} == {(40, 3, catalogue.STOP)}
        assert method == "WeightMask" or tuple(r.lr for r in recipes) == catalogue.RATES
    offered = {type(catalogue.TRAINED[name](_setting(hm))).__name__ for name in catalogue.TRAINED}
    names = {name for name in mu.objectives.__all__ if isinstance(getattr(mu.objectives, name), type)}
    others = {"Objective", "Stateful", "Masking", "Request", "Outputs", "Sampled", "RetainTerms", "Weights"}
    assert offered == names - others - {"Relabel"}  # which reads a corpus, not facts


def test_a_mask_moves_a_weight_as_far_in_a_step_as_the_other_methods_do(hm: mu.HookedModel) -> None:
    place = mu.Localization(["L0.mlp.out"])
    (sized,) = [hm.params[s.name].detach().abs().mean() for s in hm.slices(place)]
    grid = catalogue.options("WeightMask", hm, place, steps=60, seed=0)
    for recipe, rate in zip(grid, catalogue.RATES, strict=True):
        assert isinstance(recipe, Recipe) and recipe.lr * float(sized) == pytest.approx(rate, rel=0.05)


def test_states_are_compared_where_the_localization_can_change_them(hm: mu.HookedModel) -> None:
    for first, rmu, breaker in ((0, 1, (2, 5)), (4, 4, (4, 5)), (7, 7, (7,))):
        setting = _setting(hm, f"L{first}.mlp")
        steered, turned = catalogue.TRAINED["RMU"](setting), catalogue.TRAINED["CircuitBreaker"](setting)
        assert isinstance(steered, mu.objectives.RMU) and steered.layer == rmu
        assert isinstance(turned, mu.objectives.CircuitBreaker) and turned.layers == breaker


def test_closed_forms_write_into_whole_matrices_of_the_lower_half_only(hm: mu.HookedModel) -> None:
    assert (
        closed.candidates("MEMIT", hm, mu.Localization(["L5.mlp", "L1.mlp.neuron[0]", "L2.attn"]), seed=0)
        == ()
    )
    everywhere = mu.Localization(hm.sites)
    assert [c.sites for c in closed.candidates("ROME", hm, everywhere, seed=0)] == [
        ("L0.mlp.out",), ("L2.mlp.out",), ("L3.mlp.out",)
    ]  # fmt: skip
    spread = closed.candidates("AlphaEdit", hm, everywhere, seed=0)
    assert {c.sites for c in spread} == {tuple(f"L{layer}.mlp.out" for layer in range(4))}
    assert len({c.options for c in spread}) == len(spread) == len(catalogue.RATES)


def test_facts_written_one_after_the_other_change_one_matrix_and_all_hold(
    hm: mu.HookedModel, few: mu.Facts
) -> None:
    two = mu.Facts([*few.forget[:2], *few.retain], text=few.text)
    solve = closed.Solve(("L0.mlp.out",), one_by_one=True)
    choice = closed.choose_solved(hm, [solve], two, stop=catalogue.STOP)
    assert [delta.slice.name for delta in choice.edit.deltas] == ["model.layers.0.mlp.down_proj.weight"]
    edited = choice.edit.apply(hm)
    assert mu.score(edited, list(two.forget)).says_new.all()
    assert choice.chosen.success == closed.validated(edited, two)[0] and choice.recipe is None
    with pytest.raises(TrainingError, match="give at least one Solve"):
        closed.choose_solved(hm, [], two, stop=catalogue.STOP)


def _setting(hm: mu.HookedModel, *sites: str) -> catalogue.MethodSetting:
    return catalogue.MethodSetting(hm, mu.Localization(sites or ["L0.mlp"]), 60)


def test_a_solution_that_cannot_be_had_does_not_end_the_choice(hm: mu.HookedModel, few: mu.Facts) -> None:
    two = mu.Facts([*few.forget[:2], *few.retain], text=few.text)
    wrong, right = (closed.Solve(("L0.mlp.out",), null_space=bound) for bound in (-1.0, 0.5))
    choice = closed.choose_solved(hm, [wrong, right], two, stop=catalogue.STOP)
    assert [bool(tried.failed) for tried in choice.trials] == [True, False]
    assert choice.chosen == choice.trials[1]
    with pytest.raises(TrainingError, match="none of 1 candidates could be fitted; the last"):
        closed.choose_solved(hm, [wrong], two, stop=catalogue.STOP)
