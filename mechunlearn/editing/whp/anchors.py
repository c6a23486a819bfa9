"""The anchor dictionary: specific expressions of a text, each with a generic translation.

1. An expression is matched as a whole word; a space in it matches any white space. The longest expressions
   are matched first, so ``Marauder's Map`` is never found as ``Map``.
2. A translation records where every piece of it came from, so that positions in the translated text can be
   converted to positions in the original.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mechunlearn.core.files import write_text
from mechunlearn.errors import DataError, FactError

FORMAT = "mechunlearn anchors 1"


class Mention(NamedTuple):
    """One occurrence of an anchor in a text.

    ``start`` and ``end`` are characters of the text, ``translated`` those of its translation.
    """

    anchor: str
    start: int
    end: int
    translated: tuple[int, int]


@dataclass(frozen=True)
class Translation:
    """A text, its translation, and the anchors that were replaced.

    Args:
        original: the text.
        text: the text with a generic expression in place of every anchor.
        mentions: the anchors in the text, in order; they do not overlap.

    Example:
        >>> translation = Anchors({"Harry": "Jon"}).translate("So Harry left.")
        >>> translation.text, translation.source(7, 11), translation.source(3, 6)
        ('So Jon left.', (9, 13), None)
    """

    original: str
    text: str
    mentions: tuple[Mention, ...]

    @cached_property
    def _pieces(self) -> tuple[tuple[int, int, int], ...]:
        """Start and end of each unchanged piece in the translation, and its offset to the original."""
        # A piece starts where an anchor ends, and ends where the next anchor starts.
        starts = [(0, 0), *((m.end, m.translated[1]) for m in self.mentions)]
        ends = [*(m.translated[0] for m in self.mentions), len(self.text)]
        return tuple((new, end, old - new) for (old, new), end in zip(starts, ends, strict=True))

    def source(self, start: int, end: int) -> tuple[int, int] | None:
        """Convert characters ``start`` to ``end`` (exclusive) of the translation to those of the original.

        The result is None if they touch an anchor.
        """
        index = bisect_right(self._pieces, start, key=lambda piece: piece[0]) - 1
        _, stop, offset = self._pieces[index]
        return (start + offset, end + offset) if end <= stop else None


class Anchors(Mapping[str, str]):
    """Expressions of a text to forget, each with its generic translation: an immutable mapping.

    Matching is case-sensitive, and inflected forms need their own entries. To change entries, make a new
    dictionary: ``Anchors({**anchors, "Harry": "Jon"})``.

    Args:
        translations: generic expressions by specific ones.

    Raises:
        FactError: it is not a mapping from text to text, an expression or a translation is empty, or two
            expressions differ in white space only.

    Example:
        >>> anchors = Anchors({"Harry": "Jon", "Harry Potter": "Jon Reed"})
        >>> anchors.translate("Harry Potter's owl; Harrys").text
        "Jon Reed's owl; Harrys"

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 2.2.
    """

    def __init__(self, translations: Mapping[str, str]) -> None:
        if not isinstance(translations, Mapping):
            raise FactError(
                f"the anchors are {translations!r}; give a mapping from the text's expressions to generic "
                'ones, as in {"Harry": "Jon"}'
            )
        self._translations: dict[str, str] = {}
        for anchor, translation in translations.items():
            _require(anchor, translation)
            key = " ".join(anchor.split())
            if key in self._translations:
                raise FactError(f"the anchor {anchor!r} is given twice, with other white space; keep one")
            self._translations[key] = translation.strip()

    def __getitem__(self, anchor: str) -> str:
        return self._translations[anchor]

    def __iter__(self) -> Iterator[str]:
        return iter(self._translations)

    def __len__(self) -> int:
        return len(self._translations)

    def __repr__(self) -> str:
        return f"Anchors({self._translations!r})"

    def translate(self, text: str) -> Translation:
        """Replace every anchor in a text by its generic expression."""
        pieces: list[str] = []
        mentions: list[Mention] = []
        done = length = 0  # characters of the text that were read, and of the translation
        for anchor, start, end in self._found(text):
            unchanged, translation = text[done:start], self[anchor]
            length += len(unchanged)
            mentions.append(Mention(anchor, start, end, (length, length + len(translation))))
            length += len(translation)
            pieces += [unchanged, translation]
            done = end
        return Translation(text, "".join([*pieces, text[done:]]), tuple(mentions))

    def _found(self, text: str) -> list[tuple[str, int, int]]:
        """The anchors in the text with start and end, in order; of overlapping ones the longest."""
        claimed = bytearray(len(text))
        matches = []
        for pattern in self._patterns:
            for match in pattern.finditer(text):
                start, end = match.span(1)
                if not any(claimed[start:end]):
                    claimed[start:end] = b"\1" * (end - start)
                    matches.append((" ".join(match[1].split()), start, end))
        return sorted(matches, key=lambda match: match[1])

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], ...]:
        """One pattern per length of the anchors, longest first."""
        # A lookahead consumes no characters, so overlapping anchors of one length are all found.
        ordered = sorted(self, key=lambda anchor: (-len(anchor), anchor))
        return tuple(
            re.compile(f"(?=({'|'.join(map(_pattern, group))}))") for _, group in groupby(ordered, key=len)
        )

    def save(self, path: str | Path) -> None:
        """Write the dictionary as readable JSON, to be checked and edited."""
        record = {"format": FORMAT, "anchors": self._translations}
        write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Anchors:
        """Read a dictionary that ``save`` wrote.

        Raises:
            DataError: the file is truncated, altered or of another kind.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as problem:
            raise DataError(
                f"{path} is not a whole anchor dictionary: {problem}; write it with Anchors.save"
            ) from problem

    @classmethod
    def from_json(cls, record: object) -> Anchors:
        """Make a dictionary from the parsed JSON that ``save`` writes.

        Raises:
            DataError: it is of another kind.
        """
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise DataError(f'it does not say "format": "{FORMAT}"')
        entries = record.get("anchors")
        if not isinstance(entries, dict) or not all(isinstance(word, str) for word in entries.values()):
            raise DataError('its "anchors" are not a mapping from text to text')
        return cls(entries)


def _require(anchor: str, translation: str) -> None:
    for what, word in (("anchor", anchor), (f"translation of the anchor {anchor!r}", translation)):
        if not isinstance(word, str) or not word.strip():
            raise FactError(f"the {what} is {word!r}; give a word or several")


def _pattern(anchor: str) -> str:
    """A pattern for an anchor as a whole word; an edge that is not a letter needs no word boundary."""
    before = r"(?<!\w)" if re.match(r"\w", anchor[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", anchor[-1]) else ""
    return before + r"\s+".join(map(re.escape, anchor.split())) + after
