"""What a fact must satisfy, checked when it is constructed; a message says how to correct it."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from mechunlearn.core.facts.joining import AUTO
from mechunlearn.core.facts.kinds import SPLITS
from mechunlearn.errors import FactError, one_of

if TYPE_CHECKING:
    from mechunlearn.core.facts.fact import Fact

LETTER = re.compile(r"\{([A-Z])\}")


def letters_of(template: str) -> tuple[str, ...]:
    """The letters of the fields ``{A} {B} ...`` of a multiple-choice prompt, in order."""
    return tuple(dict.fromkeys(LETTER.findall(template)))


def require_consistent(fact: Fact) -> None:
    """Raise FactError if fields of a fact contradict each other."""
    _check_words(fact)
    _check_options(fact)
    _check_phrasings(fact)
    _check_joining(fact)


def _check_words(fact: Fact) -> None:
    if fact.split not in SPLITS:
        raise FactError(one_of("split", fact.split, SPLITS))
    if not fact.subject.strip():
        raise FactError(f"the fact {fact.prompt!r} has an empty subject; name whom it is about")
    prompts = (fact.prompt, *fact.train, *fact.validation, *fact.held_out)
    for prompt in prompts if fact.choice is None else (*prompts, fact.choice):
        if fact.subject not in prompt.removesuffix(fact.closing):
            raise FactError(
                f"the prompt {prompt!r} does not contain its subject {fact.subject!r}; "
                + (_in_code_points(fact.subject, prompt) or "write the subject as it stands in the prompt, "
                "capitals and spaces included")
            )  # fmt: skip
        if not prompt.startswith(fact.opening):
            raise FactError(f"the prompt {prompt!r} does not begin with the opening {fact.opening!r}")
        if not prompt.endswith(fact.closing):
            raise FactError(f"the prompt {prompt!r} does not end with the closing {fact.closing!r}")
    for name, word in (("answer", fact.answer), ("foil", fact.foil), ("new", fact.new)):
        if word is not None and not word.strip():
            remedy = "give at least one word" if name == "answer" else "give a word, or None"
            raise FactError(f"the {name} of {fact.prompt!r} is empty; {remedy}")
        if word is not None and name != "answer" and word.strip() == fact.answer.strip():
            raise FactError(
                f"the {name} of {fact.prompt!r} equals the answer {fact.answer!r}; give another word, or None"
            )


def _in_code_points(subject: str, prompt: str) -> str:
    """The difference of two spellings that look the same, and its remedy; empty if they do not."""
    plain = unicodedata.normalize("NFC", subject)
    normal = unicodedata.normalize("NFC", prompt)
    if plain not in normal:
        return ""
    codes = " ".join(f"U+{ord(letter):04X}" for letter in subject if not letter.isascii())
    others = " ".join(f"U+{ord(letter):04X}" for letter in prompt if not letter.isascii())
    return (
        f"they look alike but have other code points: {codes or 'none'} in the subject, "
        f"{others or 'none'} in the prompt; spell both alike, as unicodedata.normalize('NFC', text) does"
    )


def _check_options(fact: Fact) -> None:
    if fact.options:
        for name, word in (("answer", fact.answer), ("new", fact.new)):
            if word is not None and word not in fact.options:
                raise FactError(
                    f"the options {fact.options} of {fact.prompt!r} lack the {name} {word!r}; add it"
                )
        if len({option.strip() for option in fact.options}) < len(fact.options):
            raise FactError(f"the options {fact.options} of {fact.prompt!r} repeat one; remove it")
    letters = () if fact.choice is None else letters_of(fact.choice)
    if fact.choice is not None and not 2 <= len(letters) <= len(fact.options):
        raise FactError(
            f"the multiple-choice prompt {fact.choice!r} has {len(letters)} fields such as {{A}} and the "
            f"fact has {len(fact.options)} options; give two fields or more, and at least as many options"
        )


def _check_phrasings(fact: Fact) -> None:
    for name, prompts in (("validation", fact.validation), ("held_out", fact.held_out)):
        for prompt in prompts:
            if prompt in fact.train_prompts or (name == "held_out" and prompt in fact.validation):
                raise FactError(
                    f"the {name} phrasing {prompt!r} is also listed for another use; keep it in one of "
                    "train, validation and held_out"
                )


def _check_joining(fact: Fact) -> None:
    if fact.join != AUTO and fact.join.strip():
        raise FactError(
            f"join is {fact.join!r}; give 'auto', or the white space between prompt and answer, such as "
            "' ' or ''"
        )
    for name, words, of in (
        ("aliases", fact.aliases, fact.answer),
        ("new_aliases", fact.new_aliases, fact.new),
    ):
        if words and of is None:
            raise FactError(f"the fact {fact.prompt!r} has {name} of no new answer; give it new=")
        if not all(word.strip() for word in words):
            raise FactError(f"{name} of {fact.prompt!r} are {words!r}; an alias has at least one word")
    both = {word.strip() for word in fact.answers} & {word.strip() for word in fact.new_answers}
    if both:
        raise FactError(
            f"{sorted(both)} of {fact.prompt!r} count as the answer and as the new answer; keep each in one"
        )
    if fact.options and (fact.aliases or fact.new_aliases):
        raise FactError(
            f"the fact {fact.prompt!r} has options and aliases; options are compared whole, so leave the "
            "aliases or the options out"
        )
