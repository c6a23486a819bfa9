"""The components of a block as functions of the residual stream, for what needs no run of the model.

1. Queries, keys and values are matrices after a norm; an MLP reads the stream through its norm; a head writes
   ``z`` times its output matrix. Where a norm follows attention (Gemma-2), attention writes that norm of the
   sum over its heads. All of this happens at each position by itself.
2. Norms and MLPs are the model's own modules, and matrices are views of its weights, as they are now. Hooks
   do not fire.
3. Once per model, every function of every layer has to reproduce two runs of the model on a few tokens. For a
   model on which one does not, `BlockFunctions.reason` says so, and nothing is computed with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.errors import FallbackWarning
from mechunlearn.localization.engine.cached_run import CachedRun, cached_run
from mechunlearn.localization.engine.fused_block import mlp_out, plain
from mechunlearn.localization.engine.self_check import has_hooks, random_batches
from mechunlearn.models.agreement import close
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True, eq=False)
class BlockFunctions:
    """What the components of a model's blocks compute, token by token, with its weights as they are now.

    ``reason`` says why these functions are not those of the model; it is empty if they are.
    """

    hm: HookedModel
    reason: str = ""

    @classmethod
    def of(cls, hm: HookedModel) -> BlockFunctions:
        """The functions of a model, checked on a few tokens the first time; not usable while it has hooks."""
        if has_hooks(hm, "blocks.") or (hm not in _CHECKED and has_hooks(hm)):
            return cls(hm, "hooks of the user are in the model, which closed forms would pass by")
        if hm not in _CHECKED:
            _CHECKED[hm] = reason = _reason_against(cls(hm))
            if reason:
                warnings.warn(
                    f"paths are patched by hooks, since {reason}; each sender then takes a complete run",
                    FallbackWarning,
                    stacklevel=3,
                )
        return cls(hm, _CHECKED[hm])

    def has_post_norm(self, layer: int) -> bool:
        """Whether a norm follows attention before its output joins the stream."""
        return hasattr(self.hm.bridge.blocks[layer], "ln1_post")

    def pre_norm_hook(self, layer: int) -> str | None:
        """The hook point of attention's output before that norm; None if there is no norm."""
        return f"blocks.{layer}.attn.hook_out" if self.has_post_norm(layer) else None

    def project(
        self, layer: int, part: str, resid: Float[Tensor, "token d_model"], units: tuple[int, ...]
    ) -> Float[Tensor, "token unit d_head"]:
        """Queries, keys or values of some heads or groups, as at ``hook_q``, ``hook_k`` and ``hook_v``.

        ``part`` is ``"q"``, ``"k"`` or ``"v"``; ``resid`` is the stream before the block; ``units`` are
        heads, but groups for keys and values under grouped queries.
        """
        block = self.hm.bridge.blocks[layer]
        weight = getattr(block.attn, f"W_{part.upper()}")
        bias = getattr(block.attn, f"b_{part.upper()}", None)
        vectors = torch.einsum("td,udh->tuh", _norm(block.ln1, resid), weight[list(units)])
        return vectors if bias is None else vectors + bias[list(units)]

    def mlp(self, layer: int, resid: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What the MLP writes into the stream, given the stream that it reads."""
        block = self.hm.bridge.blocks[layer]
        out = mlp_out(block, _norm(block.ln2, resid)[None])[0]
        return _norm(block.ln2_post, out) if hasattr(block, "ln2_post") else out

    def mix(
        self,
        pattern: Float[Tensor, "row head pos all"],
        values: Float[Tensor, "row all unit d_head"],
        heads: Sequence[int],
    ) -> Float[Tensor, "row pos chosen d_head"]:
        """The ``z`` of some heads for these values; linear, so a change of values gives a change of ``z``."""
        shared = self.hm.arch.shape.n_heads // self.hm.arch.shape.n_kv_heads
        by_head = values[:, :, [head // shared for head in heads]]
        return torch.einsum("rhpa,rahd->rphd", pattern[:, list(heads)], by_head)

    def head(self, layer: int, unit: int, z: Float[Tensor, "token d_head"]) -> Float[Tensor, "token d_model"]:
        """What one head adds to attention's output, without the bias and before a norm that follows."""
        written: Tensor = z @ self.hm.bridge.blocks[layer].attn.W_O[unit]
        return written

    def post_norm(self, layer: int, out: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What attention writes into the stream, given its output: the norm of it, if one follows."""
        return _norm(self.hm.bridge.blocks[layer].ln1_post, out) if self.has_post_norm(layer) else out


def _norm(norm: Any, tokens: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    normed: Tensor = plain(norm)(tokens)
    return normed


def _reason_against(functions: BlockFunctions) -> str:
    """Say which function does not reproduce the model; empty if all do."""
    hm = functions.hm
    layers = range(hm.arch.shape.n_layers)
    inner = [f"attn.hook_{kind}" for kind in ("q", "k", "v", "pattern", "z")]
    kinds = [*inner, "hook_attn_out", "hook_mlp_out"]
    names = ["hook_embed", *(f"blocks.{layer}.{kind}" for layer in layers for kind in kinds)]
    names += [name for name in map(functions.pre_norm_hook, layers) if name]
    try:
        with torch.no_grad():
            one, two = (cached_run(hm, batch, names) for batch in random_batches(hm))
            reasons = (
                _check_attention(functions, layer, one, two) or _check_mlp(functions, layer, one)
                for layer in layers
            )
            return next(filter(None, reasons), None) or _check_embedding(one, two) or ""
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        return f"a part of a block could not be run on its own ({type(error).__name__}: {error})"


def _check_attention(functions: BlockFunctions, layer: int, one: CachedRun, two: CachedRun) -> str | None:
    """Compare queries, keys and values with the first run's, and what heads write with the second's."""
    block, shape = f"blocks.{layer}.", functions.hm.arch.shape
    before = _flat(one.resid[layer])
    for part, units in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
        vectors = functions.project(layer, part, before, tuple(range(units)))
        if not close(vectors, one.activations[f"{block}attn.hook_{part}"].flatten(0, 1)):
            return f"L{layer}: {part} of the heads is not a matrix after the norm"
    pattern, values, z = (one.activations[f"{block}attn.hook_{kind}"] for kind in ("pattern", "v", "z"))
    if not close(functions.mix(pattern, values, range(shape.n_heads)), z):
        return f"L{layer}: heads do not write their values mixed by the pattern"
    change = two.activations[f"{block}attn.hook_z"] - z
    out = _flat(one.activations[functions.pre_norm_hook(layer) or f"{block}hook_attn_out"])
    for head in range(shape.n_heads):
        out = out + functions.head(layer, head, _flat(change[:, :, head]))
    same = close(functions.post_norm(layer, out), _flat(two.activations[f"{block}hook_attn_out"]))
    return None if same else f"L{layer}: attention does not write the sum over its heads"


def _check_mlp(functions: BlockFunctions, layer: int, run: CachedRun) -> str | None:
    """Compare what the MLP writes, and the sum over the block."""
    before = _flat(run.resid[layer])
    attn, mlp = (_flat(run.activations[f"blocks.{layer}.hook_{part}_out"]) for part in ("attn", "mlp"))
    if not close(functions.mlp(layer, before if functions.hm.arch.parallel else before + attn), mlp):
        return f"L{layer}: the MLP does more than read the stream through its norm"
    if not close(before + attn + mlp, _flat(run.resid[layer + 1])):
        return f"L{layer}: the block adds more to the stream than attention and MLP"
    return None


def _check_embedding(one: CachedRun, two: CachedRun) -> str | None:
    change = two.activations["hook_embed"] - one.activations["hook_embed"]
    same = close(one.resid[0] + change, two.resid[0])
    return None if same else "the embedding does not add to the residual stream"


def _flat(activation: Float[Tensor, "row pos width"]) -> Float[Tensor, "token width"]:
    return activation.flatten(0, 1)


_CHECKED: WeakKeyDictionary[HookedModel, str] = WeakKeyDictionary()
"""The reason of every model that was checked."""
