"""Localizations are sets of disjoint weight sites, in memory and on disk."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.paper_models import GROUPED, SITES, fine, localizations, model_sites, states, weight_sites
from hypothesis import given, settings
from hypothesis import strategies as st

from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import DataError, LocalizationError, SiteError


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
        mlps: Any = Localization(["L3.mlp"])
        assert "L3.mlp" in mlps
        assert "L4.mlp" not in mlps
        with pytest.raises(SiteError, match=r"'L3\.mpl' is not a site"):
            assert "L3.mpl" in mlps

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
        ("coarse", "fine", "remedy"),
        [
            ("L3.mlp", "L3.mlp.neuron[7]", r'bring both to one grain with .refine\("neuron", hm.sites\)'),
            ("L3.attn", "L3.head[2]", r'bring both to one grain with .refine\("head", hm.sites\)'),
            ("L3.attn", "L3.kv[0]", r'bring both to one grain with .refine\("head", hm.sites\)'),
            ("L3.mlp", "L3.mlp.in", "keep one"),
            ("L3.mlp.out", "L3.mlp.neuron[7]", "keep one"),
            ("L3.head[2]", "L3.head[2].q", "keep one"),
        ],
    )
    def test_overlapping_sites_are_named_with_the_remedy(self, coarse: str, fine: str, remedy: str) -> None:
        message = f"{coarse} and {fine} share weights; {remedy}".replace("[", r"\[")
        with pytest.raises(LocalizationError, match=message):
            Localization([fine, coarse])

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
    def test_refining_keeps_all_but_the_output_biases(self, components: Localization) -> None:
        bare = model_sites(bias=False)
        for grain in ("head", "neuron"):
            assert bare.size(components.refine(grain, bare)) == bare.size(components)
            biases = 64 * sum(site.kind == {"head": "attn", "neuron": "mlp"}[grain] for site in components)
            assert SITES.size(components.refine(grain, SITES)) == SITES.size(components) - biases

    def test_heads_bring_their_groups_under_grouped_queries(self) -> None:
        grouped = model_sites(GROUPED, bias=False)
        refined = Localization(["L1.attn"]).refine("head", grouped)
        assert [site.kind for site in refined] == ["head"] * 8 + ["kv"] * 2
        assert grouped.size(refined) == grouped.size([Site("attn", 1)])

    def test_parts_stay_as_they_are(self) -> None:
        parts = Localization(["L1.mlp.in", "L1.head[0].q", "embed"], source="by hand")
        assert parts.refine("neuron", SITES).refine("head", SITES) == parts
        assert parts.refine("neuron", SITES).source == "by hand"

    def test_an_unknown_grain_is_refused(self) -> None:
        # Unwrapped, because the shape checks of this test run would refuse the argument first.
        with pytest.raises(
            LocalizationError, match="the grain must be one of 'head' or 'neuron'; not 'expert'"
        ):
            inspect.unwrap(Localization.refine)(Localization(), "expert", SITES)


class TestFiles:
    @given(st.one_of(localizations, fine), st.text())
    @settings(max_examples=25)
    def test_what_is_saved_is_loaded(self, localization: Localization, source: str) -> None:
        path = Path("found.json")
        Localization(localization, source=source).save(path)
        again = Localization.load(str(path))
        assert (again, again.source) == (localization, source)

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
