"""Rows of token ids: their BOS token, their length, and their tokens as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from mechunlearn.core.checks import ErrorClass

Truncate = Literal["left"] | None
"""What happens to rows longer than the context: they lose their first tokens, or (None) are refused."""


def with_bos(ids: Sequence[int], bos: int | None) -> list[int]:
    """Put a BOS token in front, unless there is none or the row begins with it, as a chat template's does.

    Example:
        >>> with_bos([7, 8], 1), with_bos([1, 7, 8], 1)
        ([1, 7, 8], [1, 7, 8])
    """
    return list(ids) if bos is None or list(ids[:1]) == [bos] else [bos, *ids]


def beyond_context(
    error: ErrorClass,
    ids: Sequence[int],
    /,
    *,
    longest: int | None,
    bos: int | None,
    truncate: Truncate,
    name: str,
) -> slice:
    """The tokens that a row must lose to fit into the context: the first ones after BOS, or none.

    Args:
        error: class of the error for a row that is too long and may not be cut.
        ids: the row.
        longest: length of the context in tokens; None if it is not known.
        bos: id of the BOS token.
        truncate: ``"left"`` to cut.
        name: what the message calls the row.

    Example:
        >>> from mechunlearn.errors import ModelError
        >>> beyond_context(ModelError, [1, 7, 8, 9], longest=3, bos=1, truncate="left", name="row 0")
        slice(1, 2, None)
    """
    first = int(bos is not None and list(ids[:1]) == [bos])
    surplus = 0 if longest is None else max(0, len(ids) - longest)
    if surplus and (truncate != "left" or len(ids) - surplus <= first):
        cut = ", or open the model with truncate='left', which drops the first tokens of long rows"
        raise error(
            f"{name} has {len(ids)} tokens, and the model reads at most {longest}; shorten it"
            f"{'' if truncate == 'left' else cut}"
        )
    return slice(first, first + surplus)


def strings_of(tokenizer: Any, ids: Collection[int]) -> dict[int, str]:
    """The text of each id, with the space that SentencePiece's decoder drops.

    An embedding may have more rows than its tokenizer has tokens; their text is empty.
    """
    order = sorted(set(ids))
    raw = tokenizer.convert_ids_to_tokens(order)
    text = tokenizer.batch_decode([[i] for i in order], clean_up_tokenization_spaces=False)
    spaced = [f" {t}" if r and r[0] == "▁" and t[:1] != " " else t for r, t in zip(raw, text, strict=True)]
    return dict(zip(order, spaced, strict=True))
