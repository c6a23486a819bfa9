"""Attacks: searches for an intervention that brings back what an edit was to remove."""

from mechunlearn.auditing.attacks.attack import Attack as Attack
from mechunlearn.auditing.attacks.attack import Context as Context
from mechunlearn.auditing.attacks.intervention import Intervention as Intervention
from mechunlearn.auditing.attacks.intervention import WeightChange as WeightChange
from mechunlearn.auditing.attacks.relearning import Relearn as Relearn
from mechunlearn.core.facts.halving import halves as halves

__all__ = ["Attack", "Context", "Intervention", "Relearn", "WeightChange", "halves"]
