"""Subjects, answers and positions are found by characters, whatever the tokenizer does with spaces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tokenizers import TOKENIZERS, Speaker, byte_level, metaspace, words

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.joining import joined
from mechunlearn.errors import FactError
from mechunlearn.models.encoding.batch import GROUPS, IGNORED, Batch, token_groups
from mechunlearn.models.encoding.encoder import encode, encode_text

FACTS = (
    Fact("Mary Lee plays the sport of", "Mary Lee", "basketball", new="tennis"),
    Fact("The player Mary Lee is good at", "Mary Lee", "ice hockey", new="golf"),
    Fact("Zoë Quinn plays ", "Zoë Quinn", "golf", new="ice hockey"),
)


def texts(batch: Batch, row: int, chosen: torch.Tensor) -> list[str]:
    """The strings of the chosen positions of a row."""
    return [string for string, expected in zip(batch.strings[row], chosen.tolist(), strict=False) if expected]


def decoded(tokenizer: Any, ids: torch.Tensor) -> str:
    return str(tokenizer.decode([i for i in ids.tolist() if i != IGNORED])).strip()


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_subject_and_answer_are_found_with_every_tokenizer(tokenizer: Any) -> None:
    batch = encode(Speaker(tokenizer), FACTS)
    for row, fact in enumerate(FACTS):
        subject = "".join(texts(batch, row, batch.subject[row])).replace(" ", "")
        # Bytes of one letter are decoded one by one, so a letter of two bytes shows as two signs.
        assert subject.replace("\ufffd\ufffd", "ë") == fact.subject.replace(" ", "")
        assert decoded(tokenizer, batch.answer_ids[row]) == fact.answer
        prompt = batch.tokens[row, 1 : batch.end[row] + 1]
        assert decoded(tokenizer, prompt) == fact.prompt.strip()
        assert batch.subject[row].nonzero()[-1] == batch.subject_last[row]


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_prompt_alone_ends_where_it_does_with_any_answer(tokenizer: Any) -> None:
    model = Speaker(tokenizer)
    alone = encode(model, FACTS, answer=None)
    for answer in ("answer", "new"):
        batch = encode(model, FACTS, answer=answer)
        assert torch.equal(alone.end, batch.end)
        width = alone.tokens.shape[1]
        assert torch.equal(batch.tokens[:, :width] * alone.mask, alone.tokens * alone.mask)
        assert torch.equal(batch.subject[:, :width], alone.subject)
    assert torch.equal(alone.end, alone.lengths - 1)
    assert (alone.labels == IGNORED).all()


def test_tokens_by_hand_when_the_space_belongs_to_the_word() -> None:
    batch = encode(Speaker(metaspace(size=400)), FACTS[:2])
    assert batch.strings[0] == ("<s>", " Mary", " Lee", " plays", " the", " sport", " of", " basketball")
    assert batch.subject[0].tolist() == [False, True, True, False, False, False, False, False, False, False]
    assert batch.subject_last.tolist() == [2, 4]
    assert batch.end.tolist() == [6, 7]
    assert batch.mask.tolist() == [[1] * 8 + [0] * 2, [1] * 10]
    assert batch.answer_positions.tolist() == [[6, 6], [7, 8]]
    assert batch.answer_ids[0].tolist() == [batch.tokens[0, 7], IGNORED]
    assert batch.answer_ids[1].tolist() == batch.tokens[1, 8:].tolist()


def test_labels_are_the_targets_of_the_logits_at_the_same_position() -> None:
    batch = encode(Speaker(words()), FACTS)
    for row in range(len(FACTS)):
        asked = (batch.labels[row] != IGNORED).nonzero()[:, 0]
        assert asked[0] == batch.end[row]
        assert torch.equal(batch.labels[row, asked], batch.tokens[row, asked + 1])


def test_lone_spaces_at_the_edges_are_no_part_of_the_subject() -> None:
    for name in ("metaspace, letters", "sentencepiece, letters", "byte-level, no merges"):
        batch = encode(Speaker(TOKENIZERS[name]), FACTS[:2])
        for row in (0, 1):
            assert "".join(texts(batch, row, batch.subject[row])) == "Mary Lee"


def test_the_last_whole_word_occurrence_of_the_subject_counts() -> None:
    fact = Fact("Ann runs. Q: What does Ann play? Anna plays golf, Ann plays", "Ann", "tennis")
    batch = encode(Speaker(byte_level(trim=True, merges=0)), [fact])
    assert batch.subject_last[0] == 1 + fact.prompt.rindex("Ann") + 2


def test_a_bos_opens_the_row_only_if_wanted_and_there() -> None:
    tokenizer = words()
    with_bos = encode(Speaker(tokenizer), FACTS)
    without = encode(Speaker(tokenizer, prepend_bos=False), FACTS)
    none = encode(Speaker(words(bos=False)), FACTS)
    assert (with_bos.tokens[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(with_bos.tokens[:, 1:], without.tokens)
    assert torch.equal(without.end, with_bos.end - 1)
    assert torch.equal(none.tokens, without.tokens)


def test_a_list_gives_each_fact_its_own_answer() -> None:
    model = Speaker(words())
    listed = encode(model, FACTS, answer=["tennis", "golf", "ice hockey"])
    named = encode(model, FACTS, answer="new")
    assert torch.equal(listed.tokens, named.tokens) and torch.equal(listed.labels, named.labels)


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_space_at_the_end_of_a_prompt_changes_nothing(tokenizer: Any) -> None:
    model = Speaker(tokenizer)
    bare, spaced = (encode(model, [Fact(f"Mary plays{end}", "Mary", "ice hockey")]) for end in ("", " "))
    assert torch.equal(bare.tokens, spaced.tokens) and torch.equal(bare.labels, spaced.labels)


def test_a_line_break_at_the_end_of_a_prompt_belongs_to_it() -> None:
    batch = encode(Speaker(byte_level(trim=True)), [Fact("Mary plays:\n", "Mary", "golf")])
    assert batch.strings[0][batch.end[0]] == "\n"


def test_a_space_joins_prompt_and_answer_once() -> None:
    assert joined("plays", "golf") == joined("plays ", "golf") == joined("plays", " golf") == "plays golf"


def test_every_token_of_a_text_is_asked_for_but_the_first() -> None:
    batch = encode_text(Speaker(words()), ["Mary Lee plays golf", "Zoë plays"])
    assert torch.equal(batch.labels[0, :-1], batch.tokens[0, 1:]) and batch.labels[0, -1] == IGNORED
    assert batch.answer_ids[1].tolist() == [*batch.tokens[1, 1:3].tolist(), IGNORED, IGNORED]
    assert not batch.subject.any() and batch.subject_last.tolist() == [-1, -1]
    cut = encode_text(Speaker(words()), ["Mary Lee plays golf", "Zoë plays"], max_tokens=3)
    assert torch.equal(cut.tokens, batch.tokens[:, :3]) and cut.lengths.tolist() == [3, 3]


def test_rows_and_trimming_keep_what_stands_in_a_row() -> None:
    batch = encode(Speaker(words()), FACTS)
    for part in (batch.rows([2]), batch.rows(slice(2, 3)), batch.rows(torch.tensor([False, False, True]))):
        assert part.tokens.shape == (1, batch.tokens.shape[1]) and part.strings == (batch.strings[2],)
        assert part.trimmed().tokens.shape == (1, len(batch.strings[2]))
        assert torch.equal(part.trimmed().answer_ids, part.answer_ids)
    assert len(batch.to("cpu")) == 3


def test_tokens_are_grouped_by_what_they_are() -> None:
    facts = [
        Fact("The player Mary Lee is good at", "Mary Lee", "golf"),
        Fact("Mary plays the sport of", "Mary", "golf"),
        Fact("What sport does Mary Lee play", "What sport does", "golf"),
        Fact("golf and Mary", "Mary", "golf"),
    ]
    groups = token_groups(encode(Speaker(words()), facts))
    named = [[GROUPS[g] if g >= 0 else "" for g in row] for row in groups.tolist()]
    first, middle, last, further, end = GROUPS
    assert named[0] == ["", "", "", first, last, further, further, end, ""]
    assert named[1] == ["", last, further, further, further, end, "", "", ""]
    assert named[2] == ["", first, middle, last, further, further, end, "", ""]
    assert named[3] == ["", "", "", last, "", "", "", "", ""]


def test_a_text_has_no_groups() -> None:
    groups = token_groups(encode_text(Speaker(words()), ["Mary plays golf"]))
    assert (groups == -1).all()


class Slow:
    is_fast = False


class Mute:
    """A fast tokenizer that knows no letter of some words."""

    is_fast, bos_token_id, pad_token_id, eos_token_id = True, None, None, None

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self.spans = spans

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [[5] * len(self.spans)], "offset_mapping": [self.spans]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["x"] * len(ids)

    def batch_decode(self, ids: list[list[int]], **_: Any) -> list[str]:
        return ["x"] * len(ids)


@pytest.mark.parametrize(
    ("tokenizer", "facts", "answer", "message"),
    [
        (words(), (), "answer", "no facts to encode; give at least one"),
        (words(), FACTS, "old", "answer must be one of 'answer', 'new', 'foil' or None; not 'old'"),
        (words(), FACTS, "foil", "'Mary Lee plays the sport of' has no foil; give it `foil=`"),
        (words(), FACTS, ["golf"], "1 answers for 3 facts; give one for each"),
        (Slow(), FACTS, "answer", "Slow gives no character offsets.*use_fast=True"),
        (Mute([(0, 4)]), FACTS[:1], "answer", "no token for the answer 'basketball' of 'Mary Lee plays"),
        (Mute([(28, 30)]), FACTS[:1], "answer", "no token for the subject 'Mary Lee' of 'Mary Lee plays"),
    ],
)
def test_what_cannot_be_encoded_says_why(tokenizer: Any, facts: Any, answer: Any, message: str) -> None:
    with pytest.raises(FactError, match=message):
        encode(Speaker(tokenizer), facts, answer=answer)


def test_a_text_without_anything_to_predict_says_so() -> None:
    with pytest.raises(FactError, match="no texts to encode"):
        encode_text(Speaker(words()), [])
    with pytest.raises(FactError, match="'' has no token to predict; give texts of two tokens or more"):
        encode_text(Speaker(words()), [""])
