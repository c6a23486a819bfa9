"""Scores of edges label an array, reduce it like other scores, and show themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_facts import unchecked

from mechunlearn.core.scores.edges import EdgeScores
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError
from mechunlearn.models.hooked import HookedModel

SENDERS = [Site.parse(text) for text in ("embed", "L0.head[0]", "L0.head[1]", "L0.mlp")]
RECEIVERS = [Site.parse(text) for text in ("L0.head[0].q", "L0.kv[0].v", "L0.mlp", "L0.resid_post")]
EDGES = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool)


def scored(seed: int = 0, *, facts: int = 2, positions: int = 3, **labels: Any) -> EdgeScores:
    """Random numbers on the edges of one layer, for some facts and positions."""
    values = np.random.default_rng(seed).normal(size=(facts, 4, 4, positions))
    values[:, ~EDGES] = np.nan
    return EdgeScores.of(
        values, SENDERS, RECEIVERS, dims=("fact", "sender", "receiver", "pos"), **{"title": "edges", **labels}
    )


class TestLabels:
    def test_both_ends_carry_what_is_known_of_them(self) -> None:
        values = scored().values
        assert values["sender"].values.tolist() == ["embed", "L0.head[0]", "L0.head[1]", "L0.mlp"]
        assert values["sender_layer"].values.tolist() == [-1, 0, 0, 0]
        assert values["receiver_kind"].values.tolist() == ["head", "kv", "mlp", "resid_post"]
        assert values["receiver_index"].values.tolist() == [0, 0, -1, -1]
        assert scored().senders == tuple(SENDERS) and scored().receivers == tuple(RECEIVERS)

    def test_a_half_precision_tensor_on_a_graph_is_taken(self) -> None:
        values = torch.full((4, 4), 0.5, dtype=torch.bfloat16, requires_grad=True)
        assert EdgeScores.of(values, SENDERS, RECEIVERS).values.values.tolist() == [[0.5] * 4] * 4

    def test_values_are_copied_and_frozen(self) -> None:
        array = np.zeros((4, 4))
        scores = EdgeScores.of(array, SENDERS, RECEIVERS)
        array[0, 0] = 1
        assert scores.values.values[0, 0] == 0
        for derived in (scores, scored().mean("fact"), scored().reduce()):
            with pytest.raises(ValueError, match="read-only"):
                derived.values.values[0] = 1

    def test_what_they_were_measured_with_stays_with_them(self) -> None:
        scores = scored(recipe={"seed": 1})
        assert scores.mean("fact").recipe == scores.reduce().recipe == {"seed": 1} and scored().recipe == {}

    def test_equal_means_identical_in_values_and_labels(self) -> None:
        assert scored() == scored()
        assert scored() != scored(1) and scored() != scored(title="others")

    @pytest.mark.parametrize(
        ("shape", "options", "message"),
        [
            ((4, 4), {"dims": ("sender", "site")}, "a dimension of edge scores must be one of .* not 'site'"),
            ((4, 4), {"dims": ("sender", "pos")}, r"'sender' and 'receiver' among them; .* shape \(4, 4\)"),
            ((4, 4, 2), {}, r"does not fit shape \(4, 4, 2\)"),
            ((3, 4), {}, "4 labels for 'sender', whose size is 3; give one for each"),
            ((4, 4), {"tokens": ["a"]}, "1 labels for 'pos', whose size is 0"),
        ],
    )
    def test_labels_that_do_not_fit_are_refused(
        self, shape: tuple[int, ...], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ScoresError, match=message):
            EdgeScores.of(np.zeros(shape), SENDERS, RECEIVERS, **options)

    def test_a_site_is_scored_once(self) -> None:
        with pytest.raises(ScoresError, match=r"the sender L0\.mlp is scored 2 times; give every site once"):
            EdgeScores.of(np.zeros((4, 4)), [*SENDERS[1:], SENDERS[3]], RECEIVERS)


class TestReduce:
    def test_facts_are_averaged_and_positions_give_their_extreme(self) -> None:
        scores = scored(facts=3, positions=5)
        mean = scores.values.values.mean(0)
        assert scores.reduce().values.dims == ("sender", "receiver")
        reduced = scores.reduce().values.values
        np.testing.assert_allclose(np.abs(reduced[EDGES]), np.abs(mean).max(-1)[EDGES])
        assert np.isnan(reduced[~EDGES]).all()
        assert scores.mean("fact").values.dims == ("sender", "receiver", "pos")

    def test_a_dimension_that_is_not_there_names_those_that_are(self) -> None:
        with pytest.raises(ScoresError, match="must be one of 'sender' or 'receiver'; not 'fact'"):
            scored().reduce().mean("fact")

    def test_nodes_add_up_the_edges_of_either_end(self) -> None:
        scores = scored()
        senders, receivers = scores.nodes(), scores.nodes(by="receiver")
        assert isinstance(senders, Scores) and senders.sites == tuple(SENDERS)
        assert receivers.sites == tuple(RECEIVERS) and receivers.values.dims == ("fact", "site", "pos")
        filled = np.nan_to_num(scores.values.values)
        np.testing.assert_allclose(senders.values, filled.sum(2))
        np.testing.assert_allclose(receivers.values, filled.sum(1))
        assert senders.title == "edges, summed over receivers"
        assert receivers.title == "edges, summed over senders"

    def test_a_group_that_a_prompt_lacks_stays_missing(self) -> None:
        values = scored().values.values.copy()
        values[0, :, :, 1] = np.nan
        scores = EdgeScores.of(values, SENDERS, RECEIVERS, dims=("fact", "sender", "receiver", "pos"))
        assert np.isnan(scores.nodes().values.values[0, :, 1]).all()
        assert not np.isnan(scores.mean("fact").nodes().values.values).any()

    def test_nodes_select_by_a_budget_where_the_model_counts(self, llama: HookedModel) -> None:
        values = np.where(EDGES, 0.1, np.nan)
        values[2, 2] = 0.9
        nodes = EdgeScores.of(values, SENDERS, RECEIVERS, params=llama.sites).nodes()
        assert list(nodes.top(params=llama.size(SENDERS[2:3]))) == SENDERS[2:3]


class TestTop:
    def test_the_strongest_edges_come_first(self) -> None:
        values = np.where(EDGES, 0.1, np.nan)
        values[0, 2], values[1, 3], values[3, 3] = -0.9, 0.8, 0.5
        scores = EdgeScores.of(values, SENDERS, RECEIVERS)
        assert scores.top(2) == ((SENDERS[0], RECEIVERS[2]), (SENDERS[1], RECEIVERS[3]))
        assert scores.top(2, by="signed") == ((SENDERS[1], RECEIVERS[3]), (SENDERS[3], RECEIVERS[3]))
        assert len(scores.top(9)) == EDGES.sum()

    @pytest.mark.parametrize("k", [0, 10])
    def test_only_as_many_as_there_are(self, k: int) -> None:
        with pytest.raises(ScoresError, match=f"top selects 1 to 9 edges, as many as were scored; not {k}"):
            scored().top(k)

    def test_an_unknown_word_names_the_known_ones(self) -> None:
        unknown: Any = "size"
        with unchecked(), pytest.raises(ScoresError, match="by must be one of 'abs' or 'signed'; not 'size'"):
            scored().top(1, by=unknown)
        with unchecked(), pytest.raises(ScoresError, match="by must be one of 'sender' or 'receiver'; not"):
            scored().nodes(by=unknown)


class TestShow:
    def test_senders_go_up_and_receivers_to_the_right(self) -> None:
        values = scored().reduce().values.values
        figure = EdgeScores.of(values, SENDERS, RECEIVERS).heatmap()
        assert figure.layout.yaxis.ticktext == tuple(map(str, SENDERS))
        assert figure.layout.xaxis.ticktext == tuple(map(str, RECEIVERS))
        np.testing.assert_array_equal(figure.data[0].z, values)
        assert figure.data[0].text[1][2] == "L0.head[0] → L0.mlp"

    def test_every_position_is_a_panel(self) -> None:
        figure = scored(tokens=("a", "b", "a")).heatmap()
        assert [words.text for words in figure.layout.annotations] == ["0 a", "1 b", "2 a"]
        np.testing.assert_allclose(figure.data[1].z, scored().values.values.mean(0)[:, :, 1])

    def test_of_very_many_the_strongest_are_drawn(self) -> None:
        values = np.where(EDGES, 0.1, np.nan)
        values[3, 3], values[0, 1] = 2, -1
        figure = EdgeScores.of(values, SENDERS, RECEIVERS, title="edges").heatmap(most=2)
        assert figure.layout.yaxis.ticktext == ("embed", "L0.mlp")
        assert figure.layout.xaxis.ticktext == ("L0.kv[0].v", "L0.resid_post")
        assert figure.layout.title.text == "edges (the strongest 2 of 4 senders and 2 of 4 receivers)"

    def test_a_frame_has_one_row_per_edge_that_can_be(self) -> None:
        frame = scored().to_frame()
        assert len(frame) == EDGES.sum() * 2 * 3
        labels = {"fact", "sender", "receiver", "pos", "token", "sender_layer", "receiver_kind", "score"}
        assert labels <= set(frame)

    def test_the_repr_is_one_line(self) -> None:
        assert repr(scored()) == "EdgeScores(edges; fact 2, sender 4, receiver 4, pos 3)"
        assert scored()._repr_mimebundle_()["text/plain"] == repr(scored())
