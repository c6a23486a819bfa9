"""What an edit minimises: frozen dataclasses that declare what they read."""

from mechunlearn.objectives.basic import Forget as Forget
from mechunlearn.objectives.basic import GradientDifference as GradientDifference
from mechunlearn.objectives.basic import Inject as Inject
from mechunlearn.objectives.reading import Objective as Objective
from mechunlearn.objectives.reading import Read as Read
from mechunlearn.objectives.reading import Reading as Reading

__all__ = ["Forget", "GradientDifference", "Inject", "Objective", "Read", "Reading"]
