"""The hooks of a sweep: one per hook point, which write what the current block's jobs ask for.

1. A hook is put at every hook point that any job writes to, once for the whole sweep.
2. Before a block runs, the writes of its jobs are laid out: rows of the batch, positions, values, units.
3. ``resid_mid`` is written through attention: its output becomes the wanted state minus the block's input.
   (The hook point of that name lies on the way into the second norm only; the stream itself passes beside
   it.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechunlearn.core.hooks import Hook
from mechunlearn.localization.engine.patches import Jobs, Write


@dataclass(frozen=True, eq=False)
class Writing:
    """Values for some rows of the batch at one hook point.

    Args:
        write: where.
        rows: of the batch.
        where: the positions written.
        values: of all positions, for all units.
    """

    write: Write
    rows: Int[Tensor, "written"]
    where: Bool[Tensor, "written pos"]
    values: Tensor

    def into(self, activation: Tensor) -> Tensor:
        """A copy of the activation with these rows written."""
        changed, units, axis = activation.clone(), self.write.units, self.write.axis
        where, values = self.where, self.values.to(activation)
        if axis == 1:
            where = where[:, None]
        if units is None:
            where = where.reshape(where.shape + (1,) * (activation.ndim - where.ndim))
            changed[self.rows] = torch.where(where, values, changed[self.rows])
            return changed
        for unit in units:
            place = (self.rows, unit) if axis == 1 else (self.rows, slice(None), unit)
            value = values.select(axis, unit)
            one = self.where.reshape(self.where.shape + (1,) * (value.ndim - self.where.ndim))
            changed[place] = torch.where(one, value, changed[place])
        return changed


@dataclass(eq=False)
class Writer:
    """Holds what is written now; its hooks look here."""

    now: dict[str, list[Writing]] = field(default_factory=dict)
    _state: dict[int, Tensor] = field(default_factory=dict)

    def hooks(self, interventions: Iterable[tuple[Write, ...]]) -> list[Hook]:
        """The hooks for all that these interventions write."""
        writes = [write for some in interventions for write in some]
        names = dict.fromkeys(write.name for write in writes if write.kind != "resid_mid")
        hooks = [self._hook(name) for name in names]
        for layer in dict.fromkeys(write.layer for write in writes if write.kind == "resid_mid"):
            hooks += [self._reader(layer), self._middle(layer)]
        return hooks

    def set(
        self,
        writes: Iterable[tuple[int, int, Write]],
        jobs: Jobs,
        source: Mapping[str, Tensor],
        *,
        start: int,
        stop: int,
    ) -> None:
        """Lay out what is written from now on, as rows of the batch, the jobs they run, and writes."""
        asked: dict[Write, list[tuple[int, int]]] = {}
        for row, job, write in writes:
            asked.setdefault(write, []).append((row, job))
        self.now = {}
        for write, pairs in asked.items():
            rows, numbers = torch.tensor(pairs, device=jobs.row.device).unbind(1)
            values = source[write.name][jobs.source[numbers]]
            values = values[:, :, start:stop, :stop] if write.axis == 1 else values[:, start:stop]
            writing = Writing(write, rows, jobs.where[numbers, start:stop], values)
            self.now.setdefault(write.name, []).append(writing)

    def _hook(self, name: str) -> Hook:
        def write(activation: Tensor, hook: Any = None) -> Tensor | None:
            writings = self.now.get(name)
            for writing in writings or ():
                activation = writing.into(activation)
            return activation if writings else None

        return Hook(name, write)

    def _reader(self, layer: int) -> Hook:
        def read(activation: Tensor, hook: Any = None) -> None:
            self._state = {layer: activation}

        return Hook(f"blocks.{layer}.hook_resid_pre", read)

    def _middle(self, layer: int) -> Hook:
        def write(activation: Tensor, hook: Any = None) -> Tensor | None:
            writings = self.now.get(f"blocks.{layer}.hook_resid_mid", ())
            for each in writings:
                values = each.values.to(activation) - self._state[layer][each.rows]
                activation = Writing(each.write, each.rows, each.where, values).into(activation)
            return activation if writings else None

        return Hook(f"blocks.{layer}.hook_attn_out", write)
