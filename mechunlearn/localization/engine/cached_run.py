"""One run of the whole model, with everything that later runs reuse.

1. The model runs once over a batch, by hooks and by the blocks' own pre-hooks.
2. Kept are the residual stream before every block and after the last, the keys and values of every layer, how
   each block was called, and the activations that were asked for by name.
3. No logits are computed but those of one position: what is read at the end is read later, where it is
   wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.hooks import Hook, cache, patch
from mechunlearn.localization.engine.block_calls import Call, Recorder
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True, eq=False)
class Run:
    """What one run of a batch left behind.

    Args:
        batch: what was run.
        resid: the residual stream before every block, and after the last one.
        keys: of every layer, positions already encoded.
        values: of every layer.
        calls: how every block was called.
        kept: the activations that were asked for.
        embedded: what was written at ``hook_embed``, if anything.
    """

    batch: Batch
    resid: tuple[Float[Tensor, "row pos d_model"], ...]
    keys: tuple[Float[Tensor, "row kv pos d_head"], ...]
    values: tuple[Float[Tensor, "row kv pos d_head"], ...]
    calls: tuple[Call, ...]
    kept: Mapping[str, Float[Tensor, "row ..."]]
    embedded: Float[Tensor, "row pos d_model"] | None

    def rows(self, index: Int[Tensor, "chosen"]) -> Run:
        """Some of the rows, or rows repeated."""
        size = self.batch.tokens.shape[1]
        return Run(
            self.batch.rows(index),
            tuple(state[index] for state in self.resid),
            tuple(keys[index] for keys in self.keys),
            tuple(values[index] for values in self.values),
            tuple(call.cut(index, 0, size) for call in self.calls),
            {name: kept[index] for name, kept in self.kept.items()},
            None if self.embedded is None else self.embedded[index],
        )


def capture(
    hm: HookedModel,
    batch: Batch,
    *,
    keep: Iterable[str] = (),
    embedded: Float[Tensor, "row pos d_model"] | None = None,
) -> Run:
    """Run the model once and keep what sweeps over it need.

    Args:
        hm: the model.
        batch: encoded rows, padded on the right.
        keep: names of hook points whose activations are wanted.
        embedded: written at ``hook_embed`` instead of the tokens' own embeddings.

    Raises:
        HookError: a name does not exist or never fires.
    """
    kept: dict[str, Tensor] = {}
    hooks = embedding(embedded) + [cache(name, kept) for name in dict.fromkeys(keep)]
    calls: dict[int, Call] = {}
    resid: dict[int, Tensor] = {}
    recorder = Recorder()
    with torch.no_grad(), _caching(hm), ExitStack() as stack:
        for layer, block in enumerate(hm.bridge.blocks):
            note = partial(_note, layer, calls, resid, recorder)
            stack.enter_context(_removed(block.register_forward_pre_hook(note, with_kwargs=True)))
        after = partial(_last, resid)
        stack.enter_context(_removed(hm.bridge.ln_final.register_forward_pre_hook(after)))
        hm.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=[*hooks, ONE])
    layers = range(len(calls))
    return Run(
        batch,
        tuple(resid[layer] for layer in (*layers, -1)),
        # A model without such a cache has none; only sweeps that enter its blocks need them.
        tuple(recorder.keys[layer] for layer in layers if layer in recorder.keys),
        tuple(recorder.values[layer] for layer in layers if layer in recorder.values),
        tuple(calls[layer] for layer in layers),
        kept,
        embedded,
    )


def activations(
    hm: HookedModel,
    batch: Batch,
    names: Iterable[str],
    *,
    embedded: Float[Tensor, "row pos d_model"] | None = None,
) -> dict[str, Float[Tensor, "row ..."]]:
    """Run a batch and keep named activations only: what is patched in from another run.

    Args:
        hm: the model.
        batch: encoded rows, padded on the right.
        names: hook points.
        embedded: written at ``hook_embed`` instead of the tokens' own embeddings.

    Raises:
        HookError: a name does not exist or never fires.
    """
    wanted, kept = list(dict.fromkeys(names)), dict[str, Tensor]()
    hooks = embedding(embedded) + [cache(name, kept) for name in wanted]
    stop = _enough(wanted, len(hm.bridge.blocks))
    with torch.no_grad():
        hm.run_with_hooks(
            batch.tokens,
            attention_mask=batch.mask,
            fwd_hooks=hooks if stop else [*hooks, ONE],
            stop_at_layer=stop,
        )
    return kept


def _enough(names: Iterable[str], layers: int) -> int | None:
    """The layer before which a run can stop; None if a name lies behind the last block."""
    last = 0
    for name in names:
        if name.startswith("blocks."):
            last = max(last, int(name.split(".")[1]))
        elif name not in ("hook_embed", "hook_pos_embed"):
            return None
    return last + 1 if last + 1 < layers else None


def embedding(embedded: Float[Tensor, "row pos d_model"] | None) -> list[Hook]:
    """The hook that writes embeddings, if there are any to write."""
    return [] if embedded is None else [patch("hook_embed", embedded)]


def _first(activation: Tensor, hook: Any = None) -> Tensor:
    return activation[:, :1]


ONE = Hook("unembed.hook_in", _first)
"""Has the model compute the logits of one position, where it would compute all and none is wanted."""


def _note(
    layer: int,
    calls: dict[int, Call],
    resid: dict[int, Tensor],
    recorder: Recorder,
    block: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    calls[layer], state = Call.of(args, kwargs)
    resid[layer] = state.detach()
    return calls[layer].filled(state, recorder)


def _last(resid: dict[int, Tensor], norm: Any, args: tuple[Any, ...]) -> None:
    resid[-1] = args[0].detach()


@contextmanager
def _caching(hm: HookedModel) -> Iterator[None]:
    """Have a cache passed also in models that are told to keep none, as they are for training."""
    config = hm.bridge.original_model.config
    before, config.use_cache = config.use_cache, True
    try:
        yield
    finally:
        config.use_cache = before


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    """Take a torch hook away again, whatever happens."""
    try:
        yield
    finally:
        handle.remove()
