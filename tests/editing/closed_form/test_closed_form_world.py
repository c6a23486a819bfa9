"""ROME and MEMIT on the embedded model, which looks these facts up in its first layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mechunlearn as mu
from mechunlearn.editing.closed_form.keys import KeyStatistics, key_statistics
from mechunlearn.editing.closed_form.mass_editing import memit
from mechunlearn.editing.closed_form.rank_one_edit import rome
from mechunlearn.models.scoring.scorer import score

SITES = ("L0.mlp.out", "L1.mlp.out")
QUICK: dict[str, Any] = {"prefixes": (), "progress": False}


@pytest.fixture(scope="module")
def hm() -> mu.HookedModel:
    return mu.world.model()


@pytest.fixture(scope="module")
def facts() -> mu.Facts:
    return mu.world.facts()


@pytest.fixture(scope="module")
def statistics(hm: mu.HookedModel, facts: mu.Facts) -> KeyStatistics:
    texts = [*facts.train_text, *(f"{fact.prompt} {fact.answer}" for fact in facts.retain)]
    return key_statistics(hm, SITES, texts, progress=False)


def shares(hm: mu.HookedModel, facts: mu.Facts, written: mu.Facts) -> tuple[float, float, float]:
    """How many of the written facts are said, in the prompts and in held-out phrasings, and what is kept."""
    held_out = mu.Facts([asked for fact in written for asked in fact.phrasings("held_out")])
    said, generalized = (float(np.mean(score(hm, some).says_new)) for some in (written, held_out))
    return said, generalized, float(np.mean(score(hm, facts.retain).correct))


def test_rome_makes_one_fact_say_its_new_answer(
    hm: mu.HookedModel, facts: mu.Facts, statistics: KeyStatistics
) -> None:
    one = facts.forget[:1]
    edit = rome(hm, mu.Localization(SITES[1:]), one, statistics=statistics, **QUICK)
    said, generalized, kept = shares(edit.apply(hm), facts, one)
    assert said == 1.0 and generalized >= 0.5 and kept >= 0.9
    assert float(np.mean(score(edit.apply(hm), facts.forget[1:]).correct)) >= 0.8


def test_memit_writes_several(hm: mu.HookedModel, facts: mu.Facts, statistics: KeyStatistics) -> None:
    some = facts.forget[:8]
    edit = memit(
        hm,
        mu.Localization(SITES),
        some,
        statistics=statistics,
        search=mu.closed_form.ValueSearch(bound=1.5),
        **QUICK,
    )
    said, generalized, kept = shares(edit.apply(hm), facts, some)
    assert said >= 0.75 and generalized >= 0.6 and kept >= 0.9
