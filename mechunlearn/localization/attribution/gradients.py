"""Activations of both runs, and the metric's gradient at each of them.

1. The clean run keeps its graph from the residual stream that enters block 0 on. That one tensor requires a
   gradient, so the graph needs no weight to require one.
2. A tap passes each activation on as a view of itself. The gradient at the view holds only what flows through
   that hook point: at the input of a norm it leaves out the stream that passes beside the norm.
3. One backward pass goes through the taps; no gradient of a weight is computed.
4. The corrupt run needs no graph, and in the end the bridge keeps none.
5. Logits are computed only where they are read: a hook gives the unembedding those positions alone.
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


def run_with_taps(
    hm: HookedModel, answers: AnswerRows, names: Sequence[str], *, hooks: Sequence[Hook] = ()
) -> tuple[Float[Tensor, "row"], dict[str, Tensor]]:
    """Run the clean prompts, and keep the graph between the activations at ``names`` and the metric.

    The result is the metric of every row and the activations by hook point, in which it is differentiable.
    ``hooks`` write before taps read.
    """
    taps: dict[str, Tensor] = {}
    begin = Hook(START, lambda stream, hook=None: stream.detach().requires_grad_())
    with torch.enable_grad():
        logits = hm.run_with_hooks(
            answers.batch.tokens,
            attention_mask=answers.batch.mask,
            fwd_hooks=[*hooks, begin, *(_tap(name, taps) for name in names), unembed_at(answers)],
        )
        return answers.difference(logits), taps


def unembed_at(answers: AnswerRows) -> Hook:
    """Give the unembedding the positions that are read, and no others."""

    def gather(stream: Tensor, hook: Any = None) -> Tensor:
        return stream.gather(1, answers.positions[..., None].expand(-1, -1, stream.shape[-1]))

    return Hook("unembed.hook_in", gather)


def _tap(name: str, taps: dict[str, Tensor]) -> Hook:
    def view(activation: Tensor, hook: Any = None) -> Tensor:
        taps[name] = activation.view_as(activation)
        return taps[name]

    return Hook(name, view)


def gradients_at(
    names: Sequence[str], metric: Float[Tensor, "row"], taps: dict[str, Tensor], *, retain_graph: bool = False
) -> dict[str, Tensor]:
    """The gradient of each row's metric at that row's activations; ``names`` are hook points among the taps.

    ``retain_graph`` keeps the graph, so that parts of it can be differentiated again.
    """
    # No row depends on another, so the gradient of the sum over rows holds every row's own gradient.
    ones = torch.ones_like(metric)
    activations = [taps[name] for name in names]
    values = torch.autograd.grad(metric, activations, ones, retain_graph=retain_graph)
    return dict(zip(names, values, strict=True))


def corrupt_activations(hm: HookedModel, pairs: Pairs, names: Sequence[str]) -> dict[str, Tensor]:
    """Activations of the corrupt prompts, without a graph."""
    assert pairs.corrupted is not None, "gradients are taken between prompts"
    return activations(hm, pairs.corrupted, names)


@contextmanager
def differentiable(hm: HookedModel) -> Iterator[None]:
    """Take gradients of a model inside a ``with`` block, which leaves no graph behind.

    ModelError is raised if the weights were made in inference mode, since no gradient can pass them.
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
