"""Cut texts into blocks that the model can read, original and translated.

1. A text is tokenised once, and so is its translation. A block takes as many tokens as fit both ways, the
   BOS token counted.
2. It ends at white space where it can, else between two tokens, and never inside an anchor.
3. Blocks are read on their own: each starts anew, with no white space at its edges.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from mechunlearn.core.checks import positive
from mechunlearn.editing.whp.alignment import Tokens
from mechunlearn.editing.whp.anchors import Anchors, Translation
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.models.encoding.encoder import HasTokenizer, encode_text
from mechunlearn.models.scoring.passes import HasModel

SPARE = 2  # the BOS token, and a space that a tokenizer may put in front


def blocks(
    hm: HasModel, texts: Sequence[str], *, anchors: Mapping[str, str] | None = None, size: int = 512
) -> tuple[str, ...]:
    """Cut texts into blocks of at most so many tokens, BOS included.

    Args:
        hm: the model, whose tokenizer counts and whose positions bound a block.
        texts: running text; each is cut on its own.
        anchors: expressions that no cut goes through, and whose translations must fit as well.
        size: tokens in a block at most.

    Raises:
        FactError: there is no text, or an expression that fits no block.
        ScoresError: `size` is not positive.

    Example:
        >>> import mechunlearn as mu
        >>> mu.whp.blocks(mu.world.model(), ["The white cat eats fish in the spring."], size=8)
        ('The white cat eats fish in', 'the spring.')
    """
    positive(ScoresError, size=size)
    given = [texts] if isinstance(texts, str) else list(texts)
    known = as_anchors({} if anchors is None else anchors)
    limit = min(size, getattr(hm.hf.config.get_text_config(), "max_position_embeddings", size))
    cut = [block for text in given for block in _cut(hm, known.translate(text), limit)]
    if not cut:
        raise FactError("there is no text; give passages of two tokens or more")
    return tuple(cut)


def as_anchors(anchors: Mapping[str, str]) -> Anchors:
    """Take a dictionary as it is, or make one of a plain mapping.

    Args:
        anchors: generic expressions by idiosyncratic ones.

    Raises:
        FactError: it is no mapping, or has an entry that cannot be used.
    """
    return anchors if isinstance(anchors, Anchors) else Anchors(anchors)


def tokens_of(hm: HasTokenizer, texts: Sequence[str]) -> tuple[Tokens, ...]:
    """Tokenise texts as ``encode_text`` does, with the characters each token covers.

    Args:
        hm: gives the tokenizer, and whether a BOS token opens a text.
        texts: what to tokenise.

    Raises:
        FactError: the tokenizer gives no character offsets, or a text has no token to predict.
    """
    batch = encode_text(hm, texts)
    ids = [row[:length].tolist() for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True)]
    encoded = hm.tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]  # fmt: skip
    opening = [[(0, 0)] * (len(row) - len(spans)) for row, spans in zip(ids, encoded, strict=True)]
    return tuple(
        Tokens(tuple(row), (*first, *((int(a), int(b)) for a, b in spans)))
        for row, first, spans in zip(ids, opening, encoded, strict=True)
    )


def _cut(hm: HasTokenizer, found: Translation, limit: int) -> list[str]:
    """Cut one text."""
    if not found.original.strip():
        return []
    both = tokens_of(hm, [found.original, found.text])
    if max(map(len, both)) <= limit:
        return [found.original.strip()]
    ours, theirs = ([end for start, end in tokens.spans if start < end] for tokens in both)
    # Characters that no token covers, at the end of a text, stay with its last block.
    ends = [*(end for end in ours[:-1] if not _inside(found, end)), len(found.original)]
    counted = [bisect_right(ours, end) for end in ends]
    translated = [bisect_right(theirs, _forward(found, end)) for end in ends]
    room, cut, first, used = limit - SPARE, [], 0, (0, 0)
    while first < len(ends):
        stop = min(bisect_right(counted, used[0] + room), bisect_right(translated, used[1] + room))
        start = ends[first - 1] if first else 0
        if stop <= first:
            raise FactError(
                f"no block of {limit} tokens holds {found.original[start : start + 40]!r}; give a larger "
                "block, or shorter anchors and translations"
            )
        last = _best(found.original, ends, first, stop)
        if counted[last] - used[0] > 1 - (len(both[0]) - len(ours)):  # else nothing can be predicted
            cut.append(found.original[start : ends[last]].strip())
        first, used = last + 1, (counted[last], translated[last])
    return cut


def _best(text: str, ends: Sequence[int], first: int, stop: int) -> int:
    """The last end before white space, if there is one, else the last."""
    for at in reversed(range(first, stop)):
        if ends[at] == len(text) or text[ends[at]].isspace():
            return at
    return stop - 1


def _inside(found: Translation, end: int) -> bool:
    """Whether a cut here would go through an anchor."""
    at = bisect_left(found.mentions, end, key=lambda mention: mention.end)
    return at < len(found.mentions) and found.mentions[at].start < end < found.mentions[at].end


def _forward(found: Translation, end: int) -> int:
    """Tell a place of the text, outside anchors, in characters of the translation."""
    at = bisect_right(found.mentions, end, key=lambda mention: mention.end)
    last = found.mentions[at - 1] if at else None
    return end if last is None else end - last.end + last.translated[1]
