"""Scores of parts combine into scores of components, and means come with intervals over facts."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from helpers.handmade_scores import (
    ATTNS,
    LAYERS,
    MLPS,
    SITES,
    TOTAL,
    component_scores,
    numbers,
    probe,
    trace,
)
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from transformer_lens.utilities.statistics import bootstrap_ci

from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.core.statistics import bootstrap_interval
from mechunlearn.errors import ScoresError

HEADS = [site for site in SITES.heads() if site.kind == "head"]


class TestCombine:
    @given(arrays(np.float64, (3, 32, 4), elements=numbers))
    @settings(max_examples=20)
    def test_heads_of_a_layer_become_its_attention_for_every_fact_and_position(self, values: Any) -> None:
        scores = trace(values, sites=HEADS)
        stacked = values.reshape(3, LAYERS, 4, 4)
        for how, expected in (
            ("sum", stacked.sum(2)),
            ("mean", stacked.mean(2)),
            ("max", np.where(stacked.max(2) >= -stacked.min(2), stacked.max(2), stacked.min(2))),
        ):
            combined = inspect.unwrap(Scores.combine)(scores, how)
            assert combined.sites == tuple(ATTNS) and combined.values.dims == ("fact", "site", "pos")
            if how == "max":
                assert np.allclose(abs(combined.values.values), abs(expected))
                continue
            assert np.allclose(combined.values.values, expected)
            assert np.allclose(
                combined.mean("fact").values, inspect.unwrap(Scores.combine)(scores.mean("fact"), how).values
            )

    def test_the_farthest_from_zero_keeps_its_sign(self) -> None:
        heads = HEADS[:4]
        scores = Scores.of(np.array([0.2, -0.9, 0.5, 0.0]), heads)
        assert scores.combine("max").values.values.tolist() == [-0.9]
        assert scores.combine().values.values.tolist() == [pytest.approx(-0.2)]
        assert scores.combine("mean").title == "scores, parts combined by mean"

    def test_parts_of_heads_and_groups_neurons_and_halves_find_their_component(self) -> None:
        names = (
            "L0.head[0]", "L0.head[1].q", "L0.kv[0].k", "L0.mlp.in", "L0.mlp.out", "L1.mlp.neuron[3]",
            "embed", "L2.attn",
        )  # fmt: skip
        combined = Scores.of(2.0 ** np.arange(8), [Site.parse(name) for name in names]).combine()
        assert list(map(str, combined.sites)) == ["L0.attn", "L0.mlp", "L1.mlp", "embed", "L2.attn"]
        assert combined.values.values.tolist() == [7, 24, 32, 64, 128]
        assert combined.values["kind"].values.tolist() == ["attn", "mlp", "mlp", "embed", "attn"]

    def test_a_component_counts_all_its_parameters(self) -> None:
        scores = Scores.of(np.ones(3), [HEADS[0], HEADS[1], MLPS[1]])
        for combined in (
            scores.combine(sites=SITES),
            Scores.of(np.ones(3), scores.sites, params=SITES).combine(),
        ):
            assert combined.values["params"].values.tolist() == [1600, 3000]
            assert combined.values.attrs["total_params"] == TOTAL
            assert combined.top(params=1600) == Localization(["L0.attn"])
        with pytest.raises(ScoresError, match=r"or select by k .* scores\.combine\(sites=hm\.sites\)"):
            scores.combine().top(params=0.5)
        assert scores.combine().top(1) == Localization(["L0.attn"])

    def test_what_is_whole_stays_as_it_is(self) -> None:
        scores = component_scores(np.arange(16.0))
        assert scores.combine("max") == scores

    def test_tokens_metrics_and_evidence_stay(self) -> None:
        scores = Scores.of(
            np.ones((4, 2, 2)), HEADS[:4], dims=("site", "pos", "metric"), tokens=[" a", " a"],
            metrics={"logit_diff": "logits", "probability": "share"}, evidence={"probe": probe()},
        )  # fmt: skip
        combined = scores.combine()
        assert combined.values["token"].values.tolist() == [" a", " a"]
        assert combined.evidence["probe"] == probe()
        assert combined.sel(metric="probability").values.attrs["unit"] == "share"

    def test_what_does_not_exist_for_one_part_does_not_for_the_whole(self) -> None:
        scores = Scores.of(np.array([0.2, np.nan, 0.5, 0.0]), HEADS[:4])
        for how in ("sum", "mean", "max"):
            assert np.isnan(inspect.unwrap(Scores.combine)(scores, how).values.values).all()

    def test_what_cannot_be_combined_is_refused(self) -> None:
        heads = Scores.of(np.zeros(2), [Site("head", 0, 1), Site("attn", 0)])
        with pytest.raises(ScoresError, match=r"L0\.attn is scored whole and in parts, as L0\.head\[1\]"):
            heads.combine()
        with pytest.raises(ScoresError, match=r"L0\.resid_mid is a state and part of no component; keep"):
            probe().combine()
        with pytest.raises(ScoresError, match="how must be one of 'sum', 'mean' or 'max'; not 'min'"):
            inspect.unwrap(Scores.combine)(heads, "min")


class TestIntervals:
    def test_every_interval_is_that_of_its_site_alone(self) -> None:
        values = np.random.default_rng(0).normal(size=(9, 8, 4))
        values[0, 1], values[3:5, 1, 2], values[1:, 2, 0], values[:, 3, 3] = np.nan, np.nan, np.nan, np.nan
        frame = trace(values).intervals(level=0.9, seed=3, samples=300)
        assert len(frame) == 8 * 4
        for row in frame.to_dict("records"):
            mine = values[:, row["layer"], row["pos"]]
            mine = mine[~np.isnan(mine)]
            alone = bootstrap_interval(mine, seed=3, level=0.9, samples=300) if len(mine) else None
            assert row["facts"] == len(mine)
            expected = [alone.mean, alone.low, alone.high] if alone else [np.nan] * 3
            assert [row["mean"], row["low"], row["high"]] == pytest.approx(expected, nan_ok=True)

    def test_they_agree_with_those_of_transformer_lens(self) -> None:
        values = np.random.default_rng(1).exponential(size=(32, 8))
        frame = Scores.of(values, MLPS, dims=("fact", "site")).intervals(samples=20_000)
        low, high = bootstrap_ci(torch.tensor(values), dim=0, n_resamples=20_000)
        assert np.allclose(frame["low"], low, atol=0.02) and np.allclose(frame["high"], high, atol=0.02)

    def test_samples_are_averaged_and_labels_kept(self) -> None:
        values = np.random.default_rng(2).normal(size=(5, 3, 2, 16, 2))
        scores = Scores.of(
            values, MLPS + ATTNS, dims=("fact", "sample", "pos", "site", "metric"),
            tokens=["a", "b"], metrics=["f", "g"],
        )  # fmt: skip
        frame = scores.intervals()
        labels = ["site", "layer", "kind", "head", "params", "pos", "token", "metric"]
        assert set(frame.columns) == {*labels, "mean", "low", "high", "facts"}
        assert list(frame.columns[-4:]) == ["mean", "low", "high", "facts"]
        (row,) = frame.query("site == 'L3.attn' and pos == 1 and metric == 'g'").to_dict("records")
        alone = bootstrap_interval(values[:, :, 1, 11, 1].mean(1), seed=0)
        assert [row["mean"], row["low"], row["high"]] == pytest.approx([alone.mean, alone.low, alone.high])

    def test_draws_in_blocks_are_the_same_draws(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = Scores.of(np.random.default_rng(3).normal(size=(7, 8)), MLPS, dims=("fact", "site"))
        at_once = scores.intervals(samples=100)
        monkeypatch.setattr("mechunlearn.core.scores.intervals._BLOCK", 210)
        assert scores.intervals(samples=100)[["low", "high"]].equals(at_once[["low", "high"]])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"level": 1.0}, "level must lie between 0 and 1, as 0.95 does; not 1.0"),
            ({"samples": 0}, "samples must be 1 or more, such as 2000; not 0"),
        ],
    )
    def test_options_out_of_range_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ScoresError, match=message):
            trace(np.zeros((2, 8, 4))).intervals(**options)

    def test_without_facts_there_is_nothing_to_resample(self) -> None:
        with pytest.raises(
            ScoresError, match="a dimension of these scores must be one of 'site'; not 'fact'"
        ):
            component_scores(np.zeros(16)).intervals()
