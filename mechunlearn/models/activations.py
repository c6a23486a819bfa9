"""Activations at single positions, for all layers, from one forward pass.

1. Rows are taken in the order of the last position that is asked of them, and cut off after it: in a causal
   model nothing later can matter. So a batch holds rows of like length, and hardly any padding.
2. Hooks keep the positions that are asked for and nothing else, in the precision they come in. As soon as
   every hook has fired, the run is stopped: layers above, and the logits, are never computed.
3. What is kept leaves the device once per batch, and goes into arrays that were allocated once.

So memory is what one batch needs, and the result itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.hooks import Hook
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import HookError, ScoresError, one_of, require_positive
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hook_checks import check_name, never_fired
from mechunlearn.models.hooked import HookedModel

Position = Literal["last_subject", "last"]


class _Complete(Exception):
    """Everything that was asked for has been read."""


def probe_sites(hm: HookedModel) -> list[Site]:
    """The sites to read: the embedding, then every layer's ``resid_mid`` and ``resid_post``.

    Models that run attention and MLP in parallel (most GPT-NeoX) have no ``resid_mid``.

    Example:
        >>> [str(site) for site in probe_sites(mu.world.model())][:3]
        ['L0.resid_pre', 'L0.resid_mid', 'L0.resid_post']
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
    """Read the residual stream of every prompt at one position, in one pass for all sites.

    Args:
        hm: the model.
        facts: their prompts are run, without an answer.
        sites: residual-stream sites.
        positions: ``"last_subject"`` token or ``"last"`` token of the prompt.
        batch_size: prompts per forward pass.

    Returns:
        In float64 on the CPU.

    Raises:
        ScoresError: for unknown `positions`, or a `batch_size` below 1.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> states_at(hm, facts, [mu.Site.parse("L0.resid_post")]).shape[:2]
        torch.Size([1, 32])
    """
    if positions not in ("last_subject", "last"):
        raise ScoresError(one_of("positions", positions, ["last_subject", "last"]))
    names = [hm.arch.hooks(site)[0].name for site in sites]
    batch = encode(hm, facts, answer=None)
    where = batch.subject_last if positions == "last_subject" else batch.end
    found = capture(hm.bridge, batch.tokens, names, where[:, None], mask=batch.mask, batch_size=batch_size)
    width = hm.hf.config.hidden_size
    states = torch.empty(len(names), len(batch), width, dtype=torch.float64)
    for place, name in enumerate(names):
        states[place] = found[name][:, 0]
    return states


def capture(
    bridge: Any,
    tokens: Int[Tensor, "row pos"],
    names: Sequence[str],
    where: Int[Tensor, "row at"],
    *,
    mask: Int[Tensor, "row pos"] | None = None,
    batch_size: int = 64,
) -> dict[str, Float[Tensor, "row at ..."]]:
    """Read activations at some positions of every row, and compute nothing that is not needed for them.

    Args:
        bridge: a TransformerBridge: ``hm.bridge``, or ``hm.folded()``.
        tokens: token ids, padded on the right.
        names: hook points whose activations are ``[row pos ...]``.
        where: positions to keep of every row, counted from 0.
        mask: 1 for tokens, 0 for padding; None means that there is no padding.
        batch_size: rows per forward pass.

    Returns:
        Every name's activations at those positions, on the CPU, in the precision of the activations.

    Raises:
        HookError: for a name that does not exist, or that the run never reaches.
        ScoresError: for positions that are not in the rows, or a `batch_size` below 1.

    Example:
        >>> hm, last = mu.world.model(), torch.tensor([[2], [2]])
        >>> found = capture(hm.bridge, torch.ones(2, 3, dtype=torch.long), ["hook_embed"], last)
        >>> found["hook_embed"].shape[:2]
        torch.Size([2, 1])
    """
    require_positive(batch_size=batch_size)
    if not ((where >= 0) & (where < tokens.shape[1])).all():
        raise ScoresError(
            f"where= holds positions {int(where.min())} to {int(where.max())}, but the rows have "
            f"{tokens.shape[1]} tokens, counted from 0"
        )
    for name in names:
        check_name(name, bridge.hook_dict)
    if not names:
        return {}
    last = where.amax(1)
    found: dict[str, Tensor] = {}
    for rows in torch.split(last.argsort(stable=True), batch_size):
        width = int(last[rows].max()) + 1
        here = torch.ones_like(tokens[rows, :width]) if mask is None else mask[rows, :width]
        for name, part in _read(bridge, tokens[rows, :width], here, names, where[rows]).items():
            if name not in found:
                found[name] = torch.empty(len(tokens), *part.shape[1:], dtype=part.dtype)
            found[name][rows.cpu()] = part.cpu()
    return found


def _read(
    bridge: Any,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    names: Sequence[str],
    where: Int[Tensor, "batch at"],
) -> dict[str, Tensor]:
    """Run one batch until all hooks have fired."""
    store: dict[str, Tensor] = {}
    device = next(bridge.parameters()).device
    hooks = [_reader(name, where.to(device), store, len(set(names))) for name in dict.fromkeys(names)]
    try:
        with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
            bridge(tokens.to(device), attention_mask=mask.to(device), return_type=None)
    except _Complete:
        return store
    silent = [name for name in names if name not in store]
    if silent:
        raise HookError(never_fired(silent, bridge.cfg.architecture or "this model"))
    return store


def _reader(name: str, where: Int[Tensor, "batch at"], store: dict[str, Tensor], wanted: int) -> Hook:
    """Keep the positions only: whole caches of large models do not fit in memory."""
    rows = torch.arange(len(where), device=where.device)[:, None]

    def read(activation: Tensor, hook: Any = None) -> None:
        # Layers of a model that is spread over devices keep what they give on their own.
        device = activation.device
        store[name] = activation.detach()[rows.to(device), where.to(device)]
        if len(store) == wanted:
            raise _Complete

    return Hook(name, read)
