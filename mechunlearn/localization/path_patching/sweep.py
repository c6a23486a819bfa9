"""Sweeps over paths: every sender by itself, at every place in every row, with all receivers together.

1. What the receivers read is computed from cached activations (`propagation`), for as many patches at a time
   as the budget of tokens allows. Where no change arrives, the metrics are those of the run itself.
2. The engine writes it into the run, and runs what comes after the receivers. Logits need no run: they are
   read at once.
3. Where a model's block functions are not reliable, or its blocks have the user's hooks, what the receivers
   read is recorded in one hooked run per sender and place instead (`hooks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.localization.engine.block_functions import BlockFunctions
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Patches, Write
from mechunlearn.localization.engine.readout import Readout, read
from mechunlearn.localization.path_patching.hooks import forwarded
from mechunlearn.localization.path_patching.paths import Paths
from mechunlearn.localization.path_patching.propagation import Propagator


@dataclass(frozen=True, eq=False)
class PathTask:
    """A run to patch, and what its senders are replaced by.

    The run holds the activations of ``paths.run_names``, and ``source`` those of ``paths.source_names``.
    ``where`` marks the positions at which senders are replaced.
    """

    run: CachedRun
    source: Mapping[str, Float[Tensor, "source ..."]]
    source_rows: Int[Tensor, "row"]
    where: Bool[Tensor, "place row pos"]
    readout: Readout

    @classmethod
    def everywhere(cls, run: CachedRun, source: Mapping[str, Tensor], readout: Readout) -> PathTask:
        """Replace senders at all positions at once; both runs have the same rows."""
        rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
        return cls(run, source, rows, run.batch.mask.bool()[None], readout)


def path_sweep(
    engine: Engine, paths: Paths, task: PathTask, *, bar: Any = None
) -> Float[Tensor, "sender place row metric"]:
    """Patch the paths from every sender, each by itself, to the receivers together, and read the metrics.

    They are in float64 on the CPU. Where no change arrives at a receiver, they are those of the run itself,
    bit for bit. ``bar`` counts senders, places and rows.
    """
    with torch.no_grad():
        baseline = engine.baseline(task.run, task.readout)
        shape = len(paths.senders), *task.where.shape[:2], baseline.shape[1]
        sweep = _Sweep(engine, paths, task, baseline.expand(shape).clone(), bar)
        functions = BlockFunctions.of(engine.hm)
        if functions.reason:
            sweep.by_hooks()
        else:
            sweep.by_arithmetic(functions)
        return sweep.values


@dataclass(frozen=True, eq=False)
class _Sweep:
    engine: Engine
    paths: Paths
    task: PathTask
    values: Float[Tensor, "sender place row metric"]
    bar: Any

    def by_arithmetic(self, functions: BlockFunctions) -> None:
        """Propagate the changes of as many patches at a time as the budget allows."""
        run, where, readout = self.task.run, self.task.where, self.task.readout
        propagator = Propagator(functions, self.paths, run, self.task.source, self.task.source_rows)
        # Of the logits, only those that are read matter; other receivers can matter at any position.
        at = torch.arange(where.shape[2], device=where.device).expand(where.shape[1:])
        at = at if self.paths.writes else readout.positions
        table, size = self._table(), max(1, self.engine.budget // at.shape[1])
        for start in range(0, len(table[0]), size):
            sender, group, row = (column[start : start + size] for column in table)
            tokens = propagator.sent(sender, row, at, where[group, row].gather(1, at[row]))
            arrives = torch.zeros_like(row, dtype=torch.bool)
            arrives[tokens.patch] = True
            inputs, writes = propagator.inputs(tokens, row, at), self.paths.rerun_writes
            if self.paths.value_layer is not None:
                after = propagator.after_values(inputs, row)
                reads = readout.positions[row, :, None].expand(-1, -1, after.shape[-1])
                inputs = {writes[0].name: after} if writes else {"logits": after.gather(1, reads)}
            self._finish((sender, group, row), writes, inputs, arrives)

    def by_hooks(self) -> None:
        """Run the model once for every sender and place, all rows together."""
        run, source = self.task.run, self.task.source
        row = torch.arange(len(run.batch), device=run.batch.tokens.device)
        source = {name: source[name][self.task.source_rows] for name in self.paths.source_names()}
        for s in self._live_senders():
            for p, where in enumerate(self.task.where):
                inputs = forwarded(self.engine.hm, run, self.paths, s, source, at=where)
                if not self.paths.writes:
                    inputs["logits"] = inputs["logits"][row[:, None], self.task.readout.positions]
                patches = torch.full_like(row, s), torch.full_like(row, p), row
                self._finish(patches, self.paths.writes, inputs, where.any(1))

    def _live_senders(self) -> list[int]:
        """The senders that reach any receiver, in the order in which they write."""
        times = [self.paths.write_time(site) for site in self.paths.senders]
        live = [s for s, time in enumerate(times) if time < self.paths.last_read]
        if self.bar is not None:
            places, rows = self.values.shape[1:3]
            self.bar.update((len(times) - len(live)) * places * rows)
        return sorted(live, key=times.__getitem__)

    def _table(self) -> tuple[Int[Tensor, "patch"], Int[Tensor, "patch"], Int[Tensor, "patch"]]:
        """Sender, place and row of all patches."""
        device = self.task.where.device
        senders = torch.tensor(self._live_senders(), dtype=torch.long, device=device)
        places, rows = (torch.arange(size, device=device) for size in self.values.shape[1:3])
        # Patches of one place begin at the same positions, so the engine can run them in one batch.
        group, sender, row = torch.cartesian_prod(places, senders, rows).view(-1, 3).unbind(1)
        return sender, group, row

    def _finish(
        self,
        indices: tuple[Int[Tensor, "patch"], Int[Tensor, "patch"], Int[Tensor, "patch"]],
        writes: tuple[Write, ...],
        inputs: Mapping[str, Float[Tensor, "patch ..."]],
        arrives: Bool[Tensor, "patch"],
    ) -> None:
        """Run what comes after the receivers for patches whose change ``arrives``, and store the metrics.

        ``indices`` are sender, place and row of the patches. ``writes`` are those from which the run goes on;
        if there are none, ``inputs`` holds the final stream under ``"logits"``.
        """
        (sender, group, row), live = indices, arrives.nonzero()[:, 0]
        if self.bar is not None:
            self.bar.update(len(row))
        if not len(live):
            return
        if writes:
            # At every position: where nothing arrives, a receiver must not see what another one changed.
            where = self.task.run.batch.mask.bool()[row[live]]
            patches = Patches((writes,), torch.zeros_like(live), row[live], live, where)
            metrics = self.engine.sweep(self.task.run, inputs, patches, self.task.readout)
        else:
            metrics = read(self.engine.hm, inputs["logits"][live], row[live], self.task.readout)
        self.values[sender[live].cpu(), group[live].cpu(), row[live].cpu()] = metrics
