"""Encoded rows as one value: tokens, mask, subject, answer position and labels.

1. Rows are padded on the right, so that positions count from the start in every selection of rows.
2. ``labels[b, t]`` is the target of ``logits[b, t]``; -100 where there is none.
3. `token_groups` puts positions into groups, over which rows of different length can be averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechunlearn.core.facts.kinds import Mention

GROUPS = ("first_subject", "middle_subject", "last_subject", "further", "last")
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Encoded rows, padded on the right.

    ``subject`` is true on the tokens of the subject's last mention, ``subject_last`` the position of the last
    of them (-1 where a row has none). ``mention`` numbers the mentions of the subject from 1; it is 0 outside
    of them. ``end`` is the position of the last prompt token, whose logits predict the first answer token (0
    in a text). ``strings`` are the tokens as text, per row and without padding, for plots, and ``joins`` what
    was put between prompt and answer.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    subject: Bool[Tensor, "batch pos"]
    subject_last: Int[Tensor, "batch"]
    mention: Int[Tensor, "batch pos"]
    end: Int[Tensor, "batch"]
    labels: Int[Tensor, "batch pos"]
    strings: tuple[tuple[str, ...], ...]
    joins: tuple[str, ...] = ()

    @classmethod
    def of_tokens(cls, tokens: Int[Tensor, "batch pos"]) -> Batch:
        """Make a batch of token ids without padding, subject and answer, read at the last token."""
        last = torch.full_like(tokens[:, 0], tokens.shape[1] - 1)
        return cls(
            tokens=tokens,
            mask=torch.ones_like(tokens),
            subject=torch.zeros_like(tokens, dtype=torch.bool),
            subject_last=torch.full_like(last, -1),
            mention=torch.zeros_like(tokens),
            end=last,
            labels=torch.full_like(tokens, IGNORED),
            strings=tuple(() for _ in tokens),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Int[Tensor, "batch"]:
        """Tokens per row."""
        return self.mask.sum(1)

    @property
    def answer_positions(self) -> Int[Tensor, "batch answer"]:
        """Positions whose logits predict the answer tokens; rows with fewer tokens repeat their last.

        A row without labels gives `end`, so there is always one position to read at.
        """
        labelled = self.labels != IGNORED
        count = labelled.sum(1)
        first = torch.where(count > 0, labelled.int().argmax(1), self.end)
        steps = torch.arange(max(1, int(count.max())), device=self.tokens.device)
        return first[:, None] + torch.minimum(steps, (count - 1).clamp(min=0)[:, None])

    @property
    def answer_ids(self) -> Int[Tensor, "batch answer"]:
        """The answer tokens at `answer_positions`, padded with -100."""
        positions = self.answer_positions
        count = (self.labels != IGNORED).sum(1, keepdim=True)
        # Rows with fewer tokens repeat their last position; its token must not count twice.
        inside = torch.arange(positions.shape[1], device=self.tokens.device) < count
        return self.labels.gather(1, positions).masked_fill(~inside, IGNORED)

    def mentioned(self, which: Mention) -> Bool[Tensor, "batch pos"]:
        """True on the tokens of the subject's mentions: all of them, the first, or the last."""
        if which == "last":
            return self.subject
        return self.mention > 0 if which == "all" else self.mention == 1

    def _map(
        self, change: Callable[[Tensor], Tensor], strings: tuple[tuple[str, ...], ...], joins: tuple[str, ...]
    ) -> Batch:
        texts = ("strings", "joins")
        tensors = {f.name: change(getattr(self, f.name)) for f in fields(self) if f.name not in texts}
        return Batch(**tensors, strings=strings, joins=joins)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        return self._map(lambda tensor: tensor.to(device), self.strings, self.joins)

    def rows(self, index: slice | Sequence[int] | Int[Tensor, "rows"] | Bool[Tensor, "batch"]) -> Batch:
        """Return some rows, of the same width; see `trimmed`."""
        picked = torch.arange(len(self), device=self.tokens.device)
        if not isinstance(index, slice | Tensor):
            index = torch.tensor(list(index), dtype=torch.long)
        picked = picked[index.to(picked.device) if isinstance(index, Tensor) else index]
        chosen = picked.tolist()
        joins = tuple(self.joins[i] for i in chosen) if self.joins else ()
        return self._map(lambda tensor: tensor[picked], tuple(self.strings[i] for i in chosen), joins)

    def trimmed(self) -> Batch:
        """Return the rows without columns of padding."""
        width = int(self.lengths.max())
        return self._map(
            lambda tensor: tensor[:, :width] if tensor.ndim == 2 else tensor, self.strings, self.joins
        )


def token_groups(batch: Batch) -> Int[Tensor, "batch pos"]:
    """The index in `GROUPS` of each token's group.

    A subject of one token is ``"last_subject"``, one of two has no middle; ``"further"`` are the tokens
    between the subject and the ``"last"`` of the prompt. Where the prompt ends with its subject, that token
    is the ``"last_subject"`` and there is no ``"last"``. BOS, tokens before the subject, answers, padding and
    rows without a subject are -1.
    """
    # The order matters: a later group overwrites an earlier one where a token belongs to both.
    position = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None]
    first = torch.where(batch.subject.any(1), batch.subject.int().argmax(1), -1)[:, None]
    last, end = batch.subject_last[:, None], batch.end[:, None]
    groups = torch.full_like(batch.tokens, -1)
    groups[(last >= 0) & (position == end)] = GROUPS.index("last")
    groups[(last >= 0) & (position > last) & (position < end)] = GROUPS.index("further")
    groups[(position > first) & (position < last)] = GROUPS.index("middle_subject")
    groups[(first >= 0) & (position == first)] = GROUPS.index("first_subject")
    groups[(last >= 0) & (position == last)] = GROUPS.index("last_subject")
    return groups
