"""Fitting an edit: law 3, objectives that misbehave, and every promised error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
import torch
from helpers.edit_checks import inside, touched
from helpers.small_facts import FACTS, FORGET, RETAIN, fit, weights
from helpers.tiny_models import D_MLP, hf_model, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.recipes import Optimizer, Stop
from mechunlearn.editing.objectives.ascent import GradientDifference
from mechunlearn.editing.objectives.likelihood import Forget, Inject
from mechunlearn.editing.objectives.preference import AltPO
from mechunlearn.editing.objectives.representation import RMU
from mechunlearn.editing.objectives.requests import Outputs, Request
from mechunlearn.editing.training.fitting import edit
from mechunlearn.editing.training.limits import Limits
from mechunlearn.editing.training.slice_parameters import Trained
from mechunlearn.errors import FactError, LocalizationError, SiteError, TrainingError
from mechunlearn.models.hooked import HookedModel

DECAYING = Optimizer(weight_decay=0.5)
DECAY = [("AdamW", 0.5), ("SGD", 0.5), ("RMSprop", 0.0)]


# -- law 3 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "weight_decay"), DECAY)
@pytest.mark.parametrize(
    "sites",
    [
        ["L1.mlp"],
        ["L1.head[2]"],
        ["L0.mlp.neuron[3]", "L0.mlp.neuron[40]", "L1.mlp.neuron[0]"],
        ["L0.kv[1]", "L1.mlp.in"],
        ["L0.attn", "L0.mlp", "L1.attn", "L1.mlp", "embed"],
    ],
    ids=", ".join,
)
def test_nothing_outside_the_localization_moves(
    llama: HookedModel, sites: list[str], optimizer: str, weight_decay: float
) -> None:
    fitted = fit(llama, *sites, optimizer=Optimizer(optimizer, weight_decay))
    moved, allowed = touched(llama, fitted), inside(llama, fitted)
    assert not any(bool((moved[name] & ~allowed[name]).any()) for name in moved)
    assert sum(int(there.sum()) for there in moved.values()) > 0.5 * llama.size(fitted.localization)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": Optimizer(weight_decay=0.5, schedule="linear", warmup=1, clip=0.1)},
        {
            "optimizer": Optimizer(weight_decay=0.5, micro_batches=2),
            "limits": Limits(gradient_checkpointing=True),
            "stop": Stop(every=1),
        },
        {"limits": Limits(memory=0), "optimizer": Optimizer("SGD", 0.5, schedule="constant")},
        {"limits": Limits(memory=0, disk=1 << 20), "objective": GradientDifference()},
        {"objective": AltPO(samples=2), "steps": 3},
        {"objective": RMU(layer=1), "optimizer": Optimizer("NAdam", 0.5)},
    ],
    ids=str,
)
def test_nothing_outside_the_localization_moves_under_any_option(
    llama: HookedModel, options: dict[str, Any]
) -> None:
    facts = FACTS + Facts([Fact("Ed plays", "Ed", "golf", split="retain")])
    fitted = fit(llama, "L1.head[2]", "L1.mlp.neuron[3]", facts=facts, **{"optimizer": DECAYING, **options})
    moved, allowed = touched(llama, fitted), inside(llama, fitted)
    assert not any(bool((moved[name] & ~allowed[name]).any()) for name in moved)
    assert any(bool(there.any()) for there in moved.values())


def test_nothing_outside_the_localization_moves_in_any_family(hm: HookedModel) -> None:
    fitted = fit(hm, "L0.head[1]", "L1.mlp", optimizer=DECAYING)
    moved, allowed = touched(hm, fitted), inside(hm, fitted)
    assert not any(bool((moved[name] & ~allowed[name]).any()) for name in moved)
    assert any(bool(there.any()) for there in moved.values())


def test_a_head_is_its_rows_of_q_and_its_columns_of_o(llama: HookedModel) -> None:
    moved = {name: there for name, there in touched(llama, fit(llama, "L1.head[2]")).items() if there.any()}
    attention = "model.layers.1.self_attn"
    assert set(moved) == {f"{attention}.q_proj.weight", f"{attention}.o_proj.weight"}
    assert set(moved[f"{attention}.q_proj.weight"].nonzero()[:, 0].tolist()) <= set(range(16, 24))
    assert set(moved[f"{attention}.o_proj.weight"].nonzero()[:, 1].tolist()) <= set(range(16, 24))


@pytest.mark.parametrize("objective", [Inject(), Forget(), GradientDifference()])
def test_fitting_leaves_the_model_and_the_random_state_as_they_were(
    llama: HookedModel, objective: Any
) -> None:
    before, state = weights(llama), torch.get_rng_state()
    fit(llama, "L0.mlp", "embed", objective=objective, stop=Stop(every=1))
    assert weights(llama) == before
    assert torch.equal(torch.get_rng_state(), state)
    for parameter in llama.params.values():
        assert parameter.grad is None and parameter.requires_grad


def test_what_is_trained_starts_at_the_weights_and_asks_for_gradients(llama: HookedModel) -> None:
    trained = Trained.at(llama, Localization(["L1.mlp.neuron[7]"]))
    assert {tuple(t.shape) for t in trained.tensors} == {(1, 32), (32, 1)}
    assert all(t.is_leaf and t.requires_grad for t in trained.tensors)
    weights = trained.changed()
    assert set(weights) == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    for name, weight in weights.items():
        assert weight.requires_grad and torch.equal(weight, llama.params[name])
        assert not trained.frozen[name].requires_grad


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(0, D_MLP - 1), min_size=1, max_size=6), st.integers(0, 1))
def test_any_neurons_can_be_trained_alone(neurons: set[int], layer: int) -> None:
    fitted = fit(tiny_llama(), *(f"L{layer}.mlp.neuron[{neuron}]" for neuron in neurons), steps=1)
    moved, allowed = touched(tiny_llama(), fitted), inside(tiny_llama(), fitted)
    assert not any(bool((moved[name] & ~allowed[name]).any()) for name in moved)
    assert sum(delta.values.numel() for delta in fitted.deltas) == 3 * 32 * len(neurons)


# -- objectives that misbehave --------------------------------------------------------------------------


@dataclass(frozen=True)
class Misbehaving:
    """Fits as it should until a step, and then does something else."""

    then: Any
    step: int = 3
    calls: list[int] = field(default_factory=list)
    aim: ClassVar[Literal["new", "forget"]] = "new"
    requests: ClassVar[Mapping[str, Request]] = {"forget": Request("forget", "new")}

    def __call__(self, readings: Mapping[str, Outputs]) -> dict[str, Tensor]:
        self.calls.append(1)
        loss = readings["forget"].logits.logsumexp(-1).mean()
        return {"loss": self.then(loss) if len(self.calls) >= self.step else loss}


def interrupt(loss: Tensor) -> Tensor:
    raise KeyboardInterrupt


def test_an_interrupt_leaves_the_model_as_it_was(llama: HookedModel) -> None:
    before = weights(llama)
    with pytest.raises(KeyboardInterrupt):
        fit(llama, "L0.mlp", "embed", objective=Misbehaving(interrupt), steps=9, stop=Stop(every=1))
    assert weights(llama) == before
    assert not any(module._forward_hooks for module in llama.hf.modules())


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda loss: loss * torch.nan, "the loss is not finite at step 3: nan .loss nan."),
        (lambda loss: loss * torch.inf, "the loss is not finite at step 3: inf .loss inf."),
        (
            lambda loss: loss * 1e6,
            r"the loss diverged at step 3: .*expected below \d.* in size; the model is unch",
        ),
    ],
)
def test_a_loss_that_is_not_finite_or_diverges_is_an_error(
    llama: HookedModel, then: Any, message: str
) -> None:
    before = weights(llama)
    with pytest.raises(TrainingError, match=message) as caught:
        fit(llama, objective=Misbehaving(then), steps=9)
    assert str(caught.value).endswith(
        "the model is unchanged. Lower lr, or use a bounded objective such as Forget()"
    )
    assert weights(llama) == before


def test_weights_that_are_not_finite_after_the_last_step_are_an_error(llama: HookedModel) -> None:
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: Tensor) -> Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * torch.nan

    with pytest.raises(
        TrainingError, match="the weights are not finite after step 3; the model is unchanged"
    ):
        fit(llama, objective=Misbehaving(Root.apply), steps=3)


def test_ascent_without_an_early_stop_ends_in_divergence(tokenizer: Any) -> None:
    # Tied embeddings are the one part of a model with norms that can push logits without bound.
    tied = HookedModel.from_hf(hf_model("gpt2"), tokenizer)
    objective = GradientDifference(retain=0.0, text=0.0)
    with pytest.raises(
        TrainingError, match=r"the loss diverged at step \d+: .*\(ascent -.*expected below 593 in size"
    ):
        fit(tied, "embed", objective=objective, steps=60, lr=1.0)


def test_a_loss_that_begins_large_may_stay_large(llama: HookedModel) -> None:
    assert fit(llama, objective=Misbehaving(lambda loss: loss * 1e6, step=1), steps=3).step == 3


# -- errors ---------------------------------------------------------------------------------------------


def test_an_empty_localization_is_refused(llama: HookedModel) -> None:
    with pytest.raises(LocalizationError, match=r"the localization is empty, .*instance hm.sites.mlps\(\)"):
        edit(llama, Localization(), Inject(), FACTS)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("L7.mlp", "L7.mlp.*L0 to L1"),
        ("L0.head[9]", r"L0.head\[9\].*0 to 3"),
        ("L0.head[1].k", r"L0.head\[1\].k.*L0.kv\[0\]"),
        ("L1.mlp.neuron[48]", r"L1.mlp.neuron\[48\].*0 to 47"),
    ],
)
def test_a_site_of_another_models_shape_is_refused(llama: HookedModel, site: str, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        fit(llama, site)


@pytest.mark.parametrize(
    ("facts", "objective", "message"),
    [
        (Facts(RETAIN), Inject(), r"the forget set is empty \(0 forget, 1 retain.*; give at least one"),
        (Facts(FORGET), Inject(), "the retain set and it is empty"),
        (Facts([*FORGET, *RETAIN]), Inject(), "reads text and the facts have none"),
        (
            FACTS + Facts([Fact("Ed plays", "Ed", "golf")]),
            Inject(),
            r"'Ed plays' \(forget\) has no new answer",
        ),
    ],
)
def test_facts_that_lack_what_the_objective_reads_are_refused(
    llama: HookedModel, facts: Facts, objective: Any, message: str
) -> None:
    with pytest.raises(FactError, match=message):
        fit(llama, objective=objective, facts=facts)
    fit(llama, objective=GradientDifference(retain=0.0, text=0.0), facts=FACTS)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            "Adamw",
            "optimizer must be one of 'Adam', 'AdamW', 'SGD' or 'RMSprop'; not 'Adamw', or another of torch",
        ),
        ("lr_scheduler", "optimizer must be one of"),
        (
            "LBFGS",
            "optimizer 'LBFGS' cannot train these slices with lr and weight_decay .*; use 'AdamW' or 'SGD'",
        ),
    ],
)
def test_an_optimizer_that_is_unknown_or_unfit_is_refused(
    llama: HookedModel, optimizer: str, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(llama, optimizer=Optimizer(optimizer))
