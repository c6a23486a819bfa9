"""Which row of logits on the translated text corresponds to a row on the original: exactly, by characters.

Row t is what a model predicts after token t. Two rows can be compared if the text before them is the same, up
to the translation of anchors:

1. A token outside the anchors corresponds to the translated token that covers the same characters of the
   original and has the same id. If their boundaries differ, the row has no partner.
2. After an anchor, the row of its last token corresponds to the row of the last token of its translation.
   Both tokens must end where the expressions end; a token that extends beyond has no partner.
3. The other rows inside an anchor have no partner. The row before an anchor, which predicts its first token,
   is a row outside.
4. Rows that predict a token of an anchor mentioned before have no partner either: only the first mention is
   trained towards its generic name.

White space at the edges of a token is ignored, so it does not matter whether a tokenizer attaches a space to
the word after it. The obvious shortcut, comparing rows of the same index, is wrong from the first expression
whose translation has another number of tokens.
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
    """The tokens of a text and the characters that each covers.

    Args:
        ids: token ids.
        spans: for every token its first character and the one after its last; (0, 0) for a special token.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Seen:
    """A generic expression that has appeared: from this row on it is part of the text before."""

    row: int
    translation: str


@dataclass(frozen=True)
class Alignment:
    """The rows of a text and their partners in its translation.

    Args:
        rows: for every row that predicts a token of the text, the row of the translation, or -1.
        repeated: number of rows without a partner because they predict an anchor mentioned before.
        seen: the translations that appear, in the order of the text, each once.
    """

    rows: Int[Tensor, " row"]
    repeated: int
    seen: tuple[Seen, ...]


def align(translation: Translation, original: Tokens, translated: Tokens) -> Alignment:
    """Find the partner of every row of a text in the translation.

    Args:
        translation: the text and its translation.
        original: tokens of the text.
        translated: tokens of the translation.

    Example:
        >>> from mechunlearn.editing.whp.anchors import Anchors
        >>> translation = Anchors({"Ed": "Tom"}).translate("Ed ran")
        >>> tokens = Tokens((1, 2, 3), ((0, 1), (1, 2), (2, 6)))
        >>> align(translation, tokens, Tokens((4, 3), ((0, 3), (3, 7)))).rows
        tensor([-1,  0])

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 2.3; the rule itself is this
    library's.
    """
    spans = [_bare(translation.original, span) for span in original.spans]
    translated_spans = [_bare(translation.text, span) for span in translated.spans]
    partner = _outside(translation, original, spans, translated, translated_spans)
    partner |= _after(translation, spans, translated_spans)
    repeats = _repeats(translation.mentions)
    # Row t predicts token t + 1, so the first span belongs to no row.
    repeated = {
        row
        for row, (start, end) in enumerate(spans[1:])
        if any(start < mention.end and mention.start < end for mention in repeats)
    }
    rows = [NONE if row in repeated else partner.get(row, NONE) for row in range(len(original) - 1)]
    return Alignment(torch.tensor(rows, dtype=torch.long), len(repeated), _seen(translation, spans))


def _outside(
    translation: Translation,
    original: Tokens,
    spans: Sequence[Span],
    translated: Tokens,
    translated_spans: Sequence[Span],
) -> dict[int, int]:
    """Pair the tokens that cover the same characters outside the anchors."""
    # A character of several bytes may be several tokens, all with its span.
    rows: dict[Span, list[int]] = {}
    translated_rows: dict[Span, list[int]] = {}
    for row, span in enumerate(spans):
        rows.setdefault(span, []).append(row)
    for row, span in enumerate(translated_spans):
        source = translation.source(*span)
        if source is not None:
            translated_rows.setdefault(source, []).append(row)
    pairs: dict[int, int] = {}
    for span in rows.keys() & translated_rows.keys():
        partners = translated_rows[span]
        if [original.ids[row] for row in rows[span]] == [translated.ids[row] for row in partners]:
            pairs.update(zip(rows[span], partners, strict=True))
    return pairs


def _after(
    translation: Translation, spans: Sequence[Span], translated_spans: Sequence[Span]
) -> dict[int, int]:
    """Pair the last tokens of anchors with those of their translations."""
    row_at = {end: row for row, (start, end) in enumerate(spans) if start < end}
    translated_row_at = {end: row for row, (start, end) in enumerate(translated_spans) if start < end}
    pairs = [(row_at.get(m.end), translated_row_at.get(m.translated[1])) for m in translation.mentions]
    return {row: partner for row, partner in pairs if row is not None and partner is not None}


def _repeats(mentions: Sequence[Mention]) -> list[Mention]:
    """The mentions of anchors that were mentioned before."""
    mentioned: set[str] = set()
    repeats = []
    for mention in mentions:
        if mention.anchor in mentioned:
            repeats.append(mention)
        mentioned.add(mention.anchor)
    return repeats


def _seen(translation: Translation, spans: Sequence[Span]) -> tuple[Seen, ...]:
    """The row from which on each translation is part of the text before."""
    first: dict[str, int] = {}
    for mention in translation.mentions:
        word = translation.text[slice(*mention.translated)]
        reached = next((row for row, (_, end) in enumerate(spans) if end >= mention.end), len(spans))
        first.setdefault(word, reached)
    return tuple(Seen(row, word) for word, row in first.items())


def _bare(text: str, span: Span) -> Span:
    """A span without white space at its edges; a span of white space alone stays as it is."""
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else span
