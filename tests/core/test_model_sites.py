"""A model knows its sites, fills budgets with them, and draws controls of equal size."""

from __future__ import annotations

import pytest
from helpers.paper_models import GROUPED, SHAPE, SITES, model_sites
from hypothesis import given, settings
from hypothesis import strategies as st

from mechunlearn.core.sites.budget import TOLERANCE, gap
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import Shape
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import LocalizationError, SiteError


class TestModelSites:
    def test_it_is_everything(self) -> None:
        assert len(SITES) == 1 + 2 * 8
        assert SITES == SITES.attns() | SITES.mlps() | Localization(["embed"])
        assert SITES.total == SITES.size(SITES)
        assert type(SITES - SITES.mlps()) is Localization

    def test_a_neuron_has_no_output_bias_and_an_mlp_has(self) -> None:
        neurons = SITES.neurons(3)
        assert len(neurons) == 64
        assert SITES.size([Site("mlp", 3)]) - SITES.size(neurons) == 64

    def test_heads_and_groups(self) -> None:
        assert len(SITES.heads()) == 8 * 8
        assert len(model_sites(GROUPED).heads()) == 4 * (8 + 2)

    @pytest.mark.parametrize(
        ("shape", "site", "problem"),
        [
            (SHAPE, "L8.mlp", "its layers are L0 to L7"),
            (SHAPE, "L8.resid_pre", "its layers are L0 to L7"),
            (SHAPE, "L3.head[8]", "its heads are numbered 0 to 7"),
            (SHAPE, "L3.pattern[8]", "its heads are numbered 0 to 7"),
            (SHAPE, "L3.mlp.neuron[64]", "its neurons are numbered 0 to 63"),
            (SHAPE, "L3.kv[1]", "every head has keys and values of its own, L3.head[1].k and L3.head[1].v"),
            (SHAPE, "L3.kv[1].v", "every head has keys and values of its own, L3.head[1].k and L3.head[1].v"),
            (GROUPED, "L3.kv[2].k", "its groups of keys and values are numbered 0 to 1"),
            (GROUPED, "L3.kv[2]", "its groups of keys and values are numbered 0 to 1"),
            (GROUPED, "L3.head[5].k", "its heads share keys and values in groups, here L3.kv[1]"),
            (GROUPED, "L3.head[9].k", "its heads are numbered 0 to 7"),
            (GROUPED, "L3.mlp.gate", "its MLPs have no gate, only L3.mlp.in and L3.mlp.out"),
        ],
    )
    def test_a_site_of_another_shape_is_refused(self, shape: Shape, site: str, problem: str) -> None:
        with pytest.raises(SiteError) as caught:
            model_sites(shape).check([Site("embed"), Site.parse(site)])
        assert str(caught.value) == f"{site} is not a site of this model: {problem}; choose from hm.sites"

    @pytest.mark.parametrize(
        "site", ["L3.head[7].v", "L3.mlp.gate", "L7.mlp.neuron[63]", "L0.pattern[0]", "embed"]
    )
    def test_its_own_sites_pass(self, site: str) -> None:
        SITES.check([Site.parse(site)])

    @pytest.mark.parametrize("site", ["L3.kv[1]", "L3.kv[1].k", "L0.kv[0].v", "L3.head[7].q"])
    def test_sites_of_a_model_with_grouped_queries_pass(self, site: str) -> None:
        model_sites(GROUPED).check([Site.parse(site)])

    def test_sizes_of_another_model_are_refused(self) -> None:
        with pytest.raises(SiteError, match=r"L9.mlp is not a site of this model"):
            SITES.size(Localization(["L9.mlp"]))


class TestFill:
    @given(st.permutations(range(8)), st.integers(194, 120_000), st.integers(0, 3))
    @settings(max_examples=20, deadline=None)
    def test_the_budget_is_met_within_5_percent_and_never_exceeded(
        self, order: list[int], params: int, seed: int
    ) -> None:
        ranked = [Site("mlp", layer) for layer in order]
        filled = SITES.fill(ranked, params=params, seed=seed)
        size = SITES.size(filled)
        assert size <= params
        assert params - size < 194 or size == SITES.size(ranked) or params > SITES.size(ranked)
        assert filled == SITES.fill(ranked, params=params, seed=seed)
        mlps = [site for site in filled if site.kind == "mlp"]
        assert set(mlps) == set(ranked[: len(mlps)])

    def test_the_gap_is_written(self) -> None:
        filled = SITES.fill([Site("mlp", 3), Site("mlp", 4)], params=20_000)
        assert filled.source == f"{SITES.size(filled):,} parameters, gap -0.7 %"

    def test_a_head_too_large_for_the_rest_gives_way_to_the_next_site(self) -> None:
        filled = SITES.fill([Site("attn", 3), Site("mlp", 4)], params=400)
        assert {site.kind for site in filled} == {"neuron"}

    def test_a_budget_below_everything_is_refused(self) -> None:
        with pytest.raises(
            LocalizationError, match="a budget of 10 parameters is below the smallest of the 1 sites"
        ):
            SITES.fill([Site("mlp", 3)], params=10)

    def test_gaps_have_a_sign(self) -> None:
        assert gap(105, 100) == "105 parameters, gap +5.0 %"
        assert gap(99_999, 100_000) == "99,999 parameters, gap +0.0 %"


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Shape, int]:
    """Shapes of real models: many neurons, heads of at least eight dimensions."""
    heads = draw(st.sampled_from((4, 8, 12)))
    kv = draw(st.sampled_from([k for k in (1, 2, 4, heads) if heads % k == 0]))
    shape = Shape(
        n_layers=draw(st.integers(2, 6)), n_heads=heads, n_kv_heads=kv, d_mlp=draw(st.integers(64, 128)),
        gated=draw(st.booleans()),
    )  # fmt: skip
    return shape, heads * draw(st.sampled_from((8, 16, 32)))


class TestSample:
    @given(shapes(), st.data(), st.integers(0, 5))
    @settings(max_examples=20, deadline=None)
    def test_a_control_agrees_within_5_percent(
        self, drawn: tuple[Shape, int], data: st.DataObject, seed: int
    ) -> None:
        model = model_sites(drawn[0], d_model=drawn[1])
        components = list(model.attns() | model.mlps())
        like = Localization(data.draw(st.sets(st.sampled_from(components), min_size=1)))
        control = model.sample(like=like, seed=seed)
        assert abs(model.size(control) / model.size(like) - 1) <= TOLERANCE
        assert control == model.sample(like=like, seed=seed)
        assert Site("embed") not in control

    def test_a_control_is_another_set_where_there_is_one(self) -> None:
        like = Localization(["L3.mlp", "L4.mlp"])
        controls = {SITES.sample(like=like, seed=seed, within=SITES.mlps()) for seed in range(40)}
        assert like not in controls
        assert len(controls) > 15
        assert all(len(control) == 2 for control in controls)

    def test_a_control_of_heads_or_neurons(self) -> None:
        for like in (
            Localization(["L2.head[1]", "L5.head[3]"]),
            Localization(f"L1.mlp.neuron[{i}]" for i in range(30)),
        ):
            control = SITES.sample(like=like, seed=0)
            assert abs(SITES.size(control) / SITES.size(like) - 1) <= TOLERANCE

    def test_a_control_of_everything_is_everything(self) -> None:
        assert SITES.sample(like=SITES, seed=0, within=SITES) == SITES

    def test_the_source_says_what_it_controls_for_and_the_gap(self) -> None:
        like = Localization(["L3.mlp", "L4.mlp"], source="fact lookup")
        control = SITES.sample(like=like, seed=1, within=SITES.mlps())
        assert control.source == f"random, like fact lookup ({SITES.size(like):,} parameters, gap +0.0 %)"
        assert SITES.sample(like=Localization(like), seed=1).source.startswith("random, like 2 sites (")

    def test_an_empty_localization_has_no_control(self) -> None:
        with pytest.raises(LocalizationError, match="like is an empty localization and has no control"):
            SITES.sample(like=Localization(), seed=0)

    def test_a_pool_that_is_too_small_is_refused(self) -> None:
        with pytest.raises(
            LocalizationError, match=r"within holds .* fewer than the .* of like; .* within=hm.sites"
        ):
            SITES.sample(like=SITES.mlps(), seed=0, within=Localization(["L0.mlp"]))

    def test_a_pool_of_sites_that_are_too_large_is_refused(self) -> None:
        like = Localization(["L3.mlp.neuron[7]"])
        with pytest.raises(LocalizationError, match=r"no random choice within .* of like within 5 %"):
            SITES.sample(like=like, seed=0, within=SITES.attns())

    def test_sites_of_another_model_are_refused(self) -> None:
        with pytest.raises(SiteError, match=r"L9.mlp is not a site of this model"):
            SITES.sample(like=Localization(["L9.mlp"]), seed=0)


class TestPictures:
    def test_a_cell_is_the_share_of_its_component(self) -> None:
        localization = Localization(["L1.mlp", "L0.attn", *(f"L3.mlp.neuron[{i}]" for i in range(16))])
        values = localization.heatmap(SITES).data[0].z
        assert values.shape == (8, 2)
        assert values[1].tolist() == [0, 1]
        assert values[0].tolist() == [1, 0]
        assert values[3][1] == pytest.approx(0.25, abs=0.01)

    def test_without_a_model_a_part_is_one_half(self) -> None:
        figure = Localization(["L1.mlp.in", "L2.mlp", "L2.head[1]"]).heatmap()
        assert figure.data[0].z.tolist() == [[0, 0, 0], [0, 0, 0.5], [0, 1, 1]]
        assert figure.layout.xaxis.ticktext == ("head[0]", "head[1]", "mlp")

    def test_embed_stands_beside_the_first_layer(self) -> None:
        values = Localization(["embed", "L1.mlp"]).heatmap().data[0].z
        assert values[0][2] == 1
        assert values[1][2] != values[1][2]

    def test_the_empty_set_draws_nothing(self) -> None:
        assert not Localization().heatmap(SITES).data[0].z.any()
        assert Localization()._repr_mimebundle_()["text/plain"] == "Localization()"

    def test_localizations_are_compared_over_the_same_columns(self) -> None:
        figure = SITES.compare({"lookup": Localization(["L3.mlp"]), "heads": Localization(["L7.head[0]"])})
        assert [trace.z.shape for trace in figure.data] == [(8, 9), (8, 9)]

    def test_another_model_is_refused(self) -> None:
        with pytest.raises(SiteError, match=r"L9.mlp is not a site of this model"):
            Localization(["L9.mlp"]).heatmap(SITES)

    def test_long_sets_print_short(self) -> None:
        assert repr(SITES.neurons(0)) == (
            "Localization(64 sites: L0.mlp.neuron[0], L0.mlp.neuron[1], L0.mlp.neuron[2], ..., "
            "L0.mlp.neuron[63]; every neuron of L0)"
        )
        assert repr(Localization(["L3.mlp"], source="by hand")) == "Localization(L3.mlp; by hand)"
