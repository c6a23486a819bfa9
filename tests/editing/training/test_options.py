"""The options of training: schedule, clipping, parts, stopping, seeds; each against a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from helpers.refusals import refused
from helpers.small_facts import FACTS, bits, fit
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import lr_scheduler as of_torch

import mechunlearn as mu
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import Split
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Optimizer, Stop
from mechunlearn.editing.objectives.likelihood import Inject
from mechunlearn.editing.objectives.requests import Outputs, Request
from mechunlearn.editing.training.limits import Limits
from mechunlearn.errors import FactError, TrainingError

DESCENT = Optimizer("SGD", schedule="constant")


def deltas(edit: Edit) -> list[Tensor]:
    return [d.values for d in edit.deltas]


def norm(edit: Edit) -> float:
    return float(torch.cat([d.flatten() for d in deltas(edit)]).norm())


# -- the learning rate ----------------------------------------------------------------------------------


def torchs(scheduler: Any, steps: int, **options: Any) -> list[float]:
    """The rates that one of torch's own schedulers gives."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    made, rates = scheduler(optimizer, **options), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return rates


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_the_learning_rate_falls_as_torchs_own_schedules(steps: int) -> None:
    expected = {
        "cosine": torchs(of_torch.CosineAnnealingLR, steps, T_max=steps),
        "linear": torchs(of_torch.LinearLR, steps, start_factor=1.0, end_factor=0.0, total_iters=steps),
        "constant": torchs(of_torch.ConstantLR, steps, factor=1.0),
    }
    for schedule, rates in expected.items():
        optimizer = Optimizer(schedule=schedule)  # type: ignore[arg-type]
        assert [optimizer.rate(step, steps) for step in range(steps)] == pytest.approx(rates, abs=1e-9)


def test_the_learning_rate_rises_as_a_line_and_then_falls_over_the_steps_that_are_left() -> None:
    warm = Optimizer(warmup=3, schedule="linear")
    assert [warm.rate(step, 7) for step in range(7)] == [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]
    plain, cosine, never = Optimizer(), Optimizer(warmup=3), Optimizer(warmup=9)
    assert [cosine.rate(step + 3, 7) for step in range(4)] == [plain.rate(step, 4) for step in range(4)]
    assert [never.rate(step, 2) for step in range(2)] == pytest.approx([0.1, 0.2])


@dataclass(frozen=True)
class Slope:
    """A loss whose gradient is the same at every step: the trained weights themselves, summed."""

    grow: float = 1.0
    calls: list[int] = field(default_factory=list)
    aim: ClassVar[Literal["new", "forget"]] = "new"
    requests: ClassVar[Mapping[str, Request]] = {"forget": Request("forget", "new", hidden=0, logits=False)}

    def __call__(self, readings: Mapping[str, Outputs]) -> dict[str, Tensor]:
        self.calls.append(1)
        hidden = readings["forget"].hidden
        assert hidden is not None
        return {"slope": hidden.mean() * self.grow ** len(self.calls)}


def test_a_step_moves_by_the_rate_of_its_number(llama: mu.HookedModel) -> None:
    # The output matrix of an MLP enters its block's output linearly, so the gradient is always the same.
    once = norm(fit(llama, "L0.mlp.out", objective=Slope(), steps=1, optimizer=DESCENT))
    for optimizer in (
        Optimizer("SGD", schedule="cosine"),
        Optimizer("SGD", schedule="linear", warmup=2),
        Optimizer("SGD", schedule="constant", warmup=5),
    ):
        total = sum(optimizer.rate(step, 6) for step in range(6))
        fitted = fit(llama, "L0.mlp.out", objective=Slope(), steps=6, optimizer=optimizer)
        assert norm(fitted) == pytest.approx(once * total, rel=1e-4)


# -- the gradient ---------------------------------------------------------------------------------------


def test_a_gradient_is_cut_to_a_norm_as_torch_does(llama: mu.HookedModel) -> None:
    step: dict[str, Any] = {"steps": 1, "lr": 1.0}
    whole = fit(llama, "L0.mlp", "L1.head[0]", optimizer=DESCENT, **step)
    leaves = [torch.zeros_like(d) for d in deltas(whole)]
    for leaf, moved in zip(leaves, deltas(whole), strict=True):
        leaf.grad = -moved.clone()
    torch.nn.utils.clip_grad_norm_(leaves, 0.3)
    cut = fit(llama, "L0.mlp", "L1.head[0]", optimizer=replace(DESCENT, clip=0.3), **step)
    assert norm(whole) > 0.4 and norm(cut) == pytest.approx(0.3, rel=1e-4)
    for leaf, moved in zip(leaves, deltas(cut), strict=True):
        assert leaf.grad is not None and torch.allclose(-leaf.grad, moved, atol=1e-7)
    loose = fit(llama, "L0.mlp", "L1.head[0]", optimizer=replace(DESCENT, clip=1e6), **step)
    assert [bits(d) for d in deltas(loose)] == [bits(d) for d in deltas(whole)]


SPLITS: tuple[tuple[Split, tuple[str, ...]], ...] = (
    ("forget", ("Bo", "Al", "Cy", "Di")),
    ("retain", ("Ed", "Flo", "Gus", "Hal")),
)
EVEN = Facts(
    [
        Fact(f"{name} plays", name, "golf", new="judo", split=split)
        for split, names in SPLITS
        for name in names
    ],
    text=("it rains", "in May", "no snow!", "so warm?") * 2,
)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_of_equal_parts_is_that_of_the_whole(
    llama: mu.HookedModel, parts: int, checkpointing: bool
) -> None:
    hm = llama.to(torch.float64)
    step: dict[str, Any] = {"steps": 1, "lr": 1.0, "facts": EVEN}
    objective = Inject(text=0.0)
    whole = fit(hm, "L0.mlp", "L1.head[0]", objective=objective, optimizer=DESCENT, **step)
    cut = fit(
        hm,
        *("L0.mlp", "L1.head[0]"),
        objective=objective,
        optimizer=replace(DESCENT, micro_batches=parts),
        limits=Limits(gradient_checkpointing=checkpointing),
        **step,
    )
    for a, b in zip(deltas(whole), deltas(cut), strict=True):
        assert (a - b).abs().max() < 1e-5 and a.abs().max() > 1e-3
    assert cut.history[0]["inject"] == pytest.approx(whole.history[0]["inject"], abs=1e-6)


def test_unequal_parts_count_alike(llama: mu.HookedModel) -> None:
    """The terms of the parts are averaged, as the option says: an example of a smaller part weighs more."""
    hm = llama.to(torch.float64)
    step: dict[str, Any] = {"steps": 1, "lr": 1.0, "objective": Inject(retain=0.0, text=0.0)}
    forget = list(EVEN.forget)[:3]
    both = fit(hm, facts=Facts(forget), optimizer=replace(DESCENT, micro_batches=2), **step)
    alone = [fit(hm, facts=Facts(part), optimizer=DESCENT, **step) for part in (forget[:1], forget[1:])]
    for mixed, one, other in zip(deltas(both), *map(deltas, alone), strict=True):
        assert (mixed - (one + other) / 2).abs().max() < 1e-5


def test_recomputing_blocks_changes_no_bit_of_an_edit(hm: mu.HookedModel) -> None:
    options: dict[str, Any] = {"steps": 3, "stop": Stop(every=2)}
    limits = (Limits(gradient_checkpointing=recompute) for recompute in (False, True))
    one, other = (fit(hm, "L0.mlp", "L1.attn", limits=each, **options) for each in limits)
    assert [bits(d) for d in deltas(one)] == [bits(d) for d in deltas(other)]
    assert one.history == other.history


# -- the end --------------------------------------------------------------------------------------------


def test_a_callback_that_returns_true_ends_training(llama: mu.HookedModel) -> None:
    fitted = fit(llama, steps=9, callback=lambda step, terms: step == 4)
    assert fitted.step == len(fitted.history) == 4
    seen: list[int] = []
    fit(llama, steps=3, callback=lambda step, terms: seen.append(step) or 1)  # type: ignore[func-returns-value]
    assert seen == [1, 2, 3], "only True ends it"


def test_the_step_at_which_a_callback_ends_training_is_judged(llama: mu.HookedModel) -> None:
    fitted = fit(llama, steps=9, stop=Stop(1.0, 1.0, every=2), callback=lambda step, terms: step == 5)
    judged = [entry["step"] for entry in fitted.history if "success" in entry]
    assert len(fitted.history) == 5 and judged == [2.0, 4.0, 5.0]


LOSING = Facts([Fact("Bo plays", "Bo", "golf", new="judo"), Fact("Cy plays", "Cy", "polo", split="retain")])


def test_training_gives_up_when_too_much_was_lost(llama: mu.HookedModel) -> None:
    # An untrained model keeps nothing, so everything is lost from the first measurement on.
    options: dict[str, Any] = {"facts": LOSING, "objective": Inject(text=0.0, retain=0.0), "steps": 8}
    patient = fit(llama, stop=Stop(1.0, 1.0, every=2), **options)
    assert len(patient.history) == 8 and patient.history[1]["retention"] == 0.0
    given_up = fit(llama, stop=Stop(1.0, 1.0, every=2, give_up=0.5), **options)
    assert len(given_up.history) == 2
    assert len(fit(llama, stop=Stop(1.0, 1.0, every=2, give_up=0.0), **options).history) == 8


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_giving_up_ends_training_and_nothing_else(success: float, retention: float, bound: float) -> None:
    stop, loose = Stop(give_up=bound), Stop()
    assert stop.reached(success, retention) == (loose.reached(success, retention) or retention < bound)
    assert stop.value(success, retention) == loose.value(success, retention)


# -- seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "optimizer": Optimizer(micro_batches=2, clip=1.0, warmup=1),
            "limits": Limits(5, gradient_checkpointing=True),
        },
        {"stop": Stop(every=1), "limits": Limits(2, memory=0)},
        {"objective": mu.objectives.RMU(layer=1), "optimizer": Optimizer("SGD")},
        {"objective": mu.objectives.DPO(alternative=("no", "never"))},
        {"objective": mu.objectives.WeightMask()},
        {"objective": mu.objectives.AltPO(samples=2)},
    ],
    ids=str,
)
def test_a_seed_decides_every_bit_and_no_global_random_number_is_used(
    llama: mu.HookedModel, options: dict[str, Any]
) -> None:
    found = []
    for at in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(at)
            before = bits(torch.get_rng_state())
            fitted = fit(llama, "L1.mlp", facts=EVEN, **{"limits": Limits(2), "steps": 4, **options})
            assert bits(torch.get_rng_state()) == before
        found.append(([bits(d) for d in deltas(fitted)], fitted.history))
    assert found[0] == found[1]


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Optimizer, {"weight_decay": -0.1}, "weight_decay is -0.1; give a number from 0"),
        (Optimizer, {"schedule": "cosin"}, "schedule is 'cosin'; give one of 'cosine', 'linear', 'constant'"),
        (Optimizer, {"warmup": -1}, "warmup is -1; give a whole number from 0"),
        (Optimizer, {"clip": 0.0}, "clip is 0.0; give a number above 0"),
        (Optimizer, {"clip": float("nan")}, "clip is nan; give a number above 0"),
        (Optimizer, {"micro_batches": 0}, "micro_batches is 0; give a whole number from 1"),
        (Limits, {"batch_size": 0}, "batch_size is 0; give a whole number from 1"),
        (Limits, {"checkpoint_every": 0}, "checkpoint_every is 0; give a whole number from 1"),
    ],
)
def test_an_option_out_of_range_says_what_to_give(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        kind(**options)


def test_a_step_has_as_many_examples_as_parts(llama: mu.HookedModel) -> None:
    with refused(TrainingError, "micro_batches is 3, and a step takes 2 examples of the text set", hm=llama):
        fit(llama, optimizer=Optimizer(micro_batches=3))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("share", [-0.1, 1.5, 95])
def test_a_share_to_give_up_at_is_a_share(share: float) -> None:
    with pytest.raises(TrainingError, match=f"give_up is {share}; give a share from 0 to 1"):
        Stop(give_up=share)


def test_a_loss_that_does_not_depend_on_what_is_trained_is_refused(llama: mu.HookedModel) -> None:
    said = "nothing that Slope(", "depends on the weights that are trained", "Edit an earlier block, or have"
    with refused(TrainingError, *said, "the model is unchanged", hm=llama):
        fit(llama, "L1.mlp", objective=Slope())


def test_without_a_corpus_there_must_be_something_to_forget(llama: mu.HookedModel) -> None:
    with refused(FactError, "forget", hm=llama):
        fit(llama, facts=Facts(FACTS.retain))
