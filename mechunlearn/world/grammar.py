"""Sentences about nothing in particular, as the embedded world's stand-in for general text.

A sentence is one template with its blanks filled uniformly. Some choices depend on others (a river runs
through the land it is in, an animal eats its food), so the text has something to be learned and its
perplexity something to lose.
"""

from __future__ import annotations

import random

WEATHER = {"snow": "cold", "rain": "wet", "sun": "warm", "wind": "rough", "fog": "grey"}
ANIMALS = {"horse": "grass", "cat": "fish", "dog": "meat", "bird": "seeds", "bear": "honey", "goat": "leaves"}
LANDMARKS = {"river": "valley", "castle": "hill", "harbour": "coast", "farm": "plain", "mill": "stream"}
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")
SEASONS = ("spring", "summer", "autumn", "winter")
COLOURS = ("brown", "white", "black", "young", "old")


def sentence(rng: random.Random) -> str:
    """One sentence of the grammar.

    Args:
        rng: the generator to draw from.

    Example:
        >>> sentence(random.Random(0)).endswith(".")
        True
    """
    weather, mood = rng.choice(sorted(WEATHER.items()))
    animal, food = rng.choice(sorted(ANIMALS.items()))
    landmark, place = rng.choice(sorted(LANDMARKS.items()))
    day, season, colour = rng.choice(DAYS), rng.choice(SEASONS), rng.choice(COLOURS)
    return rng.choice(
        (
            f"On {day} there was {weather} and the morning felt {mood}.",
            f"The {colour} {animal} eats {food} in the {season}.",
            f"An old {landmark} stands near the {place}, and people visit it in {season}.",
            f"When the {weather} comes in {season}, the {place} turns {mood}.",
            f"A {colour} {animal} slept by the {landmark} until {day}.",
            f"The path to the {landmark} crosses the {place} and ends at a gate.",
        )
    )


def text(rng: random.Random, *, sentences: int) -> str:
    """A paragraph of so many sentences.

    Args:
        rng: the generator to draw from.
        sentences: how many sentences.

    Example:
        >>> text(random.Random(0), sentences=3).count(".")
        3
    """
    return " ".join(sentence(rng) for _ in range(sentences))
