"""The run of training: state, seeds, early stopping, callbacks, precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from helpers.small_facts import FACTS, FORGET, RETAIN, bits, fit, weights
from helpers.tiny_models import D_MLP
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Optimizer, Stop
from mechunlearn.editing.objectives.likelihood import Forget, Inject
from mechunlearn.editing.objectives.requests import Outputs, Request, State
from mechunlearn.editing.training.fitting import refit
from mechunlearn.editing.training.limits import Limits
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.scorer import score


def deltas(edit: Edit) -> list[bytes]:
    return [bits(delta.values) for delta in edit.deltas]


# -- state ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Multiplier:
    """A weight on the retain term that grows after every step."""

    seen: list[tuple[float, list[float]]] = field(default_factory=list)
    aim: ClassVar[Literal["new", "forget"]] = "new"
    requests: ClassVar[Mapping[str, Request]] = {
        "forget": Request("forget", "new"),
        "retain": Request("retain"),
    }

    def init(self, readings: Mapping[str, Outputs], *, seed: int) -> State:
        assert set(readings) == set(self.requests)
        return {"weight": 10.0 * seed, "vector": torch.zeros(2)}

    def __call__(self, readings: Mapping[str, Outputs], state: State) -> dict[str, Tensor]:
        vector: Any = state["vector"]
        self.seen.append((float(state["weight"]), vector.tolist()))
        return {name: reading.logits.logsumexp(-1).mean() for name, reading in readings.items()}

    def after_step(self, state: State, terms: Mapping[str, Tensor]) -> State:
        assert not any(term.requires_grad for term in terms.values())
        return {"weight": state["weight"] + 1.0, "vector": state["vector"] + torch.tensor([1.0, 2.0])}


def test_state_goes_from_init_through_after_step_to_the_next_call(llama: HookedModel) -> None:
    objective = Multiplier()
    fit(llama, objective=objective, steps=4, seed=2)
    assert objective.seen == [(20.0 + i, [1.0 * i, 2.0 * i]) for i in range(4)]


def test_state_moves_once_a_step_whatever_the_parts(llama: HookedModel) -> None:
    objective, facts = Multiplier(), Facts([*FORGET, *RETAIN, Fact("Di plays", "Di", "golf", split="retain")])
    fit(llama, objective=objective, steps=3, optimizer=Optimizer(micro_batches=2), facts=facts)
    assert [weight for weight, _ in objective.seen] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


@dataclass(frozen=True)
class Comparing:
    """Notes how far the reference is from the unedited model's own log-probabilities."""

    expected: dict[int, Tensor] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    aim: ClassVar[Literal["new", "forget"]] = "new"
    requests: ClassVar[Mapping[str, Request]] = {
        "forget": Request("forget", "new", reference="logprobs", hidden=0)
    }

    def __call__(self, readings: Mapping[str, Outputs]) -> dict[str, Tensor]:
        reading = readings["forget"]
        reference, now = reading.reference_logprobs, reading.logits.log_softmax(-1)
        assert reference is not None and not reference.requires_grad
        first = self.expected.setdefault(0, now.detach())
        self.gaps.append(float((reference - first).abs().max()))
        self.drift.append(float((now.detach() - first).abs().max()))
        return {"loss": -now.gather(-1, reading.labels[:, None]).mean()}


def test_the_reference_is_the_unedited_model_at_every_step(llama: HookedModel) -> None:
    objective = Comparing()
    fit(llama, "L0.mlp", "L1.mlp", objective=objective, steps=4)
    assert len(objective.gaps) == 4 and max(objective.gaps) < 1e-5
    assert objective.drift[0] == 0 and min(objective.drift[1:]) > 0.1


# -- seeds, stopping, callbacks -------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(llama: HookedModel) -> None:
    options: dict[str, Any] = {"limits": Limits(2), "steps": 3}
    first, again, other = (fit(llama, seed=seed, **options) for seed in (0, 0, 1))
    assert deltas(first) == deltas(again) != deltas(other)
    assert deltas(refit(llama, recipe_of(first), first.localization, FACTS)) == deltas(first)


def recipe_of(edit: Edit) -> Any:
    assert edit.recipe is not None
    return edit.recipe


def test_training_stops_at_the_goal_and_keeps_that_step(llama: HookedModel) -> None:
    stop = Stop(goal=1.0, min_retention=1.0, every=5)
    fitted = fit(
        llama, "L0.mlp", "L1.mlp", objective=Inject(text=0.0), steps=300, lr=0.01, stop=stop, facts=EASY
    )
    judged = [entry for entry in fitted.history if "success" in entry]
    assert [entry["step"] for entry in judged] == [5.0 * i for i in range(1, len(judged) + 1)]
    assert [stop.reached(e["success"], e["retention"]) for e in judged] == [False] * (len(judged) - 1) + [
        True
    ]
    assert fitted.step == len(fitted.history) == judged[-1]["step"] < 300
    assert score(fitted.apply(llama), EASY.forget).says_new.all()


EASY = Facts([replace(fact, validation=()) for fact in (FORGET[0], *RETAIN)])
# Nobody can answer both, so retention never reaches its bound and every step is taken.
TORN = Facts([FORGET[0], *(Fact("Cy plays", "Cy", word, split="retain") for word in ("golf", "polo"))])


@dataclass(frozen=True)
class Swing:
    """Raises the new answer for some steps, and lowers it from then on."""

    turn: int
    calls: list[int] = field(default_factory=list)
    aim: ClassVar[Literal["new", "forget"]] = "new"
    requests: ClassVar[Mapping[str, Request]] = {"forget": Request("forget", "new")}

    def __call__(self, readings: Mapping[str, Outputs]) -> dict[str, Tensor]:
        self.calls.append(1)
        sign = 1 if len(self.calls) <= self.turn else -1
        reading = readings["forget"]
        return {"loss": -sign * reading.logits.log_softmax(-1).gather(-1, reading.labels[:, None]).mean()}


def test_the_best_step_is_kept_not_the_last(llama: HookedModel) -> None:
    asked = Facts([fact.replace(validation=()) for fact in TORN])
    stop = Stop(goal=1.0, min_retention=1.0, every=4)
    fitted = fit(llama, "L0.mlp", "L1.mlp", objective=Swing(12), steps=40, lr=0.01, stop=stop, facts=asked)
    judged = {e["step"]: stop.value(e["success"], e["retention"]) for e in fitted.history if "success" in e}
    assert len(fitted.history) == 40 and judged[40.0] < max(judged.values())
    assert fitted.step == max(step for step, value in judged.items() if value == max(judged.values()))
    kept = fitted.history[fitted.step - 1]
    edited = fitted.apply(llama)
    assert score(edited, asked.forget.where(lambda f: True)).says_new.mean() == kept["success"]
    assert score(edited, asked.retain).correct.mean() == kept["retention"]


def test_without_a_stop_every_step_is_taken_and_the_last_is_kept(llama: HookedModel) -> None:
    fitted = fit(llama, steps=3)
    assert fitted.step == len(fitted.history) == 3
    assert [set(entry) for entry in fitted.history] == [{"step", "inject", "retain", "text"}] * 3
    swinging = fit(llama, objective=Swing(1), steps=3)
    assert deltas(swinging) != deltas(fit(llama, objective=Swing(1), steps=2))


def test_no_steps_make_an_edit_that_changes_nothing(llama: HookedModel) -> None:
    nothing = fit(llama, steps=0, stop=Stop())
    assert nothing.step == len(nothing.history) == 0
    assert weights(nothing.apply(llama)) == weights(llama)


def test_success_of_forgetting_is_that_the_answer_is_no_longer_given(llama: HookedModel) -> None:
    knows = fit(llama, "L0.mlp", "L1.mlp", objective=Inject(retain=0.0, text=0.0), steps=60, lr=0.01).apply(
        llama
    )
    forgotten = Facts([Fact(f.prompt, f.subject, f.new or "", split="forget") for f in FORGET])
    assert score(knows, forgotten).correct.all()
    fitted = fit(
        knows, "L1.mlp", objective=Forget(retain=0.0, text=0.0), facts=forgotten, steps=50, stop=Stop(every=1)
    )
    assert fitted.history[-1]["success"] == 1.0 and fitted.history[-1]["retention"] == 1.0
    assert not score(fitted.apply(knows), forgotten).correct.any()


def test_the_callback_sees_every_step_and_its_error_is_passed_on(llama: HookedModel) -> None:
    seen: list[tuple[int, set[str]]] = []
    fitted = fit(llama, steps=3, callback=lambda step, terms: seen.append((step, set(terms))))
    assert seen == [(step, {"inject", "retain", "text"}) for step in (1, 2, 3)]
    assert [entry["step"] for entry in fitted.history] == [1.0, 2.0, 3.0]
    before = weights(llama)

    def stop(step: int, terms: Mapping[str, float]) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fit(llama, callback=stop)
    assert weights(llama) == before


def test_the_learning_rate_falls_to_zero_as_half_a_cosine(llama: HookedModel) -> None:
    # With plain descent on a linear loss, steps are proportional to the learning rate.
    moved: list[float] = []
    for steps in (1, 2):
        fitted = fit(llama, steps=steps, optimizer=Optimizer("SGD"), lr=1e-6, objective=Inject(text=0.0))
        moved.append(float(sum(delta.values.norm() ** 2 for delta in fitted.deltas)) ** 0.5)
    assert moved[1] / moved[0] == pytest.approx(1.5, rel=1e-2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_switched_off_do_not_matter(llama: HookedModel, mode: Any) -> None:
    with mode():
        fitted = fit(llama, stop=Stop(every=1))
    assert deltas(fitted) == deltas(fit(llama, stop=Stop(every=1)))


def test_a_model_in_half_precision_is_trained_with_deltas_in_float32(llama: HookedModel) -> None:
    half = llama.to(torch.bfloat16)
    before = weights(half)
    fitted = fit(half, steps=3)
    assert {delta.values.dtype for delta in fitted.deltas} == {torch.float32}
    assert weights(half) == before != weights(fitted.apply(half))
    double = fit(llama.to(torch.float64), steps=1)
    assert {delta.values.dtype for delta in double.deltas} == {torch.float64}


def test_a_progress_bar_shows_the_terms(llama: HookedModel, capsys: pytest.CaptureFixture[str]) -> None:
    fit(llama, progress=True, stop=Stop(every=1))
    shown = capsys.readouterr().err
    assert "edit:" in shown
    fit(llama, progress=False)
    assert capsys.readouterr().err == ""


def test_an_edit_remembers_what_it_was_made_on_and_how(llama: HookedModel) -> None:
    fitted = fit(llama, "L1.mlp", objective=Forget(text=0.0), seed=5, optimizer=Optimizer(weight_decay=0.1))
    assert fitted.made_on == llama.identity
    recipe = recipe_of(fitted)
    assert (recipe.objective, recipe.seed, recipe.optimizer.weight_decay) == (Forget(text=0.0), 5, 0.1)
    assert repr(fitted) == (
        f"Edit({3 * 32 * D_MLP:,} weights in 3 parameters; Localization(L1.mlp); "
        f"{Forget(text=0.0)}, 2 steps of AdamW at lr 0.05, seed 5)"
    )
