"""Scores show themselves: everything that is drawn is named, and what is compared shares its colours."""

from __future__ import annotations

import numpy as np
from helpers.handmade_scores import (
    ATTNS,
    GROUPS,
    LAYERS,
    MLPS,
    SITES,
    component_scores,
    probe,
    trace,
)

from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site


class TestShow:
    def test_without_positions_layers_by_components(self) -> None:
        figure = component_scores(np.arange(16.0)).heatmap()
        assert figure.layout.xaxis.ticktext == ("attn", "mlp")
        assert figure.layout.yaxis.ticktext == tuple(f"L{layer}" for layer in range(LAYERS))
        assert figure.data[0].z[3].tolist() == [11, 3]
        assert list(figure.data[0].text[3]) == ["L3.attn", "L3.mlp"]

    def test_with_positions_layers_by_tokens(self) -> None:
        values = np.random.default_rng(0).normal(size=(2, 8, 4))
        figure = trace(values).heatmap()
        assert np.allclose(figure.data[0].z, values.mean(axis=0))
        assert figure.layout.xaxis.ticktext == GROUPS
        assert figure.data[0].text[2][1] == "L2.mlp, last_subject"

    def test_every_kind_is_a_panel_over_the_same_layers(self) -> None:
        figure = trace(np.ones((1, 16, 4)), sites=MLPS + ATTNS).heatmap()
        assert [words.text for words in figure.layout.annotations] == ["mlp", "attn"]
        assert [grid.z.shape for grid in figure.data] == [(8, 4), (8, 4)]

    def test_heads_with_positions_are_rows(self) -> None:
        heads = list(SITES.heads())[:6]
        figure = trace(np.ones((1, 6, 4)), sites=heads).heatmap()
        assert figure.layout.yaxis.ticktext == tuple(map(str, heads))

    def test_a_long_prompt_is_named_token_by_token(self) -> None:
        tokens = [f" t{position}" for position in range(24)]
        sites = [Site(kind, layer) for kind in ("resid_pre", "attn", "mlp") for layer in range(LAYERS)]
        values = np.random.default_rng(0).normal(size=(24, 24))
        figure = Scores.of(values, sites, dims=("site", "pos"), tokens=tokens).heatmap()
        assert [words.text for words in figure.layout.annotations] == ["resid_pre", "attn", "mlp"]
        assert np.allclose([grid.z for grid in figure.data], values.reshape(3, 8, 24))
        axes = [figure.layout[f"xaxis{number}"] for number in ("", 2, 3)]
        assert all(list(axis.ticktext) == tokens for axis in axes)
        scales = {figure.layout[f"coloraxis{number}"].cmax for number in ("", 2, 3)}
        assert scales == {abs(values).max()}

    def test_metrics_of_two_units_have_two_scales(self) -> None:
        values = np.stack([np.linspace(-4, 4, 16), np.linspace(0, 0.1, 16)], axis=1)
        units = {"logit_diff": "logits", "probability": "share"}
        figure = Scores.of(values, MLPS + ATTNS, dims=("site", "metric"), metrics=units).heatmap()
        first, second = figure.layout.coloraxis, figure.layout.coloraxis2
        assert (first.cmin, first.cmax, second.cmin, second.cmax) == (-4, 4, 0, 0.1)
        assert [axis.colorbar.title.text for axis in (first, second)] == ["logits", "share"]

    def test_metrics_of_states_are_panels_over_the_same_columns(self) -> None:
        figure = probe().heatmap()
        assert [grid.z.shape for grid in figure.data] == [(8, 2), (8, 2)]
        assert figure.layout.xaxis.ticktext == ("resid_mid", "resid_post")

    def test_parts_of_many_heads_are_panels_whose_columns_are_named(self) -> None:
        parts = [Site("head", 0, head, part) for head in range(12) for part in "qkvo"]
        figure = Scores.of(np.arange(48.0), parts).heatmap()
        assert [words.text for words in figure.layout.annotations] == [f"head .{part}" for part in "qkvo"]
        assert figure.layout.xaxis2.ticktext == tuple(f"head[{head}].k" for head in range(12))
        assert figure.data[1].z.tolist() == [list(range(1, 48, 4))]
        few = Scores.of(np.arange(8.0), parts[:8]).heatmap()
        assert few.layout.xaxis.ticktext[:2] == ("head[0].q", "head[0].k")

    def test_of_many_neurons_the_strongest_are_drawn_strongest_first(self) -> None:
        sites = list(SITES.neurons(0)) + list(SITES.neurons(2))
        values = np.concatenate([np.arange(100.0), -np.arange(100.0)])
        figure = Scores.of(values, sites).heatmap()
        assert [words.text for words in figure.layout.annotations] == ["the 40 strongest of each layer"]
        assert figure.data[0].z[0].tolist() == list(range(99, 59, -1))
        assert figure.data[0].z[2].tolist() == list(range(-99, -59))
        assert np.isnan(figure.data[0].z[1]).all()
        assert figure.data[0].text[2][0] == "L2.mlp.neuron[99]"

    def test_of_hundreds_of_sites_by_position_the_strongest_are_rows(self) -> None:
        values = np.zeros((300, 3))
        values[[7, 150, 299], 1] = 0.1, -0.5, 0.3
        sites = [*SITES.neurons(0), *SITES.neurons(1), *SITES.neurons(2)]
        figure = Scores.of(values, sites, dims=("site", "pos"), tokens=["a", "b", "c"]).heatmap()
        rows = figure.layout.yaxis.ticktext
        assert len(rows) == 40
        assert {"L0.mlp.neuron[7]", "L1.mlp.neuron[50]", "L2.mlp.neuron[99]"} <= set(rows)
        assert [words.text for words in figure.layout.annotations] == ["the 40 strongest of 300"]

    def test_cells_too_small_for_gaps_have_none(self) -> None:
        figure = Scores.of(np.ones((8, 100)), MLPS, dims=("site", "pos")).heatmap()
        assert (figure.data[0].xgap, figure.data[0].ygap) == (0, 1)

    def test_metrics_are_panels_and_curves(self) -> None:
        assert [words.text for words in probe().heatmap().layout.annotations] == ["accuracy", "control"]
        names = {curve.name for curve in probe().curves().data}
        assert names == {f"{k} {m}" for k in ("resid_mid", "resid_post") for m in ("accuracy", "control")}

    def test_curves_follow_depth(self) -> None:
        figure = component_scores(np.arange(16.0)).curves()
        assert {curve.name: list(curve.y) for curve in figure.data}["mlp"] == [0, 1, 2, 3, 4, 5, 6, 7]

    def test_the_repr_is_one_line(self) -> None:
        assert repr(trace(np.zeros((2, 8, 4)))) == "Scores(trace; fact 2, site 8, pos 4)"
        assert probe()._repr_mimebundle_()["text/plain"] == "Scores(probe; site 16, metric 2)"
