"""One run of the whole model, with everything that later runs reuse.

1. The model runs once over a batch. Hooks read the named activations; pre-hooks of the blocks record how each
   block was called, and the residual stream that entered it.
2. A key-value cache that only records is passed to the blocks, and gives the keys and values of every layer.
3. The run ends after the last block. What is read of its final states (`readout`) is computed when needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.hooks import Hook, patch
from mechunlearn.localization.engine.block_calls import Call, RecordingCache
from mechunlearn.models.activations import activations
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True, eq=False)
class CachedRun:
    """One run of a batch, with everything that later runs reuse, layer by layer.

    ``resid`` is the residual stream before every block, and after the last one. Positions are already encoded
    in ``keys``. ``embedded`` holds the embeddings written at ``hook_embed``; None for the tokens' own.
    """

    batch: Batch
    resid: tuple[Float[Tensor, "row pos d_model"], ...]
    keys: tuple[Float[Tensor, "row kv pos d_head"], ...]
    values: tuple[Float[Tensor, "row kv pos d_head"], ...]
    calls: tuple[Call, ...]
    activations: Mapping[str, Float[Tensor, "row ..."]]
    embedded: Float[Tensor, "row pos d_model"] | None

    def rows(self, index: Int[Tensor, "chosen"]) -> CachedRun:
        """Some of the rows, or rows repeated."""
        size = self.batch.tokens.shape[1]
        return CachedRun(
            self.batch.rows(index),
            tuple(state[index] for state in self.resid),
            tuple(keys[index] for keys in self.keys),
            tuple(values[index] for values in self.values),
            tuple(call.cut(index, 0, size) for call in self.calls),
            {name: activation[index] for name, activation in self.activations.items()},
            None if self.embedded is None else self.embedded[index],
        )


def cached_run(
    hm: HookedModel,
    batch: Batch,
    names: Iterable[str] = (),
    *,
    embedded: Float[Tensor, "row pos d_model"] | None = None,
) -> CachedRun:
    """Run the model once, and keep what patches of this run reuse.

    Activations at the hook points ``names`` are kept, too. The batch is padded on the right. ``embedded`` is
    written at ``hook_embed``; None for the tokens' own embeddings. HookError is raised if a name does not
    exist or never fires.
    """
    calls: dict[int, Call] = {}
    resid: dict[int, Tensor] = {}
    cache = RecordingCache()
    layers, final = range(len(hm.bridge.blocks)), final_hook(hm)
    chosen = list(dict.fromkeys(names))
    with _caching(hm), ExitStack() as stack:
        for layer, block in enumerate(hm.bridge.blocks):
            record = partial(_record, layer, calls, resid, cache)
            stack.enter_context(_removed(block.register_forward_pre_hook(record, with_kwargs=True)))
        states = activations(hm, batch, [*chosen, final], hooks=embedding_hooks(embedded))
    return CachedRun(
        batch,
        (*(resid[layer] for layer in layers), states[final]),
        # A model without such a cache has none; only sweeps that enter its blocks need them.
        tuple(cache.keys[layer] for layer in layers if layer in cache.keys),
        tuple(cache.values[layer] for layer in layers if layer in cache.values),
        tuple(calls[layer] for layer in layers),
        {name: states[name] for name in chosen},
        embedded,
    )


def final_hook(hm: HookedModel) -> str:
    """The hook point of the residual stream after the last block."""
    return f"blocks.{hm.arch.shape.n_layers - 1}.hook_resid_post"


def embedding_hooks(embedded: Float[Tensor, "row pos d_model"] | None) -> list[Hook]:
    """The hook that writes embeddings; none for None."""
    return [] if embedded is None else [patch("hook_embed", embedded)]


def _record(
    layer: int,
    calls: dict[int, Call],
    resid: dict[int, Tensor],
    cache: RecordingCache,
    block: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    calls[layer], state = Call.of(args, kwargs)
    resid[layer] = state.detach()
    # Torch calls the block with what this hook returns: the same arguments, with the cache that records.
    return calls[layer].filled(state, cache)


@contextmanager
def _caching(hm: HookedModel) -> Iterator[None]:
    """Have the model pass a key-value cache, even if its configuration says not to, as in training."""
    config = hm.bridge.original_model.config
    before, config.use_cache = config.use_cache, True
    try:
        yield
    finally:
        config.use_cache = before


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    """Remove a torch hook at the end."""
    try:
        yield
    finally:
        handle.remove()
