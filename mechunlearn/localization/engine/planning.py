"""Decide what has to run at all, from where, and together with what.

A patch at position p in layer l can only change positions from p on in layers from l on. So, for every job:

1. Writes that equal what the run has there anyway are dropped from the front; a job without any other is
   answered by the baseline.
2. The job enters the run at the block of its first write, or after it where the write is the block's last act
   (``mlp`` outputs, ``resid_post``), at the first position that differs. A job that enters after the last
   block, or after the last position that is read, and changes nothing that is read, is answered by the
   baseline too.
3. Jobs of one first position run together; rows join the batch at the block where they enter, so a block's
   weights are read once for all of them. Batches are bounded by a budget of tokens.
4. Where one job's writes are the beginning of another's (windows of layers cut at the first), it enters as a
   copy of the other after its last write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.patches import Jobs, Write

LATE = ("mlp", "resid_post")
"""Writes after which nothing is left to do in their block."""


@dataclass(frozen=True)
class Step:
    """One job inside a batch.

    Args:
        job: its number in the table.
        writes: what it writes, the first of them at or before its entry.
        entry: the first block it runs; the number of blocks if none.
        fork: the place in the batch of the job whose state it copies at its entry; None if it has its own.
    """

    job: int
    writes: tuple[Write, ...]
    entry: int
    fork: int | None = None

    @property
    def opening(self) -> Write | None:
        """The write that is done on entering, without a hook."""
        first = self.writes[0]
        done = first.kind == "resid_pre" or (first.kind in LATE and first.layer < self.entry)
        return first if done and self.fork is None else None

    def at(self, layer: int) -> tuple[Write, ...]:
        """What it writes while a block runs."""
        if self.fork is not None or layer < self.entry:
            return ()
        rest = self.writes if self.opening is None else self.writes[1:]
        return tuple(write for write in rest if write.layer == layer)


@dataclass(frozen=True)
class Chunk:
    """Jobs that run as one batch.

    Args:
        steps: in the order in which they enter.
        start: the first position that runs.
        stop: the position before which it ends.
    """

    steps: tuple[Step, ...]
    start: int
    stop: int

    @property
    def first(self) -> int:
        """The first block that runs."""
        return self.steps[0].entry


@dataclass(frozen=True)
class Starts:
    """Where every job enters; ``entry`` is -1 for those that change nothing that is read."""

    entry: Int[Tensor, "job"]
    skip: Int[Tensor, "job"]
    position: Int[Tensor, "job"]


def starts(
    jobs: Jobs, run: CachedRun, source: Mapping[str, Tensor], read: Int[Tensor, "row answer"]
) -> Starts:
    """Find every job's first write that changes anything, and the first position it changes.

    Args:
        jobs: the table.
        run: what is patched.
        source: the values, by hook point.
        read: the positions at which each row is read.
    """
    layers, size = len(run.calls), len(jobs)
    changes = _Changes(run, source)
    entry = torch.full((size,), -1)
    skip, position = torch.zeros_like(entry), torch.zeros_like(entry)
    for number, writes in enumerate(jobs.interventions):
        mine = (jobs.intervention == number).nonzero()[:, 0]
        if not len(mine) or not writes:
            continue
        some = jobs.pick(mine)
        differs = torch.stack([changes.of(write, some) & some.where for write in writes])
        happens = differs.any(-1)
        first = happens.int().argmax(0)
        at = differs.any(0).int().argmax(-1)
        enters = torch.tensor([_entry(writes, i) for i in range(len(writes))], device=first.device)[first]
        reads = read[some.row]
        # Without a block left, only the positions that were changed themselves are read anew.
        seen = (reads >= at[:, None]).any(1)
        seen &= (enters < layers) | differs.any(0).gather(1, reads).any(1)
        mine = mine.cpu()
        entry[mine] = torch.where(happens.any(0) & seen, enters, -1).cpu()
        skip[mine] = first.cpu()
        position[mine] = at.cpu()
    return Starts(entry, skip, position)


def chunks(jobs: Jobs, begin: Starts, read: Int[Tensor, "row answer"], budget: int) -> Iterator[Chunk]:
    """Put jobs that begin at one position together, as many as the budget of tokens allows."""
    live = (begin.entry >= 0).nonzero()[:, 0]
    ends = (read.max(1).values[jobs.row] + 1).cpu()
    for start in sorted(set(begin.position[live].tolist())):
        group = live[begin.position[live] == start]
        stop = int(ends[group].max())
        order = group[torch.argsort(begin.entry[group], stable=True)]
        for part in torch.split(order, max(1, budget // (stop - start))):
            yield Chunk(_steps(jobs, begin, part.tolist()), start, int(ends[part].max()))


def _steps(jobs: Jobs, begin: Starts, numbers: list[int]) -> tuple[Step, ...]:
    """Let jobs whose writes begin another's enter as its copies, and order all by entry."""
    chosen = jobs.pick(torch.tensor(numbers, device=jobs.row.device))
    asked = zip(numbers, chosen.intervention.tolist(), begin.skip[numbers].tolist(), strict=True)
    own = {job: jobs.interventions[number][skip:] for job, number, skip in asked}
    families: dict[object, list[int]] = {}
    if any(len(writes) > 1 for writes in own.values()):
        rows, sources, where = chosen.row.tolist(), chosen.source.tolist(), chosen.where.cpu().numpy()
        for i, job in enumerate(numbers):
            families.setdefault((rows[i], sources[i], where[i].tobytes(), own[job][0]), []).append(job)
    copied: dict[int, tuple[int, int]] = {}
    for family in families.values():
        longest = max(family, key=lambda job: len(own[job]))
        for job in family:
            layer = own[job][-1].layer + 1
            more, begun = own[longest][len(own[job]) :], int(begin.entry[longest]) < layer
            if begun and more and own[longest][: len(own[job])] == own[job] and more[0].layer >= layer:
                copied[job] = (longest, layer)
    entries = {job: copied[job][1] if job in copied else int(begin.entry[job]) for job in numbers}
    order = sorted(numbers, key=entries.__getitem__)
    place = {job: i for i, job in enumerate(order)}
    return tuple(
        Step(job, own[job], entries[job], place[copied[job][0]] if job in copied else None) for job in order
    )


def _entry(writes: tuple[Write, ...], i: int) -> int:
    """The block that an intervention enters if its first write is this one."""
    alone = all(other.layer > writes[i].layer for other in writes[i + 1 :])
    return writes[i].layer + (writes[i].kind in LATE and alone)


class _Changes:
    """Where a source differs from a run, compared once per hook point and pair of rows."""

    def __init__(self, run: CachedRun, source: Mapping[str, Tensor]) -> None:
        self._run, self._source = run, source
        self._known: dict[Write, dict[tuple[int, int], Tensor]] = {}

    def of(self, write: Write, jobs: Jobs) -> Bool[Tensor, "job pos"]:
        known = self._known.setdefault(write, {})
        pairs = list(zip(jobs.row.tolist(), jobs.source.tolist(), strict=True))
        new = list(dict.fromkeys(pair for pair in pairs if pair not in known))
        if new:
            rows, sources = torch.tensor(new, device=jobs.row.device).unbind(1)
            here = _units(self._run.activations[write.name][rows], write)
            there = _units(self._source[write.name][sources], write)
            differs = rearrange(here != there, "row pos ... -> row pos (...)").any(-1)
            known.update(zip(new, differs, strict=True))
        return torch.stack([known[pair] for pair in pairs])


def _units(activation: Tensor, write: Write) -> Tensor:
    """The written units, positions on the second axis."""
    if write.units is not None:
        activation = activation.index_select(write.axis, torch.tensor(write.units, device=activation.device))
    return activation.transpose(1, 2) if write.axis == 1 else activation
