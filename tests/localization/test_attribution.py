"""Attribution against finite differences, TransformerLens, and a model whose mechanism is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.planted import planted_facts, planted_model
from helpers.tiny_facts import tiny_facts, unchecked
from helpers.tiny_models import hf_model
from torch import Tensor
from transformer_lens.tools.analysis import attribution_patch

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.metrics import answer_logprob
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import FactError, ModelError, ScoresError
from mechunlearn.localization.attribution.nodes import attribution
from mechunlearn.localization.patching.corruption import OtherSubject
from mechunlearn.localization.patching.pairs import pair
from mechunlearn.localization.subject_swaps import swap_subjects
from mechunlearn.models.encoding.batch import GROUPS
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel

ONE_LETTER = Facts(
    Fact(f"So {name} is in", name, answer, foil=foil)
    for name, answer, foil in (("Bo", "a", "c"), ("Al", "c", "a"), ("Cyd", "a", "b"), ("Dot", "b", "a"))
)


class Moving:
    """A word's log-probability when one component goes a step towards what it writes in the other prompt."""

    def __init__(self, hm: HookedModel, fact: Fact, swapped: Fact, word: str, names: list[str]) -> None:
        rows = [encode(hm, [one], answer=[word]) for one in (fact, swapped)]
        clean, corrupt = (hm.run_with_cache(row.tokens, names_filter=names)[1] for row in rows)
        self.hm, self.row = hm, rows[0]
        self.away = {name: corrupt[name] - clean[name] for name in names}

    def at(self, name: str, step: float) -> float:
        hook = (name, lambda x, hook: x + step * self.away[name])
        logits = self.hm.run_with_hooks(self.row.tokens, fwd_hooks=[hook])
        return float(answer_logprob(logits, self.row.labels))


@torch.no_grad()
def test_it_is_the_slope_of_the_real_change_in_every_family(hm: HookedModel) -> None:
    wide, facts = hm.to(torch.float64), [fact.replace(foil="c") for fact in tiny_facts()[:2]]
    scores = attribution(wide, facts, progress=False)
    swaps, step = swap_subjects(wide, facts), 1e-2
    names = [wide.arch.hooks(site)[0].name for site in scores.sites]
    own, foil = (Moving(wide, swaps.facts[0], swaps.swapped[0], w, names) for w in (facts[0].answer, "c"))
    for place, name in enumerate(names):
        rise = own.at(name, step) - own.at(name, -step) - foil.at(name, step) + foil.at(name, -step)
        # Some families compute their norms in float32 whatever the model's precision.
        assert float(scores.change.values[0, place]) == pytest.approx(rise / (2 * step), rel=2e-3, abs=2e-4)


def test_it_equals_transformer_lens(tokenizer: Any) -> None:
    wide = HookedModel.from_hf(hf_model("gpt2"), tokenizer).to(torch.float64)
    scores = attribution(wide, ONE_LETTER, sites=("head", "mlp"), progress=False)
    swaps = swap_subjects(wide, ONE_LETTER)
    for row, (fact, swapped) in enumerate(zip(swaps.facts, swaps.swapped, strict=True)):
        # The space before an answer is a token of its own, and common to both words.
        clean, corrupt = (encode(wide, [f], answer=["a"]).tokens[:, :-1] for f in (fact, swapped))
        own, foil = (encode(wide, [fact], answer=[w]).tokens[0, -1] for w in (fact.answer, str(fact.foil)))

        def metric(logits: Tensor, own: Tensor = own, foil: Tensor = foil) -> Tensor:
            return logits[0, -1, own] - logits[0, -1, foil]

        # TransformerLens takes its gradient on the run it calls corrupt; ours is the clean one.
        reference = attribution_patch(wide.bridge, corrupt, clean, metric)
        expected = dict.fromkeys(scores.sites, 0.0)
        for node, effect in reference.node_scores.items():
            if node.kind == "attn_head_out":
                expected[Site("head", node.layer, node.head)] += float(effect)
            elif node.kind == "mlp_out":
                expected[Site("mlp", node.layer)] += float(effect)
        np.testing.assert_allclose(scores.change.values[row], list(expected.values()), atol=1e-10)


def test_a_planted_lookup_leads_the_mlps_and_its_carrier_the_attentions() -> None:
    scores = attribution(planted_model(), planted_facts(), progress=False)
    assert scores.only("mlp").top(1) == Localization(["L1.mlp"])
    assert scores.only("attn").top(1) == Localization(["L2.attn"])
    actual = dict(zip(map(str, scores.sites), scores.reduce().values.values.tolist(), strict=True))
    assert all(actual[site] > 0.3 for site in ("L1.mlp", "L2.attn", "L3.mlp"))
    assert all(abs(actual[site]) < 1e-6 for site in ("L0.mlp", "L0.attn", "L1.attn", "L2.mlp", "L3.attn"))


def test_it_needs_and_leaves_no_gradient_on_the_weights(llama: HookedModel) -> None:
    before = llama.identity
    first = attribution(llama, tiny_facts(), progress=False)
    assert all(parameter.grad is None for parameter in llama.params.values()) and llama.identity == before
    with torch.no_grad():
        assert attribution(llama, tiny_facts(), progress=False) == first
    # A fork would share the tensors, and freeze the fixture for every test after this one.
    frozen = llama.to(llama.dtype)
    for parameter in frozen.hf.parameters():
        parameter.requires_grad_(False)
    assert attribution(frozen, tiny_facts(), progress=False) == first


def test_batch_size_changes_nothing_and_the_seed_changes_the_partners(llama: HookedModel) -> None:
    wide = llama.to(torch.float64)
    facts = [fact.replace(foil="G") for fact in tiny_facts()[:4]]
    more = Facts([*facts, *(Fact(f"So {n} is in", n, "a", foil="c") for n in ("Xy", "Zu", "Ww"))])
    first = attribution(wide, more, progress=False)
    again = attribution(wide, more, batch_size=3, progress=False)
    np.testing.assert_allclose(again.values.values, first.values.values, atol=1e-12)
    assert attribution(wide, more, seed=1, progress=False) != first


def test_scores_say_how_to_measure_again(llama: HookedModel) -> None:
    facts = tiny_facts()
    scores = attribution(
        llama, facts, corrupt=OtherSubject(facts[1:]), seed=4, positions="groups", progress=False
    )
    recipe = {"facts": list(facts), "corrupt": OtherSubject(facts[1:], seed=4), "positions": "groups"}
    assert scores.recipe == scores.only("mlp").recipe == recipe
    again = attribution(llama, **scores.recipe, progress=False)
    assert again == scores


def test_facts_without_a_partner_are_left_out_and_named(llama: HookedModel) -> None:
    scores = attribution(llama, tiny_facts(), progress=False)
    assert scores.values.sizes["fact"] == 6
    assert scores.title.endswith(", 6 of 7 facts")


def test_no_partner_at_all_is_an_error(llama: HookedModel) -> None:
    with pytest.raises(FactError, match="none of the 1 facts has another subject with equally many tokens"):
        attribution(llama, tiny_facts()[:1], progress=False)


def test_partners_may_come_from_other_facts(llama: HookedModel) -> None:
    facts = tiny_facts()
    assert (
        attribution(llama, facts[:1], corrupt=OtherSubject(facts[1:]), progress=False).values.sizes["fact"]
        == 1
    )


def test_a_fact_with_nothing_to_compare_is_an_error(llama: HookedModel) -> None:
    bare = [Fact("So Al is in", "Al", "a"), Fact("So Bo is in", "Bo", "b")]
    with pytest.raises(
        FactError, match="has nothing to compare its answer 'a' with; give it `foil=`, `new=`"
    ):
        attribution(llama, bare, progress=False)


def test_unknown_sites_are_an_error(llama: HookedModel) -> None:
    unknown: Any = "neuron"
    with (
        unchecked(),
        pytest.raises(ScoresError, match="sites must be one of 'attn', 'mlp' or 'head'; not 'neuron'"),
    ):
        attribution(llama, tiny_facts(), sites=unknown, progress=False)


def test_a_swapped_prompt_differs_in_the_subject_alone(llama: HookedModel) -> None:
    swaps = swap_subjects(llama, tiny_facts(), other_answer=True, seed=3)
    assert len(swaps.facts) == len(swaps.index) >= 4
    for fact, other in zip(swaps.facts, swaps.swapped, strict=True):
        assert fact.prompt.replace(fact.subject, other.subject) == other.prompt
        assert fact.answer != other.answer and len(fact.subject) == len(other.subject)


@pytest.mark.parametrize("corrupt", ["subject", "noise"])
def test_runs_differ_from_the_subject_on_whatever_corrupts_it(llama: HookedModel, corrupt: Any) -> None:
    pairs = pair(llama, tiny_facts(), ("logit_diff",), corrupt=corrupt)
    batch = pairs.answers.batch
    position = torch.arange(batch.tokens.shape[1])
    after = position >= batch.subject.int().argmax(1, keepdim=True)
    assert torch.equal(pairs.differs, after & batch.mask.bool())


def test_token_groups_and_single_tokens_add_up_to_the_whole(llama: HookedModel) -> None:
    wide = llama.to(torch.float64)
    whole, groups, each = (
        attribution(wide, tiny_facts(), sites=("head", "mlp"), positions=positions, progress=False)
        for positions in ("all", "groups", "each")
    )
    assert groups.values["token"].values.tolist() == list(GROUPS)
    for parts in (groups, each):
        np.testing.assert_allclose(parts.values.sum("pos"), whole.values, atol=1e-10)
    # A subject of one letter has no middle, and every token of the longest prompt with a partner is there.
    assert np.isnan(groups.sel(pos="middle_subject").values.values[0]).all()
    prompts = encode(wide, swap_subjects(wide, tiny_facts()).facts, answer=None)
    assert each.values.sizes["pos"] == prompts.lengths.max()
    assert each.values["token"].values.tolist()[:4] == ["<s>", "S", "o", " "]
    beyond = torch.arange(int(prompts.lengths.max())) >= prompts.lengths[:, None]
    np.testing.assert_array_equal(each.values.isnull().transpose("fact", "pos", "site")[..., 0], beyond)
    # The space before a name is a token of its own: BOS, S, o and that space come before any difference.
    assert (each.values.isel(pos=slice(0, 4)) == 0).all()


def test_unknown_positions_are_an_error(llama: HookedModel) -> None:
    unknown: Any = "token"
    with (
        unchecked(),
        pytest.raises(ScoresError, match="positions must be one of 'groups', 'each' or 'all'; not 'token'"),
    ):
        attribution(llama, tiny_facts(), positions=unknown, progress=False)


def test_no_rows_per_pass_are_an_error(llama: HookedModel) -> None:
    with pytest.raises(ScoresError, match="batch_size must be above zero; not 0"):
        attribution(llama, tiny_facts(), batch_size=0, progress=False)


def test_inference_mode_does_not_matter_but_to_the_weights(tokenizer: Any) -> None:
    hm = HookedModel.from_hf(hf_model("llama"), tokenizer)
    with torch.inference_mode():
        inside = attribution(hm, tiny_facts(), progress=False)
        frozen = HookedModel.from_hf(hf_model("llama"), tokenizer)
    assert inside == attribution(hm, tiny_facts(), progress=False)
    with pytest.raises(ModelError, match=r"loaded inside torch\.inference_mode\(\).*; load it outside"):
        attribution(frozen, tiny_facts(), progress=False)
