"""The words for splits of facts and for kinds of phrasings."""

from __future__ import annotations

from typing import Literal, get_args

Split = Literal["forget", "retain", "test"]
Phrasing = Literal["train", "validation", "held_out"]
Format = Literal[Phrasing, "multiple_choice"]
"""How a fact can be asked: in a phrasing of one kind, or as multiple choice."""
Mention = Literal["all", "first", "last"]
"""Which mentions of a subject a corruption reaches, where a prompt names it several times."""
SPLITS: tuple[Split, ...] = get_args(Split)


def in_words(phrasing: str) -> str:
    """Return a phrasing as tables and sentences show it, such as ``held-out``; any other text as it is."""
    return {"held_out": "held-out", "multiple_choice": "multiple choice"}.get(phrasing, phrasing)
