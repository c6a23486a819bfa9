"""A handful of facts whose subjects and answers differ in length, for models that know nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact

PEOPLE = {"Bo": "a", "Al": "be", "Cyd": "a", "Dot": "be", "Evan": "c", "Fred": "a", "G": "c"}
OPTIONS = ("a", "be", "c")


def tiny_facts() -> Facts:
    """Seven facts; every letter is a token, so subjects have one to four, and "be" has more than "a"."""
    return Facts(
        Fact(f"So {name} is in", name, answer, options=OPTIONS, relation="home")
        for name, answer in PEOPLE.items()
    )


@contextmanager
def unchecked() -> Iterator[None]:
    """Ask as a user does: the type checker of the tests would refuse a value before the message can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
