"""Refuse numbers that are out of their range, in one form of words.

Every check takes the class of the error first, so that each room raises its own, and then the numbers by
the names of their arguments. It raises for the first number that it refuses.
"""

from __future__ import annotations

import math
from numbers import Real

from mechunlearn.errors import MechUnlearnError

ErrorClass = type[MechUnlearnError]


def require(condition: bool, error: ErrorClass, name: str, value: object, expected: str) -> None:
    """Refuse a value unless a condition holds; ``expected`` says in words what would be accepted."""
    if not condition:
        raise error(f"{name} is {value!r}; give {expected}")


def at_least(error: ErrorClass, bound: float | int, /, **values: object) -> None:
    """Refuse numbers below a bound, infinite ones, and what is no number.

    Example:
        >>> from mechunlearn.errors import TrainingError
        >>> at_least(TrainingError, 0, retain=1.0)
    """
    for name, value in values.items():
        accepted = _is_finite(value) and value >= bound  # type: ignore[operator]
        require(accepted, error, name, value, f"a number from {bound}")


def above(error: ErrorClass, bound: float | int, /, **values: object) -> None:
    """Refuse numbers that are not above a bound, infinite ones, and what is no number."""
    for name, value in values.items():
        accepted = _is_finite(value) and value > bound  # type: ignore[operator]
        require(accepted, error, name, value, f"a number above {bound}")


def integer(error: ErrorClass, bound: int, /, **values: object) -> None:
    """Refuse what is not an integer from a bound on."""
    for name, value in values.items():
        accepted = isinstance(value, int) and not isinstance(value, bool) and value >= bound
        require(accepted, error, name, value, f"a whole number from {bound}")


def finite(error: ErrorClass, **values: object) -> None:
    """Refuse what is no finite number."""
    for name, value in values.items():
        require(_is_finite(value), error, name, value, "a finite number")


def positive(error: ErrorClass, **values: float | int) -> None:
    """Refuse counts and sizes that are not above zero.

    Example:
        >>> from mechunlearn.errors import ScoresError
        >>> positive(ScoresError, samples=3, noise=0.5)
    """
    for name, value in values.items():
        if not value > 0:
            raise error(f"{name} must be above zero; not {value!r}")


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
