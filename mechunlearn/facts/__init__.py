"""Facts and collections of facts, as values."""

from mechunlearn.facts.collection import Facts as Facts
from mechunlearn.facts.fact import SPLITS as SPLITS
from mechunlearn.facts.fact import Fact as Fact
from mechunlearn.facts.fact import Phrasing as Phrasing
from mechunlearn.facts.fact import Split as Split

__all__ = ["SPLITS", "Fact", "Facts", "Phrasing", "Split"]
