"""Attacks search and touch nothing: not the model, and not the facts that they are judged on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch
from helpers.small_facts import FACTS, FORGET, RETAIN, TEST, TEXT, weights
from hypothesis import given
from hypothesis import strategies as st

from mechunlearn.auditing.attacks.attack import Attack, Context
from mechunlearn.auditing.attacks.intervention import Intervention, WeightChange
from mechunlearn.auditing.attacks.relearning import Relearn
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.halving import halves
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.errors import FactError, TrainingError
from mechunlearn.models import loading
from mechunlearn.models.hooked import HookedModel

QUICK = Relearn(rank=2, steps=2, lr=0.05)
NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=12)


def context(*forget: Fact, facts: Facts = FACTS) -> Context:
    return Context.of(facts, forget or FORGET)


def state(hm: HookedModel) -> dict[str, Any]:
    """Everything an attack could leave behind in a model."""
    return {
        "weights": weights(hm),
        "identity": hm.identity,
        "modules": [(name, type(module).__name__, module.training) for name, module in hm.hf.named_modules()],
        "attributes": sorted(vars(hm.hf)),
        "config": hm.hf.config.to_dict(),
        "grad": [(p.requires_grad, p.grad) for p in hm.params.values()],
        "hooks": [len(module._forward_hooks) for module in hm.hf.modules()],
    }


# -- halves ---------------------------------------------------------------------------------------------


@given(NAMES, st.integers(0, 5))
def test_halves_split_the_facts_by_subject(names: list[str], seed: int) -> None:
    facts = [Fact(f"{name} has {i}", name, "it") for i, name in enumerate(names)]
    seen, judged = halves(facts, seed=seed)
    assert sorted(f.prompt for f in (*seen, *judged)) == sorted(f.prompt for f in facts)
    assert halves(facts, seed=seed) == (seen, judged)
    if len(set(names)) > 1:
        assert not {f.subject for f in seen} & {f.subject for f in judged}
        assert len({f.subject for f in seen}) == len(set(names)) // 2


def test_facts_about_one_subject_are_split_one_by_one() -> None:
    facts = [Fact(f"Bo has {i}", "Bo", "it") for i in range(6)]
    assert [len(half) for half in halves(facts, seed=0)] == [3, 3]


def test_seeds_split_differently() -> None:
    facts = [Fact(f"{name} plays", name, "golf") for name in "ABCDEFGHIJKL"]
    assert len({halves(facts, seed=seed) for seed in range(5)}) > 1


# -- what may be seen -----------------------------------------------------------------------------------


def test_a_context_shows_training_phrasings_and_nothing_else() -> None:
    shown = context(FORGET[0])
    fact = shown.forget[0]
    assert fact.train_prompts == FORGET[0].train_prompts
    assert (fact.validation, fact.held_out, fact.choice, fact.entailed, fact.others) == ((), (), None, (), ())
    assert fact.neighbours == {}
    for fact in shown.retain or ():
        assert (fact.validation, fact.held_out, fact.choice, fact.neighbours) == ((), (), None, {})


def test_a_context_holds_what_may_be_seen_and_no_test_fact(llama: HookedModel) -> None:
    shown = Context.of(FACTS, FORGET[:1], original=llama)
    assert {field.name for field in fields(shown)} == {"forget", "retain", "text", "original"}
    assert [fact.prompt for fact in shown.forget] == [FORGET[0].prompt]
    assert [fact.prompt for fact in shown.retain or ()] == [fact.prompt for fact in RETAIN]
    assert TEST[0].prompt not in {fact.prompt for fact in (*shown.forget, *(shown.retain or ()))}
    assert shown.text == FACTS.train_text == TEXT[::2]
    assert shown.original is llama


def test_what_may_not_be_seen_is_none_and_cannot_be_filled_in(llama: HookedModel) -> None:
    assert context().original is None
    bare = Context(FORGET)
    assert (bare.retain, bare.text, bare.original) == (None, None, None)
    with pytest.raises(FrozenInstanceError):
        bare.original = llama  # type: ignore[misc]


# -- relearning -----------------------------------------------------------------------------------------


def test_ours_are_attacks_and_interventions() -> None:
    assert isinstance(QUICK, Attack)
    assert isinstance(WeightChange(Edit((), Localization())), Intervention)


def test_relearning_leaves_the_model_as_it_was(hm: HookedModel) -> None:
    before = state(hm)
    found = QUICK.search(hm, context(), seed=0)
    attacked = found.apply(hm)
    assert state(hm) == before
    assert attacked.identity != hm.identity
    assert not any("lora" in name for name, _ in attacked.hf.named_modules())


def test_relearning_changes_the_linear_layers_of_blocks_alone(hm: HookedModel) -> None:
    edit = QUICK.search(hm, context(), seed=0).edit
    owned = {part.name for part in hm.slices(hm.sites.attns() | hm.sites.mlps())}
    matrices = {name for name in owned if name.endswith("weight")}
    assert {delta.slice.name for delta in edit.deltas} == matrices


def test_what_is_found_is_what_peft_merged(llama: HookedModel) -> None:
    from peft import LoraConfig, get_peft_model

    found = QUICK.search(llama, context(), seed=0)
    tokens = torch.arange(2, 12)[None]
    deltas = {delta.slice.name: delta.values for delta in found.edit.deltas}
    adapted = get_peft_model(loading.with_own_tensors(llama.hf), LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, module in adapted.base_model.model.named_modules():
            delta = deltas.get(f"{name}.weight")
            if delta is not None and hasattr(module, "lora_A"):
                assert torch.linalg.matrix_rank(delta, atol=1e-5) <= 2
                module.base_layer.weight += delta
        expected, given = adapted(tokens).logits, found.apply(llama).hf(tokens).logits
    torch.testing.assert_close(given, expected)


def test_relearning_lowers_the_loss_of_what_it_sees(llama: HookedModel) -> None:
    from mechunlearn.models.scoring.scorer import answer_logprobs

    found = Relearn(steps=10, lr=0.02).search(llama, context(), seed=0)
    assert (answer_logprobs(found.apply(llama), FORGET) > answer_logprobs(llama, FORGET) + 1).all()


def test_a_seed_repeats_and_touches_no_other_randomness(llama: HookedModel) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (QUICK.search(llama, context(), seed=seed).apply(llama) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.identity == again.identity != other.identity


def test_relearning_works_inside_no_grad_and_without_retain_facts(llama: HookedModel) -> None:
    with torch.no_grad():
        found = QUICK.search(llama, context(facts=Facts(FORGET)), seed=0)
        alone = QUICK.search(llama, Context(context().forget), seed=0)
    assert found.edit.deltas
    assert alone.apply(llama).identity == found.apply(llama).identity
    assert (
        found.summary
        == alone.summary
        == "LoRA of rank 2, 2 steps at lr 0.05, on 2 forget and 0 retain facts, seed 0"
    )


def test_half_precision_stays_half_precision(llama: HookedModel) -> None:
    half = llama.to(torch.bfloat16)
    attacked = QUICK.search(half, context(), seed=0).apply(half)
    assert attacked.dtype == torch.bfloat16 and attacked.identity != half.identity


def test_a_loss_that_is_not_finite_is_an_error(llama: HookedModel) -> None:
    before = state(llama)
    with pytest.raises(TrainingError, match=r"the loss at step \d is (nan|inf), expected.*Lower Relearn\(lr"):
        Relearn(steps=4, lr=1e30).search(llama, context(), seed=0)
    assert state(llama) == before


def test_weights_that_become_infinite_are_an_error(llama: HookedModel) -> None:
    half = llama.to(torch.float16)
    with pytest.raises(TrainingError, match=r"the weights became infinite, expected.*Lower Relearn\(lr"):
        Relearn(steps=1, lr=1e10).search(half, context(), seed=0)


def test_nothing_to_relearn_from_is_an_error(llama: HookedModel) -> None:
    empty = Context.of(FACTS, ())
    with pytest.raises(FactError, match="no forget facts to relearn from; give at least two"):
        QUICK.search(llama, empty, seed=0)


def test_a_weight_change_asks_the_questions_as_they_are(llama: HookedModel) -> None:
    nothing = WeightChange(Edit((), Localization()))
    apply: Callable[[HookedModel], HookedModel] = nothing.apply
    assert nothing.ask(FORGET) is FORGET
    assert apply(llama).identity == llama.identity
