"""The trainer beside an independent one: peft's LoRA on the same facts, the same loss, the same places."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.small_facts import weights

from mechunlearn import world
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.metrics import token_logprobs
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.objectives.likelihood import Inject
from mechunlearn.editing.training.fitting import edit
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.scorer import score

STEPS = 40
LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def eight() -> Facts:
    """Eight people to be told of another sport, and sixteen who keep theirs."""
    whole = world.facts()
    return Facts([*list(whole.forget)[:8], *list(whole.retain)[:16]], name="eight")


def lora(hm: HookedModel, facts: Facts) -> HookedModel:
    """The model with LoRA adapters on some MLPs, trained on the new answers and the retain set's own."""
    from peft import LoraConfig, get_peft_model

    targets = [
        f"layers.{layer}.mlp.{part}" for layer in LAYERS for part in ("gate_proj", "up_proj", "down_proj")
    ]
    own = hm.fork({name: parameter.detach().clone() for name, parameter in hm.params.items()})
    torch.manual_seed(0)
    adapted: Any = get_peft_model(own.hf, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    asked = [encode(hm, [a for f in facts.forget for a in f.phrasings("train")], answer="new")]
    asked.append(encode(hm, [a for f in facts.retain for a in f.phrasings("train")]))
    optimizer = torch.optim.AdamW(
        [p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    for _ in range(STEPS):
        loss = torch.zeros(())
        for batch in asked:
            logits = adapted(input_ids=batch.tokens, attention_mask=batch.mask).logits
            where = batch.labels != -100
            loss = loss - token_logprobs(logits[where], batch.labels[where]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return HookedModel.from_hf(adapted.merge_and_unload(), hm.tokenizer, prepend_bos=hm.prepend_bos)


def outcome(hm: HookedModel, facts: Facts) -> tuple[float, float]:
    """Success on the prompts that were trained, and accuracy on the retain set's."""
    asked = [replace(fact, entailed=(), others=(), neighbours={}) for fact in facts.forget]
    return float(score(hm, asked).says_new.mean()), float(score(hm, facts.retain).correct.mean())


def test_lora_training_of_the_same_facts_ends_where_a_confined_edit_does(eight: Facts) -> None:
    hm = world.model()
    before = weights(hm)
    place = Localization([f"L{layer}.mlp" for layer in LAYERS])
    confined = edit(
        hm, place, Inject(text=0.0), eight, steps=STEPS, lr=3e-3, stop=None, progress=False
    ).apply(hm)
    peer = lora(hm, eight)
    assert outcome(hm, eight)[0] == 0
    for model in (confined, peer):
        success, retention = outcome(model, eight)
        assert success >= 0.9 and retention >= 0.9
    assert weights(hm) == before
