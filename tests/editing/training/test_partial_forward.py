"""Entering a model at its first edited block changes nothing but the cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

import pytest
import torch
from helpers.deep_models import DEEP, deep_model, naive_gradients, tolerance
from helpers.partial_runs import STEP, double, gap
from helpers.partial_runs import counted as counted
from helpers.small_facts import FACTS, fit, weights
from helpers.tiny_models import FAMILIES, VOCAB
from torch import Tensor

from mechunlearn.editing.edits.recipes import Stop
from mechunlearn.editing.objectives.requests import Outputs, Request
from mechunlearn.editing.training.limits import Limits
from mechunlearn.editing.training.partial_forward import Runner
from mechunlearn.models.encoding.encoder import encode_text
from mechunlearn.models.hooked import HookedModel

TEXTS = ("it rains", "no", "the sun is up now")
ENTRIES = range(1, DEEP)


@cache
def wanted(family: str) -> Mapping[str, Tensor]:
    """The full model's gradients of ``Inject``."""
    return naive_gradients(double(family), FACTS)


# -- the same numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_entered_at_any_block_a_model_gives_its_own_logits_and_states(family: str, entry: int) -> None:
    hm = double(family)
    runner = Runner.of(hm, (), entry=entry)
    assert (runner.enters, runner.entry, runner.reason) == (True, entry, "")
    batch = encode_text(hm, TEXTS)
    output = runner.run(
        batch.tokens,
        batch.mask,
        columns=torch.arange(batch.tokens.shape[1]),
        hidden=range(entry, DEEP),
        state=runner.states(batch.tokens, batch.mask),
    )
    assert set(output.hidden) == set(range(entry, DEEP))
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(DEEP)]
    for row, text in enumerate(TEXTS):
        logits, cached = hm.run_with_cache(text, names_filter=names)
        real = slice(0, logits.shape[1])
        assert (output.logits[row, real] - logits[0]).abs().max() < tolerance(family)
        for layer, state in output.hidden.items():
            assert (state[row, real] - cached[names[layer]][0]).abs().max() < tolerance(family)


PLACES = [
    ("embed", "L0.head[1]"),
    ("L1.mlp", "L2.attn", "L3.mlp.neuron[5]"),
    ("L2.mlp",),
    ("L3.head[0]", "L3.mlp.out"),
]


@pytest.mark.parametrize("sites", PLACES, ids=", ".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_is_the_full_models_at_the_trained_slices(family: str, sites: tuple[str, ...]) -> None:
    hm = double(family)
    assert gap(hm, fit(hm, *sites, **STEP), wanted(family)) < tolerance(family)


@pytest.mark.parametrize(
    "options", [{"limits": Limits(gradient_checkpointing=True)}, {"limits": Limits(memory=0)}], ids=str
)
@pytest.mark.parametrize("family", FAMILIES)
def test_saving_memory_costs_no_accuracy(family: str, options: dict[str, Any]) -> None:
    hm = double(family)
    assert gap(hm, fit(hm, *PLACES[1], **STEP, **options), wanted(family)) < tolerance(family)
    whole = fit(hm, "embed", "L3.mlp", **STEP, **options)
    assert gap(hm, whole, wanted(family)) < tolerance(family)


def test_the_naive_gradients_are_no_zeros() -> None:
    hm = double("llama")
    fitted = fit(hm, *PLACES[1], **STEP)
    assert all(float(d.values.norm()) > 1e-3 for d in fitted.deltas)


def test_a_model_in_half_precision_gets_its_gradients_in_float32() -> None:
    exact = wanted("llama")
    half = double("llama").to(torch.bfloat16)
    before = weights(half)
    fitted = fit(half, "L2.mlp", "L3.attn", **STEP)
    assert weights(half) == before
    for d in fitted.deltas:
        gradient = d.slice.of(exact[d.slice.name])
        assert d.values.dtype == torch.float32
        assert (d.values + gradient).norm() < 0.05 * gradient.norm()
    # Half precision alone would round a step of so small a rate away.
    tiny = fit(half, "L2.mlp", **{**STEP, "lr": 1e-6, "steps": 3})
    assert all(0 < float(d.values.abs().max()) < 1e-4 for d in tiny.deltas)


# -- nothing that the edit cannot change ----------------------------------------------------------------


def test_nothing_below_the_first_edited_block_runs_after_the_first_pass(
    counted: tuple[HookedModel, list[int]],
) -> None:
    hm, counts = counted
    seen: list[list[int]] = []
    stop = Stop(goal=1.0, min_retention=1.0, every=1)
    fit(hm, "L2.mlp", "L3.head[1]", steps=5, stop=stop, callback=lambda *_: seen.append([*counts]))
    assert len(seen) == 5
    # The judge asks for the first time after the first step, so the second step is the first without news.
    second, last = seen[1], [*counts]
    assert second[:2] == last[:2]
    assert all(low < high for low, high in zip(second[2:], last[2:], strict=True))


def test_in_each_pass_of_new_examples_only_their_own_are_computed(
    counted: tuple[HookedModel, list[int]],
) -> None:
    hm, counts = counted
    Runner.of(hm, (), entry=2)
    guard = counts[0]
    fit(hm, "L2.mlp", steps=1)
    # Three splits are read, each in one run of what is below and one of what is above.
    assert counts[0] - 2 * guard == 3


@dataclass(frozen=True)
class Watching:
    """Looks at what the gradients of its loss would be formed for."""

    hidden: int | None = None
    logits: bool = True
    leaves: list[set[tuple[int, ...]]] = field(default_factory=list)
    aim: ClassVar[Literal["new", "forget"]] = "new"

    @property
    def requests(self) -> Mapping[str, Request]:
        return {"forget": Request("forget", "new", hidden=self.hidden, logits=self.logits)}

    def __call__(self, readings: Mapping[str, Outputs]) -> dict[str, Tensor]:
        reading = readings["forget"]
        read = reading.logits if self.logits else reading.hidden
        assert read is not None
        self.leaves.append({tuple(leaf.shape) for leaf in leaves(read)})
        return {"loss": read.square().mean()}


def leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a gradient of another would be formed for."""
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [after for after, _ in node.next_functions]


@pytest.mark.parametrize(
    ("sites", "shapes"),
    [
        (("L3.mlp.neuron[7]",), {(1, 32), (32, 1)}),
        (("L2.mlp.out", "L3.head[1].q"), {(32, 48), (8, 32)}),
        (("embed",), {(VOCAB, 32)}),
    ],
)
def test_gradients_are_formed_for_what_is_trained_and_nothing_else(
    sites: tuple[str, ...], shapes: set[tuple[int, ...]]
) -> None:
    objective = Watching()
    fit(deep_model(), *sites, objective=objective)
    assert objective.leaves == [shapes, shapes]


def test_without_logits_nothing_above_the_block_that_is_read_is_run(
    counted: tuple[HookedModel, list[int]],
) -> None:
    hm, counts = counted
    fit(hm, "L0.mlp", objective=Watching(hidden=1, logits=False), steps=3)
    assert counts == [3, 3, 0, 0]


def test_checkpointing_runs_the_blocks_that_are_trained_again_and_no_others(
    counted: tuple[HookedModel, list[int]],
) -> None:
    hm, counts = counted
    ran = []
    for checkpointing in (False, True):
        counts[:] = [0] * DEEP
        fit(hm, "L2.mlp", steps=3, limits=Limits(gradient_checkpointing=checkpointing))
        ran.append([*counts])
    plain, again = ran
    # Three steps of three splits: so many runs have a backward pass.
    assert again == [plain[0], plain[1], plain[2] + 9, plain[3] + 9]


def test_frozen_weights_are_frozen_whatever_the_user_has_set() -> None:
    hm = deep_model()
    runner = Runner.of(hm, ["model.layers.2.mlp.up_proj.weight"], entry=2)
    assert not any(p.requires_grad for p in runner.hm.hf.parameters())
    assert all(p.requires_grad for p in hm.params.values())
    shared = {p.data_ptr() for p in hm.params.values()}
    assert {p.data_ptr() for p in runner.hm.hf.parameters()} <= shared


def test_every_use_of_a_tied_weight_is_put_in() -> None:
    hm = deep_model("gpt2")
    name = "transformer.wte.weight"
    runner = Runner.of(hm, [name], entry=0)
    other = hm.params[name].detach() + 0.1
    runner.set_weights({name: other})
    tokens = hm.to_tokens("in pens")
    found = runner.run(tokens, torch.ones_like(tokens), columns=torch.arange(tokens.shape[1])).logits
    assert torch.equal(found, hm.fork({name: other}).hf(input_ids=tokens).logits)


def test_blocks_are_as_they_were_after_an_interrupt() -> None:
    hm = deep_model()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(hm, "L2.mlp", callback=interrupt)
    assert not any(module.__dict__.get("forward") for module in hm.hf.modules())
    assert all(p.grad is None and p.requires_grad for p in hm.params.values())
