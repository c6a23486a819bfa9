"""Cache, per example, what training cannot change: in memory or on disk, within bounds.

1. A store knows from the start how many rows each example has (positions, say) and how large they are. It
   takes its room at once, keeps rows flat, one example after the other, and computes what does not fit at
   each use.
2. Examples are computed in fixed chunks, in their own order, at the first use of one of a chunk. So what is
   kept does not depend on the order of training, and a run that is resumed keeps the same bits.
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
    """What is left of the memory and the disk of :class:`Limits`, as caches take their parts.

    Args:
        memory: bytes left in memory.
        disk: bytes left on disk.
        folder: where on disk.
    """

    memory: int
    disk: int
    folder: str | Path | None

    @classmethod
    def of(cls, limits: Limits) -> CacheBudget:
        """All of it."""
        return cls(limits.memory, limits.disk, limits.folder)

    def take(self, bytes_wanted: int) -> tuple[int, bool]:
        """Take room, and give how many bytes there were and whether they are on disk."""
        if bytes_wanted > self.memory and self.disk > self.memory:
            taken = min(bytes_wanted, self.disk)
            self.disk -= taken
            return taken, True
        taken = min(bytes_wanted, self.memory)
        self.memory -= taken
        return taken, False


@dataclass(eq=False)
class ActivationCache:
    """The kept rows of many examples.

    Args:
        starts: where each example's rows begin, and where the last's end.
        compute: gives the rows of some examples.
        folder: where on disk.
        chunk: how many examples are computed together.
        whole: how many examples fit; the others are computed at each use.
        on_disk: whether they are kept on disk.
        passes: how many examples were computed so far.
    """

    starts: Sequence[int]
    compute: Compute
    folder: str | Path | None
    chunk: int
    whole: int
    on_disk: bool
    passes: int = 0
    _known: set[int] = field(default_factory=set)
    _flat: Tensor | None = None
    _device: torch.device | None = None

    @classmethod
    def of(
        cls, counts: Sequence[int], compute: Compute, room: CacheBudget, *, width: int, chunk: int = CHUNK
    ) -> ActivationCache:
        """An empty store, whose room is taken.

        Args:
            counts: how many rows each example has.
            compute: gives the rows of some examples, without gradient.
            room: what it takes from. Taken now and not at the first use, what is kept does not depend on
                what is used first.
            width: bytes of a row.
            chunk: how many examples are computed together.
        """
        starts = (0, *accumulate(counts))
        taken, on_disk = room.take(starts[-1] * width)
        whole = sum(end * width <= taken for end in starts[1:])
        return cls(starts, compute, room.folder, chunk, whole, on_disk)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def get(self, examples: Sequence[int]) -> list[Float[Tensor, "rows ..."]]:
        """The rows of some examples, computed now if they are not known yet.

        Args:
            examples: their numbers.
        """
        missing = {i // self.chunk for i in examples if i < self.whole and i not in self._known}
        for number in sorted(missing):
            first = number * self.chunk
            self._fill(list(range(first, min(len(self), first + self.chunk))))
        fresh = [i for i in dict.fromkeys(examples) if i not in self._known]
        found = dict(zip(fresh, self._computed(fresh), strict=True)) if fresh else {}
        return [found[i] if i in found else self._row(i) for i in examples]

    def _computed(self, examples: list[int]) -> list[Tensor]:
        self.passes += len(examples)
        return self.compute(examples)

    def _fill(self, examples: list[int]) -> None:
        rows = self._computed(examples)
        flat = self._opened(rows[0])
        for i, values in zip(examples, rows, strict=True):
            if i < self.whole:
                flat[self.starts[i] : self.starts[i + 1]] = values
                self._known.add(i)

    def _row(self, example: int) -> Tensor:
        flat = self._opened(None)
        # What is kept on disk is mapped on the CPU, wherever the model is.
        return flat[self.starts[example] : self.starts[example + 1]].to(self._device)

    def _opened(self, like: Tensor | None) -> Tensor:
        """The flat tensor, made like the first rows that go in."""
        if self._flat is None and like is not None:
            shape = (self.starts[self.whole], *like.shape[1:])
            self._device = like.device
            if self.on_disk:
                self._flat = _mapped(shape, like.dtype, self.folder)
            else:
                self._flat = torch.empty(shape, dtype=like.dtype, device=like.device)
        if self._flat is None:
            raise RuntimeError("a row was asked for before any was kept")
        return self._flat


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, folder: str | Path | None) -> Tensor:
    """A tensor whose memory is a file that nobody else can see."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        path = Path(place) / "kept"
        # The mapping outlives the file's name, and the file outlives it no longer than the process.
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype).reshape(shape)
