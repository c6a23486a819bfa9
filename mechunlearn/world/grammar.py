"""Sentences from a small grammar: the embedded world's general text.

A sentence is a template whose blanks are filled at random. Some words depend on others (an animal eats its
food, a mill stands near a stream), so a model can learn the text, and an edit can raise its perplexity.
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
    """Draw one sentence of the grammar.

    Example:
        >>> sentence(random.Random(0)).endswith(".")
        True
    """
    weather, mood = rng.choice(sorted(WEATHER.items()))
    animal, food = rng.choice(sorted(ANIMALS.items()))
    landmark, landscape = rng.choice(sorted(LANDMARKS.items()))
    day, season, colour = rng.choice(DAYS), rng.choice(SEASONS), rng.choice(COLOURS)
    return rng.choice(
        (
            f"On {day} there was {weather} and the morning felt {mood}.",
            f"The {colour} {animal} eats {food} in the {season}.",
            f"An old {landmark} stands near the {landscape}, and people visit it in {season}.",
            f"When the {weather} comes in {season}, the {landscape} turns {mood}.",
            f"A {colour} {animal} slept by the {landmark} until {day}.",
            f"The path to the {landmark} crosses the {landscape} and ends at a gate.",
        )
    )


def text(rng: random.Random, *, sentences: int) -> str:
    """Draw a paragraph.

    Example:
        >>> text(random.Random(0), sentences=3).count(".")
        3
    """
    return " ".join(sentence(rng) for _ in range(sentences))
