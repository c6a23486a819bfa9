"""The hooks of a sweep: one per hook point, which write the values of the batch that runs now.

1. A hook is set at every hook point that any patch writes to, once for the whole sweep.
2. Before a block runs, the writes of its patches are laid out: rows of the batch, positions, values, units.
3. ``resid_mid`` is written through attention, whose output becomes the written state minus the block's input.
   (The hook point of that name lies on the way into the second norm only, while the stream itself passes
   beside it.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechunlearn.core.hooks import Hook
from mechunlearn.localization.engine.patches import Patches, Write


@dataclass(frozen=True, eq=False)
class BatchWrite:
    """One write in some rows of a batch; ``values`` holds all positions and all units."""

    write: Write
    rows: Int[Tensor, "written"]
    where: Bool[Tensor, "written pos"]
    values: Tensor

    def into(self, activation: Tensor) -> Tensor:
        """A copy of the activation with the values written."""
        # Other code may hold this tensor (the cached run, the stream beside a hook), so it is not changed.
        changed, axis = activation.clone(), self.write.axis
        values = self.values.to(activation)
        if self.write.units is None:
            where = self.where[:, None] if axis == 1 else self.where
            where = where.reshape(where.shape + (1,) * (activation.ndim - where.ndim))
            changed[self.rows] = torch.where(where, values, changed[self.rows])
            return changed
        for unit in self.write.units:
            index = (self.rows, unit) if axis == 1 else (self.rows, slice(None), unit)
            value = values.select(axis, unit)
            where = self.where.reshape(self.where.shape + (1,) * (value.ndim - self.where.ndim))
            changed[index] = torch.where(where, value, changed[index])
        return changed


@dataclass(eq=False)
class PatchHooks:
    """Hooks that write what is laid out in `current`, by hook point."""

    current: dict[str, list[BatchWrite]] = field(default_factory=dict)
    _stream: dict[int, Tensor] = field(default_factory=dict)

    def hooks(self, interventions: Iterable[tuple[Write, ...]]) -> list[Hook]:
        """The hooks for all writes of these interventions."""
        writes = [write for some in interventions for write in some]
        names = dict.fromkeys(write.name for write in writes if write.kind != "resid_mid")
        hooks = [self._writer(name) for name in names]
        for layer in dict.fromkeys(write.layer for write in writes if write.kind == "resid_mid"):
            hooks += [self._stream_reader(layer), self._middle_writer(layer)]
        return hooks

    def lay_out(
        self,
        writes: Iterable[tuple[int, int, Write]],
        patches: Patches,
        source: Mapping[str, Tensor],
        *,
        start: int,
        stop: int,
    ) -> None:
        """Set what is written from now on, at the positions ``start`` to ``stop - 1`` that run.

        Each of ``writes`` holds a row of the batch, the number of its patch, and a write of that patch.
        """
        pairs: dict[Write, list[tuple[int, int]]] = {}
        for row, number, write in writes:
            pairs.setdefault(write, []).append((row, number))
        self.current = {}
        for write, indices in pairs.items():
            rows, numbers = torch.tensor(indices, device=patches.row.device).unbind(1)
            values = source[write.name][patches.source[numbers]]
            values = values[:, :, start:stop, :stop] if write.axis == 1 else values[:, start:stop]
            laid_out = BatchWrite(write, rows, patches.where[numbers, start:stop], values)
            self.current.setdefault(write.name, []).append(laid_out)

    def _writer(self, name: str) -> Hook:
        def write(activation: Tensor, hook: Any = None) -> Tensor | None:
            writes = self.current.get(name)
            for each in writes or ():
                activation = each.into(activation)
            return activation if writes else None

        return Hook(name, write)

    def _stream_reader(self, layer: int) -> Hook:
        def read(activation: Tensor, hook: Any = None) -> None:
            self._stream = {layer: activation}

        return Hook(f"blocks.{layer}.hook_resid_pre", read)

    def _middle_writer(self, layer: int) -> Hook:
        def write(activation: Tensor, hook: Any = None) -> Tensor | None:
            writes = self.current.get(f"blocks.{layer}.hook_resid_mid", ())
            for each in writes:
                values = each.values.to(activation) - self._stream[layer][each.rows]
                activation = BatchWrite(each.write, each.rows, each.where, values).into(activation)
            return activation if writes else None

        return Hook(f"blocks.{layer}.hook_attn_out", write)
