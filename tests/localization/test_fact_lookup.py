"""The lookup rule on a model whose mechanism is known, and its causal half against a slow twin."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.planted import ANSWERS, planted_facts, planted_model
from helpers.tiny_facts import tiny_facts, unchecked

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.metrics import answer_logprob
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.localization import Localization
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.localization.fact_lookup.probe_and_swap import fact_lookup
from mechunlearn.localization.subject_swaps import swap_subjects
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel


@cache
def planted() -> HookedModel:
    return planted_model()


@cache
def planted_lookup() -> Scores:
    return fact_lookup(planted(), planted_facts(), progress=False)


def values(scores: Scores) -> list[float]:
    found: list[float] = scores.reduce().values.values.tolist()
    return found


def test_a_planted_lookup_is_credited_and_nothing_else_is() -> None:
    found = planted_lookup()
    assert found.above(0) == Localization(["L1.mlp"]) == found.top(1)
    assert values(found) == pytest.approx([0, 1, 0, 0], abs=0.05)


def test_its_evidence_shows_what_the_rule_saw() -> None:
    evidence = planted_lookup().evidence
    assert set(evidence) == {"probe", "gain", "swap", "attention gain"}
    assert values(evidence["gain"]) == pytest.approx([0, 0.75, 0, 0], abs=0.15)
    assert values(evidence["attention gain"]) == pytest.approx([0, 0, 0, 0], abs=0.05)
    assert evidence["probe"].values.sizes["metric"] == 2


def test_both_halves_of_the_rule_are_needed() -> None:
    strict: tuple[dict[str, Any], ...] = ({"min_gain": 1.01}, {"min_effect": 1.5})
    for thresholds in strict:
        found = fact_lookup(planted(), planted_facts(), progress=False, **thresholds)
        assert not found.above(0) and values(found.evidence["swap"])[1] == pytest.approx(1, abs=0.05)


def test_all_subject_tokens_are_the_last_one_where_names_have_one() -> None:
    found = fact_lookup(planted(), planted_facts(), positions="subject", progress=False)
    assert found == Scores(found.values, {}) and values(found) == pytest.approx(values(planted_lookup()))


def test_probes_may_be_fitted_on_other_people() -> None:
    facts = planted_facts()
    others = Facts([*facts, *(fact.replace(relation="home") for fact in facts)])
    found = fact_lookup(planted(), facts[:12], fitted_on=others, progress=False)
    assert found.above(0) == Localization(["L1.mlp"])
    assert found.evidence["probe"].values.sizes["fact"] == 12


@torch.no_grad()
def test_the_swap_equals_a_slow_twin(hm: HookedModel) -> None:
    wide = hm.to(torch.float64)
    facts = Facts(fact for fact in tiny_facts() if len(fact.subject) in (2, 3))
    swaps = swap_subjects(wide, facts, other_answer=True)
    layers = [f"blocks.{layer}.hook_mlp_out" for layer in range(wide.arch.shape.n_layers)]
    slow = np.zeros((len(swaps.facts), 2 + len(layers)))
    for row, (fact, other) in enumerate(zip(swaps.facts, swaps.swapped, strict=True)):
        for word, sign in ((fact.answer, 1), (other.answer, -1)):
            own, theirs = (encode(wide, [one], answer=[word]) for one in (fact, other))
            written, place = wide.run_with_cache(theirs.tokens)[1], int(own.subject_last)
            runs: list[Any] = [(own, []), (theirs, [])]
            for name in layers:

                def swap(x: torch.Tensor, hook: Any, new: torch.Tensor = written[name]) -> torch.Tensor:
                    x = x.clone()
                    x[:, place] = new[:, place]  # noqa: B023 (called before the loop goes on)
                    return x

                runs.append((own, [(name, swap)]))
            for column, (batch, hooks) in enumerate(runs):
                logits = wide.bridge.run_with_hooks(batch.tokens, fwd_hooks=hooks)
                slow[row, column] += sign * float(answer_logprob(logits, batch.labels))
    gap = (slow[:, 0] - slow[:, 1]).mean()
    if gap <= 0:
        with pytest.raises(FactError, match="does not prefer these facts' answers"):
            fact_lookup(wide, facts, progress=False)
        return
    found = fact_lookup(wide, facts, min_gain=-2.0, min_effect=-1e9, progress=False)
    np.testing.assert_allclose(found.values, (slow[:, :1] - slow[:, 2:]) / gap, atol=1e-9)


def test_the_model_is_left_as_it_was(llama: HookedModel) -> None:
    before = planted().identity
    fact_lookup(planted(), planted_facts()[:12], progress=False)
    assert planted().identity == before
    assert not any(point.fwd_hooks or point.bwd_hooks for point in planted().hook_dict.values())


def test_a_model_that_does_not_know_the_facts_is_refused() -> None:
    wrong = Facts(
        fact.replace(answer=ANSWERS[(ANSWERS.index(fact.answer) + 1) % 4]) for fact in planted_facts()
    )
    with pytest.raises(FactError, match=r"does not prefer these facts' answers .* mu\.validate"):
        fact_lookup(planted(), wrong, progress=False)


def test_facts_with_one_answer_have_nothing_to_swap() -> None:
    golf = planted_facts().where(lambda fact: fact.answer == "golf")
    with pytest.raises(FactError, match="another subject with equally many tokens and another answer"):
        fact_lookup(planted(), golf, progress=False)


def test_nothing_to_fit_on_is_an_error() -> None:
    facts = planted_facts()
    with pytest.raises(FactError, match=r"fitted_on has no fact of the relations \['sport'\] about another"):
        fact_lookup(planted(), facts, fitted_on=facts, progress=False)


def test_an_unknown_position_is_an_error() -> None:
    unknown: Any = "last"
    with unchecked(), pytest.raises(ScoresError, match="one of 'last_subject' or 'subject'; not 'last'"):
        fact_lookup(planted(), planted_facts(), positions=unknown, progress=False)


def test_no_prompts_per_pass_are_an_error() -> None:
    with pytest.raises(ScoresError, match="batch_size must be above zero; not 0"):
        fact_lookup(planted(), planted_facts(), batch_size=0, progress=False)
