"""How a prompt and its answer stand side by side in running text.

1. White space at the prompt's end or the answer's start is taken as it is, and nothing is put between.
2. Nothing stands between letters of scripts that write no spaces (Chinese, Japanese, Thai, Khmer, Lao,
   Burmese, Tibetan), nor beside their punctuation.
3. Nothing stands after an opening quote or bracket, a currency sign, a slash or a hyphen inside a word,
   between two digits (as if a number went on; if none does, say ``join=" "``), or before a closing bracket or
   punctuation.
4. Everywhere else a space does. Korean writes spaces.
"""

from __future__ import annotations

import unicodedata

AUTO = "auto"
_UNSPACED = (
    "CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH KATAKANA", "THAI",
    "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI SYLLABLE",
)  # fmt: skip
_OPENING = "¿¡/\\_#@"
_CLOSING = ".,;:!?%…"


def joined(prompt: str, answer: str, join: str = AUTO) -> str:
    """Join a prompt and its answer by a text, or as running text would (``"auto"``).

    Example:
        >>> joined("Mary plays", "golf"), joined("Answer: ", "A"), joined("born in 19", "47")
        ('Mary plays golf', 'Answer: A', 'born in 1947')
        >>> joined("姚明从事的运动是", "篮球"), joined("Mary plays", "golf", "")
        ('姚明从事的运动是篮球', 'Mary playsgolf')
    """
    return prompt + between(prompt, answer, join) + answer


def between(prompt: str, answer: str, join: str = AUTO) -> str:
    """What stands between a prompt and its answer."""
    if join != AUTO:
        return join
    if not prompt or not answer or prompt[-1].isspace() or answer[0].isspace():
        return ""
    return "" if _touch(prompt, answer) else " "


def _touch(prompt: str, answer: str) -> bool:
    last, first = prompt[-1], answer[0]
    return (
        _unspaced(last)
        or _unspaced(first)
        or _opens(prompt)
        or _closes(answer)
        or (first.isdigit() and _ends_inside_number(prompt))
    )


def _unspaced(letter: str) -> bool:
    # A name such as "CJK UNIFIED IDEOGRAPH-59DA" begins with its script; unassigned letters have none.
    return unicodedata.name(letter, "").startswith(_UNSPACED)


def _opens(prompt: str) -> bool:
    """Whether a prompt ends with a mark that the next word follows without a space."""
    last, before = prompt[-1], prompt[-2:-1]
    kind = unicodedata.category(last)
    if kind == "Sc":  # after a number it belongs to that
        return not prompt[:-1].rstrip()[-1:].isdigit()
    if last == "“" and "„" in prompt:
        return prompt.count("“") > prompt.count("„")
    if kind in ("Ps", "Pi") or last in _OPENING:
        return True
    if last == '"':
        return prompt.count('"') % 2 == 1
    if last == "'":
        return not before or before.isspace() or unicodedata.category(before) in ("Ps", "Pi")
    return last == "-" and before.isalnum()


def _closes(answer: str) -> bool:
    """Whether an answer begins with a mark that the word before it touches, unlike ".5" and ".NET"."""
    closing = answer[0] in _CLOSING and not answer[1:2].isalnum()
    return closing or unicodedata.category(answer[0]) in ("Pe", "Pf")


def _ends_inside_number(prompt: str) -> bool:
    return prompt[-1].isdigit() or (prompt[-1] in ".," and prompt[-2:-1].isdigit())
