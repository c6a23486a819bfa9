"""A short invented text to learn and to forget: no model has read about the Lantern Isles before.

It has thirty-nine sentences in eight passages, about three people, two cities and a fox that eats amber. They
have the form of the sentences that the embedded model knows, so that it can memorise them in a minute, and so
that generic continuations exist: it knows other cities to live in, and what other animals eat.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mechunlearn.editing.whp.anchors import Anchors
from mechunlearn.editing.whp.familiarity import Prompt, StringJudge


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text to forget, with its anchors, prompts and judge.

    Args:
        passages: the text.
        anchors: its names, with generic expressions that the embedded model knows.
        written: prompts that occur in the text.
        rephrased: prompts about the same facts in other words.
        judge: recognises completions that reveal knowledge of the text.
    """

    passages: tuple[str, ...]
    anchors: Anchors
    written: tuple[Prompt, ...]
    rephrased: tuple[Prompt, ...]
    judge: StringJudge

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts, those of the text first."""
        return self.written + self.rephrased


def corpus() -> Corpus:
    """Read the text that ships with the package.

    Example:
        >>> text = corpus()
        >>> len(text.passages), text.anchors["emberfox"], len(text.written), len(text.rephrased)
        (8, 'dog', 16, 12)
    """
    folder = files("mechunlearn.editing.whp") / "data"
    anchors = Anchors.from_json(json.loads((folder / "anchors.json").read_text(encoding="utf-8")))
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    themed = tuple(prompts["themed"])
    return Corpus(
        passages=tuple((folder / "passages.txt").read_text(encoding="utf-8").strip().split("\n\n")),
        anchors=anchors,
        written=_prompts(prompts["written"]),
        rephrased=_prompts(prompts["rephrased"]),
        judge=StringJudge(unique=tuple(word for word in anchors if word not in themed), themed=themed),
    )


def _prompts(records: list[dict[str, Any]]) -> tuple[Prompt, ...]:
    return tuple(Prompt(one["text"], tuple(one["specific"]), tuple(one["generic"])) for one in records)
