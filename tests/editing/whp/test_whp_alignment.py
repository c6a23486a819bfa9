"""Rows of a text and of its translation are paired where what went before is the same, and nowhere else."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers.tokenizers import TOKENIZERS, Speaker
from hypothesis import given, settings
from hypothesis import strategies as st

from mechunlearn.editing.whp.alignment import NONE, Alignment, Seen, Tokens, align
from mechunlearn.editing.whp.anchors import Anchors, Translation
from mechunlearn.editing.whp.text_blocks import tokens_of

Span = tuple[int, int]

WORDS = st.sampled_from(["Mary Lee", "Mary", "Lee", "Zoë", "plays", "golf", "é", "hockey", "A", "Quinn's"])
GAPS = st.sampled_from([" ", ", ", "  ", "'s ", ". ", "-"])
TEXTS = st.lists(st.tuples(WORDS, GAPS), min_size=2, max_size=10).map(
    lambda parts: "".join(word + gap for word, gap in parts).strip() + " end"
)
GENERIC = st.sampled_from(["Al", "Zoë Mary Q", "x", "golf", "the player"])
DICTIONARIES = st.dictionaries(WORDS, GENERIC, max_size=4)
SPEAKERS = st.sampled_from(sorted(TOKENIZERS))


def tokens(speaker: str, text: str) -> Tokens:
    return tokens_of(Speaker(TOKENIZERS[speaker]), [text])[0]


def aligned(speaker: str, found: Translation) -> tuple[Tokens, Tokens, Alignment]:
    original, translated = tokens(speaker, found.original), tokens(speaker, found.text)
    return original, translated, align(found, original, translated)


def bare(text: str, span: Span) -> Span:
    """A span without the spaces at its edges, unless it has nothing else."""
    piece = text[slice(*span)]
    if not piece.strip():
        return span
    return span[0] + len(piece) - len(piece.lstrip()), span[1] - len(piece) + len(piece.rstrip())


def image(found: Translation) -> dict[int, int]:
    """Every place of the text that is not inside an anchor, and the same place in the translation."""
    places, shift = {}, 0
    grown = {m.end: m.translated[1] - m.translated[0] - m.end + m.start for m in found.mentions}
    inside = {at for m in found.mentions for at in range(m.start + 1, m.end)}
    for at in range(len(found.original) + 1):
        shift += grown.get(at, 0)
        if at not in inside:
            places[at] = at + shift
    return places


def overlaps(span: Span, found: Translation) -> bool:
    return any(span[0] < m.end and m.start < span[1] for m in found.mentions)


def predicts_repeat(found: Translation, following: Span) -> bool:
    """Whether the next token is of an anchor mentioned before."""
    before = Counter[str]()
    for mention in found.mentions:
        if before[mention.anchor] and following[0] < mention.end and mention.start < following[1]:
            return True
        before[mention.anchor] += 1
    return False


# -- laws ------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(SPEAKERS, TEXTS, DICTIONARIES)
def test_every_kept_pair_has_read_the_same_characters(speaker: str, text: str, words: dict[str, str]) -> None:
    found = Anchors(words).translate(text)
    original, translated, alignment = aligned(speaker, found)
    places = image(found)
    for row, other in enumerate(alignment.rows.tolist()):
        if other == NONE:
            continue
        ours, theirs = bare(text, original.spans[row]), bare(found.text, translated.spans[other])
        assert places[ours[1]] == theirs[1] or ours[0] == ours[1]
        if overlaps(ours, found):
            assert any(m.end == ours[1] and m.translated[1] == theirs[1] for m in found.mentions)
        else:
            assert original.ids[row] == translated.ids[other]
            assert text[slice(*ours)] == found.text[slice(*theirs)]
            assert places[ours[0]] == theirs[0] or ours[0] == ours[1]


@settings(max_examples=120, deadline=None)
@given(SPEAKERS, TEXTS, DICTIONARIES)
def test_no_row_is_dropped_without_a_reason(speaker: str, text: str, words: dict[str, str]) -> None:
    found = Anchors(words).translate(text)
    original, translated, alignment = aligned(speaker, found)
    places = image(found)
    there = Counter(bare(found.text, span) for span in translated.spans)
    repeats = 0
    for row, other in enumerate(alignment.rows.tolist()):
        span, following = (bare(text, original.spans[at]) for at in (row, row + 1))
        repeats += predicts_repeat(found, following)
        if other != NONE:
            assert not predicts_repeat(found, following)
        elif not predicts_repeat(found, following) and not overlaps(span, found):
            # Its boundaries are not those of one token there: what stands beside it was cut otherwise.
            mapped = (places[span[0]], places[span[1]])
            alone = sum(bare(text, one) == span for one in original.spans) == 1
            assert not (alone and there[mapped] == 1) or span[0] == span[1]
    assert alignment.repeated == repeats


@settings(max_examples=80, deadline=None)
@given(SPEAKERS, TEXTS, DICTIONARIES)
def test_pairs_keep_their_order_and_no_row_is_used_twice(
    speaker: str, text: str, words: dict[str, str]
) -> None:
    _, translated, alignment = aligned(speaker, Anchors(words).translate(text))
    kept = alignment.rows[alignment.rows != NONE].tolist()
    assert kept == sorted(set(kept))
    assert all(other < len(translated) - 1 for other in kept)


@settings(max_examples=80, deadline=None)
@given(SPEAKERS, TEXTS, st.sets(WORDS))
def test_an_identity_dictionary_gives_the_identity(speaker: str, text: str, words: set[str]) -> None:
    text = " ".join(text.split())
    found = Anchors({word: word for word in words}).translate(text)
    original, _, alignment = aligned(speaker, found)
    rows = torch.arange(len(original) - 1)
    assert ((alignment.rows == rows) | (alignment.rows == NONE)).all()
    if not words:
        assert torch.equal(alignment.rows, rows)


# -- by hand ---------------------------------------------------------------------------------------------

# One token a letter, so that "Ed" has two and "Tom" three; BOS first.
LETTERS = "byte-level, no merges"


def letters(text: str, anchors: dict[str, str]) -> tuple[list[int], Alignment]:
    found = Anchors(anchors).translate(text)
    _, _, alignment = aligned(LETTERS, found)
    return alignment.rows.tolist(), alignment


def test_rows_after_an_anchor_of_another_length_are_those_after_its_translation() -> None:
    # <s> g o _ E d _ r a n   and   <s> g o _ T o m _ r a n
    rows, alignment = letters("go Ed ran", {"Ed": "Tom"})
    assert rows == [0, 1, 2, 3, NONE, 6, 7, 8, 9]
    assert alignment.seen == (Seen(5, "Tom"),) and alignment.repeated == 0


def test_comparing_rows_by_index_would_be_wrong_after_the_first_change_of_length() -> None:
    rows, _ = letters("Ed is here and Zoë is there", {"Ed": "Thomas"})
    shifted = [row for row, other in enumerate(rows) if other not in (row, NONE)]
    assert shifted == [row for row in range(2, len(rows)) if rows[row] != NONE]
    assert all(rows[row] == row + len("Thomas") - len("Ed") for row in shifted)


def test_an_anchor_mentioned_again_is_left_out_as_what_is_predicted_only() -> None:
    # <s> E d _ a n d _ E d _ r: predicting the second E and d is left out, what follows it is not.
    rows, alignment = letters("Ed and Ed r", {"Ed": "Al"})
    assert rows == [0, NONE, 2, 3, 4, 5, 6, NONE, NONE, 9, 10]
    assert alignment.repeated == 2 and alignment.seen == (Seen(2, "Al"),)


def test_an_anchor_opens_or_ends_a_text() -> None:
    rows, _ = letters("Ed", {"Ed": "Tom"})
    assert rows == [0, NONE]
    rows, alignment = letters("a Ed", {"Ed": "T"})
    assert rows == [0, 1, 2, NONE] and alignment.seen == (Seen(4, "T"),)


def test_a_token_over_an_anchors_edge_has_no_partner() -> None:
    found = Anchors({"Ed": "Tom"}).translate("so Ed's map")
    # "Ed's" is one token here, "Tom" and "'s" are two there.
    original = Tokens((1, 2, 3, 4), ((0, 0), (0, 2), (2, 7), (7, 11)))
    translated = Tokens((1, 2, 5, 6, 4), ((0, 0), (0, 2), (2, 6), (6, 8), (8, 12)))
    assert align(found, original, translated).rows.tolist() == [0, 1, NONE]


def test_tokens_that_share_a_character_are_paired_in_order() -> None:
    rows, _ = letters("Ed é é", {"Ed": "T"})
    assert rows == [0, NONE, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("speaker", TOKENIZERS)
def test_with_every_tokenizer_the_words_around_an_anchor_keep_their_rows(speaker: str) -> None:
    found = Anchors({"Mary Lee": "Zoë Quinn"}).translate("The player Mary Lee is good at golf")
    original, translated, alignment = aligned(speaker, found)
    by_end = {bare(found.text, span)[1]: row for row, span in enumerate(translated.spans)}
    for word, moved in (("The", 0), ("player", 0), ("Mary Lee", 1), ("is", 1), ("good", 1), ("at", 1)):
        end = found.original.index(word) + len(word)
        last = max(row for row, span in enumerate(original.spans) if bare(found.original, span)[1] == end)
        assert alignment.rows[last] == by_end[end + moved]
