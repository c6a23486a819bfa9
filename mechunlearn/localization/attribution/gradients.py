"""Activations of both runs, and what the metric's gradient is at each of them.

1. The clean run keeps its graph, from the residual stream that enters block 0 on: that one tensor needs a
   gradient, so no weight does, and none is given one.
2. A tap hands each activation on as a view of itself. The gradient at the view is that of what reads it
   *there*: at the input of a norm, for instance, the norm's and not that of the stream running past it.
3. One backward pass goes through the taps; weights get no gradient, and none is computed.
4. The corrupt run needs no graph, and when all is done the bridge keeps none.
5. Logits are computed only where they are read: a hook hands the unembedding those positions alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.hooks import Hook
from mechunlearn.errors import ModelError
from mechunlearn.localization.patching.answer_metrics import AnswerRows
from mechunlearn.localization.patching.pairs import Pairs
from mechunlearn.models.activations import activations
from mechunlearn.models.hooked import HookedModel

START = "blocks.0.hook_resid_pre"
"""Where the graph begins: the residual stream that enters the first block."""


def tapped(
    hm: HookedModel, asked: AnswerRows, names: Sequence[str], *, hooks: Sequence[Hook] = ()
) -> tuple[Float[Tensor, "row"], dict[str, Tensor]]:
    """Run the clean prompts with their graph.

    Args:
        hm: the model.
        asked: the prompts, and the words whose logit difference is the metric.
        names: the hook points to tap.
        hooks: what to write before the taps read it.

    Returns:
        The metric of every row, and the tapped activations by name; the metric is differentiable in them.
    """
    taps: dict[str, Tensor] = {}
    begin = Hook(START, lambda stream, hook=None: stream.detach().requires_grad_())
    with torch.enable_grad():
        logits = hm.run_with_hooks(
            asked.batch.tokens,
            attention_mask=asked.batch.mask,
            fwd_hooks=[*hooks, begin, *(_tap(name, taps) for name in names), reading(asked)],
        )
        return asked.difference(logits), taps


def reading(asked: AnswerRows) -> Hook:
    """Give the unembedding the positions that are read, and no others."""

    def gather(stream: Tensor, hook: Any = None) -> Tensor:
        return stream.gather(1, asked.positions[..., None].expand(-1, -1, stream.shape[-1]))

    return Hook("unembed.hook_in", gather)


def _tap(name: str, taps: dict[str, Tensor]) -> Hook:
    def view(activation: Tensor, hook: Any = None) -> Tensor:
        taps[name] = activation.view_as(activation)
        return taps[name]

    return Hook(name, view)


def slopes(
    metric: Float[Tensor, "row"], taps: dict[str, Tensor], names: Sequence[str], *, keep: bool = False
) -> dict[str, Tensor]:
    """The metric's gradient at tapped activations; rows do not see each other, so each gets its own.

    Args:
        metric: of every row.
        taps: as `tapped` gave them.
        names: at which of them.
        keep: keep the graph, to differentiate parts of it again.
    """
    ones = torch.ones_like(metric)
    found = torch.autograd.grad(metric, [taps[name] for name in names], ones, retain_graph=keep)
    return dict(zip(names, found, strict=True))


def corrupt_run(hm: HookedModel, pairs: Pairs, names: Sequence[str]) -> dict[str, Tensor]:
    """Activations of the corrupt prompts, without a graph."""
    assert pairs.corrupted is not None, "gradients are taken between prompts"
    return activations(hm, pairs.corrupted, names)


@contextmanager
def differentiable(hm: HookedModel) -> Iterator[None]:
    """Take gradients of a model, and leave no graph behind, whatever happens.

    Raises:
        ModelError: the model's weights were made in inference mode, which no gradient can pass.
    """
    if any(weight.is_inference() for weight in hm.params.values()):
        raise ModelError(
            "this model was loaded inside torch.inference_mode(), so no gradient can pass its weights; load "
            "it outside (attributions themselves may be called inside)"
        )
    try:
        yield
    finally:
        for block in hm.bridge.blocks:
            # The bridge keeps the last run's attention patterns, and with them that run's graph.
            block.attn._pattern = None
