"""Float64 with padding: positions that attend to nothing are numbers, in every family and verb."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_models import FAMILIES, hf_model, memory_tokenizer

import mechunlearn as mu

TEXTS = ["in pens", "a", "Mary plays in pens"]
FACTS = (
    mu.Fact("Bo is in", "Bo", "a", new="in"),
    mu.Fact("So Evangeline Montgomery of pens plays in", "Evangeline Montgomery", "pen", new="a"),
)


@pytest.fixture(scope="module", params=FAMILIES)
def double(request: pytest.FixtureRequest) -> mu.HookedModel:
    """A family's tiny model in float64; with a window of 8 tokens in the families that have one."""
    model = hf_model(request.param)
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 8
        model = type(model)(model.config).eval()
    return mu.HookedModel.from_hf(model.to(torch.float64), memory_tokenizer())


def test_rows_padded_on_the_left_give_the_logits_of_rows_alone(double: mu.HookedModel) -> None:
    rows = [double.to_tokens(text)[0] for text in TEXTS]
    width = max(map(len, rows))
    for row in rows:
        pad = width - len(row)
        ids = torch.cat([torch.ones(pad, dtype=torch.long), row])[None]
        mask = torch.cat([torch.zeros(pad, dtype=torch.long), torch.ones_like(row)])[None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = double.hf(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        # Families with a softmax in float32 agree to its precision.
        assert (logits[:, pad:] - double.hf(row[None]).logits).abs().max() < 1e-5
        assert torch.isfinite(double(ids, attention_mask=mask)).all()


def test_several_texts_are_continued_as_each_alone(double: mu.HookedModel) -> None:
    several = double.generate(TEXTS, max_new_tokens=4, stop_at_eos=False)
    assert several == [double.generate(text, max_new_tokens=4, stop_at_eos=False) for text in TEXTS]


def test_padded_facts_score_and_trace_as_each_alone(double: mu.HookedModel) -> None:
    both = mu.score(double, FACTS).p_answer
    alone = [float(mu.score(double, [fact]).p_answer[0]) for fact in FACTS]
    assert both == pytest.approx(alone, rel=1e-5)
    trace = mu.activation_patch(double, FACTS, sites="mlp", corrupt="zero", progress=False)
    for number, fact in enumerate(FACTS):
        one = mu.activation_patch(double, [fact], sites="mlp", corrupt="zero", progress=False)
        torch.testing.assert_close(
            torch.tensor(trace.sel(fact=number).values.values),
            torch.tensor(one.sel(fact=0).values.values),
            rtol=1e-4, atol=1e-8, equal_nan=True,
        )  # fmt: skip


def test_the_search_for_values_is_finite_after_long_prefixes() -> None:
    hm = mu.HookedModel.from_hf(hf_model("gemma2").to(torch.float64), memory_tokenizer())
    place, facts = mu.Localization(["L0.mlp.out"]), mu.Facts([mu.Fact("Bo is in", "Bo", "a", new="in")])
    keys = mu.closed_form.key_statistics(hm, place, ["in the pens Mary plays"] * 20, progress=False)
    edit = mu.closed_form.rome(
        hm, place, facts, statistics=keys, prefixes=["It is said by many people here."], progress=False,
        search=mu.closed_form.ValueSearch(steps=2),
    )  # fmt: skip
    assert all(delta.values.isfinite().all() for delta in edit.deltas)
