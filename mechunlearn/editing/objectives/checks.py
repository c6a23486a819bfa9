"""Refuse options of an objective that are out of their range, in one form of words."""

from __future__ import annotations

import math
from numbers import Real

from mechunlearn.errors import TrainingError


def at_least(bound: float | int, **values: object) -> None:
    """Refuse numbers below a bound, infinite ones, and what is no number.

    Args:
        bound: the least that is accepted.
        **values: the numbers by the names of their options.

    Raises:
        TrainingError: for the first that is refused.

    Example:
        >>> from mechunlearn.editing.objectives.checks import at_least
        >>> at_least(0, retain=1.0)
    """
    for name, value in values.items():
        require(_number(value) and bound <= value < math.inf, name, value, f"a number from {bound}")  # type: ignore[operator]


def above(bound: float | int, **values: object) -> None:
    """Refuse numbers that are not above a bound, infinite ones, and what is no number.

    Args:
        bound: what the numbers must exceed.
        **values: the numbers by the names of their options.

    Raises:
        TrainingError: for the first that is refused.
    """
    for name, value in values.items():
        require(_number(value) and bound < value < math.inf, name, value, f"a number above {bound}")  # type: ignore[operator]


def whole(bound: int, **values: object) -> None:
    """Refuse what is not a whole number from a bound on.

    Args:
        bound: the least that is accepted.
        **values: the numbers by the names of their options.

    Raises:
        TrainingError: for the first that is refused.
    """
    for name, value in values.items():
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= bound
        require(fine, name, value, f"a whole number from {bound}")


def finite(**values: object) -> None:
    """Refuse what is no finite number.

    Args:
        **values: the numbers by the names of their options.

    Raises:
        TrainingError: for the first that is refused.
    """
    for name, value in values.items():
        require(_number(value) and math.isfinite(value), name, value, "a finite number")  # type: ignore[arg-type]


def require(fine: bool, name: str, value: object, expected: str) -> None:
    """Refuse an option.

    Args:
        fine: whether it is accepted.
        name: its name.
        value: what was given.
        expected: what would have been accepted.

    Raises:
        TrainingError: it is not fine.
    """
    if not fine:
        raise TrainingError(f"{name} is {value!r}; give {expected}")


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
