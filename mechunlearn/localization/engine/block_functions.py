"""The parts of a block as functions of the residual stream, for what needs no run of the model.

1. Queries, keys and values are matrices after a norm; an MLP reads the stream through its norm; a head writes
   ``z`` times its output matrix. Where a norm follows (Gemma-2), what attention writes is that norm of the
   sum over its heads. All of it happens at each position alone.
2. Norms and MLPs are the model's own modules, and matrices are views of its weights, as they are now. Hooks
   are passed by.
3. Once per model, every part of every layer has to reproduce two runs of the model on a few tokens. A model
   on which one does not is given a reason, and nothing is computed with its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.localization.engine.cached_run import CachedRun, cached_run
from mechunlearn.localization.engine.fused_block import mlp_out, plain
from mechunlearn.localization.engine.self_check import hooked, prompts
from mechunlearn.models.agreement import close
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True, eq=False)
class Parts:
    """What the parts of a model's blocks compute, token by token.

    Args:
        hm: the model; its weights are read when they are used.
        reason: why the parts are not to be trusted; empty if they are.

    Example:
        >>> Parts.of(mu.world.model()).reason
        ''
    """

    hm: HookedModel
    reason: str = ""

    @classmethod
    def of(cls, hm: HookedModel) -> Parts:
        """The parts of a model, checked on a few tokens the first time; not trusted while it is hooked."""
        if hooked(hm, "blocks.") or (hm not in _CHECKED and hooked(hm)):
            return cls(hm, "somebody's hooks are in the model, which closed forms would pass by")
        if hm not in _CHECKED:
            _CHECKED[hm] = _checked(cls(hm))
        return cls(hm, _CHECKED[hm])

    def post_norm(self, layer: int) -> bool:
        """Whether a norm follows attention before its output joins the stream."""
        return hasattr(self.hm.bridge.blocks[layer], "ln1_post")

    def unnormed(self, layer: int) -> str | None:
        """The hook point of what attention gives before that norm, if there is one."""
        return f"blocks.{layer}.attn.hook_out" if self.post_norm(layer) else None

    def project(
        self, layer: int, part: str, resid: Float[Tensor, "token d_model"], units: tuple[int, ...]
    ) -> Float[Tensor, "token unit d_head"]:
        """Queries, keys or values of some heads or groups, as at ``hook_q``, ``hook_k`` and ``hook_v``.

        Args:
            layer: the block.
            part: ``"q"``, ``"k"`` or ``"v"``.
            resid: the stream before the block.
            units: heads; groups, for keys and values of a model that has them.
        """
        block = self.hm.bridge.blocks[layer]
        weight = getattr(block.attn, f"W_{part.upper()}")
        bias = getattr(block.attn, f"b_{part.upper()}", None)
        normed = _normed(block.ln1, resid)
        found = torch.einsum("td,udh->tuh", normed, weight[list(units)])
        return found if bias is None else found + bias[list(units)]

    def mlp(self, layer: int, resid: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What the MLP writes into the stream, given the stream that it reads."""
        block = self.hm.bridge.blocks[layer]
        out = mlp_out(block, _normed(block.ln2, resid)[None])[0]
        return _normed(block.ln2_post, out) if hasattr(block, "ln2_post") else out

    def mixed(
        self,
        pattern: Float[Tensor, "row head pos all"],
        values: Float[Tensor, "row all unit d_head"],
        heads: Sequence[int],
    ) -> Float[Tensor, "row pos chosen d_head"]:
        """What some heads gather of the values: their ``z``, or its change for a change of the values."""
        shared = self.hm.arch.shape.n_heads // self.hm.arch.shape.n_kv_heads
        own = values[:, :, [head // shared for head in heads]]
        return torch.einsum("rhpa,rahd->rphd", pattern[:, list(heads)], own)

    def head(self, layer: int, unit: int, z: Float[Tensor, "token d_head"]) -> Float[Tensor, "token d_model"]:
        """What one head adds to the output of attention: without bias, and ahead of a norm that follows."""
        written: Tensor = z @ self.hm.bridge.blocks[layer].attn.W_O[unit]
        return written

    def normed(self, layer: int, out: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What attention writes into the stream, given its output: after the norm, if one follows."""
        return _normed(self.hm.bridge.blocks[layer].ln1_post, out) if self.post_norm(layer) else out


def _normed(norm: Any, tokens: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    found: Tensor = plain(norm)(tokens)
    return found


def _checked(parts: Parts) -> str:
    """Say which part does not reproduce the model; empty if all do."""
    hm = parts.hm
    layers = range(hm.arch.shape.n_layers)
    inner = [f"attn.hook_{kind}" for kind in ("q", "k", "v", "pattern", "z")]
    kinds = [*inner, "hook_attn_out", "hook_mlp_out"]
    names = ["hook_embed", *(f"blocks.{layer}.{kind}" for layer in layers for kind in kinds)]
    names += [name for name in map(parts.unnormed, layers) if name]
    try:
        with torch.no_grad():
            one, two = (cached_run(hm, batch, names) for batch in prompts(hm))
            reasons = (
                _attention(parts, layer, one, two) or _feedforward(parts, layer, one) for layer in layers
            )
            return next(filter(None, reasons), None) or _embedding(one, two) or ""
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        return f"a part of a block could not be run on its own ({type(error).__name__}: {error})"


def _attention(parts: Parts, layer: int, one: CachedRun, two: CachedRun) -> str | None:
    """Compare queries, keys and values with the first run's, and what heads write with the second's."""
    block, shape = f"blocks.{layer}.", parts.hm.arch.shape
    before = _flat(one.resid[layer])
    for part, units in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
        found = parts.project(layer, part, before, tuple(range(units)))
        if not close(found, one.activations[f"{block}attn.hook_{part}"].flatten(0, 1)):
            return f"L{layer}: {part} of the heads is not a matrix after the norm"
    values, z = one.activations[f"{block}attn.hook_v"], one.activations[f"{block}attn.hook_z"]
    if not close(parts.mixed(one.activations[f"{block}attn.hook_pattern"], values, range(shape.n_heads)), z):
        return f"L{layer}: heads do not write their values mixed by the pattern"
    change = two.activations[f"{block}attn.hook_z"] - z
    out = _flat(one.activations[parts.unnormed(layer) or f"{block}hook_attn_out"])
    for head in range(shape.n_heads):
        out = out + parts.head(layer, head, _flat(change[:, :, head]))
    same = close(parts.normed(layer, out), _flat(two.activations[f"{block}hook_attn_out"]))
    return None if same else f"L{layer}: attention does not write the sum over its heads"


def _feedforward(parts: Parts, layer: int, run: CachedRun) -> str | None:
    """Compare what the MLP writes, and the sum over the block."""
    before = _flat(run.resid[layer])
    written, mlp = (_flat(run.activations[f"blocks.{layer}.hook_{part}_out"]) for part in ("attn", "mlp"))
    if not close(parts.mlp(layer, before if parts.hm.arch.parallel else before + written), mlp):
        return f"L{layer}: the MLP does more than read the stream through its norm"
    if not close(before + written + mlp, _flat(run.resid[layer + 1])):
        return f"L{layer}: the block adds more to the stream than attention and MLP"
    return None


def _embedding(one: CachedRun, two: CachedRun) -> str | None:
    """Compare how the stream begins."""
    change = two.activations["hook_embed"] - one.activations["hook_embed"]
    same = close(one.resid[0] + change, two.resid[0])
    return None if same else "the embedding does not add to the residual stream"


def _flat(activation: Float[Tensor, "row pos width"]) -> Float[Tensor, "token width"]:
    return activation.flatten(0, 1)


_CHECKED: WeakKeyDictionary[HookedModel, str] = WeakKeyDictionary()
