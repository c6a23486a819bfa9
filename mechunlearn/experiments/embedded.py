"""The embedded models and their facts, loaded once in every process."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from mechunlearn import world
from mechunlearn.core.facts.collection import Facts
from mechunlearn.models.hooked import HookedModel
from mechunlearn.world.people import GROUPS

Checkpoint = Literal["original", "gold"]


@lru_cache(maxsize=2)
def model(checkpoint: Checkpoint) -> HookedModel:
    """The original model, or the gold model, which never learned the people to forget."""
    return world.model(checkpoint)


@lru_cache(maxsize=4)
def facts_of(draw: int) -> Facts:
    """The facts of the group of people that a draw forgets; a draw's number is its seed too."""
    return world.facts(group=group_of(draw))


def group_of(draw: int) -> int:
    """The group of people that a draw forgets."""
    return draw % GROUPS
