"""Rows longer than the context are refused by name, or lose their first tokens, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.tiny_models import hf_model, memory_tokenizer
from torch import Tensor

import mechunlearn as mu
from mechunlearn.errors import FactError, ModelError
from mechunlearn.models.encoding.encoder import encode, encode_text
from mechunlearn.models.scoring.scorer import perplexity
from mechunlearn.models.token_rows import with_bos

CONTEXT = 64
BOS = 0
TEXT = "very " * 14 + "So Bo is in"  # 80 tokens
FACT = mu.Fact(TEXT, "Bo", "ab", new="c")
SHORT = mu.Fact("So Bo is in", "Bo", "ab", new="c")


def ids(text: str) -> list[int]:
    """The tokens of a text, without BOS."""
    return list(memory_tokenizer()(text).input_ids)


reference = cache(hf_model)  # read-only


def plain(row: list[int], family: str = "llama") -> Tensor:
    """The log-probabilities [pos d_vocab] of the plain model for one row."""
    logits: Tensor = reference(family)(torch.tensor([row])).logits[0].detach()
    return logits.log_softmax(-1)


def cut(text: str, length: int = CONTEXT) -> list[int]:
    """BOS and the last tokens of a text."""
    return [BOS, *ids(text)[1 - length :]]


@pytest.fixture(scope="module")
def cutting() -> mu.HookedModel:
    """A model that drops the first tokens of long rows."""
    return mu.HookedModel.from_hf(hf_model("llama"), memory_tokenizer(), truncate="left")


READERS: dict[str, tuple[Callable[[mu.HookedModel], Any], type[ValueError], str]] = {
    "a run": (lambda hm: hm(TEXT), ModelError, "row 0 of the input has 81 tokens"),
    "a run of ids": (lambda hm: hm([ids("in"), ids(TEXT)]), ModelError, "row 1 of the input has 80 tokens"),
    "a cached run": (lambda hm: hm.run_with_cache(TEXT), ModelError, "row 0 of the input has 81 tokens"),
    "a score": (lambda hm: mu.score(hm, [SHORT, FACT]), FactError, "'<s>very very v'..., has 84 tokens"),
    "a perplexity": (
        lambda hm: perplexity(hm, ["in pens", TEXT]),
        FactError,
        "row 1, '<s>very very v'..., has 81",
    ),
    "a generation": (lambda hm: hm.generate(TEXT), ModelError, "row 0 of the input has 81 tokens"),
}


@pytest.mark.parametrize(("read", "kind", "message"), READERS.values(), ids=READERS)
def test_a_row_that_is_too_long_is_refused_by_name(
    llama: mu.HookedModel, read: Callable[[mu.HookedModel], Any], kind: type[ValueError], message: str
) -> None:
    remedy = "and the model reads at most 64; shorten it, or open the model with truncate='left'"
    with refused(kind, message, remedy, hm=llama):
        read(llama)


def test_the_longest_row_is_read(hm: mu.HookedModel, family: str) -> None:
    row = cut(TEXT)
    assert len(row) == CONTEXT == hm.context_length
    torch.testing.assert_close(hm(row)[0].log_softmax(-1), plain(row, family), rtol=0.0, atol=2e-4)
    with refused(ModelError, "has 65 tokens, and the model reads at most 64", hm=hm):
        hm([*row, 3])


def test_new_tokens_need_room_as_well(llama: mu.HookedModel, cutting: mu.HookedModel) -> None:
    prompt = cut(TEXT, 60)
    assert llama.generate(prompt, max_new_tokens=4, stop_at_eos=False).shape == (1, CONTEXT)
    message = "row 0 of the input, which needs room for 5 new tokens, has 60 tokens, and the model reads at"
    with refused(ModelError, message, "at most 59; shorten it", hm=llama):
        llama.generate(prompt, max_new_tokens=5)
    row, new = [BOS, *ids(TEXT)[-58:]], list[int]()
    for _ in range(5):
        new.append(int(plain(row + new)[-1].argmax()))
    assert cutting.generate(TEXT, max_new_tokens=5, stop_at_eos=False) == memory_tokenizer().decode(
        row[1:] + new, skip_special_tokens=True
    )


@pytest.mark.parametrize("new", [64, 70])
def test_new_tokens_that_leave_no_room_for_a_prompt_are_refused(cutting: mu.HookedModel, new: int) -> None:
    message = (
        f"max_new_tokens is {new}, and the model reads at most 64 tokens, prompt included; ask for fewer"
    )
    with refused(ModelError, message, hm=cutting):
        cutting.generate("in", max_new_tokens=new)
    with refused(ModelError, "has 3 tokens, and the model reads at most 1; shorten it", hm=cutting):
        cutting.generate([BOS, 5, 6], max_new_tokens=63)


def test_a_long_row_loses_the_tokens_after_bos(cutting: mu.HookedModel) -> None:
    expected = plain(cut(TEXT))
    torch.testing.assert_close(cutting(TEXT)[0].log_softmax(-1), expected, rtol=0.0, atol=1e-5)
    assert cutting.to_tokens([TEXT, "in"])[0].tolist() == cut(TEXT)
    torch.testing.assert_close(cutting([BOS, *ids(TEXT)])[0].log_softmax(-1), expected, rtol=0.0, atol=1e-5)
    assert cutting.to_tokens(ids(TEXT))[0].tolist() == ids(TEXT)[-CONTEXT:]
    both = cutting([TEXT, "in pens"])
    short = plain([BOS, *ids("in pens")])
    torch.testing.assert_close(both[1, : len(short)].log_softmax(-1), short, rtol=0.0, atol=1e-5)


def test_a_long_padded_row_keeps_its_side(cutting: mu.HookedModel) -> None:
    rows, width = [ids(TEXT), ids("in pens")], len(ids(TEXT))
    lost = width - len(rows[1])
    tokens = torch.tensor([rows[0], [3] * lost + rows[1]])
    mask = torch.tensor([[1] * width, [0] * lost + [1] * len(rows[1])])
    logits = cutting(tokens, attention_mask=mask).log_softmax(-1)
    assert logits.shape[1] == CONTEXT
    torch.testing.assert_close(logits[0], plain(rows[0][-CONTEXT:]), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(logits[1, -len(rows[1]) :], plain(rows[1]), rtol=0.0, atol=1e-5)


def test_a_long_fact_is_scored_on_its_last_tokens(cutting: mu.HookedModel) -> None:
    outcome = mu.score(cutting, [SHORT, FACT])
    for answer, p in (("ab", outcome.p_answer[1]), ("c", outcome.p_new[1])):
        end = ids(f" {answer}")
        expected = plain(cut(f"{TEXT} {answer}"))[-len(end) - 1 : -1].gather(1, torch.tensor(end)[:, None])
        assert p == pytest.approx(float(expected.sum().exp()), rel=1e-4)
    batch = encode(cutting, [SHORT, FACT])
    at = len(ids("So Bo")), int(batch.subject_last[1])
    assert memory_tokenizer().decode(batch.tokens[1][batch.subject[1]]).strip() == "Bo"
    assert batch.tokens[0, at[0]] == batch.tokens[1, at[1]] == ids("o")[0]
    assert batch.labels[1, batch.end[1] :][:3].tolist() == ids(" ab")


def test_a_long_text_is_measured_on_its_last_tokens(cutting: mu.HookedModel) -> None:
    row = cut(TEXT)
    losses = -plain(row)[:-1].gather(1, torch.tensor(row[1:])[:, None])
    assert perplexity(cutting, [TEXT])[0] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert encode_text(cutting, ["in pens", TEXT]).labels[1, :-1].tolist() == row[1:]


def test_a_fact_whose_subject_would_be_lost_is_refused(cutting: mu.HookedModel) -> None:
    fact = mu.Fact("Bo is in " + "very " * 14, "Bo", "ab")
    message = "has 81 tokens; cut to the 64 that the model reads, it loses its subject 'Bo': shorten"
    with refused(FactError, message, hm=cutting):
        mu.score(cutting, [SHORT, fact])


def test_of_two_mentions_the_one_that_is_read_remains(cutting: mu.HookedModel) -> None:
    batch = encode(cutting, [mu.Fact("Bo is " + TEXT, "Bo", "ab")])
    assert batch.mention.max() == 1
    assert torch.equal(batch.mention == 1, batch.subject)


def test_validate_drops_what_is_too_long_and_keeps_the_others(llama: mu.HookedModel) -> None:
    start = ids(SHORT.prompt)
    logprobs = plain([BOS, *start, *ids(" ")])[-1]
    better, worse = sorted("ab", key=lambda letter: -float(logprobs[ids(letter)[0]]))
    answered = mu.Fact(SHORT.prompt, "Bo", better, options=(better, worse))
    long = answered.replace(prompt=TEXT)
    validation = mu.validate(llama, [long, answered], threshold=0.0)
    assert list(validation.known) == [answered]
    ((fact, reason),) = validation.dropped
    assert fact == long
    assert reason.startswith(f"{TEXT[:60]!r} cannot be read: row 0, '<s>very very v'..., has 83 tokens")


def test_bos_is_not_doubled(llama: mu.HookedModel) -> None:
    expected = [BOS, *ids("Bo is")]
    assert llama.to_tokens("<s>Bo is").tolist() == llama.to_tokens("Bo is").tolist() == [expected]
    batch = encode(llama, [mu.Fact("<s>Bo is", "Bo", "a"), mu.Fact("Bo is", "Bo", "a")])
    assert batch.tokens.tolist() == [[*expected, *ids(" a")]] * 2
    assert batch.subject_last.tolist() == [2, 2]
    assert encode_text(llama, ["<s>Bo is"]).tokens.tolist() == [expected]
    assert with_bos([], BOS) == [BOS] and with_bos([7], None) == [7]


@pytest.mark.usefixtures("unchecked")
def test_only_the_left_can_be_cut() -> None:
    wrong: Any = "right"
    with refused(ModelError, "truncate must be one of None or 'left'; not 'right'"):
        mu.HookedModel.from_hf(hf_model("llama"), memory_tokenizer(), truncate=wrong)
