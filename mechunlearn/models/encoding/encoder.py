"""Facts as tensors, however a tokenizer treats spaces.

1. Prompt and answer are joined as text (`joining`) and tokenised together, all facts in one call, so that the
   answer is cut into tokens as in running text.
2. Character offsets give the role of each token. A token belongs to the subject if it covers one of its
   characters other than a space (or lies between two that do), and to the answer if it ends after the prompt,
   whose final spaces do not count. So it does not matter whether a tokenizer puts the space before a word
   into the word, into a token of its own, or into none, nor whether a prompt ends with a space.
3. A BOS token opens the row if ``prepend_bos`` is set, the tokenizer has one, and neither the text nor a chat
   template has begun with it; no other special token is added.
4. Rows longer than the context are refused, or lose their first tokens (``truncate``). The rows are laid out
   as a ``Batch``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.joining import between
from mechunlearn.errors import FactError, one_of
from mechunlearn.models.encoding.batch import IGNORED, Batch
from mechunlearn.models.token_rows import Truncate, beyond_context, strings_of, with_bos


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

    def refresh(self) -> None:
        """Notice what was done to the model from outside, and refuse what cannot be used."""

    @property
    def pad_id(self) -> int:
        """The id that fills rows."""

    @property
    def context_length(self) -> int | None:
        """The largest number of tokens in a row; None if it is not known."""

    @property
    def truncate(self) -> Truncate:
        """Whether longer rows lose their first tokens."""


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
    joins = [between(fact.prompt, word, fact.join) for fact, word in zip(facts, answers, strict=True)]
    texts = [f"{f.prompt}{join}{word}{f.end}" for f, join, word in zip(facts, joins, answers, strict=True)]
    # A chat template has written the BOS token that it wants, or none.
    plain = [not fact.rendered for fact in facts]
    rows = []
    for fact, text, word, pieces in zip(
        facts, texts, answers, tokenised(model, texts, plain=plain), strict=True
    ):
        row = _marked(fact, text, word, pieces)
        if answer is None:
            end = row.answer[0]
            row = row._replace(ids=row.ids[:end], strings=row.strings[:end], answer=(end, end))
        rows.append(row)
    return replace(_padded(model, rows), joins=tuple(joins))


def encode_text(model: HasTokenizer, texts: Sequence[str], *, max_tokens: int | None = None) -> Batch:
    """Encode running text, in which every next token is predicted.

    Rows are cut to ``max_tokens``, BOS included. FactError if there are no texts, or one has fewer than two
    tokens (with BOS), and nothing to predict.
    """
    if not len(texts):
        raise FactError("there are no texts to encode; give at least one")
    rows = []
    for text, (ids, _, strings) in zip(texts, tokenised(model, texts), strict=True):
        if len(ids) < 2:
            raise FactError(
                f"the text {text[:60]!r} has no token to predict; give texts of two tokens or more"
            )
        ids, strings = ids[:max_tokens], strings[:max_tokens]
        rows.append(_Row(ids, strings, (), (1, len(ids))))
    return _padded(model, rows)


class _Row(NamedTuple):
    """One row; ``mentions`` of the subject and ``answer`` are spans of tokens."""

    ids: list[int]
    strings: tuple[str, ...]
    mentions: tuple[tuple[int, int], ...]
    answer: tuple[int, int]


class Tokenised(NamedTuple):
    """The tokens of one text, with the characters that each covers; BOS has an empty span before the text."""

    ids: list[int]
    spans: list[tuple[int, int]]
    strings: tuple[str, ...]


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


def tokenised(
    model: HasTokenizer, texts: Sequence[str], *, plain: Sequence[bool] | None = None
) -> list[Tokenised]:
    """Cut texts into tokens; only ``plain`` ones (None: all) get a BOS token, of whatever length they are."""
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
    opened = [True] * len(texts) if plain is None else plain
    rows = [
        with_bos(ids, bos if opens else None) for ids, opens in zip(encoded["input_ids"], opened, strict=True)
    ]
    strings = strings_of(tokenizer, {token for row in rows for token in row})
    spans = [
        [(0, 0)] * (len(row) - len(ids)) + offsets
        for ids, row, offsets in zip(encoded["input_ids"], rows, encoded["offset_mapping"], strict=True)
    ]
    return [
        Tokenised(row, covered, tuple(strings[i] for i in row))
        for row, covered in zip(rows, spans, strict=True)
    ]


def _marked(fact: Fact, text: str, answer: str, pieces: Tokenised) -> _Row:
    """Find the subject's and the answer's tokens by the characters they cover."""
    ids, spans, strings = pieces
    bare = [_bare(text, span) for span in spans]
    mentions = [_covering(bare, strings, _bare(text, span)) for span in fact.subject_spans]
    # Spaces at the prompt's end belong to the answer, as the space that joins the two does: whether they are
    # a token of their own depends on the answer, and the end of the prompt must not depend on it.
    prompt_end = len(fact.prompt.rstrip(" "))
    first = next((i for i, (_, stop) in enumerate(spans) if stop > prompt_end), len(ids))
    if first == len(ids):
        raise FactError(f"the tokenizer gives no token for the answer {answer!r} of {fact.prompt!r}")
    if not all(mentions):
        raise FactError(f"the tokenizer gives no token for the subject {fact.subject!r} of {fact.prompt!r}")
    return _Row(ids, strings, tuple((tokens[0], tokens[-1] + 1) for tokens in mentions), (first, len(ids)))


def _covering(bare: Sequence[tuple[int, int]], strings: Sequence[str], span: tuple[int, int]) -> list[int]:
    """The tokens that cover characters of a span."""
    low, high = span
    tokens = [i for i, (start, stop) in enumerate(bare) if start < high and stop > low and start < stop]
    # In some tokenizers a token of a space alone has the span of the letter after it.
    return [i for i in tokens if strings[i].strip()] or tokens


def _bare(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """A span without the spaces at its ends."""
    start, stop = span
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    return start, stop


def _fitted(model: HasTokenizer, row: _Row, number: int) -> _Row:
    """The row without the first tokens that do not fit into the context."""
    surplus = beyond_context(
        FactError, row.ids, longest=model.context_length, bos=model.tokenizer.bos_token_id,
        truncate=model.truncate, name=f"row {number}, {''.join(row.strings[:12])!r}...,",
    )  # fmt: skip
    lost = surplus.stop - surplus.start
    if not lost:
        return row
    first, stop = row.answer
    mentions = tuple((low - lost, high - lost) for low, high in row.mentions if low >= surplus.stop)
    if row.mentions and not mentions:
        subject = "".join(row.strings[slice(*row.mentions[-1])]).strip()
        raise FactError(
            f"row {number} has {len(row.ids)} tokens; cut to the {model.context_length} that the model "
            f"reads, it loses its subject {subject!r}: shorten the prompt"
        )
    return _Row(
        row.ids[: surplus.start] + row.ids[surplus.stop :],
        row.strings[: surplus.start] + row.strings[surplus.stop :],
        mentions,
        # In running text every token but the first is an answer, and its first ones are lost.
        (max(first - lost, 1), stop - lost),
    )


def _padded(model: HasTokenizer, rows: Sequence[_Row]) -> Batch:
    """Lay rows out as tensors."""
    model.refresh()
    rows = [_fitted(model, row, number) for number, row in enumerate(rows)]
    shape = (len(rows), max(len(row.ids) for row in rows))
    tokens = torch.full(shape, model.pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    lengths = torch.tensor([len(row.ids) for row in rows])
    subject = torch.tensor([row.mentions[-1] if row.mentions else (0, 0) for row in rows])
    mention = torch.zeros(shape, dtype=torch.long)
    end = torch.tensor([row.answer[0] - 1 for row in rows])
    for number, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        tokens[number, : len(ids)] = ids
        for count, (low, high) in enumerate(row.mentions, start=1):
            mention[number, low:high] = count
        first, stop = row.answer
        # One to the left: the logits at a position predict the token after it.
        labels[number, first - 1 : stop - 1] = ids[first:stop]
    position = torch.arange(shape[1])
    return Batch(
        tokens=tokens,
        mask=(position < lengths[:, None]).long(),
        subject=(position >= subject[:, :1]) & (position < subject[:, 1:]),
        subject_last=subject[:, 1] - 1,
        mention=mention,
        end=end,
        labels=labels,
        strings=tuple(row.strings for row in rows),
    ).to(model.device)
