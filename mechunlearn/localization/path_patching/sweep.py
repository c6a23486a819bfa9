"""Sweeps over paths: every sender at every place by itself, the receivers together.

1. What the receivers read is computed from caches (`carrying`) for as many senders, places and rows at a time
   as the budget of tokens allows. Jobs in which nothing arrives are answered by the run itself.
2. The engine patches what was read into the run, and runs what comes after the receivers. The logits need
   no such run: they are read at once.
3. Where the parts of a model cannot be trusted, or somebody's hooks are in its blocks, what the receivers
   read is seen in one hooked run per sender and place instead (`hooks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.localization.engine.block_functions import Parts
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Jobs, Write
from mechunlearn.localization.engine.readout import Readout, read
from mechunlearn.localization.path_patching.hooks import forwarded
from mechunlearn.localization.path_patching.paths import Route
from mechunlearn.localization.path_patching.propagation import Propagator


@dataclass(frozen=True, eq=False)
class Sending:
    """What is sent, in all rows of a run.

    Args:
        run: what is patched; it must have kept ``route.kept_by_run``.
        source: the activations of the other run, by hook point; those of ``route.kept_by_source``.
        given: the row of the source for each row of the run.
        where: for every place, the positions at which senders are replaced.
        readout: what to read of the run's rows.
    """

    run: CachedRun
    source: Mapping[str, Float[Tensor, "given ..."]]
    given: Int[Tensor, "row"]
    where: Bool[Tensor, "place row pos"]
    readout: Readout

    @classmethod
    def everywhere(cls, run: CachedRun, source: Mapping[str, Tensor], readout: Readout) -> Sending:
        """Replace senders at all positions at once; both runs have the same rows."""
        rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
        return cls(run, source, rows, run.batch.mask.bool()[None], readout)


def path_sweep(
    engine: Engine, route: Route, sending: Sending, *, bar: Any = None
) -> Float[Tensor, "sender place row metric"]:
    """Patch the paths from every sender, each by itself, to the receivers together, and read each result.

    Args:
        engine: of the model.
        route: senders and receivers.
        sending: what is patched into what.
        bar: a progress bar, told of every sender, place and row done.

    Returns:
        The metrics of the patched runs, in float64 on the CPU; the run's own, bit for bit, where nothing that
        a sender changes reaches a receiver.
    """
    with torch.no_grad():
        baseline = engine.baseline(sending.run, sending.readout)
        shape = len(route.senders), *sending.where.shape[:2], baseline.shape[1]
        sweep = _Sweep(engine, route, sending, baseline.expand(shape).clone(), bar)
        parts = Parts.of(engine.hm)
        if parts.reason:
            sweep.by_runs()
        else:
            sweep.by_parts(parts)
        return sweep.values


@dataclass(frozen=True, eq=False)
class _Sweep:
    engine: Engine
    route: Route
    sending: Sending
    values: Float[Tensor, "sender place row metric"]
    bar: Any

    def by_parts(self, parts: Parts) -> None:
        """Carry the changes of as many jobs at a time as the budget allows."""
        run, where = self.sending.run, self.sending.where
        carrier = Propagator(parts, self.route, run, self.sending.source, self.sending.given)
        # Only the logits that are read matter; other receivers can matter through any position.
        at = torch.arange(where.shape[2], device=where.device).expand(where.shape[1:])
        at = at if self.route.writes else self.sending.readout.positions
        jobs, size = self._jobs(), max(1, self.engine.budget // at.shape[1])
        for start in range(0, len(jobs[0]), size):
            sender, place, row = (column[start : start + size] for column in jobs)
            cells = carrier.sent(sender, row, at, where[place, row].gather(1, at[row]))
            arrived = torch.zeros_like(row, dtype=torch.bool)
            arrived[cells.job] = True
            inputs, onward = carrier.inputs(cells, row, at), self.route.onward
            if self.route.values is not None:
                after = carrier.after(inputs, row)
                read_at = self.sending.readout.positions[row, :, None].expand(-1, -1, after.shape[-1])
                inputs = {onward[0].name: after} if onward else {"logits": after.gather(1, read_at)}
            self._finish((sender, place, row), onward, inputs, arrived)

    def by_runs(self) -> None:
        """Run the model once for every sender and place, all rows together."""
        run, source = self.sending.run, self.sending.source
        row = torch.arange(len(run.batch), device=run.batch.tokens.device)
        theirs = {name: source[name][self.sending.given] for name in self.route.kept_by_source()}
        for s in self._live():
            for place, where in enumerate(self.sending.where):
                some = torch.full_like(row, s), torch.full_like(row, place), row
                inputs = forwarded(self.engine.hm, run, self.route, s, theirs, at=where)
                if not self.route.writes:
                    inputs["logits"] = inputs["logits"][row[:, None], self.sending.readout.positions]
                self._finish(some, self.route.writes, inputs, where.any(1))

    def _live(self) -> list[int]:
        """The senders that reach any receiver, in the order in which they write."""
        times = [self.route.sends(site) for site in self.route.senders]
        live = [s for s, time in enumerate(times) if time < self.route.last]
        if self.bar is not None:
            places, rows = self.values.shape[1:3]
            self.bar.update((len(times) - len(live)) * places * rows)
        return sorted(live, key=times.__getitem__)

    def _jobs(self) -> tuple[Int[Tensor, "job"], Int[Tensor, "job"], Int[Tensor, "job"]]:
        """Sender, place and row of all jobs; those of one place together, where they begin alike."""
        device = self.sending.where.device
        senders = torch.tensor(self._live(), dtype=torch.long, device=device)
        places, rows = (torch.arange(size, device=device) for size in self.values.shape[1:3])
        place, sender, row = torch.cartesian_prod(places, senders, rows).view(-1, 3).unbind(1)
        return sender, place, row

    def _finish(
        self,
        some: tuple[Int[Tensor, "job"], Int[Tensor, "job"], Int[Tensor, "job"]],
        onward: tuple[Write, ...],
        inputs: Mapping[str, Float[Tensor, "job ..."]],
        arrived: Bool[Tensor, "job"],
    ) -> None:
        """Run what comes after the receivers in the jobs in which anything arrives, and read the results."""
        (sender, place, row), live = some, arrived.nonzero()[:, 0]
        if self.bar is not None:
            self.bar.update(len(row))
        if not len(live):
            return
        if onward:
            # At every position: where nothing arrives, a receiver must not see what another one changed.
            where = self.sending.run.batch.mask.bool()[row[live]]
            jobs = Jobs((onward,), torch.zeros_like(live), row[live], live, where)
            found = self.engine.sweep(self.sending.run, inputs, jobs, self.sending.readout)
        else:
            found = read(self.engine.hm, inputs["logits"][live], row[live], self.sending.readout)
        self.values[sender[live].cpu(), place[live].cpu(), row[live].cpu()] = found
