"""Activations of one forward pass, which ends as soon as everything that is needed has been read.

1. Hooks read the named activations. After the last of them `StopRun` ends the pass: blocks above it, and the
   logits, are never computed. Everything in the package that ends a run early raises `StopRun`.
2. `activations` keeps whole activations of one batch on its device. `capture` keeps single positions of many
   rows on the CPU: rows are sorted by the last position to read and cut after it, since in a causal model
   later tokens change nothing. So a batch holds rows of similar length and hardly any padding.
3. The result of `capture` is copied once per batch into arrays allocated once, so memory holds one
   batch and the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.hooks import Hook
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, one_of
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hook_checks import Requested, check_name
from mechunlearn.models.hooked import HookedModel

Position = Literal["last_subject", "last"]


class StopRun(Exception):
    """Ends a forward pass early, because everything that is needed has been computed; not an error."""


def probe_sites(hm: HookedModel) -> list[Site]:
    """List the states to read: the embedding, then every layer's ``resid_mid`` and ``resid_post``.

    Models that run attention and MLP in parallel (most GPT-NeoX) have no ``resid_mid``.
    """
    kinds = ("resid_post",) if hm.arch.parallel else ("resid_mid", "resid_post")
    layers = range(hm.arch.shape.n_layers)
    return [Site("resid_pre", 0), *(Site(kind, layer) for layer in layers for kind in kinds)]


def states_at(
    hm: HookedModel,
    facts: Sequence[Fact],
    sites: Sequence[Site],
    *,
    positions: Position = "last_subject",
    batch_size: int = 64,
) -> Float[Tensor, "site fact d_model"]:
    """Read the residual stream of every prompt at one token, in one pass for all sites.

    The states are in float64 on the CPU. Prompts are run without an answer.
    """
    if positions not in ("last_subject", "last"):
        raise ScoresError(one_of("positions", positions, ["last_subject", "last"]))
    names = [hm.arch.hooks(site)[0].name for site in sites]
    batch = encode(hm, facts, answer=None)
    where = batch.subject_last if positions == "last_subject" else batch.end
    states = capture(hm.bridge, batch.tokens, names, where[:, None], mask=batch.mask, batch_size=batch_size)
    values = torch.empty(len(names), len(batch), hm.hf.config.hidden_size, dtype=torch.float64)
    for row, name in enumerate(names):
        values[row] = states[name][:, 0]
    return values


def activations(
    hm: HookedModel, batch: Batch, names: Iterable[str], *, hooks: Sequence[Hook] = ()
) -> dict[str, Float[Tensor, "row ..."]]:
    """Run one batch as far as needed, and return whole activations by hook point, on the model's device.

    Where ``hooks`` change an activation, the changed one is read. HookError if a hook point does not exist or
    is never reached.
    """
    return _read(hm.bridge, batch.tokens, batch.mask, list(names), hooks=hooks)


def capture(
    bridge: Any,
    tokens: Int[Tensor, "row pos"],
    names: Sequence[str],
    where: Int[Tensor, "row at"],
    *,
    mask: Int[Tensor, "row pos"] | None = None,
    batch_size: int = 64,
) -> dict[str, Float[Tensor, "row at ..."]]:
    """Read activations at the positions ``where`` of every row, counted from 0; nothing else is computed.

    ``bridge`` is a TransformerBridge, ``hm.bridge`` or ``hm.folded()``. Tokens are padded on the right; None
    as ``mask`` stands for no padding. The result is by hook point, on the CPU, in the model's precision.
    HookError if a hook point does not exist or is never reached, ScoresError if a position is not in the row.
    """
    positive(ScoresError, batch_size=batch_size)
    if not ((where >= 0) & (where < tokens.shape[1])).all():
        raise ScoresError(
            f"where= holds positions {int(where.min())} to {int(where.max())}, but the rows have "
            f"{tokens.shape[1]} tokens, counted from 0"
        )
    if not names:
        return {}
    # In a causal model, tokens after the last position to read change nothing, so rows are cut there.
    last = where.amax(1)
    states: dict[str, Tensor] = {}
    for rows in torch.split(last.argsort(stable=True), batch_size):
        width = int(last[rows].max()) + 1
        here = torch.ones_like(tokens[rows, :width]) if mask is None else mask[rows, :width]
        for name, part in _read(bridge, tokens[rows, :width], here, names, where=where[rows]).items():
            if name not in states:
                states[name] = torch.empty(len(tokens), *part.shape[1:], dtype=part.dtype)
            states[name][rows.cpu()] = part.cpu()
    return states


def _read(
    bridge: Any,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    names: Sequence[str],
    *,
    where: Int[Tensor, "batch at"] | None = None,
    hooks: Sequence[Hook] = (),
) -> dict[str, Tensor]:
    """Run one batch until all names have been read, at some positions or (None) at all."""
    for name in names:
        check_name(name, bridge.hook_dict)
    store: dict[str, Tensor] = {}
    distinct = list(dict.fromkeys(names))
    # The readers come last, so that they see what the other hooks write.
    readers = [_reader(name, where, store, len(distinct)) for name in distinct]
    requested = Requested([*hooks, *readers], direction="fwd")
    device = next(bridge.parameters()).device
    try:
        with torch.no_grad(), bridge.hooks(fwd_hooks=requested.pairs):
            bridge(tokens.to(device), attention_mask=mask.to(device), return_type=None)
    except StopRun:
        pass
    requested.require_fired(bridge.cfg.architecture or "this model")
    return store


def _reader(name: str, where: Int[Tensor, "batch at"] | None, store: dict[str, Tensor], count: int) -> Hook:
    def read(activation: Tensor, hook: Any = None) -> None:
        if where is None:
            store[name] = activation.detach().clone()
        else:
            # A model that is spread over devices has its layers' activations on theirs.
            device = activation.device
            rows = torch.arange(len(where), device=device)[:, None]
            store[name] = activation.detach()[rows, where.to(device)]
        if len(store) == count:
            raise StopRun

    return Hook(name, read)
