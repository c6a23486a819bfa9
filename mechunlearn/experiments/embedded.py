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
    """Load an embedded model.

    Args:
        checkpoint: the original model, or the one that never learned the people to forget.
    """
    return world.model(checkpoint)


@lru_cache(maxsize=1)
def facts_of(draw: int) -> Facts:
    """Return the facts of a draw's group.

    Args:
        draw: number of the draw, which is its seed too.
    """
    return world.facts(group=group_of(draw))


def group_of(draw: int) -> int:
    """Return the group of people that a draw forgets.

    Args:
        draw: number of the draw.
    """
    return draw % GROUPS
