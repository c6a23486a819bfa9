"""Edge attribution against masks on every edge, TransformerLens, node attribution and exact patching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.edge_twin import Double, Twin, both_words
from helpers.tiny_facts import tiny_facts, unchecked
from helpers.tiny_models import hf_model, memory_tokenizer
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch
from transformer_lens.tools.analysis.attribution_patching import Node

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.hooks import steer
from mechunlearn.core.scores.edges import EdgeScores
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.localization.attribution.edges import edge_attribution, edge_estimates
from mechunlearn.localization.attribution.gradients import unembed_at
from mechunlearn.localization.attribution.graph import Graph
from mechunlearn.localization.attribution.nodes import attribution
from mechunlearn.localization.patching.corruption import OtherSubject
from mechunlearn.localization.patching.pairs import Pairs, pair
from mechunlearn.localization.subject_swaps import swap_subjects
from mechunlearn.models.encoding.batch import GROUPS
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel

# Longer than the tiny models' sliding window of 16, and with answers of one and of several tokens.
PAIRS = Facts(
    Fact(f"So and so, {name} is in", name, answer, foil=foil)
    for name, answer, foil in (("Bo", "a", "cd"), ("Al", "c", "a"), ("Cyd", "a", "b"), ("Dot", "be", "a"))
)


# Parallel blocks, grouped queries with post-norms, and neither.
DIFFERENT = ("gpt2", "neox", "gemma2")
METHODS = ("eap", "eap-ig-inputs", "eap-ig-activations")


def model(family: str) -> HookedModel:
    """One family in float64."""
    return HookedModel.from_hf(hf_model(family), memory_tokenizer()).to(torch.float64)


@pytest.fixture
def wide(hm: HookedModel) -> HookedModel:
    """Each family in float64."""
    return hm.to(torch.float64)


@pytest.fixture(scope="module")
def gpt2() -> HookedModel:
    """A family that computes nothing in float32."""
    return model("gpt2")


def twins(hm: HookedModel, facts: Sequence[Fact] = PAIRS) -> list[Twin]:
    swaps = swap_subjects(hm, facts, pool=PAIRS)
    return [Twin(hm, *pair) for pair in zip(swaps.facts, swaps.swapped, strict=True)]


class TestAgainstMasks:
    def test_an_edge_is_the_derivative_in_its_mask_in_every_family(self, wide: HookedModel) -> None:
        with Double():
            actual = edge_attribution(
                wide, PAIRS[::3], corrupt=OtherSubject(PAIRS), batch_size=2, progress=False
            )
            for row, twin in enumerate(twins(wide, PAIRS[::3])):
                assert [str(site) for site in actual.senders] == twin.senders
                assert [str(site) for site in actual.receivers] == twin.receivers
                np.testing.assert_allclose(actual.change.values[row], twin.scores(), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("family", DIFFERENT)
    def test_integrated_over_inputs_it_is_the_mean_over_embeddings_between(self, family: str) -> None:
        with Double():
            wide = model(family)
            options: Any = {
                "corrupt": OtherSubject(PAIRS),
                "method": "eap-ig-inputs",
                "steps": 3,
                "progress": False,
            }
            actual = edge_attribution(wide, PAIRS[1:2], **options)
            (twin,) = twins(wide, PAIRS[1:2])
            expected = sum(twin.scores(embed=k / 3) for k in (1, 2, 3)) / 3
            np.testing.assert_allclose(actual.change.values[0], expected, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("family", DIFFERENT)
    def test_integrated_over_activations_each_sender_has_its_own_runs(self, family: str) -> None:
        with Double():
            wide = model(family)
            options: Any = {
                "corrupt": OtherSubject(PAIRS),
                "method": "eap-ig-activations",
                "steps": 2,
                "progress": False,
            }
            actual = edge_attribution(wide, PAIRS[1:2], **options)
            (twin,) = twins(wide, PAIRS[1:2])
            expected = sum(twin.scores_of_own_runs(k / 2) for k in (1, 2)) / 2
            np.testing.assert_allclose(actual.change.values[0], expected, rtol=0, atol=1e-10)


def node_name(node: Node) -> str:
    """TransformerLens's name of a place in ours."""
    whole = {
        "embed": "embed", "mlp_out": f"L{node.layer}.mlp", "mlp_in": f"L{node.layer}.mlp",
        "attn_head_out": f"L{node.layer}.head[{node.head}]", "logits": f"L{node.layer}.resid_post",
    }  # fmt: skip
    return whole.get(node.kind, f"L{node.layer}.head[{node.head}].{node.kind[0]}")


class TestAgainstOthers:
    def test_it_equals_transformer_lens_at_all_positions(self, gpt2: HookedModel) -> None:
        clean, corrupt = torch.randint(2, 96, (2, 3, 7), generator=torch.Generator().manual_seed(0))
        actual = edge_estimates(gpt2, Pairs.at_end(clean, corrupt, clean[:, 0], corrupt[:, 0]))[..., 0]
        graph = Graph(gpt2)
        rows = {str(site): index for index, site in enumerate(graph.senders)}
        cols = {str(site): index for index, site in enumerate(graph.receivers)}
        for row in range(3):
            # TransformerLens takes its gradient on the run it calls corrupt; ours is the clean one.
            reference = attribution_patch(
                gpt2.bridge,
                corrupt[row : row + 1],
                clean[row : row + 1],
                lambda logits, row=row: logits[0, -1, clean[row, 0]] - logits[0, -1, corrupt[row, 0]],
                config=EdgeAttributionConfig(granularity="edge"),
            )
            expected = torch.zeros(len(rows), len(cols), dtype=torch.float64)
            there = torch.zeros_like(expected, dtype=torch.bool)
            for (sender, receiver), score in reference.edge_scores.items():
                index = rows[node_name(sender)], cols[node_name(receiver)]
                expected[index] += score
                there[index] = True
            assert torch.equal(there, ~actual[row].isnan())
            torch.testing.assert_close(actual[row].nan_to_num(), expected, rtol=0, atol=1e-10)

    def test_summed_over_receivers_it_is_the_attribution_of_nodes(self, wide: HookedModel) -> None:
        with Double():
            for positions in ("all", "groups"):
                edges = edge_attribution(wide, PAIRS, positions=positions, progress=False)
                nodes = attribution(wide, PAIRS, sites=("head", "mlp"), positions=positions, progress=False)
                kept = edges.nodes().only("head", "mlp")
                assert kept.sites == nodes.sites
                np.testing.assert_allclose(kept.values.values, nodes.values.values, rtol=0, atol=1e-12)

    def test_many_steps_over_inputs_give_back_the_whole_change(self, gpt2: HookedModel) -> None:
        whole = np.array([both_words(twin, corrupt=True) - both_words(twin) for twin in twins(gpt2)])
        errors = []
        for steps in (8, 32):
            edges = edge_attribution(gpt2, PAIRS, method="eap-ig-inputs", steps=steps, progress=False)
            errors.append(np.abs(edges.change.nodes().values.sel(site="embed").values - whole).max())
        # One end of every step is counted, so the error falls as one over their number.
        assert errors[1] < 0.35 * errors[0] and errors[1] < 0.02 * np.abs(whole).max()

    @pytest.mark.parametrize("family", ["gpt2", "gemma2"])
    def test_many_steps_over_activations_give_what_patching_does(self, family: str) -> None:
        wide = model(family)
        (twin,) = twins(wide, PAIRS[:1])
        sites = ["L0.attn", "L0.mlp", "L1.attn", "L1.mlp"]
        exact = np.array([both_words(twin, patched=site) for site in sites]) - both_words(twin)
        errors = []
        for steps in (8, 32):
            options: Any = {"method": "eap-ig-activations", "steps": steps, "batch_size": 64}
            edges = edge_attribution(wide, PAIRS[:1], corrupt=OtherSubject(PAIRS), progress=False, **options)
            nodes = edges.change.nodes().only("head", "mlp").combine("sum").values.sel(site=sites)
            errors.append(np.abs(nodes.values[0] - exact).max())
        assert errors[1] < 0.35 * errors[0] and errors[1] < 0.05 * np.abs(exact).max()


class TestLaws:
    def test_one_step_is_plain_edge_attribution(self, gpt2: HookedModel) -> None:
        plain = edge_attribution(gpt2, PAIRS, progress=False)
        one = edge_attribution(gpt2, PAIRS, method="eap-ig-inputs", steps=1, progress=False)
        np.testing.assert_allclose(one.values.values, plain.values.values, atol=1e-12)

    @pytest.mark.parametrize("method", METHODS)
    def test_positions_add_up_and_nothing_counts_before_the_first_difference(
        self, gpt2: HookedModel, method: Any
    ) -> None:
        facts, options = (
            PAIRS[::3],
            {"corrupt": OtherSubject(PAIRS), "method": method, "steps": 2, "progress": False},
        )
        whole = edge_attribution(gpt2, facts, **options)
        groups = edge_attribution(gpt2, facts, positions="groups", **options)
        each = edge_attribution(gpt2, facts, positions="each", batch_size=1, **options)
        assert groups.values["token"].values.tolist() == list(GROUPS)
        for parts in (groups, each):
            summed = parts.values.sum("pos", min_count=1).values
            np.testing.assert_allclose(summed, whole.values.values, atol=1e-12)
        subject = int(encode(gpt2, PAIRS).subject.int().argmax(1)[0])
        before = each.values.isel(pos=slice(0, subject)).values
        assert (before[~np.isnan(before)] == 0).all()

    @pytest.mark.parametrize("method", ["eap-ig-inputs", "eap-ig-activations"])
    def test_batch_size_changes_nothing(self, llama: HookedModel, method: Any) -> None:
        wide = llama.to(torch.float64)
        first, again = (
            edge_attribution(wide, PAIRS, method=method, steps=3, batch_size=size, progress=False)
            for size in (64, 3)
        )
        np.testing.assert_allclose(again.values.values, first.values.values, atol=1e-8)

    def test_half_precision_is_near(self, llama: HookedModel) -> None:
        exact = edge_attribution(llama, PAIRS, progress=False).values.values
        near = edge_attribution(llama.to(torch.bfloat16), PAIRS, progress=False).values.values
        assert np.nanmax(np.abs(near - exact)) < 0.1 * np.nanmax(np.abs(exact))

    def test_somebody_elses_hook_in_a_norm_is_differentiated_too(self, gpt2: HookedModel) -> None:
        freeze = ("blocks.1.ln1.hook_scale", lambda scale, hook: scale.detach())
        plain = edge_attribution(gpt2, PAIRS, progress=False)
        with gpt2.hooks([freeze]):
            frozen = edge_attribution(gpt2, PAIRS, progress=False)
            nodes = attribution(gpt2, PAIRS, sites=("head", "mlp"), progress=False)
        assert not np.allclose(frozen.values, plain.values, equal_nan=True)
        np.testing.assert_allclose(frozen.nodes().values[:, 1:], nodes.values, atol=1e-12)

    def test_it_needs_and_leaves_no_gradient_on_the_weights(self, llama: HookedModel) -> None:
        before, first = llama.identity, edge_attribution(llama, PAIRS, progress=False)
        assert all(parameter.grad is None for parameter in llama.params.values())
        # A fork would share the tensors, and freeze the fixture for every test after this one.
        frozen = llama.to(llama.dtype)
        for parameter in frozen.hf.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            assert edge_attribution(frozen, PAIRS, progress=False) == first
        assert llama.identity == before

    def test_a_run_that_fails_leaves_no_hook(self, llama: HookedModel) -> None:
        def stop(activation: Any, hook: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), llama.hooks([("blocks.1.hook_mlp_out", stop)]):
            edge_attribution(llama, PAIRS, progress=False)
        assert not any(point.fwd_hooks for point in llama.hook_dict.values())

    @pytest.mark.parametrize("method", METHODS)
    def test_whatever_happens_the_bridge_keeps_no_graph(self, gpt2: HookedModel, method: Any) -> None:
        def graphs() -> int:
            kept = (value for module in gpt2.bridge.modules() for value in vars(module).values())
            return sum(isinstance(value, torch.Tensor) and value.grad_fn is not None for value in kept)

        options: Any = {"method": method, "steps": 2, "progress": False}
        edge_attribution(gpt2, PAIRS, **options)
        assert graphs() == 0

        def stop(activation: Any, hook: Any) -> None:
            if activation.requires_grad:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), gpt2.hooks([("unembed.hook_in", stop)]):
            edge_attribution(gpt2, PAIRS, **options)
        assert graphs() == 0

    @pytest.mark.parametrize("method", METHODS)
    def test_somebody_elses_hooks_see_whole_prompts_alone(self, gpt2: HookedModel, method: Any) -> None:
        louder = steer("blocks.0.hook_mlp_out", torch.ones(gpt2.cfg.d_model, dtype=gpt2.dtype), at=7)
        with gpt2.hooks([louder]):
            edge_attribution(gpt2, PAIRS, method=method, steps=2, progress=False)

    @pytest.mark.parametrize("method", METHODS)
    def test_inference_mode_does_not_matter(self, llama: HookedModel, method: Any) -> None:
        options: Any = {"method": method, "steps": 2, "progress": False}
        outside = edge_attribution(llama, PAIRS, **options)
        with torch.inference_mode():
            assert edge_attribution(llama, PAIRS, **options) == outside

    @torch.no_grad()
    def test_words_of_one_token_are_one_row_and_longer_words_have_their_own(self, gpt2: HookedModel) -> None:
        # The space at a prompt's end is a token of the answer, and common to both words here.
        words = [(name, foil) for name in ("Bo", "Al") for foil in ("c", "cd")]
        facts = [Fact(f"So {name} is in", name, "a", foil=foil) for name, foil in words]
        asked = pair(gpt2, facts, ("logit_diff",), corrupt="subject").answers
        assert asked.fact.tolist() == [0, 1, 1, 2, 3, 3]
        batch = encode(gpt2, facts[:1])
        assert asked.batch.lengths[0] == batch.answer_positions.max() + 1
        own, other = (encode(gpt2, facts[:1], answer=[word]).labels.max() for word in "ac")
        logits = gpt2(batch.tokens)[0, int(asked.batch.lengths[0]) - 1]
        tokens, mask = asked.batch.tokens, asked.batch.mask
        read = gpt2.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=[unembed_at(asked)])
        assert float(asked.difference(read)[0]) == pytest.approx(float(logits[own] - logits[other]))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"method": "ig"},
                "method must be one of 'eap', 'eap-ig-inputs' or 'eap-ig-activations'; not 'ig'",
            ),
            ({"positions": "sum"}, "positions must be one of 'groups', 'each' or 'all'; not 'sum'"),
            ({"steps": 0}, "steps must be above zero; not 0"),
            ({"batch_size": 0}, "batch_size must be above zero; not 0"),
        ],
    )
    def test_what_does_not_exist_names_what_does(
        self, llama: HookedModel, options: Any, message: str
    ) -> None:
        with unchecked(), pytest.raises(ScoresError, match=message):
            edge_attribution(llama, PAIRS, progress=False, **options)

    def test_no_partner_at_all_is_an_error(self, llama: HookedModel) -> None:
        with pytest.raises(FactError, match="none of the 1 facts has another subject"):
            edge_attribution(llama, tiny_facts()[:1], progress=False)

    def test_facts_without_a_partner_are_left_out_and_named(self, llama: HookedModel) -> None:
        scores = edge_attribution(llama, tiny_facts(), progress=False)
        assert isinstance(scores, EdgeScores) and scores.values.sizes["fact"] == 6
        assert scores.title == "Edge attribution, 6 of 7 facts"
