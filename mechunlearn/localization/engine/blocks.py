"""Run a batch of patches from the block and the position at which each begins to differ from the run.

1. A patch enters at its block: with the run's own state there, changed where its first write says, or with a
   copy of another patch's state.
2. Every block runs on all rows that have entered, from the batch's first position on, with the run's keys and
   values of earlier positions. It is the bridge's own block, called as the run called it, so its hooks fire.
   A block in which no patch writes may run in its fused form instead.
3. After the last block the states are gathered where they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.localization.engine.block_calls import PrefixCache
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.fused_block import run_fused_block
from mechunlearn.localization.engine.patch_hooks import PatchHooks
from mechunlearn.localization.engine.patches import Patches
from mechunlearn.localization.engine.planning import PatchBatch, PlannedPatch
from mechunlearn.models.hooked import HookedModel


def run_batch(
    hm: HookedModel,
    run: CachedRun,
    source: Mapping[str, Tensor],
    patches: Patches,
    batch: PatchBatch,
    hooks: PatchHooks,
    read: Int[Tensor, "row answer"],
    *,
    fused: bool,
) -> Float[Tensor, "patch answer d_model"]:
    """Run one batch of patches, and give their final states where they are read, in the order of the batch.

    The hooks are already set in the model. ``fused`` runs blocks in which nothing is written in fused form.
    """
    layers = len(run.calls)
    numbers = torch.tensor([patch.number for patch in batch.patches], device=patches.row.device)
    rows = patches.row[numbers]
    reads = read[rows]
    # States at positions that did not run are replaced at the end; until then any valid index will do.
    offsets = (reads - batch.start).clamp(min=0, max=batch.stop - batch.start - 1)
    state = run.resid[0].new_empty(0, batch.stop - batch.start, run.resid[0].shape[-1])
    for layer in range(batch.patches[0].entry, layers + 1):
        entering = [patch for patch in batch.patches[len(state) :] if patch.entry == layer]
        if entering:
            state = torch.cat([state, _entry_states(run, source, patches, batch, entering, layer, state)])
        if layer == layers:
            break
        active = enumerate(batch.patches[: len(state)])
        writes = [(row, patch.number, write) for row, patch in active for write in patch.writes_at(layer)]
        hooks.lay_out(writes, patches, source, start=batch.start, stop=batch.stop)
        some = rows[: len(state)]
        if not fused or hooks.current:
            state = run_block(hm, run, layer, state, some, batch.start)
        elif layer < layers - 1 or len(some) < len(rows):
            state = run_fused_block(hm, run, layer, state, some, batch.start)
        else:
            # No row joins after the last block, so only the positions that are read have to leave it.
            states = run_fused_block(hm, run, layer, state, rows, batch.start, positions=offsets)
            return _with_unchanged(run, states, rows, reads, batch.start)
    states = state.gather(1, offsets[..., None].expand(-1, -1, state.shape[-1]))
    return _with_unchanged(run, states, rows, reads, batch.start)


def run_block(
    hm: HookedModel,
    run: CachedRun,
    layer: int,
    state: Float[Tensor, "patch pos d_model"],
    rows: Int[Tensor, "patch"],
    start: int,
) -> Float[Tensor, "patch pos d_model"]:
    """Run one block on some rows of a run, from position `start` on."""
    before = PrefixCache(run.keys[layer][rows, :, :start], run.values[layer][rows, :, :start])
    call = run.calls[layer].cut(rows, start, start + state.shape[1])
    args, kwargs = call.filled(state, before)
    result = hm.bridge.blocks[layer](*args, **kwargs)
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out


def _entry_states(
    run: CachedRun,
    source: Mapping[str, Tensor],
    patches: Patches,
    batch: PatchBatch,
    entering: Sequence[PlannedPatch],
    layer: int,
    state: Float[Tensor, "patch pos d_model"],
) -> Float[Tensor, "entering pos d_model"]:
    """The states with which patches enter a block."""
    numbers = torch.tensor([patch.number for patch in entering], device=patches.row.device)
    span = slice(batch.start, batch.stop)
    states = run.resid[layer][patches.row[numbers], span]
    written: dict[str, list[int]] = {}
    for i, patch in enumerate(entering):
        if patch.original is not None:
            states[i] = state[patch.original]
        elif patch.entry_write is not None:
            written.setdefault(patch.entry_write.name, []).append(i)
    for name, indices in written.items():
        index = torch.tensor(indices, device=numbers.device)
        chosen = numbers[index]
        values = source[name][patches.source[chosen], span].to(states)
        if name.endswith("mlp_out"):
            # An MLP adds to the stream, so the state changes by what its output changes.
            values = states[index] + (values - run.activations[name][patches.row[chosen], span])
        states[index] = torch.where(patches.where[chosen, span, None], values, states[index])
    return states


def _with_unchanged(
    run: CachedRun,
    states: Float[Tensor, "patch answer d_model"],
    rows: Int[Tensor, "patch"],
    reads: Int[Tensor, "patch answer"],
    start: int,
) -> Float[Tensor, "patch answer d_model"]:
    """The states at the positions that ran, and the run's own at positions before them."""
    unchanged = run.resid[-1][rows[:, None], reads]
    return torch.where((reads >= start)[..., None], states, unchanged)
