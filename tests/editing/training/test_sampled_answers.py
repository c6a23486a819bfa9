"""Other answers: those a user lists, and those a model gives when it may not give the right one."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.fed_data import draw, feed, spoken
from helpers.small_facts import bits, fit, unchecked, weights
from helpers.tiny_models import VOCAB
from hypothesis import given
from hypothesis import strategies as st

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.editing.objectives.preference import DPO, AltPO
from mechunlearn.editing.objectives.requests import Request, Sampled
from mechunlearn.editing.training.examples import Order
from mechunlearn.editing.training.limits import Limits
from mechunlearn.editing.training.sampled_answers import sample_answers
from mechunlearn.errors import TrainingError
from mechunlearn.models.hooked import HookedModel

OPTIONS = ("golf", "polo", "judo", "a", "be it")
CLOSED = [Fact("Bo plays", "Bo", "polo", options=OPTIONS), Fact("Al has", "Al", "a", options=("a", "be"))]
OPEN = [Fact("Bo plays", "Bo", "polo"), Fact("Who is Al? A", "Al", "be"), Fact("Di has", "Di", "p")]
MANY = 4000


def whole_answers(hm: HookedModel, prompt: str, answers: Sequence[str]) -> torch.Tensor:
    """The log-probability of each answer to a prompt, each text run alone."""
    found = []
    for answer in answers:
        tokens = hm.to_tokens(f"{prompt} {answer}")
        start = hm.to_tokens(prompt).shape[1]
        logprobs = hm.hf(input_ids=tokens).logits[0].double().log_softmax(-1)
        found.append(logprobs[start - 1 : -1].gather(-1, tokens[0, start:, None]).sum())
    return torch.stack(found).detach()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_other_options_come_as_often_as_the_model_finds_them_likely(
    hm: HookedModel, temperature: float
) -> None:
    (drawn,) = sample_answers(hm, CLOSED[:1], Sampled(MANY, temperature), seed=0)
    logprobs = whole_answers(hm, "Bo plays", OPTIONS) / temperature
    logprobs[OPTIONS.index("polo")] = -torch.inf
    counts = Counter(drawn)
    assert set(counts) <= set(OPTIONS) - {"polo"}
    for option, p in zip(OPTIONS, logprobs.softmax(-1).tolist(), strict=True):
        assert abs(counts[option] / MANY - p) < 4 * (max(p * (1 - p), 1e-3) / MANY) ** 0.5


@pytest.mark.parametrize(("answer", "length"), [("p", 1), ("a", 2)])
def test_words_come_as_often_as_the_model_finds_their_tokens_likely(
    llama: HookedModel, answer: str, length: int
) -> None:
    prompt = llama.to_tokens("Di has")
    right = llama.to_tokens(f"Di has {answer}")[0, prompt.shape[1] :]
    assert len(right) == length
    (drawn,) = sample_answers(llama, [Fact("Di has", "Di", answer)], Sampled(MANY, 1.5), seed=0)
    first = llama.hf(input_ids=prompt).logits[0, -1].detach().double() / 1.5
    texts = [llama.tokenizer.decode([i], skip_special_tokens=True).strip() for i in range(VOCAB)]
    first[[answer.startswith(text) for text in texts]] = -torch.inf
    words: dict[tuple[int, ...], float] = {(token,): p for token, p in enumerate(first.softmax(-1).tolist())}
    if length == 2:
        longer = torch.cat([prompt.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], dim=1)
        second = (llama.hf(input_ids=longer).logits[:, -1].detach().double() / 1.5).softmax(-1)
        words = {(i, j): p * float(second[i, j]) for (i, *_), p in words.items() for j in range(VOCAB)}
    expected: dict[str, float] = defaultdict(float)
    for tokens, p in words.items():
        text = llama.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        expected[text] += p
    counts = Counter(drawn)
    for word, p in expected.items():
        if word != answer:
            assert abs(counts[word] / MANY - p) < 4 * (max(p * (1 - p), 1e-3) / MANY) ** 0.5


def test_the_right_answer_is_never_drawn(hm: HookedModel) -> None:
    for facts in (CLOSED, OPEN, [*OPEN, *CLOSED]):
        drawn = sample_answers(hm, facts, Sampled(300, 2.0), seed=1)
        assert [len(answers) for answers in drawn] == [300] * len(facts)
        for fact, answers in zip(facts, drawn, strict=True):
            assert fact.answer not in answers
            assert all(answer and answer == answer.strip() for answer in answers)
            if fact.options:
                assert set(answers) <= set(fact.options)


def test_the_seed_decides_and_the_global_random_state_is_neither_used_nor_moved(llama: HookedModel) -> None:
    before, state = weights(llama), bits(torch.get_rng_state())
    first = sample_answers(llama, [*OPEN, *CLOSED], Sampled(20), seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert sample_answers(llama, [*OPEN, *CLOSED], Sampled(20), seed=5) == first
    assert sample_answers(llama, [*OPEN, *CLOSED], Sampled(20), seed=6) != first
    assert bits(torch.get_rng_state()) == state and weights(llama) == before
    assert all(p.grad is None for p in llama.params.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0; give a whole number from 1"),
        ({"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan; give a number above 0"),
    ],
)
def test_numbers_out_of_range_say_what_to_give(options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(TrainingError, match=message):
        Sampled(**options)


# -- variants in turn -----------------------------------------------------------------------------------

NAMES = Facts([Fact(f"Man {i:02} is", f"Man {i:02}", "old", new="new") for i in range(12)])
WORDS = ("red", "dun", "tan")


@pytest.mark.parametrize("batch_size", [4, 6, 12])
def test_each_question_gets_every_text_once_before_one_comes_again(
    llama: HookedModel, batch_size: int
) -> None:
    requests = {"one": Request("forget", WORDS, positions="all")}
    source = feed(llama, requests, NAMES, batch_size=batch_size)
    given: dict[str, list[str]] = {}
    for _ in range(3 * 12 // batch_size):
        for said in spoken(llama, draw(source)["one"]):
            given.setdefault(said[:6], []).append(said[-3:])
    assert sorted(given) == sorted(fact.subject for fact in NAMES)
    assert all(sorted(words) == sorted(WORDS) for words in given.values())
    assert len({tuple(words) for words in given.values()}) > 1, "not the same order for every question"


def test_two_reads_of_a_set_are_of_the_same_questions_though_answers_vary(llama: HookedModel) -> None:
    requests = {
        "old": Request("forget", positions="all"),
        "listed": Request("forget", WORDS, positions="all"),
        "drawn": Request("forget", Sampled(2), positions="all"),
        "new": Request("forget", "new", positions="all"),
    }
    source = feed(llama, requests, NAMES, batch_size=5, seed=1)
    for _ in range(6):
        readings = draw(source)
        asked = [[said[:9] for said in spoken(llama, reading)] for reading in readings.values()]
        assert asked[0] == asked[1] == asked[2] == asked[3]


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 9))
def test_an_order_goes_on_from_where_it_stood(total: int, count: int, before: int) -> None:
    order = Order(total, random.Random(3))
    for _ in range(before):
        order.next(count)
    again = Order(total, random.Random(4))
    again.restore(json.loads(json.dumps(order.to_json())))
    for _ in range(5):
        rows, turn = order.next(count)
        assert again.next(count) == (rows, turn) and len(rows) == min(count, total)


def test_alternatives_that_vary_are_repeatable_and_of_the_seed(llama: HookedModel) -> None:
    for objective in (AltPO(samples=2), DPO(alternative=WORDS)):
        first, again, other = (
            [
                bits(d.values)
                for d in fit(llama, objective=objective, seed=seed, steps=3, limits=Limits(1)).deltas
            ]
            for seed in (0, 0, 1)
        )
        assert first == again != other
