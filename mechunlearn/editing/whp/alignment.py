"""Which row of the translated text predicts what a row of the original predicts: exactly, by characters.

Row t is what a model predicts after token t. Two rows can be compared if what went before is the same text,
up to the translation of anchors:

1. A token outside the anchors belongs to the translated token over the same characters of the original (and
   of the same id). If the boundaries do not coincide, its row has no partner.
2. After an anchor, the row of its last token belongs to the row of the last token of its translation. Both
   must end where the expressions end; a token that reaches beyond has no partner.
3. Rows inside an anchor of several tokens have no partner. The row before an anchor, which predicts its first
   token, is a row outside.
4. Rows that predict a token of an anchor mentioned before have no partner either: only the first mention may
   be taught by its generic name.

White space at the edges of a token does not count, so it does not matter whether a tokenizer gives a space
to the word after it. The tempting short cut, comparing rows by their index, is wrong from the first
expression on whose translation has another number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mechunlearn.editing.whp.anchors import Mention, Translation

Span = tuple[int, int]
NONE = -1


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text and the characters each covers; a special token covers none.

    Args:
        ids: token ids.
        spans: first character and the one after the last, for every token.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Seen:
    """A generic expression that has appeared: from this row on it is part of what went before."""

    row: int
    translation: str


@dataclass(frozen=True)
class Alignment:
    """Rows of a text and their partners in its translation.

    Args:
        rows: for every row that predicts a token of the text, the row of the translation, or -1.
        repeated: how many rows were left out as they predict an anchor mentioned before.
        seen: the translations that appear, in the order of the text, each once.
    """

    rows: Int[Tensor, " row"]
    repeated: int
    seen: tuple[Seen, ...]


def align(translation: Translation, original: Tokens, translated: Tokens) -> Alignment:
    """Give every row of a text its partner in the translation.

    Args:
        translation: the text and its translation.
        original: tokens of the text.
        translated: tokens of the translation.

    Example:
        >>> from mechunlearn.editing.whp.anchors import Anchors
        >>> found = Anchors({"Ed": "Tom"}).translate("Ed ran")
        >>> letters = Tokens((1, 2, 3), ((0, 1), (1, 2), (2, 6)))
        >>> align(found, letters, Tokens((4, 3), ((0, 3), (3, 7)))).rows
        tensor([-1,  0])

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 2.3; the rule itself is ours.
    """
    here = [_bare(translation.original, span) for span in original.spans]
    there = [_bare(translation.text, span) for span in translated.spans]
    partner = _outside(translation, original, here, translated, there) | _after(translation, here, there)
    repeats = _repeats(translation.mentions)
    repeated = {
        row
        for row, (start, end) in enumerate(here[1:])
        if any(start < mention.end and mention.start < end for mention in repeats)
    }
    rows = [NONE if row in repeated else partner.get(row, NONE) for row in range(len(original) - 1)]
    return Alignment(torch.tensor(rows, dtype=torch.long), len(repeated), _seen(translation, here))


def _outside(
    translation: Translation,
    original: Tokens,
    here: Sequence[Span],
    translated: Tokens,
    there: Sequence[Span],
) -> dict[int, int]:
    """Pair the tokens that cover the same characters outside the anchors."""
    ours: dict[Span, list[int]] = {}
    theirs: dict[Span, list[int]] = {}
    for row, span in enumerate(here):
        ours.setdefault(span, []).append(row)
    for row, span in enumerate(there):
        source = translation.source(*span)
        if source is not None:
            theirs.setdefault(source, []).append(row)
    pairs: dict[int, int] = {}
    for span in ours.keys() & theirs.keys():
        # A character of several bytes may be several tokens, all with its span.
        if [original.ids[row] for row in ours[span]] == [translated.ids[row] for row in theirs[span]]:
            pairs.update(zip(ours[span], theirs[span], strict=True))
    return pairs


def _after(translation: Translation, here: Sequence[Span], there: Sequence[Span]) -> dict[int, int]:
    """Pair the last tokens of anchors with those of their translations."""
    ours = {end: row for row, (start, end) in enumerate(here) if start < end}
    theirs = {end: row for row, (start, end) in enumerate(there) if start < end}
    ends = [(ours.get(m.end), theirs.get(m.translated[1])) for m in translation.mentions]
    return {row: other for row, other in ends if row is not None and other is not None}


def _repeats(mentions: Sequence[Mention]) -> list[Mention]:
    """The mentions of anchors that were mentioned before."""
    known: set[str] = set()
    repeats = []
    for mention in mentions:
        if mention.anchor in known:
            repeats.append(mention)
        known.add(mention.anchor)
    return repeats


def _seen(translation: Translation, here: Sequence[Span]) -> tuple[Seen, ...]:
    """From which row on each translation is part of what went before."""
    first: dict[str, int] = {}
    for mention in translation.mentions:
        word = translation.text[slice(*mention.translated)]
        reached = next((row for row, (_, end) in enumerate(here) if end >= mention.end), len(here))
        first.setdefault(word, reached)
    return tuple(Seen(row, word) for word, row in first.items())


def _bare(text: str, span: Span) -> Span:
    """Narrow a span to what is no space at its edges; one of spaces alone stays as it is."""
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else span
