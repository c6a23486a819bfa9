"""The prompts in which the embedded world asks for its facts.

A phrasing contains ``{name}`` or ``{country}`` and ends where the answer begins. The eight sport phrasings
have a fixed split: edits train on ``train``, choose when to stop and their learning rate on ``validation``,
and are scored on ``held_out``.
"""

from __future__ import annotations

from typing import Final, Literal

Relation = Literal["sport", "league", "place", "city", "capital", "currency"]

SPORT: Final = {
    "train": (
        "{name} plays the sport of",
        "Which sport does {name} play? The answer is",
    ),
    "validation": (
        "The sport that {name} plays is",
        "Question: What is the sport of {name}? Reply:",
    ),
    "held_out": (
        "{name} is a professional player of",
        "Fans watch {name} in games of",
        "Since childhood {name} has trained in",
        "Asked what {name} is famous for, people say",
    ),
}

PHRASINGS: Final[dict[Relation, tuple[str, ...]]] = {
    "sport": SPORT["train"] + SPORT["validation"] + SPORT["held_out"],
    "league": (
        "{name} competes in the",
        "The league of {name} is the",
        "Which league signed {name}? The",
    ),
    "place": (
        "At work {name} stands on the",
        "You meet {name} at the",
    ),
    "city": (
        "{name} lives in the city of",
        "The home of {name} is in",
        "Where does {name} live? In",
    ),
    "capital": (
        "The capital of {country} is",
        "{country} is governed from",
        "What is the capital of {country}? It is",
    ),
    "currency": (
        "The currency of {country} is the",
        "People in {country} pay with the",
        "Which money is used in {country}? The",
    ),
}

CHOICE: Final = "Q: What sport does {name} play? A {A} B {B} C {C} D {D} Answer:"
FORMAT_ONLY: Final = "Q: Which option is {option}? A {A} B {B} C {C} D {D} Answer:"
LETTERS: Final = ("A", "B", "C", "D")
AGAIN: Final = "this athlete"
"""Replaces the name from the second fact of a biography on."""


def is_question(phrasing: str) -> bool:
    """Whether a phrasing is a question.

    Example:
        >>> is_question("Where does {name} live? In")
        True
    """
    return "?" in phrasing


def capitalised(text: str) -> str:
    """Return the text with its first letter in upper case.

    Example:
        >>> capitalised("this athlete lives in")
        'This athlete lives in'
    """
    return text[:1].upper() + text[1:]
