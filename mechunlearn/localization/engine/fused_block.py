"""A block computed with fused kernels, and only at the positions that are needed.

1. Norms, projections, rotary angles, masks and the MLP are the model's own, found through the bridge. Of its
   family it matters only whether blocks have post-norms, and whether attention and MLP run in parallel.
2. Queries, and all that follows attention, are computed only at the positions that are needed: after the last
   block, those at which the answer is read.
3. Attention is torch's fused kernel (or written out, where scores are capped), and so is GPT-2's activation.

It is faster than the bridge's block, whose inner hooks it does not fire. So it is used for blocks in which no
hook is set, on models for which `self_check` gave the same states.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mechunlearn.localization.engine.block_calls import Call, PrefixCache
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.models.families import family_of
from mechunlearn.models.hooked import HookedModel


def run_fused_block(
    hm: HookedModel,
    run: CachedRun,
    layer: int,
    state: Float[Tensor, "patch pos d_model"],
    rows: Int[Tensor, "patch"],
    start: int,
    *,
    positions: Int[Tensor, "patch answer"] | None = None,
) -> Float[Tensor, "patch out d_model"]:
    """Run one block on some rows of a run, from position ``start`` on.

    ``rows`` holds the row of the run for each row of ``state``, the residual stream that enters the block.
    The result is at ``positions``, counted from ``start``; None for all.
    """
    block = hm.bridge.blocks[layer]
    call = run.calls[layer].cut(rows, start, start + state.shape[1])
    prefix = PrefixCache(run.keys[layer][rows, :, :start], run.values[layer][rows, :, :start])
    normed = plain(block.ln1)(state)
    stream = state if positions is None else _at(state, positions)
    attended = _attention(hm, block, normed, call, prefix, positions)
    if hasattr(block, "ln1_post"):
        attended = plain(block.ln1_post)(attended)
    if hm.arch.parallel:
        return stream + attended + mlp_out(block, plain(block.ln2)(stream))
    middle = stream + attended
    written = mlp_out(block, plain(block.ln2)(middle))
    if hasattr(block, "ln2_post"):
        written = plain(block.ln2_post)(written)
    return middle + written


def _attention(
    hm: HookedModel,
    block: Any,
    normed: Float[Tensor, "patch pos d_model"],
    call: Call,
    prefix: PrefixCache,
    positions: Int[Tensor, "patch answer"] | None,
) -> Float[Tensor, "patch out d_model"]:
    attn, width = block.attn, hm.arch.d_head
    queries = _heads(plain(attn.q)(normed if positions is None else _at(normed, positions)), width)
    keys, values = _heads(plain(attn.k)(normed), width), _heads(plain(attn.v)(normed), width)
    mask, angles = _mask(call), _angles(call)
    if angles is not None:
        keys = _rotated(keys, *angles)
        queries = _rotated(queries, *(each if positions is None else _at(each, positions) for each in angles))
    if mask is not None and positions is not None:
        mask = _at(mask[:, 0], positions)[:, None]
    keys, values = prefix.update(keys, values, 0)
    # Some families compute the softmax in float32 whatever the precision; in float64 the difference shows.
    narrow = queries.dtype == torch.float64 and family_of(hm.arch.architecture).softmax32
    out = _attend(attn.original_component, queries, keys, values, mask, narrow=narrow)
    projected: Tensor = plain(attn.o)(rearrange(out, "patch head pos d_head -> patch pos (head d_head)"))
    return projected


def _attend(
    attention: Any,
    queries: Float[Tensor, "patch head out d_head"],
    keys: Float[Tensor, "patch kv all d_head"],
    values: Float[Tensor, "patch kv all d_head"],
    mask: Float[Tensor, "#patch 1 out all"] | None,
    *,
    narrow: bool,
) -> Float[Tensor, "patch head out d_head"]:
    scale = getattr(attention, "scaling", queries.shape[-1] ** -0.5)
    shared = queries.shape[1] // keys.shape[1]
    if shared > 1:
        keys, values = keys.repeat_interleave(shared, dim=1), values.repeat_interleave(shared, dim=1)
    cap = getattr(attention, "attn_logit_softcapping", None)
    if cap is None and not narrow:
        fused: Tensor = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=scale
        )
        return fused
    scores = queries @ keys.transpose(-1, -2) * scale
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    masked = scores if mask is None else scores + mask
    pattern: Tensor = masked.softmax(-1, dtype=torch.float32 if narrow else None).to(values)
    return pattern @ values


def mlp_out(block: Any, normed: Float[Tensor, "patch pos d_model"]) -> Float[Tensor, "patch pos d_model"]:
    """The output of the MLP; GPT-2's activation is computed in one kernel."""
    from transformers.activations import NewGELUActivation

    mlp = plain(block.mlp)
    if not isinstance(getattr(mlp, "act", None), NewGELUActivation):
        written: Tensor = mlp(normed)
        return written
    neurons = functional.gelu(plain(getattr(block.mlp, "in"))(normed), approximate="tanh")
    out: Tensor = plain(block.mlp.out)(neurons)
    return out


def plain(component: Any) -> Any:
    """The module under a bridge component."""
    return component.original_component


def _heads(projected: Float[Tensor, "patch pos all"], width: int) -> Float[Tensor, "patch head pos d_head"]:
    return rearrange(projected, "patch pos (head d_head) -> patch head pos d_head", d_head=width)


def _at(value: Tensor, positions: Int[Tensor, "patch answer"]) -> Tensor:
    """Each row's values at its own positions, which are on the second axis."""
    value = value.expand(len(positions), *value.shape[1:])
    return value.gather(1, positions[..., None].expand(-1, -1, value.shape[-1]))


def _mask(call: Call) -> Tensor | None:
    # No other argument of a block has four axes: the residual stream has three, and rotary angles too.
    values = (*call.args, *call.kwargs.values())
    return next((value for value in values if isinstance(value, Tensor) and value.ndim == 4), None)


def _angles(call: Call) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines of the rotary positions; None if the block has no such argument."""
    values = (*call.args, *call.kwargs.values())
    return next((value for value in values if isinstance(value, tuple) and len(value) == 2), None)


def _rotated(
    vectors: Float[Tensor, "patch head pos d_head"], cosine: Tensor, sine: Tensor
) -> Float[Tensor, "patch head pos d_head"]:
    """Rotate the first components of each vector by its position's angles."""
    width = cosine.shape[-1]
    rotated, rest = vectors[..., :width], vectors[..., width:]
    first, second = rotated.chunk(2, dim=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    rotated = rotated * cosine + torch.cat([-second, first], dim=-1) * sine
    return rotated if not rest.shape[-1] else torch.cat([rotated, rest], dim=-1)
