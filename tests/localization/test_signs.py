"""One sign: above 0 a site supports the answer, in every mode of every localizer and in every selection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers.planted import planted_facts, planted_model

import mechunlearn as mu
from mechunlearn.core.scores.edges import EdgeScores
from mechunlearn.core.scores.scores import Scores

Localizer = Callable[[mu.HookedModel, mu.Facts], Scores | EdgeScores]
LOOKUP = mu.Site.parse("L1.mlp")


def patched(**options: object) -> Localizer:
    def run(hm: mu.HookedModel, facts: mu.Facts) -> Scores:
        return mu.activation_patch(hm, facts, sites="mlp", progress=False, **options)  # type: ignore[arg-type]

    return run


def sent(**options: object) -> Localizer:
    def run(hm: mu.HookedModel, facts: mu.Facts) -> Scores:
        return mu.path_patch(hm, facts, "mlp", ["L2.attn"], progress=False, **options)  # type: ignore[arg-type]

    return run


MODES: dict[str, Localizer] = {
    **{
        f"patching, {direction}, {metric}": patched(direction=direction, metric=metric)
        for direction in ("denoising", "noising")
        for metric in ("logit_diff", "logprob", "probability", "kl")
    },
    "patching, normalized": patched(normalized=True),
    "patching, noising, normalized": patched(direction="noising", normalized=True),
    "patching, noise": patched(corrupt="noise"),
    "patching, noise into the clean run": patched(corrupt="noise", direction="noising"),
    **{f"ablation, {name}": patched(corrupt=name) for name in ("zero", "mean", "resample")},
    "ablation, kl": patched(corrupt="zero", metric="kl"),
    "tracing": lambda hm, facts: mu.causal_trace(hm, facts, progress=False),
    "tracing, guo2024": lambda hm, facts: mu.causal_trace(
        hm, facts, convention="guo2024", progress=False
    ).only("mlp"),
    "paths, noising": sent(),
    "paths, denoising": sent(direction="denoising"),
    "paths, kl": sent(metric="kl"),
    "paths, normalized": sent(normalized=True),
    "attribution": lambda hm, facts: mu.attribution(hm, facts, sites="mlp", progress=False),
    "edges": lambda hm, facts: mu.edge_attribution(hm, facts, progress=False).nodes().only("mlp"),
    "edges over inputs": lambda hm, facts: mu.edge_attribution(
        hm, facts, method="eap-ig-inputs", progress=False
    ).nodes().only("mlp"),
    "lookup": lambda hm, facts: mu.fact_lookup(hm, facts, progress=False),
    "lookup by paths": lambda hm, facts: mu.path_lookup(hm, facts, progress=False),
    "measured": lambda hm, facts: mu.verify(
        hm, mu.attribution(hm, facts, sites="mlp", progress=False), 2, progress=False
    ).sel(metric="exact"),
}  # fmt: skip


@pytest.fixture(scope="module")
def hm() -> mu.HookedModel:
    """The model whose MLP 1 looks the answer up (read-only)."""
    return planted_model()


@pytest.mark.parametrize("mode", MODES)
def test_the_planted_lookup_is_above_0_and_selected(hm: mu.HookedModel, mode: str) -> None:
    scores = MODES[mode](hm, planted_facts())
    assert isinstance(scores, Scores)
    reduced = scores.reduce().values
    assert float(reduced.sel(site="L1.mlp")) > 0.01
    assert LOOKUP in scores.above(0.0)
    assert LOOKUP in scores.top(min(2, int((reduced > 0).sum())), by="signed")


@pytest.mark.parametrize("mode", ["patching, noising, kl", "ablation, zero", "attribution", "paths, noising"])
def test_the_raw_change_is_the_other_way_round_where_something_is_taken_away(
    hm: mu.HookedModel, mode: str
) -> None:
    scores = MODES[mode](hm, planted_facts())
    sign = 1 if mode.endswith("kl") else -1
    np.testing.assert_array_equal(scores.change.values.values, sign * scores.values.values)
    assert "support" not in scores.change.values.attrs["unit"]


def test_several_metrics_have_a_raw_change_each(hm: mu.HookedModel) -> None:
    both = mu.activation_patch(
        hm, planted_facts(), sites="mlp", direction="noising", metric=("logit_diff", "kl"), progress=False
    )
    signs = np.array([-1, 1])
    np.testing.assert_array_equal(both.change.values.values, both.values.values * signs)
    for name, sign in zip(("logit_diff", "kl"), signs, strict=True):
        one = both.sel(metric=name)
        np.testing.assert_array_equal(one.change.values.values, sign * one.values.values)


def test_the_sum_of_edges_keeps_its_raw_change(hm: mu.HookedModel) -> None:
    edges = mu.edge_attribution(hm, planted_facts(), progress=False)
    np.testing.assert_array_equal(
        edges.nodes().change.values.values, edges.change.nodes().values.values
    )  # fmt: skip
