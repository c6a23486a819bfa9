"""Scores label an array, and reduce it explicitly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.handmade_scores import (
    ATTNS,
    MLPS,
    SITES,
    TOTAL,
    component_scores,
    counts,
    numbers,
    probe,
    trace,
)
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError


class TestLabels:
    def test_every_site_carries_what_is_known_of_it(self) -> None:
        sites = [Site.parse(text) for text in ("embed", "L2.head[3]", "L2.resid_mid", "L4.mlp.neuron[7]")]
        values = Scores.of(np.arange(4.0), sites, params=counts(sites)).values
        assert values["site"].values.tolist() == ["embed", "L2.head[3]", "L2.resid_mid", "L4.mlp.neuron[7]"]
        assert values["layer"].values.tolist() == [-1, 2, 2, 4]
        assert values["kind"].values.tolist() == ["embed", "head", "resid_mid", "neuron"]
        assert values["head"].values.tolist() == [-1, 3, -1, -1]
        assert values["params"].values.tolist() == [5000, 400, 0, 30]
        assert values.attrs == {
            "title": "scores", "unit": "score", "total_params": 5430, "components": {"embed": 5000},
            "change_sign": 1,
        }  # fmt: skip

    def test_the_sites_of_a_model_count_parameters(self) -> None:
        sites = [Site.parse(text) for text in ("L2.head[3]", "L2.resid_mid", "L4.mlp.neuron[7]", "L4.mlp")]
        values = Scores.of(np.arange(4.0), sites, params=SITES).values
        assert values["params"].values.tolist() == [400, 0, 30, 3000]
        assert values.attrs["total_params"] == TOTAL
        assert values.attrs["components"] == {"L2.attn": 1600, "L4.mlp": 3000}
        assert (
            Scores.of(np.zeros(1), [Site("embed")], params=SITES).values.attrs["total_params"] == TOTAL + 5000
        )

    def test_sites_come_back(self) -> None:
        assert component_scores(np.zeros(16)).sites == tuple(MLPS + ATTNS)

    def test_tokens_may_repeat(self) -> None:
        tokens = [" the", " sport", " the"]
        scores = Scores.of(np.eye(3)[:1], MLPS[:1], dims=("site", "pos"), tokens=tokens)
        assert scores.values["token"].values.tolist() == tokens
        assert scores.values["pos"].values.tolist() == [0, 1, 2]

    def test_a_half_precision_tensor_on_a_graph_is_taken(self) -> None:
        values = torch.tensor([0.5, 0.25], dtype=torch.bfloat16, requires_grad=True)
        assert Scores.of(values, MLPS[:2]).values.values.tolist() == [0.5, 0.25]

    def test_values_are_copied_and_frozen(self) -> None:
        array = np.zeros(2)
        scores = Scores.of(array, MLPS[:2])
        array[0] = 1
        assert scores.values.values.tolist() == [0, 0]
        with pytest.raises(ValueError, match="read-only"):
            scores.values.values[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            trace(np.zeros((1, 8, 4))).mean("fact").values.values[0] = 1

    def test_equal_means_identical_in_values_and_labels(self) -> None:
        values = np.linspace(0, 1, 16)
        assert component_scores(values) == component_scores(values)
        assert component_scores(values) != component_scores(values + 1)
        assert Scores.of(values[:8], MLPS) != Scores.of(values[:8], ATTNS)

    @pytest.mark.parametrize(
        ("shape", "options", "message"),
        [
            ((8,), {"dims": ("layer",)}, "a dimension of scores must be one of .* not 'layer'"),
            ((8, 2), {}, r"\('site',\) does not fit shape \(8, 2\)"),
            ((2,), {"dims": ("fact",)}, "dims name each dimension once, and 'site' is one"),
            ((7,), {}, "8 labels for 'site', whose size is 7; give one for each"),
            ((8, 2), {"dims": ("site", "pos"), "tokens": ["a"]}, "1 labels for 'pos', whose size is 2"),
            ((8,), {"tokens": ["a"]}, "1 labels for 'pos', whose size is 0"),
            ((8, 2), {"dims": ("site", "metric")}, "'metric' needs the names of its metrics; pass metrics="),
        ],
    )
    def test_labels_that_do_not_fit_are_refused(
        self, shape: tuple[int, ...], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ScoresError, match=message):
            Scores.of(np.zeros(shape), MLPS, **options)

    def test_a_site_is_scored_once(self) -> None:
        with pytest.raises(ScoresError, match=r"L1\.mlp is scored 2 times; give every site once"):
            Scores.of(np.zeros(3), [MLPS[1], MLPS[0], MLPS[1]])


class TestReduce:
    @given(arrays(np.float64, (3, 8, 4), elements=numbers))
    @settings(max_examples=30)
    def test_facts_are_averaged_and_positions_give_their_extreme(self, values: Any) -> None:
        reduced = trace(values).reduce().values
        mean = values.mean(axis=0)
        assert reduced.dims == ("site",)
        assert np.allclose(np.abs(reduced.values), np.abs(mean).max(axis=1))
        assert all(np.isclose(row, value).any() for row, value in zip(mean, reduced.values, strict=True))

    def test_the_sign_is_kept(self) -> None:
        assert trace([[[0.1, -0.9, 0.5, 0.0]] * 8]).reduce().values.values.tolist() == [-0.9] * 8

    def test_what_does_not_exist_is_left_out(self) -> None:
        values = np.zeros((2, 8, 4))
        values[0, :, 1], values[1, :, 1], values[:, :, 2] = np.nan, 0.8, np.nan
        assert trace(values).reduce().values.values.tolist() == [0.8] * 8

    def test_a_mean_over_one_dimension_leaves_the_others(self) -> None:
        scores = trace(np.arange(64.0).reshape(2, 8, 4)).mean("fact")
        assert scores.values.dims == ("site", "pos")
        assert float(scores.values[0, 0]) == 16
        assert scores.values.attrs["title"] == "trace"

    def test_positions_are_selected_by_number_or_token(self) -> None:
        scores = trace(np.random.default_rng(0).random((2, 8, 4)))
        assert scores.sel(pos="last_subject") == scores.sel(pos=1)
        assert scores.sel(pos=1, fact=0).values.dims == ("site",)

    def test_a_token_that_stands_twice_is_selected_by_number(self) -> None:
        scores = Scores.of(np.zeros((8, 3)), MLPS, dims=("site", "pos"), tokens=["a", "b", "a"])
        with pytest.raises(ScoresError, match=r"'a' stands at positions \[0, 2\]; select one by its number"):
            scores.sel(pos="a")

    def test_an_unknown_label_names_the_known_ones(self) -> None:
        with pytest.raises(ScoresError, match="metric must be one of 'accuracy' or 'control'; not 'f1'"):
            probe().sel(metric="f1")
        with pytest.raises(ScoresError, match=r"pos must be one of 'first_subject', .* not 'verb'"):
            trace(np.zeros((1, 8, 4))).sel(pos="verb")

    def test_a_dimension_that_is_not_there_names_those_that_are(self) -> None:
        with pytest.raises(
            ScoresError, match=r"a dimension of these scores must be one of 'site' or 'metric'; not 'pos'"
        ):
            probe().sel(pos=0)
        with pytest.raises(ScoresError, match="must be one of 'site'; not 'fact'"):
            component_scores(np.zeros(16)).mean("fact")

    def test_one_metric_has_to_be_selected(self) -> None:
        with pytest.raises(ScoresError, match=r"\.sel\(metric=\) one of \['accuracy', 'control'\]"):
            probe().reduce()
        assert probe().sel(metric="accuracy").reduce().values.dims == ("site",)

    def test_only_keeps_a_kind(self) -> None:
        scores = component_scores(np.arange(16.0)).only("mlp")
        assert scores.sites == tuple(MLPS)
        assert scores.values.attrs["total_params"] == TOTAL
        with pytest.raises(ScoresError, match="a kind of these scores must be one of 'mlp'; not 'attn'"):
            scores.only("attn")

    def test_a_frame_has_one_row_per_number(self) -> None:
        frame = trace(np.zeros((2, 8, 4))).to_frame()
        assert len(frame) == 64
        assert {"fact", "site", "pos", "token", "layer", "kind", "params", "score"} <= set(frame.columns)

    def test_evidence_stays_with_the_scores(self) -> None:
        scores = Scores.of(np.ones(8), MLPS, evidence={"probe": probe()})
        assert scores.reduce().evidence["probe"] == probe()
