"""The edit between two models turns one into the other, and says which sites were changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.small_facts import made, weights
from helpers.tiny_models import hf_model

from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.diff import diff
from mechunlearn.errors import EditError, ModelError
from mechunlearn.models.hooked import HookedModel

OUT = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sites",
    [
        ("L0.mlp",), ("L0.attn", "L1.mlp.out", "embed"), ("L0.head[2]", "L1.mlp.neuron[3]"), ("L1.mlp.in",),
    ],
)  # fmt: skip
def test_the_difference_of_an_edited_model_is_the_edit(
    hm: HookedModel, sites: tuple[str, ...], dtype: torch.dtype
) -> None:
    before = hm if dtype == hm.dtype else hm.to(dtype)
    edit = made(before, *sites)
    after = edit.apply(before)
    found = diff(before.hf, after)
    assert found.localization == edit.localization and found.shapes == edit.shapes
    assert found.made_on == before.identity
    assert weights(found.apply(before)) == weights(after)
    mine, theirs = found.to_task_vector(), edit.to_task_vector()
    assert all(
        torch.allclose(mine[name], theirs[name], atol=1e-6 if dtype == hm.dtype else 0.02) for name in mine
    )
    assert weights(found.restrict(edit.localization).apply(before)) == weights(after)


def test_the_difference_of_a_model_and_itself_is_nothing(llama: HookedModel) -> None:
    nothing = diff(llama, llama.fork())
    assert nothing.deltas == () and len(nothing.localization) == 0


def test_weights_that_shrank_a_million_times_come_back_bit_by_bit(llama: HookedModel) -> None:
    random = torch.Generator().manual_seed(0)
    tiny = 1e-7 * (1 + torch.rand(32, 48, generator=random))
    tiny[::2] = llama.params[OUT].detach()[::2]
    after = llama.fork({OUT: tiny})
    found = diff(llama, after)
    assert {delta.values.dtype for delta in found.deltas} == {torch.float64}
    assert weights(found.apply(llama)) == weights(after)


def test_parameters_without_a_site_are_refused_dropped_or_kept(llama: HookedModel) -> None:
    norm = "model.layers.0.input_layernorm.weight"
    new = {OUT: llama.params[OUT].detach() * 2, norm: llama.params[norm].detach() + 1}
    after = llama.fork(new)
    said = rf"'{norm}' differs between the models and belongs to no site .* unowned='drop', .* unowned='keep'"
    with pytest.raises(EditError, match=said):
        diff(llama, after)
    kept = diff(llama, after, unowned="keep")
    assert weights(kept.apply(llama)) == weights(after)
    assert kept.localization == Localization(["L0.mlp.out"])
    assert kept.localization.source == "changed between two models, with 1 parameters of no site"
    dropped = diff(llama, after, unowned="drop")
    assert weights(dropped.apply(llama)) == weights(llama.fork({OUT: new[OUT]}))
    assert weights(kept.restrict(kept.localization).apply(llama)) == weights(dropped.apply(llama))


@pytest.mark.usefixtures("unchecked")
def test_models_that_no_edit_leads_between_are_refused(llama: HookedModel) -> None:
    def refused(other: Any, said: str, **options: Any) -> None:
        with pytest.raises((EditError, ModelError), match=said):
            diff(llama, other, **options)

    refused(hf_model("mistral"), "the models differ: LlamaForCausalLM of 2 layers.*and MistralForCausalLM")
    refused(
        llama.to(torch.bfloat16), "in torch.float32 in the first model and in torch.bfloat16 .*one precision"
    )
    refused("gpt2", "from_hf wraps a Hugging Face model in memory")
    refused(llama, "unowned must be one of 'refuse', 'drop' or 'keep'; not 'skip'", unowned="skip")
    infinite = llama.fork({OUT: torch.full((32, 48), torch.inf)})
    refused(infinite, f"the difference of '{OUT}' is not finite")
    tied = hf_model("llama")
    tied.lm_head.weight = tied.model.embed_tokens.weight
    refused(tied, "one of the models has 'lm_head.weight', which the other does not")
    longer = hf_model("llama")
    longer.resize_token_embeddings(97)
    refused(longer, r"shape \(96, 32\) in the first model and \(97, 32\) in the second")
