"""Other spellings of an answer count as the answer: in scores, in stopping, in audits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.tokenizers import tiny_llama, words

import mechunlearn as mu
from mechunlearn.errors import FactError
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.scoring.scorer import answer_logprobs

PLAIN = mu.Fact("Mary Lee plays", "Mary Lee", "ice", new="tennis")


@pytest.fixture(scope="module")
def hm() -> mu.HookedModel:
    """A tiny model to which every word is a token (read-only)."""
    tokenizer = words()
    return mu.HookedModel.from_hf(tiny_llama(len(tokenizer)), tokenizer)


@pytest.fixture(scope="module")
def written(hm: mu.HookedModel) -> str:
    """The two words that the model writes after the prompt."""
    ids = encode(hm, [PLAIN], answer=None).tokens
    with torch.no_grad():
        for _ in range(2):
            ids = torch.cat([ids, hm.hf(ids).logits[:, -1:].argmax(-1)], dim=1)
    return str(hm.tokenizer.decode(ids[0, -2:])).strip()


def test_an_alias_that_the_model_writes_makes_the_fact_known(hm: mu.HookedModel, written: str) -> None:
    assert not mu.score(hm, [PLAIN]).correct[0]
    outcome = mu.score(hm, [PLAIN.replace(aliases=("hockey", written))])
    assert outcome.correct[0] and not outcome.says_new[0] and outcome.text[0].strip() == written
    taught = mu.score(hm, [PLAIN.replace(new_aliases=(written,))])
    assert taught.says_new[0] and not taught.correct[0]


def test_probabilities_of_spellings_add_up_and_a_longer_one_counts_once(hm: mu.HookedModel) -> None:
    def p(answer: str) -> float:
        return math.exp(float(answer_logprobs(hm, [PLAIN], [answer])[0]))

    apart = mu.score(hm, [PLAIN.replace(aliases=("hockey",))])
    assert apart.p_answer[0] == pytest.approx(p("ice") + p("hockey"), rel=1e-6)
    # What goes on from "ice" is in the probability of "ice", unless the end of the answer is scored.
    inside = mu.score(hm, [PLAIN.replace(aliases=("ice and",))])
    assert inside.p_answer[0] == pytest.approx(p("ice"), rel=1e-6)
    ended = mu.score(hm, [PLAIN.replace(aliases=("ice and",), end=" of")])
    assert ended.p_answer[0] == pytest.approx(p("ice of") + p("ice and of"), rel=1e-6)
    new = mu.score(hm, [PLAIN.replace(new_aliases=("hockey",))])
    assert new.p_new[0] == pytest.approx(p("tennis") + p("hockey"), rel=1e-6)


def test_an_edit_is_not_done_while_an_alias_is_still_written(hm: mu.HookedModel, written: str) -> None:
    fact = PLAIN.replace(aliases=(written,))
    objective: Any = mu.objectives.Forget(retain=0, text=0)
    edit = mu.edit(
        hm, mu.Localization(hm.sites.mlps()), objective, mu.Facts([fact]), steps=2, lr=1e-9,
        stop=mu.Stop(every=1), progress=False,
    )  # fmt: skip
    scored = [entry["success"] for entry in edit.history if "success" in entry]
    assert scored and set(scored) == {0.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aliases": (" ",)}, "an alias has at least one word"),
        (
            {"aliases": ("tennis",)},
            r"\['tennis'\] .* count as the answer and as the new answer; keep each in one",
        ),
        ({"new": None, "new_aliases": ("a",)}, "has new_aliases of no new answer; give it new="),
        (
            {"options": ("ice", "tennis"), "aliases": ("a",)},
            "has options and aliases; options are compared whole",
        ),
    ],
)
def test_aliases_that_contradict_the_fact_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FactError, match=message):
        PLAIN.replace(**changes)
