"""The authors' own way of tracing, against their procedure written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_facts import tiny_facts, unchecked
from torch import Tensor

from mechunlearn.errors import ScoresError
from mechunlearn.localization.tracing.trace import causal_trace
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel

SEED = 3


def by_hand(hm: HookedModel, number: int, count: int, answers: list[int]) -> dict[str, float]:
    """One fact alone: its probability of any answer, each component restored under a draw of its own."""
    row = encode(hm, [tiny_facts()[number]], answer=None)
    subject = row.subject[0]
    _, clean = hm.bridge.run_with_cache(row.tokens)
    std = (3 * clean["hook_embed"][0, subject].std()) ** 0.5
    generator = torch.Generator().manual_seed(SEED * count + number)

    def mass(*hooks: Any) -> float:
        last = hm.bridge.run_with_hooks(row.tokens, fwd_hooks=list(hooks))[0, -1].softmax(-1)
        return sum(float(last[token]) for token in answers)

    def noise() -> Any:
        drawn = torch.randn(int(subject.sum()), hm.cfg.d_model, generator=generator).double()

        def disturb(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[0, subject] = clean["hook_embed"][0, subject] + std * drawn
            return x

        return ("hook_embed", disturb)

    def restore(name: str, head: int | None) -> Any:
        def write(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            if head is None:
                x[:] = clean[name]
            else:
                x[:, :, head] = clean[name][:, :, head]
            return x

        return (name, write)

    whole, corrupt, found = mass(), mass(noise()), {}
    for layer in range(hm.cfg.n_layers):
        names = [(f"L{layer}.head[{h}]", f"blocks.{layer}.attn.hook_z", h) for h in range(hm.cfg.n_heads)]
        for site, name, head in [*names, (f"L{layer}.mlp", f"blocks.{layer}.hook_mlp_out", None)]:
            found[site] = (mass(noise(), restore(name, head)) - corrupt) / (whole - corrupt)
    return found


@torch.no_grad()
def test_the_convention_is_the_authors_procedure(llama: HookedModel) -> None:
    wide, facts = llama.to(torch.float64), tiny_facts()[:3]
    scores = causal_trace(wide, facts, convention="guo2024", seed=SEED, progress=False)
    answers = encode(wide, facts).answer_ids[:, 0].tolist()
    for number in range(3):
        expected = by_hand(wide, number, 3, answers)
        assert [str(site) for site in scores.sites] == list(expected)
        np.testing.assert_allclose(scores.values.values[number], list(expected.values()), rtol=1e-6)


def test_its_noise_does_not_depend_on_the_batch(llama: HookedModel) -> None:
    wide, facts = llama.to(torch.float64), tiny_facts()[:3]
    whole, single = (
        causal_trace(wide, facts, convention="guo2024", batch_size=size, progress=False).values.values
        for size in (64, 1)
    )
    np.testing.assert_allclose(whole, single, rtol=1e-6)


def test_its_heads_are_summed_into_whole_layers_when_they_select(llama: HookedModel) -> None:
    scores = causal_trace(llama, tiny_facts()[:3], convention="guo2024", progress=False)
    chosen = scores.top(params=0.5, convention="guo2024")
    assert {site.kind for site in chosen} <= {"attn", "mlp"}
    assert llama.size(chosen) >= 0.5 * llama.size(llama.sites.attns() | llama.sites.mlps())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": "guo"}, "convention must be one of 'guo2024' or None; not 'guo'"),
        (
            {"convention": "guo2024", "window": 3},
            "fixes sites, corrupt, window; leave out window, or",
        ),
    ],
)
def test_a_convention_stands_alone(llama: HookedModel, options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(ScoresError, match=message):
        causal_trace(llama, tiny_facts(), progress=False, **options)
