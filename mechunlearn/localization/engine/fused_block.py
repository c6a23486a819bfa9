"""A block run part by part, at the positions that are wanted: the faster way where nobody listens inside.

1. Norms, projections, rotary angles, masks and the MLP are the model's own, found through the bridge.
   Nothing is known of families but whether the block has post-norms and whether attention and MLP run in
   parallel.
2. Queries, and all that follows attention, are computed only at the wanted positions: after the last block
   that is where the answer is read.
3. Attention is torch's fused kernel (spelt out where scores are capped), and GPT-2's activation its fused
   form.

It is used for a layer in which no hook is set, on models for which it gave what the blocks give (`guards`).
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


def run_components(
    hm: HookedModel,
    run: CachedRun,
    layer: int,
    state: Float[Tensor, "job pos d_model"],
    rows: Int[Tensor, "job"],
    start: int,
    *,
    wanted: Int[Tensor, "job answer"] | None = None,
) -> Float[Tensor, "job out d_model"]:
    """Run one block on some rows from one position on.

    Args:
        hm: the model.
        run: what the rows are rows of.
        layer: the block.
        state: what enters it.
        rows: of the run.
        start: the first position.
        wanted: positions whose output is wanted, counted from `start`; None for all.
    """
    block = hm.bridge.blocks[layer]
    call = run.calls[layer].cut(rows, start, start + state.shape[1])
    before = PrefixCache(run.keys[layer][rows, :, :start], run.values[layer][rows, :, :start])
    normed = plain(block.ln1)(state)
    stream = state if wanted is None else _at(state, wanted)
    attended = _attention(hm, block, normed, call, before, wanted)
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
    normed: Float[Tensor, "job pos d_model"],
    call: Call,
    before: PrefixCache,
    wanted: Int[Tensor, "job answer"] | None,
) -> Float[Tensor, "job out d_model"]:
    attn, width = block.attn, hm.arch.d_head
    asking = normed if wanted is None else _at(normed, wanted)
    queries = _heads(plain(attn.q)(asking), width)
    keys, values = _heads(plain(attn.k)(normed), width), _heads(plain(attn.v)(normed), width)
    mask, angles = _mask(call), _angles(call)
    if angles is not None:
        keys = _rotated(keys, *angles)
        queries = _rotated(queries, *(each if wanted is None else _at(each, wanted) for each in angles))
    if mask is not None and wanted is not None:
        mask = _at(mask[:, 0], wanted)[:, None]
    keys, values = before.update(keys, values, 0)
    # Some families' softmax is in float32 whatever the precision is; in float64 that is seen.
    narrow = queries.dtype == torch.float64 and family_of(hm.arch.architecture).softmax32
    out = _attend(attn.original_component, queries, keys, values, mask, narrow=narrow)
    projected: Tensor = plain(attn.o)(rearrange(out, "job head pos d_head -> job pos (head d_head)"))
    return projected


def _attend(
    attention: Any,
    queries: Float[Tensor, "job head out d_head"],
    keys: Float[Tensor, "job kv all d_head"],
    values: Float[Tensor, "job kv all d_head"],
    mask: Float[Tensor, "#job 1 out all"] | None,
    *,
    narrow: bool,
) -> Float[Tensor, "job head out d_head"]:
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


def mlp_out(block: Any, normed: Float[Tensor, "job pos d_model"]) -> Float[Tensor, "job pos d_model"]:
    """The MLP, with its activation in one kernel where it is GPT-2's."""
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


def _heads(projected: Float[Tensor, "job pos all"], width: int) -> Float[Tensor, "job head pos d_head"]:
    return rearrange(projected, "job pos (head d_head) -> job head pos d_head", d_head=width)


def _at(value: Tensor, wanted: Int[Tensor, "job answer"]) -> Tensor:
    """Each row's wanted positions on the second axis."""
    value = value.expand(len(wanted), *value.shape[1:])
    return value.gather(1, wanted[..., None].expand(-1, -1, value.shape[-1]))


def _mask(call: Call) -> Tensor | None:
    given = (*call.args, *call.kwargs.values())
    found = [each for each in given if isinstance(each, Tensor) and each.ndim == 4]
    return found[0] if found else None


def _angles(call: Call) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines of the rotary positions, if the block is given any."""
    given = (*call.args, *call.kwargs.values())
    pairs = [each for each in given if isinstance(each, tuple) and len(each) == 2]
    return pairs[0] if pairs else None


def _rotated(
    vectors: Float[Tensor, "job head pos d_head"], cosine: Tensor, sine: Tensor
) -> Float[Tensor, "job head pos d_head"]:
    """Turn the first components of each vector by its position's angles."""
    width = cosine.shape[-1]
    turned, rest = vectors[..., :width], vectors[..., width:]
    first, second = turned.chunk(2, dim=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    turned = turned * cosine + torch.cat([-second, first], dim=-1) * sine
    return turned if not rest.shape[-1] else torch.cat([turned, rest], dim=-1)
