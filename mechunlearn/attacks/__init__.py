"""Attacks: searches for an intervention that brings back what an edit was to remove."""

from mechunlearn.attacks.attack import Attack as Attack
from mechunlearn.attacks.attack import Context as Context
from mechunlearn.attacks.attack import halves as halves
from mechunlearn.attacks.intervention import Intervention as Intervention
from mechunlearn.attacks.intervention import WeightChange as WeightChange
from mechunlearn.attacks.relearning import Relearn as Relearn

__all__ = ["Attack", "Context", "Intervention", "Relearn", "WeightChange", "halves"]
