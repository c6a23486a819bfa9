"""Cut texts into blocks that fit the model, both in the original and in translation.

1. A text and its translation are each tokenised once. A block takes as many tokens as fit in both, BOS
   included.
2. It ends at white space where possible, else between two tokens, and never inside an anchor.
3. Each block is read on its own, without white space at its edges.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from mechunlearn.core.checks import positive
from mechunlearn.core.texts import texts_of
from mechunlearn.editing.whp.alignment import Tokens
from mechunlearn.editing.whp.anchors import Anchors, Translation
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.models.encoding.encoder import HasTokenizer, tokenised
from mechunlearn.models.scoring.passes import HasModel

SPARE = 2  # the BOS token, and a space that a tokenizer may put in front


def blocks(
    hm: HasModel, texts: Sequence[str], *, anchors: Mapping[str, str] | None = None, size: int = 512
) -> tuple[str, ...]:
    """Cut texts into blocks of at most ``size`` tokens, BOS included.

    Args:
        hm: the model; its tokenizer counts the tokens and its positions limit the size.
        texts: running text; each is cut on its own.
        anchors: expressions that no block boundary may split, and whose translations must fit as well.
        size: maximal number of tokens in a block.

    Raises:
        FactError: there is no text, or an expression is longer than a block.
        ScoresError: `size` is not positive.

    Example:
        >>> import mechunlearn as mu
        >>> mu.whp.blocks(mu.world.model(), ["The white cat eats fish in the spring."], size=8)
        ('The white cat eats fish in', 'the spring.')
    """
    positive(ScoresError, size=size)
    passages = texts_of(FactError, texts, name="texts")
    dictionary = as_anchors({} if anchors is None else anchors)
    limit = min(size, hm.context_length or size)
    cut = [block for text in passages for block in _cut(hm, dictionary.translate(text), limit)]
    if not cut:
        raise FactError("there is no text; give passages of two tokens or more")
    return tuple(cut)


def as_anchors(anchors: Mapping[str, str]) -> Anchors:
    """The anchors, or Anchors made of a plain mapping; FactError if that is not possible."""
    return anchors if isinstance(anchors, Anchors) else Anchors(anchors)


def tokens_of(hm: HasTokenizer, texts: Sequence[str]) -> tuple[Tokens, ...]:
    """Tokenise texts as ``encode_text`` does, with the characters that each token covers.

    Raises FactError if the tokenizer has no character offsets, or a text has no token to predict.
    """
    rows = tokenised(hm, texts)
    if any(len(row.ids) < 2 for row in rows):
        raise FactError("a text has no token to predict; give texts of two tokens or more")
    return tuple(Tokens(tuple(row.ids), tuple(row.spans)) for row in rows)


def _cut(hm: HasTokenizer, translation: Translation, limit: int) -> list[str]:
    text = translation.original
    if not text.strip():
        return []
    both = tokens_of(hm, [text, translation.text])
    if max(map(len, both)) <= limit:
        return [text.strip()]
    token_ends, translated_ends = ([end for start, end in tokens.spans if start < end] for tokens in both)
    # Characters that no token covers, at the end of a text, stay with its last block.
    ends = [*(end for end in token_ends[:-1] if not _inside(translation, end)), len(text)]
    # Tokens up to each end, so that differences count the tokens of a block.
    counted = [bisect_right(token_ends, end) for end in ends]
    translated = [bisect_right(translated_ends, _forward(translation, end)) for end in ends]
    room, cut, first, used = limit - SPARE, [], 0, (0, 0)
    while first < len(ends):
        stop = min(bisect_right(counted, used[0] + room), bisect_right(translated, used[1] + room))
        start = ends[first - 1] if first else 0
        if stop <= first:
            raise FactError(
                f"no block of {limit} tokens holds {text[start : start + 40]!r}; give a larger "
                "block, or shorter anchors and translations"
            )
        last = _best(text, ends, first, stop)
        # Two tokens, or one after a BOS token: else nothing can be predicted.
        if counted[last] - used[0] > 1 - (len(both[0]) - len(token_ends)):
            cut.append(text[start : ends[last]].strip())
        first, used = last + 1, (counted[last], translated[last])
    return cut


def _best(text: str, ends: Sequence[int], first: int, stop: int) -> int:
    """The index of the last end before white space, if there is one in the range, else of the last end."""
    for index in reversed(range(first, stop)):
        if ends[index] == len(text) or text[ends[index]].isspace():
            return index
    return stop - 1


def _inside(translation: Translation, end: int) -> bool:
    """Whether a cut at this character would split an anchor."""
    mentions = translation.mentions
    index = bisect_left(mentions, end, key=lambda mention: mention.end)
    return index < len(mentions) and mentions[index].start < end < mentions[index].end


def _forward(translation: Translation, end: int) -> int:
    """Convert an end outside the anchors to characters of the translation."""
    index = bisect_right(translation.mentions, end, key=lambda mention: mention.end)
    last = translation.mentions[index - 1] if index else None
    return end if last is None else end - last.end + last.translated[1]
