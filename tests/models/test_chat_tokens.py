"""Chat facts as tokens: what the tokenizer's own template gives, and verbs that work on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers.chats import CHATML, GEMMA, LLAMA2, TEMPLATES, chat_model, chat_tokenizer, rendered
from helpers.refusals import refused
from torch import Tensor

import mechunlearn as mu
from mechunlearn.editing.closed_form.prompt_contexts import asked_in_contexts
from mechunlearn.errors import FactError
from mechunlearn.localization.subject_swaps import swap_subjects
from mechunlearn.models.encoding.batch import IGNORED
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.scoring.scorer import answer_logprobs

FACTS = mu.Facts(
    [
        mu.Fact("What does Mary Lee play?", "Mary Lee", "golf", foil="judo", new="polo"),
        mu.Fact("Bo Fox plays", "Bo Fox", "judo", foil="golf", new="polo"),
    ]
)
SYSTEM = "Say what Mary Lee plays."
KINDS = [("Llama 2", None), ("Llama 2", SYSTEM), ("ChatML", None), ("ChatML", SYSTEM), ("Gemma", None)]
kinds = pytest.mark.parametrize(("name", "system"), KINDS)
JOIN = {"Llama 2": " ", "ChatML": "", "Gemma": ""}


def chat(name: str, *, system: str | None = None, end: bool = False) -> tuple[mu.HookedModel, mu.Facts]:
    """A model with a template, and the facts as it reads them."""
    hm = chat_model(TEMPLATES[name])
    return hm, FACTS.as_chat(hm, system=system, end=end)


def ids(text: str) -> list[int]:
    return list(chat_tokenizer(None)(text).input_ids)


def logprob(model: mu.HookedModel, start: Sequence[int], answer: str) -> float:
    """The log-probability of an answer after ids, by the plain model."""
    end = ids(answer)
    with torch.no_grad():
        logits: Tensor = model.hf(torch.tensor([[*start, *end]])).logits[0]
    after = logits.log_softmax(-1)[len(start) - 1 : -1]
    return float(after.gather(1, torch.tensor(end)[:, None]).sum())


def mentions(row: Sequence[int], subject: str) -> list[int]:
    """The positions of all mentions of a subject in a row."""
    name = ids(subject)
    starts = [i for i in range(len(row)) if list(row[i : i + len(name)]) == name]
    return [start + k for start in starts for k in range(len(name))]


@kinds
def test_rows_are_what_the_template_gives_and_the_answer(name: str, system: str | None) -> None:
    hm, facts = chat(name, system=system)
    batch, prompts = encode(hm, facts), encode(hm, facts, answer=None)
    for row, fact in enumerate(FACTS):
        start = rendered(hm.tokenizer, fact.prompt, system=system)
        answer = ids(JOIN[name] + fact.answer)
        row_ids = batch.tokens[row, : batch.lengths[row]].tolist()
        assert row_ids == start + answer
        assert prompts.tokens[row, : prompts.lengths[row]].tolist() == start
        assert [token for token in batch.answer_ids[row].tolist() if token != IGNORED] == answer
        assert batch.end[row] == len(start) - 1
        assert row_ids.count(hm.tokenizer.bos_token_id) == (0 if name == "ChatML" else 1)
    assert batch.joins == (JOIN[name],) * 2


@kinds
def test_the_subject_stands_in_the_message(name: str, system: str | None) -> None:
    hm, facts = chat(name, system=system)
    batch = encode(hm, facts)
    for row, fact in enumerate(FACTS):
        start = rendered(hm.tokenizer, fact.prompt, system=system)
        expected = mentions(start, fact.subject)
        assert batch.mentioned("all")[row].nonzero()[:, 0].tolist() == expected
        assert batch.subject[row].nonzero()[:, 0].tolist() == expected[-len(ids(fact.subject)) :]
    named = 2 if system else 1
    assert batch.mention.amax(1).tolist() == [named, 1]


@kinds
def test_answers_have_the_probability_that_the_plain_model_gives_them(name: str, system: str | None) -> None:
    hm, facts = chat(name, system=system)
    outcome = mu.score(hm, facts)
    for row, fact in enumerate(FACTS):
        start = rendered(hm.tokenizer, fact.prompt, system=system)
        expected = logprob(hm, start, f"{JOIN[name]}{fact.answer}")
        assert math.log(outcome.p_answer[row]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "mark"), [("Llama 2", " </s>"), ("ChatML", "<|im_end|>"), ("Gemma", "<end_of_turn>")]
)
def test_the_end_of_the_turn_is_scored_on_request(name: str, mark: str) -> None:
    hm, facts = chat(name, end=True)
    (only,) = ids(mark.strip())
    for fact, plain, value in zip(facts, FACTS, answer_logprobs(hm, facts).tolist(), strict=True):
        expected = logprob(hm, rendered(hm.tokenizer, plain.prompt), f"{JOIN[name]}{plain.answer}{mark}")
        assert value == pytest.approx(expected, abs=1e-5)
        assert encode(hm, [fact]).answer_ids[0, -1] == only


# -- prefixes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_prefixes_stand_inside_the_message(name: str) -> None:
    hm, facts = chat(name)
    prefixes = ["It rains.", "Well:"]
    contexts = asked_in_contexts(hm, facts, target="new", prefixes=prefixes, lengths=(), seed=0)
    assert contexts.each == 3
    for number, fact in enumerate(FACTS):
        rows = contexts.rows[number].tolist()
        messages = [fact.prompt, *(f"{prefix} {fact.prompt}" for prefix in prefixes)]
        for row, message in zip(rows[:-1], messages, strict=True):
            expected = rendered(hm.tokenizer, message) + ids(f"{JOIN[name]}{fact.new}")
            assert contexts.batch.tokens[row, : contexts.batch.lengths[row]].tolist() == expected
        essence = contexts.batch.tokens[rows[-1]][: contexts.batch.end[rows[-1]] + 1].tolist()
        before = rendered(hm.tokenizer, fact.prompt)
        opening = before[: len(before) - len(ids(facts[number].prompt[len(facts[number].opening) :]))]
        assert essence == opening + ids(f"{fact.subject} is a")


@pytest.mark.parametrize("template", [LLAMA2, GEMMA])
def test_a_rendered_prompt_without_its_opening_takes_no_prefixes(template: str) -> None:
    hm = chat_model(template)
    (fact,) = FACTS[:1].as_chat(hm)
    raw = fact.replace(opening="", closing="")
    message = "begins with '<s>', so prefixes would stand before its chat template; render the facts with"
    with refused(FactError, message, hm=hm):
        asked_in_contexts(hm, [raw], target="new", prefixes=["It rains."], lengths=(), seed=0)
    alone = asked_in_contexts(hm, [raw], target="new", prefixes=[], lengths=(), seed=0)
    start = rendered(hm.tokenizer, FACTS[0].prompt)
    assert alone.batch.tokens[0, : len(start)].tolist() == start


# -- one verb each --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mention", ["all", "last"])
def test_noise_lies_on_the_subject_in_the_message(mention: str) -> None:
    hm, facts = chat("ChatML", system=SYSTEM)
    noise = mu.Noise(samples=1, mention="all" if mention == "all" else "last")
    batch, embedded = mu.noised_embeddings(hm, facts, corrupt=noise)
    moved = (embedded - hm.hf.get_input_embeddings()(batch.tokens)).abs().sum(-1) > 1e-9
    for row, fact in enumerate(FACTS):
        expected = mentions(rendered(hm.tokenizer, fact.prompt, system=SYSTEM), fact.subject)
        size = len(expected) if mention == "all" else len(ids(fact.subject))
        assert moved[row].nonzero()[:, 0].tolist() == expected[-size:]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_causal_trace_reads_chat_facts(name: str) -> None:
    hm, facts = chat(name)
    trace = mu.causal_trace(hm, facts, corrupt=mu.Noise(samples=1), progress=False)
    table = trace.values.values
    groups = [str(token) for token in trace.values["token"].values]
    assert np.isfinite(table[:, :, groups.index("last_subject")]).all()
    assert np.isfinite(table[:, :, groups.index("last")]).all()
    assert np.abs(table[:, 0, groups.index("last_subject")]).min() > 0


def test_another_subject_stands_in_the_system_message_too() -> None:
    hm = chat_model(CHATML)
    facts = FACTS[:1].as_chat(hm, system=SYSTEM)
    pool = [mu.Fact("Cyd Hall plays", "Cyd Hall", "golf")]
    (swapped,) = swap_subjects(hm, facts, pool=pool).swapped
    (expected,) = FACTS[:1].as_chat(hm, system=SYSTEM)
    assert swapped.prompt == expected.prompt.replace("Mary Lee", "Cyd Hall")
    assert swapped.opening == expected.opening.replace("Mary Lee", "Cyd Hall")
    (last,) = swap_subjects(hm, facts, pool=pool, mention="last").swapped
    assert last.opening == expected.opening


def test_an_edit_teaches_the_answer_in_the_chat() -> None:
    hm, facts = chat("Gemma", end=True)
    start = rendered(hm.tokenizer, FACTS[0].prompt)
    before = logprob(hm, start, "polo<end_of_turn>")
    edit = mu.edit(
        hm, mu.Localization(["L0.mlp", "L1.mlp"]), mu.objectives.Inject(retain=0, text=0), facts[:1],
        steps=2, lr=0.01, stop=None, progress=False,
    )  # fmt: skip
    after = logprob(edit.apply(hm), start, "polo<end_of_turn>")
    assert edit.history[0]["inject"] == pytest.approx(-before / len(ids("polo<end_of_turn>")), abs=1e-5)
    assert after > before + 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_rome_writes_the_answer_of_a_chat_fact(name: str) -> None:
    hm, facts = chat(name)
    statistics = mu.closed_form.key_statistics(
        hm, ["L0.mlp.out"], ["Mary Lee plays golf", "It rains in May"] * 8, progress=False
    )
    edit = mu.closed_form.rome(
        hm, mu.Localization(["L0.mlp.out"]), facts[:1], statistics=statistics, prefixes=["It rains."],
        search=mu.closed_form.ValueSearch(steps=2), progress=False,
    )  # fmt: skip
    answer = f"{JOIN[name]}polo"
    messages = [f"{prefix}What does Mary Lee play?" for prefix in ("", "It rains. ")]
    expected = np.mean([logprob(hm, rendered(hm.tokenizer, message), answer) for message in messages])
    assert edit.history[0]["answer"] == pytest.approx(-expected / len(ids(answer)), abs=1e-5)
    assert [name for name in hm.params if not torch.equal(hm.params[name], edit.apply(hm).params[name])] == [
        "model.layers.0.mlp.down_proj.weight"
    ]
