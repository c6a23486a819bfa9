"""Sites print and parse alike, localizations are sets, and controls are of equal size."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechunlearn.errors import DataError, LocalizationError, SiteError
from mechunlearn.sites import Localization, ModelSites, Shape, Site
from mechunlearn.sites.budget import TOLERANCE, gap

SHAPE = Shape(n_layers=8, n_heads=8, n_kv_heads=8, d_mlp=64, gated=True)
GROUPED = Shape(n_layers=4, n_heads=8, n_kv_heads=2, d_mlp=96, gated=False)


def model_sites(shape: Shape = SHAPE, *, d_model: int = 64, bias: bool = True) -> ModelSites:
    """A model on paper: every weight of a real one counted, with its biases."""
    d_head, matrices = d_model // shape.n_heads, 3 if shape.gated else 2
    query = d_head * (d_model + bias)
    own = 1 if shape.grouped else 3
    part = {"q": query, "k": query, "v": query, "o": d_head * d_model}
    heads = shape.n_heads * (query + part["o"]) + 2 * shape.n_kv_heads * query
    neuron = matrices * d_model + (matrices - 1) * bias
    mlp_part = {"out": shape.d_mlp * d_model + d_model * bias}

    def counts(site: Site) -> int:
        if site.kind == "head":
            return part[site.part] if site.part else own * query + part["o"]
        if site.kind == "mlp" and site.part:
            return mlp_part.get(site.part, shape.d_mlp * (d_model + bias))
        return {
            "embed": 1000 * d_model,
            "attn": heads + d_model * bias,
            "kv": 2 * query,
            "mlp": shape.d_mlp * neuron + d_model * bias,
            "neuron": neuron,
        }[site.kind]

    return ModelSites(shape, counts)


SITES = model_sites()

layers = st.integers(0, 7)
indices = st.integers(0, 7)
whole = st.one_of(st.just(Site("embed")), st.builds(Site, st.sampled_from(("attn", "mlp")), layers))
states = st.one_of(
    st.builds(Site, st.sampled_from(("resid_pre", "resid_mid", "resid_post")), layers),
    st.builds(Site, st.just("pattern"), layers, indices),
)
pieces = st.one_of(
    st.builds(Site, st.just("head"), layers, indices, st.sampled_from((None, "q", "k", "v", "o"))),
    st.builds(Site, st.just("kv"), layers, indices),
    st.builds(Site, st.just("mlp"), layers, part=st.sampled_from(("in", "gate", "out"))),
    st.builds(Site, st.just("neuron"), layers, indices),
)
sites = st.one_of(whole, states, pieces)
weight_sites = st.one_of(whole, pieces)
localizations = st.builds(Localization, st.sets(whole))
fine = st.sets(st.builds(Site, st.sampled_from(("head", "neuron")), layers, indices)).map(Localization)


class TestSite:
    @given(sites)
    def test_a_site_parses_as_it_prints(self, site: Site) -> None:
        assert Site.parse(str(site)) == site
        assert eval(repr(site)) == site

    @given(st.text(max_size=12))
    def test_a_string_is_a_site_only_if_it_prints_back(self, text: str) -> None:
        try:
            assert str(Site.parse(text)) == text
        except SiteError as error:
            assert repr(text) in str(error)

    @pytest.mark.parametrize(
        "text", ["L05.mlp", "L5.mlp ", "L5.attn.q", "L5.head", "L-1.mlp", "L٣.mlp", "l5.mlp"]
    )
    def test_one_site_has_one_spelling(self, text: str) -> None:
        with pytest.raises(SiteError, match="is not a site"):
            Site.parse(text)

    @pytest.mark.parametrize(
        ("text", "nearest"),
        [
            ("L3.mpl", "L3.mlp"),
            ("l12.attn", "L12.attn"),
            ("L5.head[2].w", "L5.head[2].v"),
            ("L5.heads[2]", "L5.head[2]"),
            ("L3.neuron[7]", "L3.mlp.neuron[7]"),
            ("L4.resid_prev", "L4.resid_pre"),
        ],
    )
    def test_an_unknown_string_names_the_nearest_site(self, text: str, nearest: str) -> None:
        with pytest.raises(SiteError) as caught:
            Site.parse(text)
        assert str(caught.value).startswith(
            f"{text!r} is not a site; did you mean {nearest!r}? sites are written"
        )

    def test_a_string_unlike_any_site_names_the_grammar(self) -> None:
        with pytest.raises(
            SiteError, match=r"'banana' is not a site; sites are written embed, L5\.attn, L5\.head"
        ):
            Site.parse("banana")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (("expert", 0), "the kind of a site must be one of 'embed', .* not 'expert'"),
            (("mlp",), "kind 'mlp' takes a number from 0 as its layer; not None"),
            (("mlp", 0, 3), "kind 'mlp' takes no index; not 3"),
            (("head", 0, -1), "kind 'head' takes a number from 0 as its index; not -1"),
            (("head", 0, 1, "in"), "parts of a site of kind 'head' are: q k v o; not 'in'"),
            (("attn", 0, None, "q"), "parts of a site of kind 'attn' are: none; not 'q'"),
        ],
    )
    def test_fields_that_make_no_site_are_refused(self, fields: tuple[Any, ...], message: str) -> None:
        with pytest.raises(SiteError, match=message):
            Site(*fields)

    def test_sites_sort_as_a_model_computes(self) -> None:
        order = [
            "embed", "L0.mlp", "L2.resid_pre", "L2.pattern[3]", "L2.attn", "L2.head[2]", "L2.head[2].q",
            "L2.head[2].o", "L2.head[10]", "L2.kv[0]", "L2.resid_mid", "L2.mlp", "L2.mlp.in",
            "L2.mlp.neuron[9]", "L2.mlp.neuron[10]", "L2.resid_post", "L10.attn",
        ]  # fmt: skip
        assert [str(site) for site in sorted(map(Site.parse, reversed(order)))] == order

    @given(weight_sites, weight_sites)
    def test_sharing_weights_is_mutual(self, one: Site, other: Site) -> None:
        assert one.overlaps(one)
        assert one.overlaps(other) == other.overlaps(one)
        if one.layer != other.layer:
            assert not one.overlaps(other)

    @pytest.mark.parametrize(
        ("one", "other", "shared"),
        [
            ("L3.mlp", "L3.mlp.neuron[7]", True),
            ("L3.mlp.in", "L3.mlp.neuron[7]", True),
            ("L3.mlp.in", "L3.mlp.out", False),
            ("L3.attn", "L3.head[2].q", True),
            ("L3.attn", "L3.kv[0]", True),
            ("L3.head[2]", "L3.head[2].q", True),
            ("L3.head[2].q", "L3.head[2].k", False),
            ("L3.head[2]", "L3.kv[0]", False),
            ("L3.attn", "L3.mlp", False),
            ("L3.resid_pre", "L3.resid_pre", False),
        ],
    )
    def test_sites_overlap_when_a_weight_is_in_both(self, one: str, other: str, shared: bool) -> None:
        assert Site.parse(one).overlaps(Site.parse(other)) is shared

    @given(states)
    def test_states_hold_no_weights(self, site: Site) -> None:
        assert not site.has_weights
        assert SITES.size([site]) == 0


class TestAlgebra:
    @given(localizations, localizations)
    def test_the_operators_are_those_of_sets(self, a: Localization, b: Localization) -> None:
        for result, expected in [
            (a | b, set(a) | set(b)),
            (a & b, set(a) & set(b)),
            (a - b, set(a) - set(b)),
            (a ^ b, set(a) ^ set(b)),
        ]:
            assert type(result) is Localization
            assert list(result) == sorted(expected)
        assert (a <= b) == (set(a) <= set(b))
        assert a.isdisjoint(b) == set(a).isdisjoint(b)

    @given(localizations, localizations, localizations)
    def test_the_laws_of_sets_hold(self, a: Localization, b: Localization, c: Localization) -> None:
        assert a & (b | c) == (a & b) | (a & c)
        assert SITES - (a | b) == (SITES - a) & (SITES - b)
        assert (a - b) | (a & b) == a
        assert a ^ b == (a | b) - (a & b)

    @given(localizations, localizations)
    def test_python_sets_take_part_on_either_side(self, a: Localization, b: Localization) -> None:
        plain: Any = frozenset(a)
        assert plain | b == a | b == a | set(b)
        assert plain - b == a - b == a - set(b)
        assert plain & b == a & b == a & set(b)

    @given(localizations)
    def test_equal_sets_have_equal_hashes_wherever_they_came_from(self, a: Localization) -> None:
        again = Localization(reversed([str(site) for site in a]), source="elsewhere")
        assert again == a
        assert hash(again) == hash(a) == hash(frozenset(a))
        assert {a: "found"}[again] == "found"

    @given(localizations, localizations)
    def test_sizes_add_up(self, a: Localization, b: Localization) -> None:
        assert SITES.size(a | b) + SITES.size(a & b) == SITES.size(a) + SITES.size(b)

    def test_membership_takes_strings(self) -> None:
        found: Any = Localization(["L3.mlp"])
        assert "L3.mlp" in found
        assert "L4.mlp" not in found
        with pytest.raises(SiteError, match=r"'L3\.mpl' is not a site"):
            assert "L3.mpl" in found

    def test_nothing_can_be_assigned(self) -> None:
        with pytest.raises(AttributeError):
            Localization().source = "changed"  # type: ignore[misc]

    def test_the_empty_set_is_legal(self) -> None:
        assert not Localization()
        assert SITES.size(Localization()) == 0
        assert Localization() <= SITES


class TestDisjoint:
    @given(st.sets(weight_sites))
    def test_a_localization_exists_exactly_when_no_weight_is_named_twice(self, chosen: set[Site]) -> None:
        clash = any(a != b and a.overlaps(b) for a in chosen for b in chosen)
        try:
            assert set(Localization(chosen)) == chosen
        except LocalizationError:
            assert clash
        else:
            assert not clash

    @pytest.mark.parametrize(
        ("whole", "part", "remedy"),
        [
            ("L3.mlp", "L3.mlp.neuron[7]", r'bring both to one grain with .refine\("neuron", hm.sites\)'),
            ("L3.attn", "L3.head[2]", r'bring both to one grain with .refine\("head", hm.sites\)'),
            ("L3.attn", "L3.kv[0]", r'bring both to one grain with .refine\("head", hm.sites\)'),
            ("L3.mlp", "L3.mlp.in", "keep one"),
            ("L3.mlp.out", "L3.mlp.neuron[7]", "keep one"),
            ("L3.head[2]", "L3.head[2].q", "keep one"),
        ],
    )
    def test_overlapping_sites_are_named_with_the_remedy(self, whole: str, part: str, remedy: str) -> None:
        message = f"{whole} and {part} share weights; {remedy}".replace("[", r"\[")
        with pytest.raises(LocalizationError, match=message):
            Localization([part, whole])

    @pytest.mark.parametrize("operator", ["__and__", "__or__", "__sub__", "__xor__", "isdisjoint"])
    def test_operands_of_different_grain_are_refused(self, operator: str) -> None:
        mlp, neuron = Localization(["L3.mlp"]), Localization(["L3.mlp.neuron[7]"])
        with pytest.raises(LocalizationError, match=r"L3.mlp and L3.mlp.neuron\[7\] share weights"):
            getattr(mlp, operator)(neuron)
        with pytest.raises(LocalizationError, match="share weights"):
            getattr(neuron, operator)(mlp)

    @given(states)
    def test_state_sites_are_refused(self, site: Site) -> None:
        with pytest.raises(LocalizationError) as caught:
            Localization([site])
        assert f"{site} is a state of the model and holds no weights" in str(caught.value)
        assert f"such as L{site.layer}.attn or L{site.layer}.mlp" in str(caught.value)

    def test_a_bare_string_is_not_a_list_of_sites(self) -> None:
        with pytest.raises(LocalizationError, match=r"sites are given as a list: \['L3.mlp'\]; not 'L3.mlp'"):
            Localization("L3.mlp")


class TestRefine:
    @given(localizations)
    @settings(max_examples=10, deadline=None)
    def test_refining_keeps_all_but_the_output_biases(self, found: Localization) -> None:
        bare = model_sites(bias=False)
        for grain in ("head", "neuron"):
            assert bare.size(found.refine(grain, bare)) == bare.size(found)
            biases = 64 * sum(site.kind == {"head": "attn", "neuron": "mlp"}[grain] for site in found)
            assert SITES.size(found.refine(grain, SITES)) == SITES.size(found) - biases

    def test_heads_bring_their_groups_under_grouped_queries(self) -> None:
        grouped = model_sites(GROUPED, bias=False)
        refined = Localization(["L1.attn"]).refine("head", grouped)
        assert [site.kind for site in refined] == ["head"] * 8 + ["kv"] * 2
        assert grouped.size(refined) == grouped.size([Site("attn", 1)])

    def test_parts_stay_as_they_are(self) -> None:
        found = Localization(["L1.mlp.in", "L1.head[0].q", "embed"], source="by hand")
        assert found.refine("neuron", SITES).refine("head", SITES) == found
        assert found.refine("neuron", SITES).source == "by hand"

    def test_an_unknown_grain_is_refused(self) -> None:
        # Unwrapped, because the shape checks of this test run would refuse the argument first.
        with pytest.raises(
            LocalizationError, match="the grain must be one of 'head' or 'neuron'; not 'expert'"
        ):
            inspect.unwrap(Localization.refine)(Localization(), "expert", SITES)


class TestFiles:
    @given(st.one_of(localizations, fine), st.text())
    @settings(max_examples=25)
    def test_what_is_saved_is_loaded(self, found: Localization, source: str) -> None:
        path = Path("found.json")
        Localization(found, source=source).save(path)
        again = Localization.load(str(path))
        assert (again, again.source) == (found, source)

    @pytest.fixture(autouse=True, scope="class")
    def _in_a_folder_of_its_own(self, tmp_path_factory: pytest.TempPathFactory) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("files"))
            yield

    def test_the_file_is_readable(self, tmp_path: Path) -> None:
        Localization(["L3.mlp", "embed"], source="by hand").save(tmp_path / "found.json")
        assert json.loads((tmp_path / "found.json").read_text()) == {
            "format": "mechunlearn.localization/1",
            "source": "by hand",
            "sites": ["embed", "L3.mlp"],
        }

    @given(st.integers(0, 60))
    @settings(max_examples=20)
    def test_a_truncated_file_is_refused(self, length: int) -> None:
        path = Path("truncated.json")
        Localization(["L3.mlp"], source="cut").save(path)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(
            DataError, match=r"truncated.json is not a whole localization: .*Localization.save"
        ):
            Localization.load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": "mechunlearn.edit/1"}, 'it does not say "format": "mechunlearn.localization/1"'),
            ({"sites": "L3.mlp"}, 'it lacks its "source" .* or its "sites"'),
            ({"source": None}, 'it lacks its "source"'),
            ({"sites": ["L3.mpl"]}, "'L3.mpl' is not a site; did you mean 'L3.mlp'"),
            ({"sites": [3]}, "a site is a string; not 3"),
            ({"sites": ["L3.mlp", "L3.mlp.in"]}, "L3.mlp and L3.mlp.in share weights"),
            ({"sites": ["L3.resid_mid"]}, "L3.resid_mid is a state of the model"),
            ({"sites": ["L3.mlp", "L3.mlp"]}, "L3.mlp is listed more than once"),
        ],
    )
    def test_an_altered_file_is_refused(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        path = tmp_path / "found.json"
        Localization(["L3.mlp"]).save(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(DataError, match=f"found.json is not a whole localization: {message}"):
            Localization.load(path)

    def test_a_file_that_is_no_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "weights.json").write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(DataError, match=r"weights.json is not a whole localization"):
            Localization.load(tmp_path / "weights.json")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"absent.json"):
            Localization.load(tmp_path / "absent.json")


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
        whole = [site for site in filled if site.kind == "mlp"]
        assert set(whole) == set(ranked[: len(whole)])

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
        found = Localization(["L1.mlp", "L0.attn", *(f"L3.mlp.neuron[{i}]" for i in range(16))])
        values = found.heatmap(SITES).data[0].z
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
