"""Verified estimates against patching by hand, and against a change so small that estimates are exact."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.edge_twin import Twin, both_words
from helpers.tiny_models import hf_model, memory_tokenizer

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.edges import EdgeScores
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError
from mechunlearn.localization.attribution.edges import edge_attribution
from mechunlearn.localization.attribution.nodes import attribution
from mechunlearn.localization.patching.activation import activation_patch
from mechunlearn.localization.patching.corruption import OtherSubject
from mechunlearn.localization.path_patching.patch import path_patch
from mechunlearn.localization.subject_swaps import swap_subjects
from mechunlearn.localization.verify import verify
from mechunlearn.models.hooked import HookedModel

# One finds nobody, so facts are numbered otherwise than they were given.
PEOPLE = (("Evan", "a", "c"), ("Bo", "a", "cd"), ("Al", "c", "a"), ("Cyd", "a", "b"), ("Dot", "be", "a"))
FACTS = Facts(Fact(f"So {name} is in", name, answer, foil=foil) for name, answer, foil in PEOPLE)
POOL = Facts(fact for fact in FACTS if len(fact.subject) < 4)


@cache
def model(family: str) -> HookedModel:
    """A family's tiny model in float64 (read-only)."""
    return HookedModel.from_hf(hf_model(family), memory_tokenizer()).to(torch.float64)


def one(scores: Scores, metric: str) -> Any:
    """The values of one metric."""
    return scores.sel(metric=metric).values


class TestComponents:
    @pytest.mark.parametrize("family", ["gpt2", "gemma2"])
    def test_the_best_are_measured_one_by_one_on_the_subjects_of_the_estimate(self, family: str) -> None:
        hm = model(family)
        scores = attribution(hm, FACTS, corrupt=OtherSubject(POOL), seed=3, progress=False)
        found = verify(hm, scores, 3, progress=False)
        assert found.sites == tuple(site for site in scores.sites if site in scores.top(3))
        swaps = swap_subjects(hm, FACTS, pool=POOL, seed=3)
        assert len(swaps.facts) == found.values.sizes["fact"] == 4
        for row, pair in enumerate(zip(swaps.facts, swaps.swapped, strict=True)):
            twin = Twin(hm, *pair)
            exact = [both_words(twin, patched=str(site)) - both_words(twin) for site in found.sites]
            np.testing.assert_allclose(one(found.change, "exact")[row], exact, rtol=0, atol=1e-6)
        sites = [str(site) for site in found.sites]
        assert one(found, "estimate").equals(scores.values.sel(site=sites).drop_attrs())

    @pytest.mark.parametrize("positions", ["all", "groups", "each"])
    def test_it_is_activation_patching_at_the_positions_of_the_estimate(self, positions: Any) -> None:
        hm = model("llama")
        scores = attribution(hm, FACTS, sites=("head", "mlp"), positions=positions, progress=False).only(
            "head"
        )
        found = verify(hm, scores, 2, progress=False)
        exact = activation_patch(
            hm, FACTS, sites=found.sites, positions=positions, direction="noising", progress=False
        )
        np.testing.assert_array_equal(one(found, "exact"), exact.values)
        assert found.title == f"{scores.title}: the 2 highest, measured"

    @pytest.mark.parametrize("positions", ["all", "groups"])
    def test_edges_added_up_over_each_sender_are_measured_as_components(self, positions: Any) -> None:
        hm = model("gpt2")
        nodes = edge_attribution(hm, FACTS, positions=positions, seed=2, progress=False).nodes()
        found = verify(hm, nodes, len(nodes.sites), progress=False)
        exact = one(found, "exact")
        heads = [site for site in found.sites if site.kind != "embed"]
        patched = activation_patch(
            hm, FACTS, sites=heads, positions=positions, direction="noising", seed=2, progress=False
        )
        sites = [str(site) for site in heads]
        np.testing.assert_allclose(exact.sel(site=sites), patched.values.sel(site=sites), atol=1e-12)
        if positions == "all":
            # The embeddings are all that differs between the two prompts.
            swaps = swap_subjects(hm, FACTS, seed=2)
            twins = [Twin(hm, *pair) for pair in zip(swaps.facts, swaps.swapped, strict=True)]
            whole = [both_words(twin, corrupt=True) - both_words(twin) for twin in twins]
            np.testing.assert_allclose(-exact.sel(site="embed"), whole, rtol=0, atol=1e-6)


class TestEdges:
    @pytest.mark.parametrize("positions", ["all", "groups"])
    def test_the_best_are_patched_from_sender_to_receiver(self, positions: Any) -> None:
        hm = model("llama")
        scores = edge_attribution(hm, FACTS, positions=positions, seed=1, progress=False)
        found = verify(hm, scores, 6, progress=False)
        assert isinstance(found, EdgeScores) and set(found.top(6)) == set(scores.top(6))
        for sender, receiver in scores.top(6):
            exact = path_patch(hm, FACTS, [sender], [receiver], positions=positions, seed=1, progress=False)
            measured = found.values.sel(sender=str(sender), receiver=str(receiver))
            np.testing.assert_allclose(measured, exact.values[:, 0], rtol=0, atol=1e-10)
        assert (found.values.notnull().any("fact").sum(("sender", "receiver")) <= 6).all()


def alike(share: float) -> HookedModel:
    """A model to which the subjects' tokens are the same but for a share of their difference."""
    tokenizer, hf = memory_tokenizer(), hf_model("llama").double()
    letters = tokenizer("".join(fact.subject for fact in FACTS))["input_ids"]
    with torch.no_grad():
        weight = hf.get_input_embeddings().weight
        weight[letters] = torch.lerp(weight[letters].mean(0), weight[letters], share)
    return HookedModel.from_hf(hf, tokenizer)


def test_the_smaller_the_change_the_nearer_is_the_estimate() -> None:
    errors = []
    for share in (0.03, 0.003):
        hm = alike(share)
        nodes, edges = attribution(hm, FACTS, progress=False), edge_attribution(hm, FACTS, progress=False)
        found = verify(hm, nodes, 4, progress=False)
        exact, estimate = one(found, "exact"), one(found, "estimate")
        measured = verify(hm, edges, 4, progress=False).values
        claimed = edges.values.sel(sender=measured["sender"], receiver=measured["receiver"])
        errors.append(
            [
                float(abs(exact - estimate).max() / abs(estimate).max()),
                float(abs(measured - claimed).max() / abs(claimed).max()),
            ]
        )
    # A first-order estimate is wrong by the square of the change: relative to the change, by the change.
    assert (np.array(errors[1]) < 0.2 * np.array(errors[0])).all() and max(errors[1]) < 0.05


class TestRefusals:
    def test_scores_that_do_not_know_their_facts_are_refused(self, llama: HookedModel) -> None:
        scores = Scores.of(np.array([1.0]), [Site("mlp", 0)], params={Site("mlp", 0): 1}, title="mine")
        with pytest.raises(
            ScoresError, match=r"'mine' does not say on which facts it was measured; .* activation_patch"
        ):
            verify(llama, scores, 1)

    def test_edges_added_up_over_each_receiver_are_no_component_s(self, llama: HookedModel) -> None:
        edges = edge_attribution(llama, FACTS, progress=False)
        with pytest.raises(ScoresError, match="does not say on which facts it was measured"):
            verify(llama, edges.nodes(by="receiver").only("mlp"), 1)

    def test_scores_that_are_averaged_already_are_refused(self, llama: HookedModel) -> None:
        nodes = attribution(llama, FACTS, positions="groups", progress=False)
        with pytest.raises(ScoresError, match=r"no longer over fact and pos; .* before \.mean"):
            verify(llama, nodes.reduce(), 1)
        with pytest.raises(ScoresError, match="no longer over pos; "):
            verify(llama, nodes.sel(pos="last"), 1)

    def test_more_than_there_are_is_refused(self, llama: HookedModel) -> None:
        nodes, edges = (
            attribution(llama, FACTS, progress=False),
            edge_attribution(llama, FACTS, progress=False),
        )
        with pytest.raises(ScoresError, match="top selects 1 to 4 sites, as many as were scored; not 5"):
            verify(llama, nodes, 5)
        with pytest.raises(ScoresError, match=r"top selects 1 to .* edges"):
            verify(llama, edges, 1000)


def test_facts_keep_the_numbers_they_were_given_when_one_is_left_out() -> None:
    hm, options = model("gpt2"), {"corrupt": OtherSubject(POOL), "progress": False}
    nodes, edges = attribution(hm, FACTS, **options), edge_attribution(hm, FACTS, **options)  # type: ignore[arg-type]
    paths = path_patch(hm, FACTS, "mlp", **options)  # type: ignore[arg-type]
    kept = list(swap_subjects(hm, FACTS, pool=POOL).index)
    assert kept != list(range(len(kept)))
    found: list[Any] = [nodes, edges, edges.nodes(), paths, verify(hm, nodes, 1, progress=False)]
    assert [each.values["fact"].values.tolist() for each in found] == [kept] * 5
