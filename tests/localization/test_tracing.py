"""Causal tracing against a slow twin, and on a model whose mechanism is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from helpers.planted import planted_facts, planted_model
from helpers.tiny_facts import tiny_facts, unchecked
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, SiteError
from mechunlearn.localization.patching.activation import activation_patch
from mechunlearn.localization.patching.corruption import Noise
from mechunlearn.localization.tracing.trace import causal_trace, noised_embeddings, trace_hooks
from mechunlearn.models.encoding.batch import GROUPS, token_groups
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel

NOISE, SAMPLES, SEED = 2.0, 2, 7
# Probabilities are small in a model that knows nothing, so the tolerance is relative.
TIGHT: Any = {"rtol": 1e-6, "atol": 1e-14}


@cache
def planted() -> HookedModel:
    return planted_model()


class Slow:
    """The same by its definition: one fact, one sample, one place at a time, hooks written by hand."""

    def __init__(self, hm: HookedModel, facts: Sequence[Fact]) -> None:
        self.bridge, self.layers = hm.bridge, hm.arch.shape.n_layers
        self.rows = [encode(hm, [fact]) for fact in facts]
        self.clean = [self.bridge.run_with_cache(row.tokens)[1] for row in self.rows]
        subjects = [
            clean["hook_embed"][row.subject] for clean, row in zip(self.clean, self.rows, strict=True)
        ]
        std, width = NOISE * torch.cat(subjects).std(), subjects[0].shape[-1]
        generator = torch.Generator().manual_seed(SEED)
        sizes = [(SAMPLES, len(subject), width) for subject in subjects]
        self.noise = [std * torch.randn(*size, generator=generator).double() for size in sizes]

    def groups(self, fact: int) -> Tensor:
        """The group of every position at which a state is restored; the last answer token is not read at."""
        groups, end = token_groups(self.rows[fact])[0], int(self.rows[fact].end)
        groups[end + 1 : -1] = groups[end]
        return groups

    def p(self, fact: int, hooks: Sequence[Any] = ()) -> float:
        row = self.rows[fact]
        logits = self.bridge.run_with_hooks(row.tokens, fwd_hooks=list(hooks))[0, row.answer_positions[0]]
        return float(logits.softmax(-1).gather(1, row.answer_ids[0][:, None]).prod())

    def corrupt(self, fact: int, sample: int) -> Any:
        def disturb(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[self.rows[fact].subject] += self.noise[fact][sample]
            return x

        return ("hook_embed", disturb)

    def mend(self, fact: int, name: str, group: int) -> Any:
        def restore(x: Tensor, hook: Any) -> Tensor:
            x, at = x.clone(), self.groups(fact) == group
            x[0, at] = self.clean[fact][name][0, at]
            return x

        return (name, restore)

    def trace(self, point: str, window: int) -> Tensor:
        result = torch.full((len(self.rows), self.layers, len(GROUPS)), torch.nan, dtype=torch.float64)
        for fact, layer in product(range(len(self.rows)), range(self.layers)):
            near = range(max(0, layer - window // 2), min(self.layers, layer + (window + 1) // 2))
            for group in set(self.groups(fact).tolist()) - {-1}:
                mended = [self.mend(fact, f"blocks.{n}.{point}", group) for n in near]
                noises = [self.corrupt(fact, sample) for sample in range(SAMPLES)]
                gains = [self.p(fact, [noise, *mended]) - self.p(fact, [noise]) for noise in noises]
                result[fact, layer, group] = sum(gains) / SAMPLES
        return result


def trace(hm: HookedModel, facts: Any, **options: Any) -> np.ndarray[Any, Any]:
    defaults: dict[str, Any] = {"corrupt": Noise(NOISE, SAMPLES), "seed": SEED, "progress": False}
    values: np.ndarray[Any, Any] = causal_trace(hm, facts, **(defaults | options)).values.values
    return values


@torch.no_grad()
def test_it_equals_the_slow_twin_in_every_family(hm: HookedModel) -> None:
    wide, facts = hm.to(torch.float64), tiny_facts()[3:5]
    slow = Slow(wide, facts)
    found = trace(wide, facts, sites=("mlp", "resid_post"))
    np.testing.assert_allclose(found[:, ::2], slow.trace("hook_mlp_out", 1), **TIGHT, equal_nan=True)
    # The last residual where the answer is read is all that the answer depends on.
    lost = [slow.p(f) - np.mean([slow.p(f, [slow.corrupt(f, s)]) for s in range(SAMPLES)]) for f in range(2)]
    np.testing.assert_allclose(found[:, -1, GROUPS.index("last")], lost, **TIGHT)
    assert np.abs(lost).min() > 1e-9


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "point", "window"),
    [("attn", "hook_attn_out", 1), ("attn", "hook_attn_out", 3), ("resid_post", "hook_resid_post", 2)],
)
def test_it_equals_the_slow_twin_for_every_restoration(
    llama: HookedModel, kind: str, point: str, window: int
) -> None:
    wide, facts = llama.to(torch.float64), tiny_facts()[2:4]
    found = trace(wide, facts, sites=kind, window=window)
    np.testing.assert_allclose(found, Slow(wide, facts).trace(point, window), **TIGHT, equal_nan=True)


def test_facts_of_different_length_share_batches_without_touching_each_other(llama: HookedModel) -> None:
    wide, facts = llama.to(torch.float64), tiny_facts()
    whole = trace(wide, facts, batch_size=64)
    np.testing.assert_allclose(trace(wide, facts, batch_size=3), whole, atol=1e-12)
    single = [fact.subject for fact in facts].index("G")
    assert np.isnan(whole[single, :, GROUPS.index("first_subject")]).all()


def test_the_same_seed_gives_the_same_scores_and_another_seed_others(llama: HookedModel) -> None:
    facts = tiny_facts()
    assert np.array_equal(trace(llama, facts), trace(llama, facts), equal_nan=True)
    assert not np.array_equal(trace(llama, facts), trace(llama, facts, seed=8), equal_nan=True)


def test_a_planted_lookup_is_found_at_the_subject_and_its_carrier_at_the_end() -> None:
    scores = causal_trace(
        planted(), planted_facts()[:12], sites=("attn", "mlp"), corrupt=Noise(samples=2), progress=False
    )
    assert set(map(str, scores.top(3))) == {"L1.mlp", "L2.attn", "L3.mlp"}
    assert scores.only("mlp").sel(pos="last_subject").top(1) == Localization(["L1.mlp"])
    assert scores.sel(pos="last").top(1) == Localization(["L2.attn"])
    mlps = causal_trace(
        planted(), planted_facts()[:12], sites="mlp", corrupt=Noise(samples=2), progress=False
    )
    assert set(map(str, mlps.top(1))) == {"L1.mlp"}
    assert float(mlps.only("mlp").sel(pos="last_subject").reduce().values[1]) > 0.4


def test_scores_of_the_residual_stream_select_nothing() -> None:
    scores = causal_trace(
        planted(), planted_facts()[:2], sites="resid_post", corrupt=Noise(samples=1), progress=False
    )
    with pytest.raises(ScoresError, match="select nothing"):
        scores.top(1)


def test_an_interrupted_trace_leaves_no_hook_and_no_changed_weight(llama: HookedModel) -> None:
    before, tokens = llama.identity, torch.tensor([[0, 5, 6]])
    logits = llama(tokens)
    with pytest.raises(KeyboardInterrupt), llama.hooks([("blocks.0.hook_mlp_out", interrupt)]):
        causal_trace(llama, tiny_facts(), progress=False)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in llama.hook_dict.values())
    assert torch.equal(logits, llama(tokens)) and llama.identity == before


def interrupt(activation: Tensor, hook: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sites": "mpl"},
            "sites must be one of 'resid_post', 'mlp' or 'attn'; not 'mpl', or a tuple of them",
        ),
        ({"sites": ()}, "sites must name one or more different kinds"),
        ({"sites": ("mlp", "mlp")}, "sites must name one or more different kinds"),
        ({"corrupt": "mean"}, r"corrupt must be one of 'noise'; not 'mean'; with options: mu.Noise\(...\)"),
        ({"window": -1}, "window must be above zero; not -1"),
        ({"batch_size": 0}, "batch_size must be above zero; not 0"),
        ({"batch_size": 0, "convention": "guo2024"}, "batch_size must be above zero; not 0"),
    ],
)
def test_options_out_of_range_are_errors(llama: HookedModel, options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(ScoresError, match=message):
        causal_trace(llama, tiny_facts(), progress=False, **options)


@torch.no_grad()
@pytest.mark.parametrize(
    ("text", "window"), [("L0.mlp", 3), ("L0.attn", 1), ("L0.resid_post", 1), ("L0.resid_mid", 1)]
)
def test_hooks_run_the_very_cell_that_is_scored(llama: HookedModel, text: str, window: int) -> None:
    wide, facts, site = llama.to(torch.float64), tiny_facts()[2:5], Site.parse(text)
    options: Any = {"corrupt": Noise(NOISE, SAMPLES), "seed": SEED}
    batch, noised = noised_embeddings(wide, facts, **options)
    _, clean = wide.run_with_cache(batch.tokens, attention_mask=batch.mask)
    answers = encode(wide, facts).rows(torch.arange(len(facts)).repeat_interleave(SAMPLES))

    def p(at: Tensor) -> Tensor:
        hooks = trace_hooks(wide, site, clean=clean, noised=noised, at=at, window=window)
        logits = wide.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=hooks)
        read = logits.log_softmax(-1).gather(
            1, answers.answer_positions[..., None].expand(-1, -1, logits.shape[-1])
        )
        words = read.gather(2, answers.answer_ids.clamp(min=0)[..., None])[..., 0]
        whole: Tensor = (words * (answers.answer_ids >= 0)).sum(1).exp()
        return whole.view(-1, SAMPLES).mean(1)

    found = p(batch.subject_last) - p(torch.zeros_like(batch.subject))
    options |= {"window": window, "progress": False}
    if site.kind == "resid_mid":
        options |= {"metric": "probability"}
        scores = activation_patch(wide, facts, sites=[site], **options)
    else:
        kind: Any = site.kind
        scores = causal_trace(wide, facts, sites=kind, **options)
    scored = scores.sel(pos="last_subject").values.sel(site=text)
    np.testing.assert_allclose(found, scored, **TIGHT)
    assert np.abs(scored).min() > 1e-9


def test_what_lies_at_no_single_token_cannot_be_restored_by_hooks(llama: HookedModel) -> None:
    batch, noised = noised_embeddings(llama, tiny_facts()[:1], corrupt=Noise(samples=1))
    with pytest.raises(
        SiteError,
        match=r"L1.pattern\[2\] mixes tokens .* L1.head\[2\], or patch patterns",
    ):
        trace_hooks(llama, Site("pattern", 1, 2), clean={}, noised=noised, at=batch.subject_last)


@pytest.mark.parametrize("option", ["scale", "samples"])
def test_noise_has_a_scale_and_samples_above_zero(option: str) -> None:
    options: Any = {option: 0}
    with pytest.raises(ScoresError, match=f"{option} must be above zero; not 0"):
        Noise(**options)


def test_embeddings_are_corrupted_by_noise_alone(llama: HookedModel) -> None:
    subject: Any = "subject"
    with unchecked(), pytest.raises(ScoresError, match="corrupt must be one of 'noise'; not 'subject'"):
        noised_embeddings(llama, tiny_facts(), corrupt=subject)
