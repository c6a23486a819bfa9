"""Decide which patches have to run at all, from which block and position, and together with which others.

A patch at position p in layer l can only change positions from p on in layers from l on. So, for every patch:

1. Its first writes are skipped as long as they equal what the run has there. If all are skipped, the patch
   has the metric of the run itself.
2. It enters the run at the block of its first write, or after that block where the write is the last thing
   the block does (``mlp`` outputs, ``resid_post``), at the first position that differs. A patch that enters
   after the last block, or after the last position that is read, and changes no state that is read, has the
   metric of the run itself, too.
3. Patches with the same first position run as one batch. A row joins the batch at the block where it enters,
   so a block's weights are read once for all rows. Batches are bounded by a budget of tokens.
4. A patch whose writes are the first of another's (windows cut at the first layer) has the other's states
   until its writes end. There it joins the batch as a copy of the other's row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.patches import Patches, Write

LATE = ("mlp", "resid_post")
"""Kinds of writes that are the last thing their block does."""


@dataclass(frozen=True)
class PlannedPatch:
    """One patch of a batch, with its writes from the first that changes anything.

    ``entry`` is the first block that it runs, or the number of blocks if it runs none. ``original`` is the
    index in the batch of the patch whose state it copies when it enters, or None.
    """

    number: int
    writes: tuple[Write, ...]
    entry: int
    original: int | None = None

    @property
    def entry_write(self) -> Write | None:
        """The write into the stream that it enters with, which needs no hook."""
        first = self.writes[0]
        ready = first.kind == "resid_pre" or (first.kind in LATE and first.layer < self.entry)
        return first if ready and self.original is None else None

    def writes_at(self, layer: int) -> tuple[Write, ...]:
        """The writes that hooks make while a block runs."""
        # The state that a copy enters with already holds all its writes.
        if self.original is not None or layer < self.entry:
            return ()
        rest = self.writes if self.entry_write is None else self.writes[1:]
        return tuple(write for write in rest if write.layer == layer)


@dataclass(frozen=True)
class PatchBatch:
    """Patches in the order in which they enter, and the positions ``start`` to ``stop - 1`` that run."""

    patches: tuple[PlannedPatch, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Entries:
    """Where every patch enters the run.

    ``block`` is the first block that it runs, or -1 if it changes nothing that is read; ``skip`` is how many
    of its writes are skipped; ``position`` is the first position that it changes.
    """

    block: Int[Tensor, "patch"]
    skip: Int[Tensor, "patch"]
    position: Int[Tensor, "patch"]


def entries_of(
    patches: Patches, run: CachedRun, source: Mapping[str, Tensor], read: Int[Tensor, "row answer"]
) -> Entries:
    """Find every patch's first write that changes anything, and the first position it changes."""
    layers, size = len(run.calls), len(patches)
    changes = _Changes(run, source)
    block = torch.full((size,), -1)
    skip, position = torch.zeros_like(block), torch.zeros_like(block)
    for number, writes in enumerate(patches.interventions):
        index = (patches.intervention == number).nonzero()[:, 0]
        if not len(index) or not writes:
            continue
        some = patches.pick(index)
        differs = torch.stack([changes.of(write, some) & some.where for write in writes])
        # Of equal values argmax takes the first: here the first write, and the first position, that differs.
        first = differs.any(-1).int().argmax(0)
        begin = differs.any(0).int().argmax(-1)
        blocks = torch.tensor([_entry_block(writes, i) for i in range(len(writes))], device=first.device)
        enters = blocks[first]
        # Attention carries a change to later positions; after the last block nothing does.
        reads = read[some.row]
        matters = (reads >= begin[:, None]).any(1)
        matters &= (enters < layers) | differs.any(0).gather(1, reads).any(1)
        index = index.cpu()
        block[index] = torch.where(differs.any(-1).any(0) & matters, enters, -1).cpu()
        skip[index] = first.cpu()
        position[index] = begin.cpu()
    return Entries(block, skip, position)


def batches(
    patches: Patches, entries: Entries, read: Int[Tensor, "row answer"], budget: int
) -> Iterator[PatchBatch]:
    """Put patches that begin at the same position together, as many as the budget of tokens allows."""
    live = (entries.block >= 0).nonzero()[:, 0]
    ends = (read.max(1).values[patches.row] + 1).cpu()
    for start in sorted(set(entries.position[live].tolist())):
        group = live[entries.position[live] == start]
        stop = int(ends[group].max())
        # Patches with neighbouring entries share a batch, so that its rows run few blocks in vain.
        order = group[torch.argsort(entries.block[group], stable=True)]
        for part in torch.split(order, max(1, budget // (stop - start))):
            yield PatchBatch(_planned(patches, entries, part.tolist()), start, int(ends[part].max()))


def _planned(patches: Patches, entries: Entries, numbers: list[int]) -> tuple[PlannedPatch, ...]:
    """Plan the patches of one batch, in the order in which they enter."""
    some = patches.pick(torch.tensor(numbers, device=patches.row.device))
    columns = zip(numbers, some.intervention.tolist(), entries.skip[numbers].tolist(), strict=True)
    writes = {number: patches.interventions[i][skip:] for number, i, skip in columns}
    copies = _copies(some, entries, numbers, writes)
    blocks = {n: copies[n][1] if n in copies else int(entries.block[n]) for n in numbers}
    # Rows are appended to the batch as they enter, so the order of entry is the order of rows. A copy enters
    # later than its original, whose row exists by then.
    order = sorted(numbers, key=blocks.__getitem__)
    row = {number: i for i, number in enumerate(order)}
    return tuple(
        PlannedPatch(n, writes[n], blocks[n], row[copies[n][0]] if n in copies else None) for n in order
    )


def _copies(
    some: Patches, entries: Entries, numbers: list[int], writes: Mapping[int, tuple[Write, ...]]
) -> dict[int, tuple[int, int]]:
    """Find patches that can copy the state of another, which writes the same and then more.

    The result maps a patch's number to the other's number and the block at which the state is copied.
    """
    # Where all patches have one write, none continues another, and the comparison of positions is spared.
    if all(len(each) == 1 for each in writes.values()):
        return {}
    groups: dict[object, list[int]] = {}
    rows, sources, where = some.row.tolist(), some.source.tolist(), some.where.cpu().numpy()
    for i, number in enumerate(numbers):
        # Equal states need the same row, the same values at the same positions, and the same first write.
        key = rows[i], sources[i], where[i].tobytes(), writes[number][0]
        groups.setdefault(key, []).append(number)
    copies: dict[int, tuple[int, int]] = {}
    for group in groups.values():
        longest = max(group, key=lambda number: len(writes[number]))
        for number in group:
            count, layer = len(writes[number]), writes[number][-1].layer + 1
            if count == len(writes[longest]) or writes[longest][:count] != writes[number]:
                continue
            # The states are equal before block `layer` if the longest patch has written nothing more by then.
            # If it has not run a block by then, there is no work to save.
            if writes[longest][count].layer >= layer > int(entries.block[longest]):
                copies[number] = (longest, layer)
    return copies


def _entry_block(writes: tuple[Write, ...], i: int) -> int:
    """The block at which an intervention enters if its first write that changes anything is number i."""
    # A late write leaves nothing to do in its block, unless another write follows there.
    alone = all(write.layer > writes[i].layer for write in writes[i + 1 :])
    return writes[i].layer + (writes[i].kind in LATE and alone)


class _Changes:
    """Where a source differs from a run, compared once per write and pair of rows."""

    def __init__(self, run: CachedRun, source: Mapping[str, Tensor]) -> None:
        self._run, self._source = run, source
        self._compared: dict[Write, dict[tuple[int, int], Tensor]] = {}

    def of(self, write: Write, patches: Patches) -> Bool[Tensor, "patch pos"]:
        compared = self._compared.setdefault(write, {})
        pairs = list(zip(patches.row.tolist(), patches.source.tolist(), strict=True))
        new = list(dict.fromkeys(pair for pair in pairs if pair not in compared))
        if new:
            rows, sources = torch.tensor(new, device=patches.row.device).unbind(1)
            here = _units(self._run.activations[write.name][rows], write)
            there = _units(self._source[write.name][sources], write)
            differs = rearrange(here != there, "row pos ... -> row pos (...)").any(-1)
            compared.update(zip(new, differs, strict=True))
        return torch.stack([compared[pair] for pair in pairs])


def _units(activation: Tensor, write: Write) -> Tensor:
    """The written units, positions on the second axis."""
    if write.units is not None:
        activation = activation.index_select(write.axis, torch.tensor(write.units, device=activation.device))
    return activation.transpose(1, 2) if write.axis == 1 else activation
