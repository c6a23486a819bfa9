"""Training that goes wrong, edits of other models, interrupts: an error or an end, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import transformers
from helpers.refusals import refused, stop_button
from helpers.small_facts import FACTS, bits, fit, made
from helpers.tiny_models import VOCAB, hf_model, memory_tokenizer
from torch import Tensor

import mechunlearn as mu
from mechunlearn.errors import EditError, TrainingError

pytestmark = pytest.mark.usefixtures("unchecked")

MLP = mu.Localization(["L0.mlp"])
QUIET: dict[str, Any] = {"progress": False}


# -- training -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A user's objective that returns what it should not."""

    value: float
    aim: ClassVar[Literal["new", "forget"]] = "new"
    requests: ClassVar[Mapping[str, Any]] = mu.objectives.Inject().requests

    def __call__(self, readings: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"mine": readings["forget"].logits.sum() * 0.0 + self.value}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_loss_that_is_not_finite_is_named_by_step_and_term(llama: mu.HookedModel, value: float) -> None:
    said = f"the loss is not finite at step 1: {value} (mine {value})", "expected below", "Lower lr"
    with refused(TrainingError, *said, "the model is unchanged", hm=llama):
        mu.edit(llama, MLP, Broken(value), FACTS, **QUIET)


def test_too_high_a_learning_rate_is_an_error_and_not_an_edit_of_nan(llama: mu.HookedModel) -> None:
    with refused(TrainingError, "the loss is not finite at step 2: nan", "Lower lr", hm=llama):
        fit(llama, lr=1e30, steps=5)


def test_a_model_that_is_broken_already_is_noticed_at_the_first_step(llama: mu.HookedModel) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    sick = llama.fork({name: torch.full_like(llama.params[name], torch.nan)})
    with refused(TrainingError, "the loss is not finite at step 1: nan", hm=sick):
        fit(sick)


# -- edits of other models ------------------------------------------------------------------------------


def wider_llama() -> mu.HookedModel:
    """As the tiny Llama, with more neurons."""
    build: Any = transformers.LlamaForCausalLM
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return mu.HookedModel.from_hf(build(config), memory_tokenizer())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            lambda: mu.HookedModel.from_hf(hf_model("gpt2"), memory_tokenizer()),
            ("0.mlp.gate_proj.weight', which this model does not have", "the same architecture"),
        ),
        (
            wider_llama,
            ("0.mlp.gate_proj.weight' of shape (48, 32)", "this model's is (64, 32)", "it was made on"),
        ),
    ],
    ids=["names differ", "shapes differ"],
)
def test_an_edit_from_another_model_is_refused_by_everything_that_takes_edits(
    llama: mu.HookedModel, tmp_path: Path, other: Callable[[], mu.HookedModel], said: tuple[str, ...]
) -> None:
    made(llama, "L0.mlp").save_pretrained(tmp_path)
    edit, hm = mu.Edit.from_pretrained(tmp_path), other()
    for verb in (
        lambda: edit.apply(hm),
        lambda: edit.applied(hm).__enter__(),
        lambda: edit.scale(0.5).apply(hm),
        lambda: (edit + edit).apply(hm),
        lambda: edit.norms(hm),
        lambda: mu.audit(hm, edit, FACTS, attacks=(), controls=0, **QUIET),
    ):
        with refused(EditError, *said, hm=hm, folder=tmp_path):
            verb()


# -- an interrupted kernel ------------------------------------------------------------------------------


def test_an_edit_interrupted_midway_leaves_the_model_and_can_be_made_again(llama: mu.HookedModel) -> None:
    def at_step_two(step: int, terms: Mapping[str, float]) -> None:
        if step == 2:
            stop_button()

    with refused(KeyboardInterrupt, hm=llama):
        fit(llama, "L0.mlp", "embed", steps=4, stop=mu.Stop(every=1), callback=at_step_two)
    again, never = fit(llama, steps=3), fit(llama, steps=3)
    assert [bits(d.values) for d in again.deltas] == [bits(d.values) for d in never.deltas]


def test_an_interrupt_while_an_edit_is_applied_takes_it_away(llama: mu.HookedModel) -> None:
    edit, before = made(llama, "L0.mlp", "L1.attn", "embed"), llama("in pens")
    with refused(KeyboardInterrupt, hm=llama), edit.applied(llama) as edited:
        edited.run_with_hooks("in pens", fwd_hooks=[("blocks.1.hook_mlp_out", stop_button)])
    assert torch.equal(llama("in pens"), before)


def test_an_interrupted_localizer_leaves_no_hook(llama: mu.HookedModel) -> None:
    hm = llama.fork()
    calls: list[int] = []

    def at_the_fifth_run(activation: Tensor, hook: object) -> None:
        calls.append(1)
        if len(calls) == 5:
            stop_button()

    for localizer in (mu.causal_trace, mu.attribution):
        calls.clear()
        hm.bridge.add_hook("blocks.0.hook_mlp_out", at_the_fifth_run)
        with refused(KeyboardInterrupt, hm=hm):
            localizer(hm, FACTS.forget, batch_size=1, **QUIET)
        hm.reset_hooks()
    assert hm.identity == llama.identity


def test_an_interrupted_audit_leaves_the_model(llama: mu.HookedModel) -> None:
    class Interrupted(mu.attacks.Relearn):
        """Stopped while it searches."""

        def search(self, *args: Any, **options: Any) -> Any:
            stop_button()

    edit = made(llama, "L0.mlp")
    with refused(KeyboardInterrupt, hm=llama):
        mu.audit(llama, edit, FACTS, attacks=(Interrupted(),), controls=0, **QUIET)
