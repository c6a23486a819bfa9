"""Fact lookup by paths: what is planted is found, and what the rule says is what it does."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from helpers.planted import ANSWERS, planted_facts, planted_model
from helpers.tiny_facts import tiny_facts
from helpers.tiny_models import hf_model

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.core.statistics import bootstrap_interval
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.localization.fact_lookup.probe_and_swap import fact_lookup
from mechunlearn.localization.fact_lookup.through_heads import _null, path_lookup
from mechunlearn.localization.path_patching.patch import path_patch
from mechunlearn.localization.subject_swaps import swap_subjects
from mechunlearn.models.hooked import HookedModel

# Models that know nothing, and still prefer these facts' answers to those of others.
PREFERRING = {"gpt2": 0, "llama": 4}
ANY: Any = {"min_head_effect": 0.0, "min_effect": 0.0, "progress": False}


@cache
def planted() -> Scores:
    return path_lookup(planted_model(), planted_facts()[:12], progress=False)


def test_the_planted_lookup_is_found_through_the_planted_carrier() -> None:
    assert planted().above(0) == Localization(["L1.mlp"])
    heads = planted().evidence["heads"].reduce()
    assert [str(site) for site in heads.top(1)] == ["L2.head[0]"]
    assert "L2.head[0]" in planted().title


def test_effects_are_shares_of_the_preference() -> None:
    means = dict(zip(planted().sites, planted().reduce().values.values.tolist(), strict=True))
    assert means[Site("mlp", 1)] == pytest.approx(1, abs=1e-3)
    # The amplifier after the carrier is not read by it, so not even rounding arrives.
    assert means[Site("mlp", 3)] == 0


def preferring(name: str, tokenizer: Any) -> HookedModel:
    return HookedModel.from_hf(hf_model(name, seed=PREFERRING[name]), tokenizer)


def test_the_null_path_carries_nothing_and_is_shown() -> None:
    null = planted().evidence["null"]
    # The other head of the carrier's layer, behind the same MLPs.
    assert null.title.startswith("Path patching to L2.head[1].q, L2.head[1].k, L2.head[1].v: ")
    assert np.abs(null.reduce().values.values).max() < 1e-3


def per_fact(scores: Scores) -> dict[Site, np.ndarray[Any, Any]]:
    return dict(zip(scores.sites, scores.values.transpose("site", "fact").values, strict=True))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_credit_follows_from_the_evidence(name: str, tokenizer: Any) -> None:
    hm = preferring(name, tokenizer)
    found = path_lookup(hm, tiny_facts(), heads=2, **ANY)
    through, null = per_fact(found.evidence["paths"]), per_fact(found.evidence["null"])
    for site, score in per_fact(found).items():
        apart = bootstrap_interval(through[site] - null[site], seed=0)
        stronger = abs(through[site].mean()) > abs(null[site].mean())
        credited = stronger and 0.0 not in apart
        np.testing.assert_array_equal(score, through[site] if credited else 0 * score)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_receivers_are_what_the_heads_found_read_by(name: str, tokenizer: Any) -> None:
    hm = preferring(name, tokenizer)
    found = path_lookup(hm, tiny_facts(), heads=1, **ANY)
    swaps = swap_subjects(hm, tiny_facts(), other_answer=True, seed=0)
    facts = [
        Fact(own.prompt, own.subject, own.answer, foil=other.answer)
        for own, other in zip(swaps.facts, swaps.swapped, strict=True)
    ]
    head = max(
        (site for site in found.evidence["heads"].sites if str(site) in found.title),
        key=lambda site: str(site),
    )
    read = [Site("head", head.layer, head.index)]
    if hm.arch.shape.grouped:
        read.append(Site("kv", head.layer, (head.index or 0) // 2))
    again = path_patch(hm, facts, "mlp", read, corrupt=swaps.swapped, normalized=True, progress=False)
    np.testing.assert_array_equal(again.values.values, found.evidence["paths"].values.values)


def heads(effects: dict[str, float]) -> Scores:
    """Direct effects of heads, alike for two facts."""
    values = np.array([list(effects.values())] * 2)
    return Scores.of(values, [Site.parse(name) for name in effects], dims=("fact", "site"))


def test_null_heads_are_the_least_extracting_of_the_same_layers_then_of_later_ones() -> None:
    direct = heads({
        "L0.head[0]": 0.00, "L0.head[1]": 0.01, "L0.head[2]": 0.00,
        "L1.head[0]": 0.50, "L1.head[1]": 0.40, "L1.head[2]": 0.03,
        "L2.head[0]": 0.30, "L2.head[1]": -0.02, "L2.head[2]": 0.01,
    })  # fmt: skip
    found = [Site("head", 1, 0), Site("head", 1, 1), Site("head", 2, 0)]
    # L1 has one head left; L2 keeps its least for its own, and lends the other.
    assert [str(site) for site in _null(direct, found)] == ["L1.head[2]", "L2.head[2]", "L2.head[1]"]
    # After the last layer there is none: the least of the earlier ones.
    late = _null(direct, [Site("head", 2, n) for n in (0, 1, 2)])
    assert sorted(str(site) for site in late) == ["L0.head[0]", "L0.head[1]", "L0.head[2]"]


def test_no_extracting_head_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(ScoresError, match=r"no head extracts the answer.*below min_head_effect=.*lower it"):
        path_lookup(preferring("llama", tokenizer), tiny_facts(), min_head_effect=50.0, progress=False)


def test_more_heads_than_leave_as_many_for_the_null_path_are_an_error() -> None:
    direct = heads({f"L{layer}.head[{head}]": 0.5 for layer in range(2) for head in range(4)})
    with pytest.raises(ScoresError, match=r"5 of 8 heads extract the answer.*pass heads=4 or less, or raise"):
        _null(direct, direct.sites[:5])


def test_no_head_at_all_cannot_be_asked_for(llama: HookedModel) -> None:
    for option in ("heads", "batch_size"):
        options: Any = {option: 0}
        with pytest.raises(ScoresError, match=f"{option} must be above zero; not 0"):
            path_lookup(llama, tiny_facts(), progress=False, **options)


def test_a_model_that_does_not_know_the_facts_is_refused_by_both_lookups_alike() -> None:
    wrong = Facts(
        fact.replace(answer=ANSWERS[(ANSWERS.index(fact.answer) + 1) % 4]) for fact in planted_facts()
    )
    said = []
    for lookup in (path_lookup, fact_lookup):
        with pytest.raises(FactError, match="does not prefer these facts' answers") as caught:
            lookup(planted_model(), wrong, progress=False)
        said.append(str(caught.value))
    assert said[0] == said[1]
