"""Sweeps: many patches of one run, each computed only where it can differ from the run.

1. A run is cached once (`cached_run`). The values that are written come from another run, or from elsewhere.
2. The plan (`planning`) leaves out patches that change nothing, and groups the others by the first position
   that they change.
3. Each group runs from the block where its patches enter (`blocks`). Where a model does not allow that, every
   patch is a row of a complete hooked run (`reference_run`), and the engine says why.
4. Final states are read by the model's own norm and unembedding (`readout`).

Weights are read when they are used: an edit between two sweeps shows in the second.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.errors import FallbackWarning
from mechunlearn.localization.engine.blocks import run_batch
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.patch_hooks import PatchHooks
from mechunlearn.localization.engine.patches import Patches
from mechunlearn.localization.engine.planning import batches, entries_of
from mechunlearn.localization.engine.readout import Readout, read
from mechunlearn.localization.engine.reference_run import run_hooked
from mechunlearn.localization.engine.self_check import has_hooks, reason_against
from mechunlearn.models.hooked import HookedModel

BUDGET = 4096
"""Tokens per batch on a CPU, where larger batches are no faster."""


@dataclass(frozen=True, eq=False)
class Engine:
    """Runs sweeps over one model.

    Args:
        hm: the model; it is left as it was.
        reason: why every patch needs a complete run; empty if blocks can be entered from the middle.
        slower: why blocks do not run in their fused form, which is faster; empty if they do.
        budget: tokens per batch; bounds the memory of a sweep.

    Example:
        >>> Engine.of(mu.world.model()).reason
        ''
    """

    hm: HookedModel
    reason: str = ""
    slower: str = ""
    budget: int = BUDGET

    @classmethod
    def of(cls, hm: HookedModel, *, budget: int | None = None) -> Engine:
        """The engine for a model, which is checked on a few tokens the first time.

        Args:
            hm: the model.
            budget: tokens per batch; None for 4,096 on a CPU and 16,384 elsewhere.
        """
        default = BUDGET if hm.device.type == "cpu" else 4 * BUDGET
        budget = default if budget is None else budget
        # Hooks in the blocks may depend on earlier positions or blocks, which we skip. And hooks anywhere
        # would change the result of the check, which is remembered.
        if has_hooks(hm, "blocks.") or (hm not in _CHECKED and has_hooks(hm)):
            return cls(hm, _HOOKS, _HOOKS, budget=budget)
        if hm not in _CHECKED:
            slower = reason_against(hm, fused=True)
            _CHECKED[hm] = (reason_against(hm, fused=False) if slower else "", slower)
            _warn(hm, *_CHECKED[hm])
        return cls(hm, *_CHECKED[hm], budget=budget)

    def sweep(
        self,
        run: CachedRun,
        source: Mapping[str, Float[Tensor, "source ..."]],
        patches: Patches,
        readout: Readout,
        *,
        bar: Any = None,
    ) -> Float[Tensor, "patch metric"]:
        """Run every patch by itself, and read its metrics, in float64 on the CPU.

        ``run`` holds the activations of ``patches.names``, and ``source`` the values to write, at all
        positions. Where a patch changes nothing that is read, its metrics are those of the run itself, bit
        for bit (to rounding, where every patch is a complete run). ``bar`` counts patches.
        """
        values = self.baseline(run, readout)[patches.row.cpu()]
        with torch.no_grad():
            if self.reason or has_hooks(self.hm, "blocks."):
                self._complete(run, source, patches, readout, values, bar)
            else:
                self._partial(run, source, patches, readout, values, bar)
        return values

    def baseline(self, run: CachedRun, readout: Readout) -> Float[Tensor, "row metric"]:
        """The metrics of the run itself."""
        rows = torch.arange(len(run.batch), device=run.resid[-1].device)
        resid = run.resid[-1][rows[:, None], readout.positions]
        with torch.no_grad():
            return read(self.hm, resid, rows, readout)

    def _partial(
        self,
        run: CachedRun,
        source: Mapping[str, Tensor],
        patches: Patches,
        readout: Readout,
        values: Tensor,
        bar: Any,
    ) -> None:
        entries = entries_of(patches, run, source, readout.positions)
        if bar is not None:
            bar.update(int((entries.block < 0).sum()))
        hooks, reads = PatchHooks(), readout.positions
        with self.hm.bridge.hooks(fwd_hooks=hooks.hooks(patches.interventions)):
            for batch in batches(patches, entries, reads, self.budget):
                fused = not self.slower
                resid = run_batch(self.hm, run, source, patches, batch, hooks, reads, fused=fused)
                self._store(resid, [patch.number for patch in batch.patches], patches, readout, values, bar)

    def _complete(
        self,
        run: CachedRun,
        source: Mapping[str, Tensor],
        patches: Patches,
        readout: Readout,
        values: Tensor,
        bar: Any,
    ) -> None:
        size = max(1, self.budget // run.batch.tokens.shape[1])
        for part in torch.split(torch.arange(len(patches)), size):
            some = patches.pick(part.to(patches.row.device))
            resid = run_hooked(self.hm, run, source, some, readout.positions)
            self._store(resid, part.tolist(), patches, readout, values, bar)

    def _store(
        self, resid: Tensor, numbers: list[int], patches: Patches, readout: Readout, values: Tensor, bar: Any
    ) -> None:
        rows: Int[Tensor, "patch"] = patches.row[torch.tensor(numbers, device=patches.row.device)]
        values[numbers] = read(self.hm, resid, rows, readout)
        if bar is not None:
            bar.update(len(numbers))


def _warn(hm: HookedModel, reason: str, slower: str) -> None:
    """Warn once of a model whose blocks are not entered, or not in their fused form; results are the same."""
    layers = hm.arch.shape.n_layers
    if reason:
        cost = f"each patch runs all {layers} layers instead of those above it"
        warnings.warn(f"every patch is a complete run, since {reason}; {cost}", FallbackWarning, stacklevel=4)
    elif slower:
        warnings.warn(
            f"blocks do not run in their fused form, since {slower}; sweeps take up to twice as long",
            FallbackWarning,
            stacklevel=4,
        )


_HOOKS = "hooks of the user are in the blocks"
_CHECKED: WeakKeyDictionary[HookedModel, tuple[str, str]] = WeakKeyDictionary()
