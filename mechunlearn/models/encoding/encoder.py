"""Facts as tensors, however a tokenizer treats spaces.

1. Prompt and answer are joined as text (by a space where neither has one) and tokenised together, all facts
   in one call, so that the answer is cut into tokens as in running text.
2. Character offsets give the role of each token. A token belongs to the subject if it covers one of its
   characters other than a space (or lies between two that do), and to the answer if it ends after the prompt,
   whose final spaces do not count. So it does not matter whether a tokenizer puts the space before a word
   into the word, into a token of its own, or into none, nor whether a prompt ends with a space.
3. A BOS token opens the row if ``prepend_bos`` is set and the tokenizer has one; no other special token.
4. The rows are laid out as a ``Batch``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError, one_of
from mechunlearn.models.encoding.batch import IGNORED, Batch


@runtime_checkable
class HasTokenizer(Protocol):
    """What encoding needs of a model: ``HookedModel`` has it."""

    @property
    def tokenizer(self) -> Any:
        """A fast Hugging Face tokenizer."""

    @property
    def prepend_bos(self) -> bool:
        """Whether rows open with the BOS token."""

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""


def encode(
    model: HasTokenizer, facts: Sequence[Fact], *, answer: str | Sequence[str] | None = "answer"
) -> Batch:
    """Encode the prompts of facts, one row each, with an answer or without.

    ``answer`` is ``"answer"``, ``"new"`` or ``"foil"`` of each fact; a list of answers, one per fact; or None
    for prompts alone, which are cut where the fact's answer would begin.

    Raises:
        FactError: there are no facts; a fact has no such answer; the tokenizer gives no character offsets, or
            no token for a subject or an answer.
    """
    if not len(facts):
        raise FactError("there are no facts to encode; give at least one")
    answers = _answers(facts, "answer" if answer is None else answer)
    texts = [joined(fact.prompt, word) for fact, word in zip(facts, answers, strict=True)]
    rows = []
    for fact, text, word, pieces in zip(facts, texts, answers, _pieces(model, texts), strict=True):
        row = _marked(fact, text, word, pieces)
        if answer is None:
            end = row.answer[0]
            row = row._replace(ids=row.ids[:end], strings=row.strings[:end], answer=(end, end))
        rows.append(row)
    return _padded(model, rows)


def encode_text(model: HasTokenizer, texts: Sequence[str], *, max_tokens: int | None = None) -> Batch:
    """Encode running text, in which every next token is predicted.

    Rows are cut to ``max_tokens``, BOS included. FactError if there are no texts, or one has fewer than two
    tokens (with BOS), and nothing to predict.
    """
    if not len(texts):
        raise FactError("there are no texts to encode; give at least one")
    rows = []
    for text, (ids, _, strings) in zip(texts, _pieces(model, texts), strict=True):
        if len(ids) < 2:
            raise FactError(
                f"the text {text[:60]!r} has no token to predict; give texts of two tokens or more"
            )
        ids, strings = ids[:max_tokens], strings[:max_tokens]
        rows.append(_Row(ids, strings, (0, 0), (1, len(ids))))
    return _padded(model, rows)


def joined(prompt: str, answer: str) -> str:
    """Join a prompt and its answer, by a space where neither has one.

    Example:
        >>> joined("Mary plays", "golf"), joined("Answer: ", "A")
        ('Mary plays golf', 'Answer: A')
    """
    return prompt + answer if prompt[-1:].isspace() or answer[:1].isspace() else f"{prompt} {answer}"


class _Row(NamedTuple):
    ids: list[int]
    strings: tuple[str, ...]
    subject: tuple[int, int]
    answer: tuple[int, int]


_Pieces = tuple[list[int], list[tuple[int, int]], tuple[str, ...]]


def _answers(facts: Sequence[Fact], answer: str | Sequence[str]) -> list[str]:
    if not isinstance(answer, str):
        if len(answer) != len(facts):
            raise FactError(f"there are {len(answer)} answers for {len(facts)} facts; give one for each")
        return list(answer)
    if answer not in ("answer", "new", "foil"):
        choices = ("answer", "new", "foil", None)
        raise FactError(one_of("answer", answer, choices) + "; a list gives one answer per fact")
    words = [getattr(fact, answer) for fact in facts]
    for fact, word in zip(facts, words, strict=True):
        if word is None:
            raise FactError(f"the fact {fact.prompt!r} has no {answer}; give it `{answer}=`")
    return words


def _pieces(model: HasTokenizer, texts: Sequence[str]) -> list[_Pieces]:
    """Cut texts into ids, character spans and strings; BOS has an empty span before the text."""
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise FactError(
            f"{type(tokenizer).__name__} gives no character offsets, by which subjects are found; load the "
            "fast tokenizer, as in AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        padding=False,
        truncation=False,
        verbose=False,
    )
    bos = tokenizer.bos_token_id if model.prepend_bos else None
    opening = [] if bos is None else [int(bos)]
    strings = _strings(tokenizer, {*opening, *(i for ids in encoded["input_ids"] for i in ids)})
    pieces = []
    for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids = [*opening, *ids]
        pieces.append((ids, [(0, 0)] * len(opening) + spans, tuple(strings[i] for i in ids)))
    return pieces


def _strings(tokenizer: Any, ids: set[int]) -> dict[int, str]:
    """The text of each id, with the space that SentencePiece's decoder drops."""
    order = sorted(ids)
    raw = tokenizer.convert_ids_to_tokens(order)
    text = tokenizer.batch_decode([[i] for i in order], clean_up_tokenization_spaces=False)
    spaced = [f" {t}" if r[:1] == "▁" and t[:1] != " " else t for r, t in zip(raw, text, strict=True)]
    return dict(zip(order, spaced, strict=True))


def _marked(fact: Fact, text: str, answer: str, pieces: _Pieces) -> _Row:
    """Find the subject's and the answer's tokens by the characters they cover."""
    ids, spans, strings = pieces
    low, high = _bare(text, fact.subject_span)
    bare = [_bare(text, span) for span in spans]
    subject = [i for i, (start, stop) in enumerate(bare) if start < high and stop > low and start < stop]
    # In some tokenizers a token of a space alone has the span of the letter after it.
    subject = [i for i in subject if strings[i].strip()] or subject
    # Spaces at the prompt's end belong to the answer, as the space that joins the two does: whether they are
    # a token of their own depends on the answer, and the end of the prompt must not depend on it.
    prompt_end = len(fact.prompt.rstrip(" "))
    first = next((i for i, (_, stop) in enumerate(spans) if stop > prompt_end), len(ids))
    if first == len(ids):
        raise FactError(f"the tokenizer gives no token for the answer {answer!r} of {fact.prompt!r}")
    if not subject:
        raise FactError(f"the tokenizer gives no token for the subject {fact.subject!r} of {fact.prompt!r}")
    return _Row(ids, strings, (subject[0], subject[-1] + 1), (first, len(ids)))


def _bare(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """A span without the spaces at its ends."""
    start, stop = span
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    return start, stop


def _padded(model: HasTokenizer, rows: Sequence[_Row]) -> Batch:
    """Lay rows out as tensors; padding is masked, so any id will do for a tokenizer without a pad token."""
    pads = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, 0)
    shape = (len(rows), max(len(row.ids) for row in rows))
    tokens = torch.full(shape, next(i for i in pads if i is not None), dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    lengths = torch.tensor([len(row.ids) for row in rows])
    subject = torch.tensor([row.subject for row in rows])
    end = torch.tensor([row.answer[0] - 1 for row in rows])
    for number, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        tokens[number, : len(ids)] = ids
        first, stop = row.answer
        # One to the left: the logits at a position predict the token after it.
        labels[number, first - 1 : stop - 1] = ids[first:stop]
    position = torch.arange(shape[1])
    return Batch(
        tokens=tokens,
        mask=(position < lengths[:, None]).long(),
        subject=(position >= subject[:, :1]) & (position < subject[:, 1:]),
        subject_last=subject[:, 1] - 1,
        end=end,
        labels=labels,
        strings=tuple(row.strings for row in rows),
    ).to(model.device)
