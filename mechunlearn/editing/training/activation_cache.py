"""Cache, per example, what training cannot change: in memory or on disk, within bounds.

1. A cache knows from the start how many rows each example has (positions, say) and how large they are. It
   takes its share of the budget at once, holds rows flat, one example after the other, and computes what
   does not fit at each use.
2. Examples are computed in fixed chunks, in their own order, at the first use of one of a chunk. So cached
   values do not depend on the order of training, and a run that is resumed computes the same bits.
3. On disk the flat tensor is a mapped file without a name, which is gone with the process.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.editing.training.limits import Limits

CHUNK = 32
"""Examples computed together."""

Compute = Callable[[list[int]], list[Float[Tensor, "rows ..."]]]


@dataclass(eq=False)
class CacheBudget:
    """The bytes of memory and disk that :class:`Limits` allow and that no cache has taken yet."""

    memory: int
    disk: int
    folder: str | Path | None

    @classmethod
    def of(cls, limits: Limits) -> CacheBudget:
        """All that the limits allow."""
        return cls(limits.memory, limits.disk, limits.folder)

    def take(self, size: int) -> tuple[int, bool]:
        """Take up to ``size`` bytes; return how many were granted, and whether they are on disk."""
        # A cache is in one place: on disk only if memory cannot hold all of it, and the disk holds more.
        if size > self.memory and self.disk > self.memory:
            granted = min(size, self.disk)
            self.disk -= granted
            return granted, True
        granted = min(size, self.memory)
        self.memory -= granted
        return granted, False


@dataclass(eq=False)
class ActivationCache:
    """The cached rows of many examples.

    ``starts`` holds where each example's rows begin, and at last where all end. The first ``fitting``
    examples are cached, computed ``chunk`` at a time; the others are computed at each use. ``computed``
    counts the examples that were computed so far.
    """

    starts: Sequence[int]
    compute: Compute
    folder: str | Path | None
    chunk: int
    fitting: int
    on_disk: bool
    computed: int = 0
    _filled: set[int] = field(default_factory=set)
    _flat: Tensor | None = None
    _device: torch.device | None = None

    @classmethod
    def of(
        cls, counts: Sequence[int], compute: Compute, budget: CacheBudget, *, width: int, chunk: int = CHUNK
    ) -> ActivationCache:
        """An empty cache of examples with ``counts`` rows, each ``width`` bytes.

        ``compute`` gives the rows of some examples, without gradient.
        """
        starts = (0, *accumulate(counts))
        # Taken now and not at the first use, so that what fits does not depend on what is used first.
        granted, on_disk = budget.take(starts[-1] * width)
        fitting = sum(end * width <= granted for end in starts[1:])
        return cls(starts, compute, budget.folder, chunk, fitting, on_disk)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def get(self, examples: Sequence[int]) -> list[Float[Tensor, "rows ..."]]:
        """The rows of some examples, by their numbers; computed now if they are not cached yet."""
        missing = {i // self.chunk for i in examples if i < self.fitting and i not in self._filled}
        for number in sorted(missing):
            first = number * self.chunk
            self._fill(list(range(first, min(len(self), first + self.chunk))))
        # What does not fit is computed at each use, every example once.
        beyond = [i for i in dict.fromkeys(examples) if i not in self._filled]
        rows = dict(zip(beyond, self._compute(beyond), strict=True)) if beyond else {}
        return [rows[i] if i in rows else self._row(i) for i in examples]

    def _compute(self, examples: list[int]) -> list[Tensor]:
        self.computed += len(examples)
        return self.compute(examples)

    def _fill(self, examples: list[int]) -> None:
        rows = self._compute(examples)
        flat = self._opened(rows[0])
        for i, values in zip(examples, rows, strict=True):
            if i < self.fitting:
                flat[self.starts[i] : self.starts[i + 1]] = values
                self._filled.add(i)

    def _row(self, example: int) -> Tensor:
        flat = self._opened(None)
        # A file is mapped on the CPU, wherever the model is.
        return flat[self.starts[example] : self.starts[example + 1]].to(self._device)

    def _opened(self, like: Tensor | None) -> Tensor:
        """The flat tensor, made at the first use with the dtype and width of the rows ``like``."""
        if self._flat is None and like is not None:
            shape = (self.starts[self.fitting], *like.shape[1:])
            self._device = like.device
            if self.on_disk:
                self._flat = _mapped(shape, like.dtype, self.folder)
            else:
                self._flat = torch.empty(shape, dtype=like.dtype, device=like.device)
        if self._flat is None:
            raise RuntimeError("a row was read before any was computed")
        return self._flat


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, folder: str | Path | None) -> Tensor:
    """A tensor whose memory is a file without a name."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as hidden:
        path = Path(hidden) / "cache"
        # The mapping outlives the file's name, and the file outlives it no longer than the process.
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype).reshape(shape)
