"""How an edit was made, as a value that is enough to make it again elsewhere.

An audit refits the recipe on random localizations, to compare an edit with any edit of its size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mechunlearn.core.checks import above, at_least, integer, require
from mechunlearn.editing import objectives
from mechunlearn.editing.objectives.requests import Objective
from mechunlearn.errors import TrainingError

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Stop:
    """When to stop an edit, judged on validation phrasings alone.

    Every ``every`` steps the forget set's success (the new answer is given, or the old one is not) and
    the retain set's accuracy, the retention, are measured. Training ends when success has reached ``goal``
    and retention ``min_retention``. The edit is that of the best step: the highest sum of success (up to
    the goal) and retention (up to its bound), ties to the later step.

    Args:
        goal: share of the forget set's validation questions that must succeed.
        min_retention: share of the retain set's validation questions that must be answered right.
        every: steps between two measurements.
        give_up: training also ends when retention falls below this; None to go on whatever it costs.

    Raises:
        TrainingError: a share is not between 0 and 1, or ``every`` is below 1.

    Example:
        >>> Stop(goal=0.9).every
        10
    """

    goal: float = 0.98
    min_retention: float = 0.95
    every: int = 10
    give_up: float | None = None

    def __post_init__(self) -> None:
        for name in ("goal", "min_retention", "give_up"):
            share = getattr(self, name)
            unset = name == "give_up" and share is None
            fine = unset or (isinstance(share, float | int) and 0 <= share <= 1)
            require(fine, TrainingError, name, share, "a share from 0 to 1")
        integer(TrainingError, 1, every=self.every)

    def value(self, success: float, retention: float) -> float:
        """How good a step is; nothing is gained beyond goal and bound.

        Example:
            >>> Stop(goal=0.5, min_retention=1.0).value(1.0, 1.0)
            1.5
        """
        return min(success, self.goal) + min(retention, self.min_retention)

    def reached(self, success: float, retention: float) -> bool:
        """Whether training may end: the goal is reached, or too much was lost."""
        lost = self.give_up is not None and retention < self.give_up
        return lost or (success >= self.goal and retention >= self.min_retention)


@dataclass(frozen=True)
class Optimizer:
    """How a step moves the trained tensors.

    Args:
        name: a class of ``torch.optim`` that takes ``lr`` and ``weight_decay``.
        weight_decay: pulls the deltas towards zero, that is, towards the unedited weights.
        schedule: how the learning rate falls to zero over the steps: as half a ``"cosine"``, as a straight
            line (``"linear"``), or not at all (``"constant"``).
        warmup: steps over which the learning rate first rises, as a straight line.
        clip: the norm that the gradient of a step is cut to; None for no bound.
        micro_batches: parts that the examples of a step are run in, one after the other, for less memory;
            the loss terms of the parts are averaged.

    Raises:
        TrainingError: a number is out of its range.

    Example:
        >>> Optimizer("SGD", schedule="constant").clip is None
        True
    """

    name: str = "AdamW"
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    warmup: int = 0
    clip: float | None = None
    micro_batches: int = 1

    def __post_init__(self) -> None:
        integer(TrainingError, 0, warmup=self.warmup)
        integer(TrainingError, 1, micro_batches=self.micro_batches)
        at_least(TrainingError, 0, weight_decay=self.weight_decay)
        if self.clip is not None:
            above(TrainingError, 0, clip=self.clip)
        fine = self.schedule in get_args(Schedule)
        require(
            fine,
            TrainingError,
            "schedule",
            self.schedule,
            "one of " + ", ".join(map(repr, get_args(Schedule))),
        )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, as a share of the peak.

        Args:
            step: the number of the step, from 0.
            steps: how many steps there are.

        Example:
            >>> Optimizer(warmup=1).rate(0, 10)
            0.5
        """
        if step < self.warmup:
            # Never 0, so that the first step moves the weights, too.
            return (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, steps - self.warmup)
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        return 1 - done if self.schedule == "linear" else 1.0


@dataclass(frozen=True)
class Recipe:
    """How an edit is trained: all options that decide its outcome, but for the localization and the facts.

    :func:`mechunlearn.edit` makes it, and tells what each option is.

    Raises:
        TrainingError: a number is out of its range.

    Example:
        >>> Recipe(objectives.RMU(layer=2), lr=3e-3, stop=None).summary.split("), ")[1]
        '200 steps of AdamW at lr 0.003, seed 0'
    """

    objective: Objective
    steps: int = 200
    lr: float = 1e-3
    seed: int = 0
    stop: Stop | None = Stop()
    optimizer: Optimizer = Optimizer()
    batch_size: int = 32

    def __post_init__(self) -> None:
        fine = not isinstance(self.objective, type) and isinstance(self.objective, Objective)
        require(fine, TrainingError, "objective", self.objective, "an objective such as objectives.Inject()")
        integer(TrainingError, 0, steps=self.steps)
        integer(TrainingError, 1, batch_size=self.batch_size)
        above(TrainingError, 0, lr=self.lr)
        fine = self.stop is None or isinstance(self.stop, Stop)
        require(fine, TrainingError, "stop", self.stop, "a Stop(...), or None to take all steps")
        fine = isinstance(self.optimizer, Optimizer)
        require(
            fine, TrainingError, "optimizer", self.optimizer, 'an Optimizer(...), such as Optimizer("SGD")'
        )

    @property
    def summary(self) -> str:
        """The recipe in one line."""
        steps = f"{self.steps} steps" if self.stop is None else f"up to {self.steps} steps"
        return f"{self.objective}, {steps} of {self.optimizer.name} at lr {self.lr:g}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON can hold it; an objective of this package is stored by name and fields."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        stop = dataclasses.asdict(self.stop) if self.stop else None
        optimizer = dataclasses.asdict(self.optimizer)
        return {**options, "objective": _recorded(self.objective), "stop": stop, "optimizer": optimizer}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Recipe | None:
        """The recipe again, or None if its objective is not one of this package's: it cannot be refitted.

        Args:
            record: what :meth:`to_json` gave.
        """
        fields = dict(record)
        objective = _read(fields.pop("objective"))
        if objective is None:
            return None
        stop, optimizer = fields.pop("stop"), Optimizer(**fields.pop("optimizer", {}))
        return cls(objective, stop=Stop(**stop) if stop else None, optimizer=optimizer, **fields)


def _recorded(value: Any) -> Any:
    """An objective of this package by name and fields, another by its representation; the rest as it is."""
    if not dataclasses.is_dataclass(value) and not isinstance(value, Objective):
        return value
    kind = type(value)
    if getattr(objectives, kind.__name__, None) is not kind or not dataclasses.is_dataclass(value):
        return {"name": repr(value), "fields": None}
    fields = {f.name: _recorded(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {"name": kind.__name__, "fields": fields}


def _read(record: Any) -> Any:
    """What :func:`_recorded` wrote, or None if it cannot be made again."""
    # JSON has no tuples: those of a frozen objective were written as lists.
    if isinstance(record, list):
        return tuple(_read(each) for each in record)
    if not isinstance(record, dict):
        return record
    if record["fields"] is None:
        return None
    fields = {name: _read(value) for name, value in record["fields"].items()}
    # A field may be None itself; lost is only an objective that was stored without fields.
    lost = any(fields[name] is None and isinstance(v, dict) for name, v in record["fields"].items())
    return None if lost else getattr(objectives, record["name"])(**fields)
