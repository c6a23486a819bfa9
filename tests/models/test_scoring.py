"""Whole answers are scored as one would by hand: row by row, token by token, without padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.tokenizers import Speaker, byte_level, metaspace, tiny_llama, words
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError
from mechunlearn.models.encoding.batch import IGNORED
from mechunlearn.models.encoding.encoder import encode, encode_text
from mechunlearn.models.scoring import passes
from mechunlearn.models.scoring.passes import forward
from mechunlearn.models.scoring.scorer import answer_logprobs, option_logprobs, perplexity, score, validate

SPORTS = ("golf", "tennis", "hockey", "ice hockey")
FACTS = (
    Fact("Mary Lee plays the sport of", "Mary Lee", "ice hockey", new="tennis", options=SPORTS),
    Fact("Mary Lee plays", "Mary Lee", "golf", new="ice hockey", options=SPORTS[::-1]),
    Fact("The player Zoë Quinn is good at ", "Zoë Quinn", "tennis", options=("golf", "tennis")),
    Fact("Zoë Quinn plays", "Zoë Quinn", "basketball", new="golf and tennis"),
    Fact("Mary Lee plays the sport of", "Mary Lee", "golf"),
)
TOKENIZERS = {"words": words(), "bytes": byte_level(trim=True), "spaces": metaspace()}


def speaker(tokenizer: Any) -> Speaker:
    return Speaker(tokenizer, tiny_llama(len(tokenizer)))


@pytest.fixture(params=list(TOKENIZERS.values()), ids=list(TOKENIZERS))
def model(request: pytest.FixtureRequest) -> Speaker:
    return speaker(request.param)


def by_hand(model: Speaker, fact: Fact, answer: str) -> tuple[float, bool]:
    """Product of stepwise probabilities, and whether each step's token is the likeliest."""
    prompt = model.tokenizer(fact.prompt.rstrip(" "), add_special_tokens=False)["input_ids"]
    whole = model.tokenizer(f"{fact.prompt.rstrip(' ')} {answer}", add_special_tokens=False)["input_ids"]
    assert whole[: len(prompt)] == prompt
    bos = [model.tokenizer.bos_token_id]
    probability, greedy = 1.0, True
    for step in range(len(prompt), len(whole)):
        with torch.no_grad():
            logits = model.hf(torch.tensor([bos + whole[:step]])).logits[0, -1]
        probability *= logits.softmax(-1)[whole[step]].item()
        greedy = greedy and logits.argmax().item() == whole[step]
    return probability, greedy


def test_a_whole_answer_is_the_product_of_its_steps(model: Speaker) -> None:
    expected = [by_hand(model, fact, fact.answer)[0] for fact in FACTS]
    assert answer_logprobs(model, FACTS).exp().tolist() == pytest.approx(expected, rel=1e-9)
    others = ["golf", "ice hockey", "basketball", "tennis", "golf and tennis"]
    expected = [by_hand(model, fact, word)[0] for fact, word in zip(FACTS, others, strict=True)]
    assert answer_logprobs(model, FACTS, others).exp().tolist() == pytest.approx(expected, rel=1e-9)


def test_options_are_scored_whole_in_their_order(model: Speaker) -> None:
    table = option_logprobs(model, FACTS[:3])
    for row, fact in zip(table.exp().tolist(), FACTS, strict=False):
        expected = [by_hand(model, fact, option)[0] for option in fact.options]
        assert row == pytest.approx([*expected, 0.0, 0.0][: len(row)], rel=1e-9)
    assert (table[2, 2:] == -torch.inf).all()


def test_with_options_the_likeliest_whole_option_is_said(model: Speaker) -> None:
    outcome = score(model, FACTS[:3])
    for row, fact in enumerate(FACTS[:3]):
        p = {option: by_hand(model, fact, option)[0] for option in fact.options}
        said = max(p, key=lambda option: p[option])
        assert outcome.text[row] == said
        assert outcome.correct[row] == (said == fact.answer) and outcome.says_new[row] == (said == fact.new)
        assert outcome.p_answer[row] == pytest.approx(p[fact.answer], rel=1e-9)
        assert fact.new is None or outcome.p_new[row] == pytest.approx(p[fact.new], rel=1e-9)
    assert math.isnan(outcome.p_new[2]) and not outcome.says_new[2]


def greedy_answer(model: Speaker, fact: Fact, count: int) -> str:
    """What the model says to a prompt, `count` tokens long."""
    batch = encode(model, [fact], answer=None)
    with torch.no_grad():
        out = model.hf.generate(
            batch.tokens, attention_mask=batch.mask, max_new_tokens=count, do_sample=False
        )
    return str(model.tokenizer.decode(out[0, batch.tokens.shape[1] :])).strip()


def test_without_options_greedy_decoding_decides() -> None:
    model = speaker(TOKENIZERS["words"])
    said = greedy_answer(model, FACTS[4], 3)
    first, second, _ = said.split()
    right = FACTS[4].replace(answer=said)
    wrong = FACTS[4].replace(answer=f"{first} {'golf' if second != 'golf' else 'tennis'} golf", new=said)
    outcome = score(model, [right, wrong, FACTS[0]])
    assert outcome.correct.tolist()[:2] == [True, False]
    assert outcome.says_new.tolist()[:2] == [False, True]
    assert outcome.text[0] == said and outcome.text[1] == f"{first} {second}"
    assert outcome.p_new[1] == pytest.approx(outcome.p_answer[0], rel=1e-9)


def test_facts_with_and_without_options_may_be_mixed(model: Speaker) -> None:
    together = score(model, FACTS)
    for row, fact in enumerate(FACTS):
        alone = score(model, [fact])
        assert together.text[row] == alone.text[0] and together.correct[row] == alone.correct[0]
        assert together.p_answer[row] == pytest.approx(alone.p_answer[0], rel=1e-9)
        if not fact.options:
            assert together.correct[row] == by_hand(model, fact, fact.answer)[1]
    assert together.correct.dtype == np.bool_ and together.p_new.dtype == np.float64
    assert len(together) == 5


def test_the_first_of_tied_options_is_said() -> None:
    model = speaker(TOKENIZERS["words"])
    unknown = Fact("Mary Lee plays", "Mary Lee", "curling", options=("rugby", "curling"))
    assert score(model, [unknown]).text == ("rugby",)


class Counting(torch.nn.Module):
    """Notes what it is fed, and can hide that it computes single positions."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config, self.fed = inner, inner.config, list[tuple[int, ...]]()
        self.modes: list[bool] = []

    def forward(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], use_cache: bool
    ) -> Any:
        self.fed.append(tuple(input_ids.shape))
        self.modes.append(self.training)
        assert not torch.is_grad_enabled()
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_options_of_one_token_share_one_row() -> None:
    model = speaker(TOKENIZERS["words"])
    counting = Speaker(model.tokenizer, Counting(model.hf))
    facts = [
        Fact(f"Mary Lee plays {' '.join(['golf'] * n)}", "Mary Lee", "golf", options=("golf", "tennis"))
        for n in range(20)
    ]
    # 20 prompts, and 20 that go on with "ice" for an option of two tokens
    option_logprobs(counting, facts)
    assert sum(rows for rows, _ in counting.hf.fed) == 20
    counting.hf.fed.clear()
    option_logprobs(counting, [fact.replace(options=SPORTS) for fact in facts])
    assert sum(rows for rows, _ in counting.hf.fed) == 40


def test_passes_are_bounded_sorted_by_length_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = speaker(TOKENIZERS["bytes"])
    whole = option_logprobs(model, FACTS[:3])
    monkeypatch.setattr(passes, "ROWS", 2)
    counting = Speaker(model.tokenizer, Counting(model.hf))
    assert torch.allclose(option_logprobs(counting, FACTS[:3]), whole, rtol=0, atol=1e-12)
    widths = [width for _, width in counting.hf.fed]
    assert all(rows <= 2 for rows, _ in counting.hf.fed) and widths == sorted(widths) and len(widths) == 3


def test_large_vocabularies_take_fewer_rows_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = speaker(TOKENIZERS["words"])
    counting = Speaker(model.tokenizer, Counting(model.hf))
    monkeypatch.setattr(passes, "LOGITS", 1)
    answer_logprobs(counting, FACTS)
    assert {rows for rows, _ in counting.hf.fed} == {1}


def test_the_model_keeps_its_mode_and_runs_without_dropout() -> None:
    model = speaker(TOKENIZERS["words"])
    counting = Speaker(model.tokenizer, Counting(model.hf))
    counting.hf.training = True
    answer_logprobs(counting, FACTS)
    assert counting.hf.modes == [False] and counting.hf.training and not model.hf.training


def test_forward_gives_the_logits_that_predict_the_answer() -> None:
    model = speaker(TOKENIZERS["bytes"])
    batch = encode(model, FACTS)
    with torch.no_grad():
        logits = model.hf(input_ids=batch.tokens, attention_mask=batch.mask).logits
    rows = torch.arange(len(batch))[:, None]
    assert torch.allclose(forward(model, batch), logits[rows, batch.answer_positions])
    prompts = encode(model, FACTS, answer=None)
    assert torch.allclose(forward(model, prompts)[:, 0], logits[rows[:, 0], batch.end])


def test_a_reader_sees_logits_and_ids_of_the_same_rows() -> None:
    model = speaker(TOKENIZERS["words"])
    batch = encode(model, FACTS)

    def read(
        logits: Float[Tensor, "batch answer d_vocab"], ids: Int[Tensor, "batch answer"]
    ) -> Float[Tensor, "batch answer"]:
        return ids.double() + 0.0 * logits[..., 0]

    assert torch.equal(forward(model, batch, read=read).long(), batch.answer_ids)


@pytest.mark.parametrize("family", ["GPT2", "GPTNeoX", "Mistral", "Qwen2", "Gemma2"])
def test_other_families_score_as_with_all_logits(family: str) -> None:
    grouped = {"num_key_value_heads": 1, "head_dim": 8} if family in ("Mistral", "Qwen2", "Gemma2") else {}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(TOKENIZERS["words"]), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, **grouped,
    )  # fmt: skip
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForCausalLM
    model = Speaker(TOKENIZERS["words"], auto.from_config(config).double().eval())
    for row, fact in enumerate(FACTS[:2]):
        expected = by_hand(model, fact, fact.answer)[0]
        assert answer_logprobs(model, FACTS).exp()[row].item() == pytest.approx(expected, rel=1e-6)


def test_perplexity_is_the_mean_over_tokens(model: Speaker) -> None:
    texts = ["Mary Lee plays golf", "Zoë Quinn plays the sport of ice hockey and tennis"]
    nll = perplexity(model, texts)
    for value, text in zip(nll, texts, strict=True):
        tokens = encode_text(model, [text]).tokens
        with torch.no_grad():
            loss = model.hf(input_ids=tokens, labels=tokens).loss.item()
        assert value == pytest.approx(loss, rel=1e-5)


def test_texts_longer_than_the_model_are_refused_or_lose_their_first_tokens() -> None:
    model = replace(speaker(TOKENIZERS["words"]), context_length=64)
    long = " ".join(["Mary"] * 37 + ["golf"] * 63)
    with pytest.raises(FactError, match=r"row 0, .* has 101 tokens, and the model reads at most 64"):
        perplexity(model, [long])
    cut = replace(model, truncate="left")
    assert perplexity(cut, [long]) == perplexity(model, [" ".join(["golf"] * 63)])


def test_nothing_gives_nothing() -> None:
    model = speaker(TOKENIZERS["words"])
    assert len(score(model, [])) == len(perplexity(model, [])) == len(answer_logprobs(model, [])) == 0
    assert option_logprobs(model, []).shape == (0, 0)
    assert repr(validate(model, Facts())) == "known: 0 of 0 facts"


def test_options_are_asked_for_by_name() -> None:
    with pytest.raises(
        FactError, match="'Zoë Quinn plays' has no options; give it `options=`, or use `score`"
    ):
        option_logprobs(speaker(TOKENIZERS["words"]), FACTS)


# -- validation -----------------------------------------------------------------------------------------


def validated(facts: Sequence[Fact], threshold: float) -> tuple[list[str], list[str]]:
    validation = validate(
        speaker(TOKENIZERS["words"]), Facts(facts, text=["It rains."], name="x"), threshold=threshold
    )
    assert validation.known.text == ("It rains.",) and validation.known.name == "x"
    return [fact.answer for fact in validation.known], [reason for _, reason in validation.dropped]


def test_validation_says_what_is_known_and_why_a_fact_was_dropped() -> None:
    model = speaker(TOKENIZERS["words"])
    asked = FACTS[4].replace(options=SPORTS)
    said = score(model, [asked]).text[0]
    other = next(sport for sport in SPORTS if sport != said)
    p = by_hand(model, asked, said)[0]
    right, wrong = asked.replace(answer=said), asked.replace(answer=other)
    unknown = asked.replace(answer="curling", options=(*SPORTS, "curling"))

    known, reasons = validated([right, wrong, unknown], 0.0)
    assert known == [said]
    assert reasons[0].startswith(
        f"'Mary Lee plays the sport of' gives {said!r}; the answer {other!r} comes with"
    )
    assert reasons[0].endswith(f"probability {by_hand(model, asked, other)[0]:.2f}")
    assert reasons[1] == (
        "the answer 'curling' of 'Mary Lee plays the sport of' has a token unknown to the tokenizer"
    )
    assert validated([right], p - 1e-6)[0] == [said]
    _, (reason,) = validated([right], p + 1e-6)
    assert f"gives {said!r}, but only with probability {p:.2f}, below {p + 1e-6}" in reason


def test_a_validation_shows_itself() -> None:
    model = speaker(TOKENIZERS["words"])
    facts = [FACTS[4].replace(prompt=f"Mary Lee plays {'golf ' * n}", answer="Answer") for n in range(10)]
    lines = repr(validate(model, facts)).splitlines()
    assert lines[0] == "known: 0 of 10 facts" and len(lines) == 10 and lines[-1] == "  ... 2 more"
    assert all(line.startswith("  dropped: 'Mary Lee plays") for line in lines[1:9])


def test_padding_ids_are_never_asked_for() -> None:
    batch = encode(speaker(TOKENIZERS["words"]), FACTS)
    assert ((batch.labels == IGNORED) | (batch.mask == 1)).all()
