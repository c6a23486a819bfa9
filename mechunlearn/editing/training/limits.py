"""How much memory, disk and time training may use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mechunlearn.core.checks import integer, require
from mechunlearn.errors import TrainingError


@dataclass(frozen=True)
class Limits:
    """How many examples a step takes, how much of them may be cached, and how often a run is saved.

    What the edit cannot change is computed once per example and cached; what does not fit is computed at
    each use.

    Args:
        batch_size: questions of each set a step, and a quarter as many texts. It decides the outcome, so it
            is part of an edit's recipe.
        memory: bytes of memory for the cache, on the model's device.
        disk: bytes of disk for the cache, used when the memory is full; 0 for none.
        folder: a folder on that disk; None for the system's temporary folder.
        checkpoint_every: steps between two checkpoints, if there is a folder for them.
        gradient_checkpointing: recompute the insides of blocks in the backward pass, for less memory.

    Raises:
        TrainingError: a number is out of its range, or there is no such folder.

    Example:
        >>> Limits(batch_size=8, disk=100 << 30).memory == 2 << 30
        True
    """

    batch_size: int = 32
    memory: int = 2 << 30
    disk: int = 0
    folder: str | Path | None = None
    checkpoint_every: int = 50
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        integer(TrainingError, 1, batch_size=self.batch_size, checkpoint_every=self.checkpoint_every)
        for name in ("memory", "disk"):
            size = getattr(self, name)
            require(size >= 0, TrainingError, name, size, "a number of bytes, 0 for none")
        if self.folder is not None and not Path(self.folder).is_dir():
            raise TrainingError(f"folder is {str(self.folder)!r}, which is no folder; make it first")
