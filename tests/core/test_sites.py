"""A site prints and parses alike, and knows which sites it shares weights with."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.paper_models import SITES, sites, states, weight_sites
from hypothesis import given
from hypothesis import strategies as st

from mechunlearn.core.sites.site import Site
from mechunlearn.errors import SiteError


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
            ("L5.kv[1].q", "L5.kv[1].v"),
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
            (("kv", 0, 1, "q"), "parts of a site of kind 'kv' are: k v; not 'q'"),
            (("attn", 0, None, "q"), "parts of a site of kind 'attn' are: none; not 'q'"),
        ],
    )
    def test_fields_that_make_no_site_are_refused(self, fields: tuple[Any, ...], message: str) -> None:
        with pytest.raises(SiteError, match=message):
            Site(*fields)

    def test_sites_sort_as_a_model_computes(self) -> None:
        order = [
            "embed", "L0.mlp", "L2.resid_pre", "L2.pattern[3]", "L2.attn", "L2.head[2]", "L2.head[2].q",
            "L2.head[2].o", "L2.head[10]", "L2.kv[0]", "L2.kv[0].k", "L2.kv[0].v", "L2.resid_mid",
            "L2.mlp", "L2.mlp.in", "L2.mlp.neuron[9]", "L2.mlp.neuron[10]", "L2.resid_post", "L10.attn",
        ]  # fmt: skip
        assert [str(site) for site in sorted(map(Site.parse, reversed(order)))] == order

    @given(weight_sites, weight_sites)
    def test_sharing_weights_is_mutual(self, first: Site, second: Site) -> None:
        assert first.overlaps(first)
        assert first.overlaps(second) == second.overlaps(first)
        if first.layer != second.layer:
            assert not first.overlaps(second)

    @pytest.mark.parametrize(
        ("first", "second", "shared"),
        [
            ("L3.mlp", "L3.mlp.neuron[7]", True),
            ("L3.mlp.in", "L3.mlp.neuron[7]", True),
            ("L3.mlp.in", "L3.mlp.out", False),
            ("L3.attn", "L3.head[2].q", True),
            ("L3.attn", "L3.kv[0]", True),
            ("L3.head[2]", "L3.head[2].q", True),
            ("L3.head[2].q", "L3.head[2].k", False),
            ("L3.attn", "L3.kv[0].k", True),
            ("L3.kv[0]", "L3.kv[0].v", True),
            ("L3.kv[0].k", "L3.kv[0].v", False),
            ("L3.kv[0].k", "L3.kv[1]", False),
            ("L3.head[2]", "L3.kv[0]", False),
            ("L3.attn", "L3.mlp", False),
            ("L3.resid_pre", "L3.resid_pre", False),
        ],
    )
    def test_sites_overlap_when_a_weight_is_in_both(self, first: str, second: str, shared: bool) -> None:
        assert Site.parse(first).overlaps(Site.parse(second)) is shared

    @pytest.mark.parametrize("part", ["k", "v"])
    def test_the_keys_or_the_values_of_a_group_are_a_site(self, part: str) -> None:
        site = Site("kv", 5, 1, part)
        assert str(site) == f"L5.kv[1].{part}" and Site.parse(str(site)) == site == eval(repr(site))
        assert site.has_weights and site.column == f"kv[1].{part}"
        assert site.wider == (Site("kv", 5, 1), Site("attn", 5))

    @given(states)
    def test_states_hold_no_weights(self, site: Site) -> None:
        assert not site.has_weights
        assert SITES.size([site]) == 0
