"""How an edit was made, as a value: enough to make it again elsewhere.

An audit refits the same recipe on random localizations, so that what an edit achieved can be told from
what any edit of that size achieves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechunlearn import objectives
from mechunlearn.errors import TrainingError
from mechunlearn.objectives import Objective


@dataclass(frozen=True)
class Stop:
    """When to stop an edit, judged on validation phrasings alone.

    Every ``every`` steps the forget set's success (the new answer is given, or the old one is not) and
    the retain set's accuracy are measured. Training ends when success has reached ``goal`` and
    retention is at least ``keep``. The best step seen is the one that is kept: the highest sum of
    success (up to the goal) and retention (up to the bound), ties to the later step.

    Args:
        goal: share of the forget set's validation questions that must succeed.
        keep: accuracy that the retain set must keep.
        every: steps between two measurements.

    Raises:
        TrainingError: a share is not between 0 and 1, or ``every`` is below 1.

    Example:
        >>> Stop(goal=0.9).every
        10
    """

    goal: float = 0.98
    keep: float = 0.95
    every: int = 10

    def __post_init__(self) -> None:
        for name in ("goal", "keep"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share from 0 to 1")
        _require(self.every >= 1, "every", self.every, "at least 1 step")

    def value(self, success: float, retention: float) -> float:
        """How good a step is; nothing is gained beyond goal and bound.

        Example:
            >>> Stop(goal=0.5, keep=1.0).value(1.0, 1.0)
            1.5
        """
        return min(success, self.goal) + min(retention, self.keep)

    def reached(self, success: float, retention: float) -> bool:
        """Whether training may end."""
        return success >= self.goal and retention >= self.keep


@dataclass(frozen=True)
class Recipe:
    """Objective and training options of an edit, everything but the place.

    Args:
        objective: what was minimised.
        steps: at most so many.
        lr: the peak learning rate; it falls to zero over ``steps`` as half a cosine.
        weight_decay: on the deltas, so it pulls towards the unedited weights.
        batch_size: questions of each kind a step, and a quarter as many texts.
        seed: of the order of examples.
        stop: when to stop before ``steps``; None runs all of them and keeps the last.
        optimizer: the name of a class in ``torch.optim``.

    Raises:
        TrainingError: a number is out of its range.

    Example:
        >>> Recipe(objectives.Inject()).summary
        'Inject(retain=1.0, text=1.0), up to 200 steps of AdamW at lr 0.001, seed 0'
    """

    objective: Objective
    steps: int = 200
    lr: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 32
    seed: int = 0
    stop: Stop | None = dataclasses.field(default_factory=Stop)
    optimizer: str = "AdamW"

    def __post_init__(self) -> None:
        known = not isinstance(self.objective, type) and isinstance(self.objective, Objective)
        _require(known, "objective", self.objective, "an objective such as objectives.Inject()")
        _require(self.steps >= 0, "steps", self.steps, "0 or more")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1 example")
        _require(0 < self.lr < math.inf, "lr", self.lr, "a number above 0, such as 0.001")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")

    @property
    def summary(self) -> str:
        """The recipe in one line."""
        steps = f"{self.steps} steps" if self.stop is None else f"up to {self.steps} steps"
        return f"{self.objective}, {steps} of {self.optimizer} at lr {self.lr:g}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON can hold it; an objective of this package is stored by name and fields."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kind = type(self.objective)
        if getattr(objectives, kind.__name__, None) is kind:
            fields: Any = dataclasses.fields(self.objective)  # type: ignore[arg-type]
            values = {f.name: getattr(self.objective, f.name) for f in fields}
            record["objective"] = {"name": kind.__name__, "fields": values}
        else:
            record["objective"] = {"name": repr(self.objective), "fields": None}
        record["stop"] = dataclasses.asdict(self.stop) if self.stop else None
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Recipe | None:
        """The recipe again, or None if its objective is not one of this package's: it cannot be refitted.

        Args:
            record: what :meth:`to_json` gave.
        """
        fields = dict(record)
        stored = fields.pop("objective")
        if stored["fields"] is None:
            return None
        objective = getattr(objectives, stored["name"])(**stored["fields"])
        stop = fields.pop("stop")
        return cls(objective=objective, stop=Stop(**stop) if stop else None, **fields)


def _require(fine: bool, name: str, value: object, expected: str) -> None:
    if not fine:
        raise TrainingError(f"{name} is {value!r}; give {expected}")
