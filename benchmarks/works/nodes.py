"""Attribution of all heads and MLPs, beside one forward and one backward pass of the same batch.

The peer is what any gradient costs: the plain Hugging Face model run once with all its logits, and one call
of ``backward``, which gives the weights their gradients. It has no scores; those it is compared with are
made from the gradients at its MLP outputs and a second, untimed run.

With the weights frozen first, the same peer is the least that a gradient of the activations can cost.
Attribution needs the run of the other prompt besides; this is reported too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.models import PatchTask, Prompts
from benchmarks.work import Peer, Work
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.attribution.nodes import node_estimates
from mechunlearn.localization.patching.pairs import Pairs

ROWS = 16


def node_attribution(setting: PatchTask) -> Work:
    """All heads and MLPs, in a batch of 16, beside the gradients of activations and weights."""
    return _attribution(setting, "node_attribution", frozen=False, target=0.77)


def node_attribution_frozen(setting: PatchTask) -> Work:
    """The same beside the gradients of activations alone."""
    return _attribution(setting, "node_attribution_frozen", frozen=True, target=None)


def _attribution(setting: PatchTask, name: str, *, frozen: bool, target: float | None) -> Work:
    prompts = setting.prompts(rows=ROWS)
    pairs = Pairs.at_end(prompts.clean, prompts.corrupt, prompts.answers[:, 0], prompts.answers[:, 1])
    layers = range(setting.layers)
    mlps = [Site("mlp", layer) for layer in layers]
    heads = [Site("head", layer, head) for layer in layers for head in range(setting.hm.arch.shape.n_heads)]
    return Work(
        name,
        len(mlps),
        lambda state: node_estimates(setting.hm, pairs, [*mlps, *heads])[:, : len(mlps), 0].transpose(0, 1),
        (_gradient(setting, prompts, frozen=frozen),),
        target=target,
        note=f"{len(mlps) + len(heads)} heads and MLPs are scored, the MLPs compared",
    )


def _gradient(setting: PatchTask, prompts: Prompts, *, frozen: bool) -> Peer:
    def run(state: None, sites: Sequence[int]) -> list[Tensor]:
        setting.plain.requires_grad_(not frozen)
        outputs = _outputs(setting, prompts, prompts.clean)
        torch.autograd.backward(outputs.pop())
        return outputs

    def values(outputs: list[Tensor]) -> Tensor:
        gradients = [out.grad for out in outputs if out.grad is not None]
        with torch.no_grad():
            corrupt = _outputs(setting, prompts, prompts.corrupt)[:-1]
        setting.plain.requires_grad_(True)
        setting.plain.zero_grad(set_to_none=True)
        pairs = zip(corrupt, outputs, gradients, strict=True)
        return torch.stack([((new - old.detach()) * slope).sum((1, 2)) for new, old, slope in pairs])

    name = "forward and backward of the same batch" + (", weights frozen" if frozen else "")
    return Peer(name, run, values=values)


def _outputs(setting: PatchTask, prompts: Prompts, tokens: Tensor) -> list[Float[Tensor, "..."]]:
    """What every MLP gives, then the sum over rows of the difference of logits."""
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, out: Tensor) -> None:
        kept.append(out)
        if out.requires_grad:
            out.retain_grad()

    def root(module: Any, args: Any, out: Tensor) -> Tensor:
        return out if out.requires_grad or not torch.is_grad_enabled() else out.requires_grad_()

    with ExitStack() as stack:
        stack.callback(setting.embedding.register_forward_hook(root).remove)
        for layer in range(setting.layers):
            stack.callback(setting.mlp(layer).register_forward_hook(keep).remove)
        logits = setting.plain(tokens).logits
    return [*kept, prompts.difference(logits).sum()]
