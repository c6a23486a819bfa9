"""Scores select by number, threshold and budget, and refuse what they cannot answer."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers.handmade_scores import (
    MLPS,
    SITES,
    TOTAL,
    component_scores,
    distinct,
    numbers,
    per_site,
    probe,
    trace,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import LocalizationError, ScoresError


class TestTop:
    @given(distinct, st.integers(1, 16), st.sampled_from(("abs", "signed")))
    @settings(max_examples=50)
    def test_k_sites_that_beat_all_others(self, values: Any, k: int, by: Any) -> None:
        scores = component_scores(values)
        chosen = scores.top(k, by=by)
        ranks = dict(zip(scores.sites, np.abs(values) if by == "abs" else values, strict=True))
        assert len(chosen) == k
        assert min(ranks[site] for site in chosen) >= max(
            (r for s, r in ranks.items() if s not in chosen), default=-5
        )

    @given(distinct, st.floats(0.01, 1.0))
    @settings(max_examples=50)
    def test_a_share_is_never_exceeded_unless_asked(self, values: Any, share: float) -> None:
        scores = component_scores(values)
        budget = int(share * TOTAL)
        over = SITES.size(scores.top(params=share, overshoot=True))
        assert over >= budget
        try:
            size = SITES.size(scores.top(params=share))
        except ScoresError:
            assert budget < 3000
        else:
            assert budget - 3000 < size <= budget
            assert over - size <= 3000

    @given(distinct, st.integers(600, TOTAL), st.integers(0, 2))
    @settings(max_examples=30, deadline=None)
    def test_filling_makes_equal_budgets_equal_sizes(self, values: Any, params: int, seed: int) -> None:
        chosen = component_scores(values).top(params=params, fill=SITES, seed=seed)
        assert 0.95 * params <= SITES.size(chosen) <= params

    def test_a_selection_is_a_head_of_the_ranking(self) -> None:
        values = np.zeros(16)
        values[[0, 1, 8]] = 0.9, 0.8, 0.7
        # L1.mlp does not fit any more; L0.attn would, and is not taken in its place.
        assert component_scores(values).top(params=5000) == Localization(["L0.mlp"])

    def test_a_cut_through_sites_of_equal_score_is_refused(self) -> None:
        values = np.arange(16.0, 0.0, -1.0)
        values[[3, 4, 9]] = 8.5
        scores = component_scores(values)
        message = r"L3\.mlp, L4\.mlp, L1\.attn score the same \(8\.5\), .* first 7 sites .*; take 6 or 9"
        with pytest.raises(ScoresError, match=message):
            scores.top(7)
        with pytest.raises(ScoresError, match=r"score the same \(8\.5\)"):
            scores.top(params=7 * 3000)
        assert len(scores.top(6)) == 6 and len(scores.top(9)) == 9

    def test_sites_of_score_0_are_not_handed_out(self) -> None:
        values = np.zeros(16)
        values[5] = -0.3
        scores = component_scores(values)
        assert scores.top(1) == Localization(["L5.mlp"])
        message = (
            r"tracing: only 1 of 16 sites score above 0, so the first 3 would take L0\.mlp, which scores 0"
        )
        for by in (3, {"params": 9000}, {"params": 9000, "fill": SITES}):
            with pytest.raises(ScoresError, match=message if by == 3 else "which scores 0"):
                scores.top(**by) if isinstance(by, dict) else scores.top(by)

    def test_scores_say_why_they_are_0(self) -> None:
        scores = Scores.of(np.zeros(8), MLPS).explained("too few facts; give more")
        with pytest.raises(ScoresError, match="too few facts; give more"):
            scores.top(1)

    def test_a_share_is_one_of_the_whole_grain(self) -> None:
        scores = Scores.of(np.ones(1), MLPS[:1], params={MLPS[0]: 10}, total_params=100)
        assert scores.top(params=0.1) == Localization(["L0.mlp"])

    def test_the_source_tells_how_it_was_chosen(self) -> None:
        scores = component_scores(np.arange(16.0))
        assert scores.top(3).source == "tracing, top 3"
        assert (
            scores.top(params=4000).source == "tracing, top 4,000 parameters (3,200 parameters, gap -20.0 %)"
        )
        filled = scores.top(params=0.1, fill=SITES).source
        assert filled == "tracing, top 10 % of parameters (3,600 parameters, gap -2.2 %)"

    def test_positions_and_facts_are_reduced_first(self) -> None:
        values = np.zeros((2, 8, 4))
        values[:, 5, 3] = -0.7
        values[:, 2, 1] = 0.1
        assert trace(values).top(1) == Localization(["L5.mlp"])
        assert trace(values).top(1, by="signed") == Localization(["L2.mlp"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "top takes either k or params, one of them; not k=None and params=None"),
            ({"k": 3, "params": 0.1}, "top takes either k or params, one of them; not k=3 and params=0.1"),
            ({"k": 0}, "top selects 1 to 16 sites, as many as were scored; not 0"),
            ({"k": 17}, "top selects 1 to 16 sites, as many as were scored; not 17"),
            ({"k": 3, "overshoot": True}, r"write top\(params=\), not top\(3\)"),
            ({"params": 0.0}, "params is a share in .* not 0.0"),
            ({"params": 1.5}, "params is a share in .* not 1.5"),
            ({"params": -5}, "params is a share in .* not -5"),
            ({"params": True}, "params is a share in .* not True"),
            (
                {"params": 0.1, "fill": SITES, "overshoot": True},
                "fill never goes above the budget; leave out",
            ),
            ({"params": 0.01}, r"the best site, L0\.mlp, has 3,000 parameters, more than the budget of 368"),
        ],
    )
    def test_a_selection_that_cannot_be_made_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ScoresError, match=message):
            component_scores(np.ones(16)).top(**options)

    def test_a_budget_too_small_to_fill_is_refused(self) -> None:
        with pytest.raises(
            LocalizationError, match=r"a budget of 29 parameters is below the smallest of the 16 sites"
        ):
            component_scores(np.ones(16)).top(params=29, fill=SITES)

    def test_a_budget_needs_parameter_counts(self) -> None:
        with pytest.raises(
            ScoresError, match=r"these scores know no parameter counts; give params to Scores.of"
        ):
            Scores.of(np.arange(1.0, 9.0), MLPS).top(params=0.1)
        assert len(Scores.of(np.arange(1.0, 9.0), MLPS).top(2)) == 2

    def test_an_unknown_order_is_refused(self) -> None:
        with pytest.raises(ScoresError, match="by must be one of 'abs' or 'signed'; not 'rank'"):
            inspect.unwrap(Scores.top)(component_scores(np.ones(16)), 1, by="rank")

    def test_nan_has_no_rank(self) -> None:
        values = np.ones(16)
        values[9] = np.nan
        with pytest.raises(ScoresError, match=r"the score of L1\.attn is NaN and has no rank"):
            component_scores(values).top(1)

    def test_scores_of_states_select_nothing(self) -> None:
        message = (
            r"scores of states draw and compare but select nothing: L0\.resid_mid has no weights; .*"
            r"causal_trace\(\.\.\., sites='mlp'\)"
        )
        accuracy = probe().sel(metric="accuracy")
        with pytest.raises(ScoresError, match=message):
            accuracy.top(2)
        with pytest.raises(ScoresError, match=message):
            accuracy.top(params=0.1)
        with pytest.raises(ScoresError, match=message):
            accuracy.above(0.5)


class TestPerParameter:
    @given(distinct, st.integers(1, 16), st.sampled_from(("abs", "signed")))
    @settings(max_examples=30)
    def test_sites_are_ranked_by_score_per_parameter(self, values: Any, k: int, by: Any) -> None:
        scores = component_scores(values)
        sizes = scores.values["params"].values
        spread = Scores.of(values / sizes, scores.sites)
        assert scores.top(k, by=by, per_parameter=True) == spread.top(k, by=by)

    def test_a_small_site_may_beat_a_large_one(self) -> None:
        values = np.zeros(16)
        values[[2, 8 + 5]] = 0.9, 0.6
        chosen = component_scores(values).top(params=3200, per_parameter=True)
        assert chosen == Localization(["L5.attn"])
        assert chosen.source.startswith("tracing per parameter, top 3,200 parameters (1,600")
        assert component_scores(values).top(1) == Localization(["L2.mlp"])

    def test_it_needs_parameter_counts(self) -> None:
        with pytest.raises(ScoresError, match=r"these scores know no parameter counts; give params to"):
            Scores.of(np.zeros(8), MLPS).top(1, per_parameter=True)


def by_hand(scores: dict[str, float], sizes: dict[str, int], budget: int) -> set[str]:
    """The authors' selection as they describe it, one step after the other."""
    ordered = sorted(scores, key=lambda name: abs(scores[name]), reverse=True)
    for name in ordered:
        budget -= sizes[name]
        lowest = abs(scores[name])
        if budget <= 0:
            break
    return {name for name in scores if abs(scores[name]) >= lowest}


class TestGuo2024:
    PARTS: ClassVar = {
        "L0.head[0]": 2, "L0.head[0].q": 3, "L0.head[1]": -1,  # attention of layer 0: 4
        "L1.head[0]": -5, "L1.head[1].v": -2,  # attention of layer 1: -7
        "L0.mlp.in": 5, "L0.mlp.out": 1,  # 6
        "L1.mlp.in": 1, "L1.mlp.out": -5,  # -4, which ties with the attention of layer 0
    }  # fmt: skip

    def scores(self) -> Scores:
        sites = [Site.parse(name) for name in self.PARTS]
        return Scores.of(np.array(list(self.PARTS.values()), float), sites, params=SITES, title="tracing")

    @pytest.mark.parametrize(
        ("budget", "chosen"),
        [
            (1, ["L1.attn"]),
            (1600, ["L1.attn"]),
            (1601, ["L1.attn", "L0.mlp"]),
            (4600, ["L1.attn", "L0.mlp"]),
            (4601, ["L1.attn", "L0.mlp", "L0.attn", "L1.mlp"]),
            (99_999, ["L1.attn", "L0.mlp", "L0.attn", "L1.mlp"]),
        ],
    )
    def test_a_case_worked_by_hand(self, budget: int, chosen: list[str]) -> None:
        assert self.scores().top(params=budget, convention="guo2024") == Localization(chosen)

    def test_the_source_names_the_convention_and_the_gap(self) -> None:
        assert self.scores().top(params=4601, convention="guo2024").source == (
            "tracing, parts combined by sum, top 4,601 parameters as in Guo et al. 2024 "
            "(9,200 parameters, gap +100.0 %)"
        )

    @given(arrays(np.int64, 16, elements=st.integers(-4, 4)), st.integers(1, 2 * TOTAL))
    @settings(max_examples=60)
    def test_it_is_the_walk_that_the_authors_describe(self, values: Any, budget: int) -> None:
        scores = component_scores(values.astype(float))
        names = list(map(str, scores.sites))
        sizes = dict(zip(names, scores.values["params"].values.tolist(), strict=True))
        expected = by_hand(dict(zip(names, values.tolist(), strict=True)), sizes, budget)
        assert set(map(str, scores.top(params=budget, convention="guo2024"))) == expected

    def test_facts_are_averaged_and_one_kind_may_be_kept(self) -> None:
        values = np.stack([component_scores(np.arange(16.0)).values.values, np.zeros(16)])
        scores = Scores.of(values, component_scores(np.zeros(16)).sites, dims=("fact", "site"), params=SITES)
        assert scores.only("mlp").top(params=0.1, convention="guo2024") == Localization(["L7.mlp", "L6.mlp"])

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"by": "signed"}, "by"),
            ({"overshoot": True}, "overshoot"),
            ({"per_parameter": True}, "per_parameter"),
            ({"fill": SITES}, "fill"),
        ],
    )
    def test_options_that_contradict_it_are_refused(self, options: dict[str, Any], name: str) -> None:
        message = rf"fixes how sites are ranked and spends a budget; leave out {name}, and write top\(params="
        with pytest.raises(ScoresError, match=message):
            self.scores().top(params=0.1, convention="guo2024", **options)

    def test_it_spends_a_budget(self) -> None:
        with pytest.raises(ScoresError, match=r"convention='guo2024' fixes .* leave out k, and write"):
            self.scores().top(3, convention="guo2024")
        with pytest.raises(ScoresError, match=r"params is a share in .* not 1.5"):
            self.scores().top(params=1.5, convention="guo2024")
        with pytest.raises(ScoresError, match=r"params is a share in .* not 0"):
            self.scores().top(params=0, convention="guo2024")

    def test_positions_have_to_be_selected(self) -> None:
        with pytest.raises(ScoresError, match=r"ranks scores without positions; select one with \.sel\(pos="):
            trace(np.zeros((1, 8, 4))).top(params=0.1, convention="guo2024")

    def test_another_convention_is_refused(self) -> None:
        with pytest.raises(ScoresError, match="convention must be one of 'guo2024'; not 'guo'"):
            inspect.unwrap(Scores.top)(self.scores(), params=0.1, convention="guo")


class TestAbove:
    @given(per_site, numbers)
    def test_every_site_above_and_no_other(self, values: Any, threshold: float) -> None:
        scores = component_scores(values)
        assert set(scores.above(threshold)) == {
            s for s, v in zip(scores.sites, values, strict=True) if v > threshold
        }

    def test_it_may_be_none(self) -> None:
        assert component_scores(np.zeros(16)).above(0.0) == Localization()

    def test_the_source_names_the_threshold(self) -> None:
        assert component_scores(np.ones(16)).above(0.25, by="abs").source == "tracing, above 0.25"
