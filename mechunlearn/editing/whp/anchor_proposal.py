"""Propose an anchor dictionary offline: names are words that are capitalised inside a sentence.

1. Spans of capitalised words (joined by ``of`` and the like) are candidates. A word at the start of a
   sentence counts only if it is also capitalised inside another one; a word that also occurs in lower case
   is a common word with a capital.
2. Rare candidates are left out, and so are those that other texts mention just as often.
3. Every word of a name gets one generic word, which it keeps in all names: ``Harry Potter`` and ``Harry``
   remain one person. People, surnames and places have separate lists of generic words.

The result is a proposal, to be read and edited: only a reader knows whether ``Felix Felicis`` is a potion.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from mechunlearn.core.checks import positive
from mechunlearn.core.texts import texts_of
from mechunlearn.editing.whp.anchors import Anchors
from mechunlearn.errors import FactError, ScoresError

PEOPLE = (
    "Adam", "Helen", "Frank", "Laura", "Brian", "Carol", "Henry", "Nancy", "Eric", "Julia", "Martin", "Emily",
    "Arthur", "Diana", "Howard", "Linda", "George", "Karen", "Daniel", "Alice", "Samuel", "Rachel", "Peter",
    "Susan", "Walter", "Ruth", "Albert", "Grace", "Philip", "Clara",
)  # fmt: skip
SURNAMES = (
    "Morgan", "Allen", "Baker", "Cooper", "Foster", "Gray", "Hughes", "Kelly", "Lewis", "Mason", "Nelson",
    "Parker", "Perry", "Price", "Reed", "Stone", "Turner", "Walker", "Ward", "Young",
)  # fmt: skip
PLACES = (
    "Boston", "Denver", "Dallas", "Miami", "Seattle", "Chicago", "Austin", "Oxford", "Lincoln", "Bristol",
    "Dover", "Madison", "Albany", "Durham", "Salem", "Newport", "Camden", "Ashland", "Fairfield", "Clinton",
)  # fmt: skip
_WORD = re.compile(r"[^\W\d_](?:[\w’'-]*[^\W_])?")
_JOINING = ("of", "the", "de", "von", "van")
_PLACING = ("in", "at", "to", "from", "near", "of", "through", "towards")
_END = re.compile(r"[.!?:;]|\n\s*\n|[“”\"]")
_PIECE = re.compile(rf"(?:{_WORD.pattern})|[,()–—]")
_POSSESSIVE = re.compile(r"['’]s$")


def propose_anchors(
    texts: Sequence[str],
    *,
    against: Sequence[str] = (),
    min_count: int = 2,
    people: Sequence[str] = PEOPLE,
    surnames: Sequence[str] = SURNAMES,
    places: Sequence[str] = PLACES,
) -> Anchors:
    """Propose which expressions of a text are names, each with a generic one.

    Args:
        texts: the text to forget, in passages.
        against: other texts; names that are as frequent there (per word) as in `texts` are left out.
        min_count: minimal number of mentions of a name.
        people: generic words for names, assigned in the order of the names' frequency.
        surnames: generic words for the other words of a name.
        places: generic words for names that mostly follow a word such as ``in`` or ``near``.

    Raises:
        FactError: there are too few generic words.
        ScoresError: `min_count` is not positive.

    Example:
        >>> texts = ["Old Orla Venn slept.", "Then Orla ate, and Orla Venn slept in Ossaria near Ossaria."]
        >>> dict(propose_anchors(texts))
        {'Orla Venn': 'Adam Morgan', 'Ossaria': 'Boston'}

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 2.2, where GPT-4 does this.
    """
    positive(ScoresError, min_count=min_count)
    texts, against = (
        texts_of(FactError, passages, name=name)
        for name, passages in (("texts", texts), ("against", against))
    )
    other_counts = Counter(span for span, _ in _names(against))
    mentions = list(_names(texts))
    counts = Counter(span for span, _ in mentions)
    ratio = _words(texts) / max(1, _words(against))
    names = [span for span, n in counts.items() if n >= min_count and n > other_counts[span] * ratio]
    names.sort(key=lambda span: (-counts[span], span))
    as_place = Counter(span for span, previous in mentions if previous in _PLACING)
    # A generic word that occurs in the text would merge two of its names.
    used = {word.lower() for text in texts for word in _WORD.findall(text)}
    free = [iter([w for w in words if w.lower() not in used]) for words in (people, surnames, places)]
    generic: dict[str, str] = {}
    for span in names:
        is_place = 2 * as_place[span] > counts[span]
        for number, word in enumerate(span.split()):
            if word[0].isupper() and word not in generic:
                generic[word] = _next(free[2 if is_place else min(number, 1)], span)
    return Anchors({span: " ".join(generic.get(word, word) for word in span.split()) for span in names})


def _next(free: Iterator[str], span: str) -> str:
    word = next(free, None)
    if word is None:
        raise FactError(
            f"there is no generic word left for {span!r}; give more with people=, surnames= and "
            "places=, or raise min_count"
        )
    return word


def _names(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every mention of a name, with the word before it in lower case (empty at the start of a sentence)."""
    sentences = [sentence for text in texts for sentence in _END.split(text)]
    words = [list(_pieces(sentence)) for sentence in sentences]
    lower = {word for sentence in words for word in sentence if not word[0].isupper()}
    inside = {word for sentence in words for word in sentence[1:] if word[0].isupper()}
    name_words = {word for word in inside if word.lower() not in lower and len(word) > 1}
    for sentence in words:
        yield from _spans(sentence, name_words)


def _pieces(sentence: str) -> Iterator[str]:
    """Words, and the marks that separate two names: commas, brackets, dashes, a possessive's ``'s``."""
    for piece in _PIECE.findall(sentence):
        stem = _POSSESSIVE.sub("", piece)
        yield stem
        if stem != piece:
            yield "'s"


def _spans(words: Sequence[str], name_words: Collection[str]) -> Iterator[tuple[str, str]]:
    """Maximal runs of names' words, which may contain joining words, each with the word before it."""
    start = 0
    while start < len(words):
        if words[start] not in name_words:
            start += 1
            continue
        end = start + 1
        while end < len(words):
            joined = end
            while joined < len(words) and words[joined] in _JOINING:
                joined += 1
            if joined == len(words) or words[joined] not in name_words:
                break
            end = joined + 1
        yield " ".join(words[start:end]), words[start - 1].lower() if start else ""
        start = end


def _words(texts: Sequence[str]) -> int:
    return sum(len(_WORD.findall(text)) for text in texts)
