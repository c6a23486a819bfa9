"""What is done to ``hm.hf`` from outside is noticed: weights are read, adapters are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers.tiny_models import FAMILIES, hf_model, memory_tokenizer

import mechunlearn as mu
from mechunlearn.errors import ModelError

IDS = torch.tensor([[0, 20, 33, 47, 51]])
MERGE = r"adapters \(peft's \w+\).*merge them first, model\.merge_and_unload\(\)"


def adapted(model: Any, *targets: str) -> Any:
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False)
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("built", [True, False])
def test_adapters_are_refused_whether_the_bridge_is_built_or_not(
    built: bool, tmp_path: Path, unchecked: None
) -> None:
    hm = mu.HookedModel.from_hf(hf_model("llama"), memory_tokenizer())
    fact = mu.Fact("Bo is in", "Bo", "a")
    if built:
        hm(IDS)
    adapted(hm.hf, "q_proj", "down_proj")
    place, forget = mu.Localization(["L0.mlp"]), mu.objectives.Forget(retain=0, text=0)
    for use in (
        lambda: hm(IDS),
        lambda: hm.generate("in"),
        lambda: mu.score(hm, [fact]),
        lambda: hm.fork(),
        lambda: hm.save_pretrained(tmp_path / "model"),
        lambda: mu.edit(hm, place, forget, mu.Facts([fact]), steps=1, stop=None, progress=False),
    ):
        with pytest.raises(ModelError, match=MERGE):
            use()
    assert not (tmp_path / "model").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_with_adapters_is_not_wrapped() -> None:
    with pytest.raises(ModelError, match=MERGE):
        mu.HookedModel.from_hf(adapted(hf_model("llama"), "q_proj"), memory_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_loaded_into_the_plain_model_are_those_of_the_bridge(family: str) -> None:
    hm = mu.HookedModel.from_hf(hf_model(family), memory_tokenizer())
    before, first = hm(IDS), hm.identity
    hm.hf.load_state_dict(hf_model(family, seed=1).state_dict())
    assert (hm(IDS) - hm.hf(IDS).logits).abs().max() < 5e-5 < 0.1 < (hm(IDS) - before).abs().max()
    assert hm.identity != first


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_parameters_that_are_replaced_are_those_of_the_bridge(family: str) -> None:
    hm = mu.HookedModel.from_hf(hf_model(family), memory_tokenizer())
    before = hm(IDS)
    hm.hf.load_state_dict(hf_model(family, seed=1).state_dict(), assign=True)
    assert (hm(IDS) - hm.hf(IDS).logits).abs().max() < 1e-5 < (hm(IDS) - before).abs().max()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_that_is_merged_into_the_model_is_noticed() -> None:
    hm = mu.HookedModel.from_hf(hf_model("neox"), memory_tokenizer())
    before = hm(IDS)
    adapted(hm.hf, "query_key_value").merge_and_unload()
    assert (hm(IDS) - hm.hf(IDS).logits).abs().max() < 1e-5 < (hm(IDS) - before).abs().max()
