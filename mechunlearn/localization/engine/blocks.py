"""Run jobs from the block and the position at which they begin to differ.

1. Jobs of one batch enter at their blocks: with the run's own state there, changed where their first write
   says, or as a copy of another job's state.
2. Every block runs on all rows that have entered, from the batch's first position on; the keys and values of
   earlier positions are the run's. It is the bridge's block, called as the run called it, so hooks inside
   fire.
3. After the last block the states are gathered where they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.localization.engine.block_calls import PrefixCache
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.fused_block import run_components
from mechunlearn.localization.engine.patch_hooks import Writer
from mechunlearn.localization.engine.patches import Jobs
from mechunlearn.localization.engine.planning import Chunk, Step
from mechunlearn.models.hooked import HookedModel


def run_chunk(
    hm: HookedModel,
    run: CachedRun,
    source: Mapping[str, Tensor],
    jobs: Jobs,
    chunk: Chunk,
    writer: Writer,
    read: Int[Tensor, "row answer"],
    *,
    parts: bool,
) -> Float[Tensor, "job answer d_model"]:
    """Run one batch of jobs; gives their final states where they are read, in the order of its steps.

    Args:
        hm: the model.
        run: what is patched.
        source: the values written.
        jobs: the table.
        chunk: which of them run, and over which positions.
        writer: its hooks are in place.
        read: where each row of the run is read.
        parts: run blocks without hooks part by part; see `components`.
    """
    layers = len(run.calls)
    numbers = torch.tensor([step.job for step in chunk.steps], device=jobs.row.device)
    rows = jobs.row[numbers]
    width = run.resid[0].shape[-1]
    state = run.resid[0].new_empty(0, chunk.stop - chunk.start, width)
    for layer in range(chunk.first, layers + 1):
        entering = [step for step in chunk.steps[len(state) :] if step.entry == layer]
        if entering:
            state = torch.cat([state, _entry(run, source, jobs, chunk, entering, layer, state)])
        if layer < layers:
            active = enumerate(chunk.steps[: len(state)])
            writes = [(row, step.job, write) for row, step in active for write in step.at(layer)]
            writer.set(writes, jobs, source, start=chunk.start, stop=chunk.stop)
            some = rows[: len(state)]
            if not parts or writer.now:
                state = run_block(hm, run, layer, state, some, chunk.start)
            elif layer < layers - 1 or len(some) < len(rows):
                state = run_components(hm, run, layer, state, some, chunk.start)
            else:
                wanted = _offset(read[rows], chunk.start, state.shape[1])
                ran = run_components(hm, run, layer, state, rows, chunk.start, wanted=wanted)
                return _known(run, ran, rows, read[rows], chunk.start)
    index = _offset(read[rows], chunk.start, state.shape[1])
    ran = state.gather(1, index[..., None].expand(-1, -1, state.shape[-1]))
    return _known(run, ran, rows, read[rows], chunk.start)


def run_block(
    hm: HookedModel,
    run: CachedRun,
    layer: int,
    state: Float[Tensor, "job pos d_model"],
    rows: Int[Tensor, "job"],
    start: int,
) -> Float[Tensor, "job pos d_model"]:
    """Run one block on some rows from one position on."""
    before = PrefixCache(run.keys[layer][rows, :, :start], run.values[layer][rows, :, :start])
    call = run.calls[layer].cut(rows, start, start + state.shape[1])
    args, kwargs = call.filled(state, before)
    found = hm.bridge.blocks[layer](*args, **kwargs)
    out: Tensor = found[0] if isinstance(found, tuple) else found
    return out


def _entry(
    run: CachedRun,
    source: Mapping[str, Tensor],
    jobs: Jobs,
    chunk: Chunk,
    steps: Sequence[Step],
    layer: int,
    state: Float[Tensor, "job pos d_model"],
) -> Float[Tensor, "entering pos d_model"]:
    """The states with which jobs enter a block."""
    numbers = torch.tensor([step.job for step in steps], device=jobs.row.device)
    span = slice(chunk.start, chunk.stop)
    entered = run.resid[layer][jobs.row[numbers], span]
    opened: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        if step.fork is not None:
            entered[i] = state[step.fork]
        elif step.opening is not None:
            opened.setdefault(step.opening.name, []).append(i)
    for name, some in opened.items():
        index = torch.tensor(some, device=numbers.device)
        job = numbers[index]
        written = source[name][jobs.source[job], span].to(entered)
        if name.endswith("mlp_out"):
            written = entered[index] + (written - run.activations[name][jobs.row[job], span])
        entered[index] = torch.where(jobs.where[job, span, None], written, entered[index])
    return entered


def _offset(reads: Int[Tensor, "job answer"], start: int, size: int) -> Int[Tensor, "job answer"]:
    """Where the read positions lie among those that ran."""
    return (reads - start).clamp(min=0, max=size - 1)


def _known(
    run: CachedRun,
    ran: Float[Tensor, "job answer d_model"],
    rows: Int[Tensor, "job"],
    reads: Int[Tensor, "job answer"],
    start: int,
) -> Float[Tensor, "job answer d_model"]:
    """The states that ran; before the first position that did, they are the run's own."""
    own = run.resid[-1][rows[:, None], reads]
    return torch.where((reads >= start)[..., None], ran, own)
