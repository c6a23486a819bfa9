"""Sweeps: many patches of one run, each computed only where it can differ from the run.

1. A run is captured once (`runs`). What is patched in comes from another run, or from anywhere else.
2. The plan (`planning`) drops jobs that change nothing, and groups the others by their first changed
   position.
3. Each group runs from the block where its jobs enter (`blocks`). Where the model does not allow that,
   every job is a row of a complete hooked run (`hooked`); the engine says which of the two it does, and
   why.
4. Final states are read by the model's own norm and unembedding, as they are now (`reading`).

Weights are read when they are used: an edit between two sweeps shows in the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.localization.engine.blocks import run_chunk
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.patch_hooks import Writer
from mechunlearn.localization.engine.patches import Jobs
from mechunlearn.localization.engine.planning import chunks, starts
from mechunlearn.localization.engine.readout import Readout, read
from mechunlearn.localization.engine.reference_run import run_hooked
from mechunlearn.localization.engine.self_check import hooked, problem
from mechunlearn.models.hooked import HookedModel

BUDGET = 4096
"""Tokens per batch on a CPU, where larger ones are no faster."""


@dataclass(frozen=True, eq=False)
class Engine:
    """Runs sweeps over one model.

    Args:
        hm: the model; it is left as it was.
        reason: why every job needs a complete run; empty if blocks can be entered from the middle.
        slower: why blocks without hooks run as a whole; empty if they run part by part, which is faster.
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
        """The engine for a model, checked on a few tokens the first time.

        Args:
            hm: the model.
            budget: tokens per batch; None for 4,096 on a CPU and 16,384 elsewhere.
        """
        default = BUDGET if hm.device.type == "cpu" else 4 * BUDGET
        budget = default if budget is None else budget
        # Hooks in the blocks may count positions, or follow what we enter behind; and what any hook does
        # during the check would count for good.
        if hooked(hm, "blocks.") or (hm not in _CHECKED and hooked(hm)):
            return cls(hm, _HOOKS, _HOOKS, budget=budget)
        if hm not in _CHECKED:
            slower = problem(hm, parts=True) or ""
            _CHECKED[hm] = (problem(hm, parts=False) or "" if slower else "", slower)
        return cls(hm, *_CHECKED[hm], budget=budget)

    def sweep(
        self,
        run: CachedRun,
        source: Mapping[str, Float[Tensor, "given ..."]],
        jobs: Jobs,
        readout: Readout,
        *,
        bar: Any = None,
    ) -> Float[Tensor, "job metric"]:
        """Patch the run by every job, and read each result.

        Args:
            run: what is patched; it must have kept ``jobs.names``.
            source: the values written, by hook point, over all positions.
            jobs: what to write where.
            readout: what to read at the end.
            bar: a progress bar, told of every job done.

        Returns:
            In float64 on the CPU. Where a job changes nothing that is read it is the baseline, bit for bit
            (to rounding, where every job is a complete run).
        """
        values = self.baseline(run, readout)[jobs.row.cpu()]
        with torch.no_grad():
            if self.reason or hooked(self.hm, "blocks."):
                self._complete(run, source, jobs, readout, values, bar)
            else:
                self._partial(run, source, jobs, readout, values, bar)
        return values

    def baseline(self, run: CachedRun, readout: Readout) -> Float[Tensor, "row metric"]:
        """Read the run itself."""
        rows = torch.arange(len(run.batch), device=run.resid[-1].device)
        resid = run.resid[-1][rows[:, None], readout.positions]
        with torch.no_grad():
            return read(self.hm, resid, rows, readout)

    def _partial(
        self,
        run: CachedRun,
        source: Mapping[str, Tensor],
        jobs: Jobs,
        readout: Readout,
        values: Tensor,
        bar: Any,
    ) -> None:
        begin = starts(jobs, run, source, readout.positions)
        if bar is not None:
            bar.update(int((begin.entry < 0).sum()))
        writer = Writer()
        with self.hm.bridge.hooks(fwd_hooks=writer.hooks(jobs.interventions)):
            for chunk in chunks(jobs, begin, readout.positions, self.budget):
                resid = run_chunk(
                    self.hm, run, source, jobs, chunk, writer, readout.positions, parts=not self.slower
                )
                self._store(resid, [step.job for step in chunk.steps], jobs, readout, values, bar)

    def _complete(
        self,
        run: CachedRun,
        source: Mapping[str, Tensor],
        jobs: Jobs,
        readout: Readout,
        values: Tensor,
        bar: Any,
    ) -> None:
        size = max(1, self.budget // run.batch.tokens.shape[1])
        for part in torch.split(torch.arange(len(jobs)), size):
            some = jobs.pick(part.to(jobs.row.device))
            resid = run_hooked(self.hm, run, source, some, readout.positions)
            self._store(resid, part.tolist(), jobs, readout, values, bar)

    def _store(
        self, resid: Tensor, numbers: list[int], jobs: Jobs, readout: Readout, values: Tensor, bar: Any
    ) -> None:
        rows: Int[Tensor, "job"] = jobs.row[torch.tensor(numbers, device=jobs.row.device)]
        values[numbers] = read(self.hm, resid, rows, readout)
        if bar is not None:
            bar.update(len(numbers))


_HOOKS = "somebody else's hooks are in the blocks"
_CHECKED: WeakKeyDictionary[HookedModel, tuple[str, str]] = WeakKeyDictionary()
