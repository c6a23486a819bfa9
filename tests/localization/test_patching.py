"""Activation patching of facts, against a twin that runs every word of every fact by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from helpers.patched_facts import FACTS, METRICS, OTHERS, SHORT, agrees, last_logit, patch, wide
from helpers.patching_twin import FactTwin, values
from helpers.patching_twin import full_softmax as full_softmax
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import patching as peer

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import FallbackWarning
from mechunlearn.localization.engine import block_calls as calls
from mechunlearn.localization.patching.activation import activation_patch
from mechunlearn.localization.patching.corruption import Noise
from mechunlearn.localization.patching.positions import interventions
from mechunlearn.localization.subject_swaps import swap_subjects

# Prompts of one token to nineteen, more than the window of some families; words of one token and of several.
# Words of one token alone.
SHORT_OTHERS = (
    OTHERS[0],
    OTHERS[2],
    Fact("w15 w73 w17 w18", "w73", "w20"),
    Fact("w70 w75 w72 w73 w74", "w75", "w20"),
)


def both_ways(
    twin: FactTwin, sets: Any, positions: str, metrics: Sequence[Any], *, denoising: bool
) -> Tensor:
    """The twin's scores between the facts' prompts and the others'."""

    run = cache(lambda f, word: twin.prompt(f, word, other=denoising))
    given = cache(lambda f, word: values(twin.hm, twin.prompt(f, word, other=not denoising)))

    return twin.table(sets, positions, metrics, run, lambda f, word, place: given(f, word))


def test_it_equals_the_twin_in_every_family_on_ragged_prompts_and_whole_answers(family: str) -> None:
    hm = wide(family)
    sites = [
        Site("resid_pre", 0),
        Site("mlp", 1),
        Site("attn", 0),
        Site("head", 1, 2, "q"),
        Site("pattern", 0, 1),
    ]
    metrics = (*METRICS, last_logit)
    found = patch(hm, FACTS, sites=sites, corrupt=OTHERS, metric=metrics)
    twin = FactTwin(hm, FACTS, OTHERS)
    agrees(found, both_ways(twin, [(site,) for site in sites], "groups", metrics, denoising=True))


@pytest.mark.parametrize(
    ("positions", "denoising"), [("each", True), ("all", True), ("each", False), ("groups", False)]
)
def test_both_directions_at_all_sorts_of_positions_equal_the_twin(positions: Any, denoising: bool) -> None:
    hm, facts, others = wide("qwen2"), (FACTS[0], *FACTS[1:3]), OTHERS[:3]
    direction: Any = "denoising" if denoising else "noising"
    found = patch(
        hm, facts, sites=("resid_mid", "head.v"), corrupt=others, direction=direction, positions=positions
    )
    sets = list(interventions(hm, ("resid_mid", "head.v")).values())
    wanted = both_ways(FactTwin(hm, facts, others), sets, positions, METRICS[:1], denoising=denoising)[..., 0]
    agrees(found, wanted[:, :, 0] if positions == "all" else wanted)


def test_columns_of_the_unembedding_give_what_all_logits_give(family: str) -> None:
    hm = wide(family)
    found = patch(hm, SHORT, sites="resid_pre", corrupt=SHORT_OTHERS)
    sets = [(Site("resid_pre", layer),) for layer in range(2)]
    wanted = both_ways(FactTwin(hm, SHORT, SHORT_OTHERS), sets, "groups", METRICS[:1], denoising=True)
    agrees(found, wanted[..., 0])


def test_windows_and_sets_under_one_name_equal_the_twin() -> None:
    hm = wide("gemma2")
    twin = FactTwin(hm, FACTS[:2], OTHERS[:2])
    both = (Site("mlp", 0), Site("mlp", 1))
    found = patch(hm, FACTS[:2], sites="mlp", window=3, corrupt=OTHERS[:2])
    agrees(found, both_ways(twin, [both, both], "groups", METRICS[:1], denoising=True)[..., 0])
    found = patch(hm, FACTS[:2], sites=[Site("mlp", 0), Site("mlp", 1)], window=2, corrupt=OTHERS[:2])
    agrees(found, both_ways(twin, [both[:1], both], "groups", METRICS[:1], denoising=True)[..., 0])
    named = {
        Site("attn", 0): [Site("head", 0, 1), Site("head", 0, 3), Site("kv", 1, 0, "k")],
        Site("mlp", 1): [Site("neuron", 1, n) for n in (0, 5)],
    }
    found = patch(hm, FACTS[:2], sites=named, corrupt=OTHERS[:2])
    agrees(found, both_ways(twin, named.values(), "groups", METRICS[:1], denoising=True)[..., 0])


@pytest.mark.parametrize("corrupt", [OTHERS, Noise(samples=1), "zero", "mean"])
def test_several_metrics_in_one_pass_are_those_of_one_by_one(corrupt: Any) -> None:
    hm = wide("llama")
    options: dict[str, Any] = {"sites": [Site("mlp", 0)], "corrupt": corrupt}
    together = patch(hm, FACTS, metric=(*METRICS, last_logit), **options)
    for column, metric in enumerate((*METRICS, last_logit)):
        np.testing.assert_allclose(
            together[..., column], patch(hm, FACTS, metric=metric, **options), atol=1e-12
        )


@pytest.mark.parametrize("corrupt", [OTHERS, Noise(samples=2), "mean", "resample"])
def test_neither_batch_size_nor_budget_matters(corrupt: Any) -> None:
    hm = wide("gemma2")
    facts = [fact for fact in (*FACTS, *SHORT) for _ in range(2 if corrupt == "resample" else 1)]
    facts = list(FACTS) if corrupt is OTHERS else facts
    options: dict[str, Any] = {
        "sites": ("resid_pre", "mlp"),
        "corrupt": corrupt,
        "metric": METRICS,
    }
    whole = patch(hm, facts, **options)
    found = patch(hm, facts, **options, batch_size=3, budget=7)
    np.testing.assert_allclose(found, whole, rtol=0.0, atol=1e-12)


def test_a_prompt_patched_with_itself_scores_exactly_zero(family: str) -> None:
    kinds = ("resid_pre", "resid_post", "attn", "mlp", "head", "head.q", "head.k", "head.v", "pattern")
    found = patch(wide(family), FACTS, sites=kinds, corrupt=FACTS, metric=METRICS)
    assert (found[~np.isnan(found)] == 0).all() and np.isnan(found).any()


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_whole_stream_is_the_whole_effect(direction: Any) -> None:
    options: dict[str, Any] = {
        "sites": [Site("resid_pre", 0)],
        "positions": "all",
        "metric": METRICS,
        "corrupt": OTHERS,
    }
    found = patch(wide("llama"), FACTS, normalized=True, direction=direction, **options)
    np.testing.assert_allclose(found.mean(0), 1.0, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_it_gives_what_transformer_lens_gives(name: str) -> None:
    hm = wide(name)
    facts = [Fact("w5 w6 w7 w8", "w6", "w20", foil="w21"), Fact("w9 w10 w11 w12", "w10", "w22", foil="w23")]
    others = [Fact("w5 w30 w7 w8", "w30", "w20"), Fact("w9 w31 w11 w12", "w31", "w20")]
    rows = [
        torch.tensor([[int(w[1:]) for w in fact.prompt.split()] for fact in some]) for some in (facts, others)
    ]
    cached = hm.bridge.run_with_cache(rows[0])[1]
    words = torch.tensor([[20, 21], [22, 23]])

    def metric(logits: Tensor) -> Tensor:
        picked = logits[:, -1].gather(1, words)
        return (picked[:, 0] - picked[:, 1]).mean()

    with torch.no_grad():
        base = metric(hm.bridge(rows[1]))
    sweeps: dict[str, tuple[Any, str]] = {
        "resid_pre": (peer.get_act_patch_resid_pre, "each"),
        "attn": (peer.get_act_patch_attn_out, "each"),
        "mlp": (peer.get_act_patch_mlp_out, "each"),
        "head": (peer.get_act_patch_attn_head_out_by_pos, "each"),
        "head.q": (peer.get_act_patch_attn_head_q_all_pos, "all"),
        "pattern": (peer.get_act_patch_attn_head_pattern_all_pos, "all"),
    }
    if name == "gpt2":
        sweeps["head.k"] = (peer.get_act_patch_attn_head_k_by_pos, "each")
        sweeps["head.v"] = (peer.get_act_patch_attn_head_v_all_pos, "all")
    # resid_mid is left out: TransformerLens writes it on its way into the norm, and the stream passes beside.
    for kind, (peers, positions) in sweeps.items():
        wanted = peers(hm.bridge, rows[1], cached, metric) - base
        if wanted.ndim == 3:  # layer pos head
            wanted = wanted.transpose(1, 2)
        found = patch(hm, facts, sites=kind, corrupt=others, positions=positions).mean(0)
        agrees(found.reshape(wanted.shape), wanted, atol=1e-6)  # its results are in float32


def test_another_subject_is_a_prompt_like_any_other() -> None:
    hm, facts = wide("mistral"), [fact for fact in SHORT if len(fact.subject) < 4]
    swapped = swap_subjects(hm, facts, seed=2).swapped
    found = patch(hm, facts, sites="mlp", seed=2, normalized=True)
    np.testing.assert_array_equal(found, patch(hm, facts, sites="mlp", corrupt=swapped, normalized=True))


def test_it_says_which_facts_found_another_subject_and_numbers_them_as_given() -> None:
    facts = [
        Fact("w1 w2 w3 w4", "w1 w2", "w20", foil="w21"),
        *(Fact(f"w{i} w4", f"w{i}", "w20", foil="w21") for i in (5, 6)),
    ]
    seen: list[int] = []

    def metric(logits: Tensor, numbers: Tensor) -> Tensor:
        seen.extend(numbers.tolist())
        return logits[:, 0]

    scores = activation_patch(wide("llama"), facts, metric=metric, progress=False)
    assert "2 of 3 facts" in scores.title and set(seen) == {1, 2}


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_half_precision_is_reported_with_its_own_noise(name: str) -> None:
    hm, sites = wide(name).to(torch.bfloat16), [Site("resid_pre", 0), Site("mlp", 0)]
    scores = activation_patch(hm, FACTS, sites=sites, corrupt=OTHERS, progress=False)
    title, _, rest = scores.title.rpartition(", ±")
    noise, sets = float(rest.removesuffix(" from batch shapes")), [(site,) for site in sites]
    wanted = both_ways(FactTwin(hm, FACTS, OTHERS), sets, "groups", METRICS[:1], denoising=True)[..., 0]
    assert title == "Activation patching: denoising, corrupted by given prompts" and 0 < noise < 0.1
    assert np.nanmax(np.abs(scores.values.values - wanted.numpy())) <= 6 * noise
    plain = activation_patch(wide(name), FACTS, sites=sites, corrupt=OTHERS, progress=False)
    assert "±" not in plain.title
    assert np.nanmax(np.abs(scores.values.values - plain.values.values)) <= 20 * noise


def test_the_bar_counts_every_site_place_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar(tqdm):  # type: ignore[misc]
        def close(self) -> None:
            bars.append((self.total, self.n))
            super().close()

    monkeypatch.setattr(
        "mechunlearn.localization.patching.activation.tqdm",
        lambda **options: Bar(**{**options, "disable": False, "file": StringIO()}),
    )
    for corrupt in (OTHERS, "noise", "zero"):
        activation_patch(wide("llama"), FACTS, sites="mlp", corrupt=corrupt, batch_size=3)
    assert len(bars) >= 3 and all(total == count for total, count in bars)


def test_an_interruption_leaves_nothing_behind() -> None:
    hm = wide("llama")
    before = [set(block._forward_pre_hooks) for block in hm.bridge.blocks]

    def stop(logits: Tensor, facts: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch(hm, FACTS, metric=stop, corrupt=OTHERS)
    assert not any(point.fwd_hooks for point in hm.hook_dict.values())
    assert [set(block._forward_pre_hooks) for block in hm.bridge.blocks] == before


def test_a_model_that_needs_complete_runs_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"sites": ("resid_pre", "head.k"), "corrupt": OTHERS, "metric": METRICS}
    wanted, hm = patch(wide("llama"), FACTS, **options), wide("llama").fork()
    monkeypatch.setattr(calls.PrefixCache, "update", lambda self, keys, values, *_, **__: (keys, values))
    with pytest.warns(FallbackWarning, match="every patch is a complete run"):
        complete = patch(hm, FACTS, **options)
    np.testing.assert_allclose(complete, wanted, rtol=0.0, atol=1e-10)
