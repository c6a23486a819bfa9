"""Who writes into the residual stream, who reads it, and with which gradient.

1. Senders write: the embeddings (all that enters block 0), every head, every MLP. Receivers read: the queries
   of every head, the keys and values of every head (under grouped queries: of every group), every MLP, and
   the end of the stream, from which the logits are computed.
2. What a head writes is its part of ``hook_z`` times its slice of ``W_O``. Under post-norms the sum of all
   heads passes one more norm; there a head's difference goes through that norm's derivative.
3. A receiver's gradient is the metric's at the stream *as that receiver alone reads it*: the gradient at its
   queries, keys or values, times its slice of ``W_Q``, ``W_K`` or ``W_V``, through the derivative of the
   norm. An MLP's is the gradient at the input of its norm.
4. Derivatives of norms are taken by differentiating the norms themselves, at the run's own stream and for
   many heads at once. No formula of any norm is written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from mechunlearn.core.sites.site import Site
from mechunlearn.localization.attribution.gradients import START
from mechunlearn.models.hooked import HookedModel

_CACHED = 1 << 18
"""Numbers that are worked on at a time: about what a processor core keeps at hand."""


@dataclass(frozen=True)
class Graph:
    """The senders and receivers of a model, in the order in which it computes.

    Args:
        hm: the model.
    """

    hm: HookedModel

    @property
    def layers(self) -> range:
        """The numbers of the blocks."""
        return range(self.hm.arch.shape.n_layers)

    @property
    def _heads(self) -> int:
        return self.hm.arch.shape.n_heads

    @property
    def senders(self) -> list[Site]:
        """The embeddings, then every layer's heads and MLP."""
        sites = [Site("embed")]
        for layer in self.layers:
            sites += [Site("head", layer, head) for head in range(self._heads)]
            sites.append(Site("mlp", layer))
        return sites

    @property
    def receivers(self) -> list[Site]:
        """Every layer's queries, keys, values and MLP, then the end of the stream."""
        sites = []
        for layer in self.layers:
            sites += [*self._attention(layer), Site("mlp", layer)]
        return [*sites, Site("resid_post", self.layers[-1])]

    def _attention(self, layer: int) -> list[Site]:
        shape = self.hm.arch.shape
        kind, count = ("kv", shape.n_kv_heads) if shape.grouped else ("head", shape.n_heads)
        queries = [Site("head", layer, head, "q") for head in range(shape.n_heads)]
        return queries + [Site(kind, layer, unit, part) for part in "kv" for unit in range(count)]

    def heads(self, layer: int) -> slice:
        """The places of a layer's heads among the senders."""
        start = 1 + layer * (self._heads + 1)
        return slice(start, start + self._heads)

    def mlp(self, layer: int) -> slice:
        """The place of a layer's MLP among the senders; that of the embeddings for layer -1."""
        return slice(self.heads(layer).stop, self.heads(layer).stop + 1)

    def before(self, receivers: slice) -> slice:
        """The places of all that can write before some receivers of one layer, or the end, read."""
        layer = receivers.start // self.columns(0).stop
        return slice(0, self.heads(layer).stop if layer in self.layers else len(self.senders))

    def columns(self, layer: int) -> slice:
        """The places of a layer's receivers: its attention's, and its MLP's as the last."""
        width = len(self._attention(0)) + 1
        return slice(layer * width, (layer + 1) * width)

    def edges(self) -> Bool[Tensor, "sender receiver"]:
        """Where an edge can be: from a writer to whoever reads after it has written."""
        found = torch.zeros(len(self.senders), len(self.receivers), dtype=torch.bool)
        for layer in self.layers:
            columns = self.columns(layer)
            found[: self.heads(layer).start, columns] = True
            found[self.heads(layer), columns.stop - 1] = not self.hm.arch.parallel
        found[:, -1] = True
        return found

    def writing(self, layer: int) -> list[str]:
        """Where the writes of a layer are seen, apart from norms."""
        return [f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out"]

    @property
    def writings(self) -> list[str]:
        """Where all writes are seen."""
        return [START, *(name for layer in self.layers for name in self.writing(layer))]

    def post_norm(self, layer: int) -> list[str]:
        """Both sides of the norm between a layer's attention and the stream; nothing where there is none."""
        if not hasattr(self.hm.bridge.blocks[layer], "ln1_post"):
            return []
        return [f"blocks.{layer}.ln1_post.hook_in", f"blocks.{layer}.ln1_post.hook_out"]

    @property
    def post_norms(self) -> list[str]:
        """All of them."""
        return [name for layer in self.layers for name in self.post_norm(layer)]

    def norm(self, layer: int) -> list[str]:
        """Both sides of the norm through which a layer's attention reads."""
        return [f"blocks.{layer}.ln1.hook_in", f"blocks.{layer}.ln1.hook_out"]

    def reading(self, layer: int) -> list[str]:
        """Where the metric's gradient gives the gradients of a layer's receivers."""
        return [*(f"blocks.{layer}.attn.hook_{part}" for part in "qkv"), self.mlp_reading(layer)]

    def mlp_reading(self, layer: int) -> str:
        """Where a layer's MLP reads the stream: at the input of its norm."""
        return f"blocks.{layer}.ln2.hook_in"

    @property
    def end(self) -> str:
        """Where the stream ends."""
        return f"blocks.{self.layers[-1]}.hook_resid_post"

    def taps(self, layers: Iterable[int]) -> list[str]:
        """What has to be tapped for the receivers of some layers and the end of the stream."""
        return [*(name for layer in layers for name in (*self.norm(layer), *self.reading(layer))), self.end]

    def readings(self, layers: Iterable[int]) -> list[str]:
        """Where gradients are needed for the receivers of some layers and the end of the stream."""
        return [*(name for layer in layers for name in self.reading(layer)), self.end]

    def read(
        self, layers: Iterable[int], taps: Mapping[str, Tensor], slopes: Mapping[str, Tensor]
    ) -> Iterator[tuple[slice, Float[Tensor, "receiver row pos d_model"]]]:
        """Places and gradients of the receivers, a layer at a time; the next layer overwrites the last."""
        end = slopes[self.end]
        # One buffer for all layers: memory fresh from the system costs more than the arithmetic on it.
        wide = torch.promote_types(end.dtype, torch.float32)
        readers = end.new_empty(self.columns(0).stop, *end.shape, dtype=wide)
        for layer in layers:
            self._readers(layer, taps, slopes, readers)
            yield self.columns(layer), readers
        last = len(self.layers) * self.columns(0).stop
        yield slice(last, last + 1), end[None]

    def head_writes(
        self,
        layer: int,
        change: Float[Tensor, "row pos head d_head"],
        taps: Mapping[str, Tensor],
        into: Float[Tensor, "head row pos d_model"],
    ) -> None:
        """Write down what a change of each head's ``hook_z`` writes into the stream, at the tapped run."""
        weight = self.hm.bridge.blocks[layer].attn.W_O.detach().to(change.dtype)
        torch.bmm(change.flatten(0, 1).transpose(0, 1), weight, out=into.flatten(1, 2))
        if post := self.post_norm(layer):
            into.copy_(_pushed(taps[post[0]], taps[post[1]], into))

    def _readers(
        self,
        layer: int,
        taps: Mapping[str, Tensor],
        slopes: Mapping[str, Tensor],
        into: Float[Tensor, "receiver row pos d_model"],
    ) -> None:
        """Write the gradients of a layer's receivers at the stream as each reads it, the MLP's last."""
        attn = self.hm.bridge.blocks[layer].attn
        before, after = self._norm_run(layer, taps)
        place, size = 0, max(1, _CACHED // before.numel())
        for part, weight in (("q", attn.W_Q), ("k", attn.W_K), ("v", attn.W_V)):
            slope = slopes[f"blocks.{layer}.attn.hook_{part}"]
            flat = slope.flatten(0, 1).transpose(0, 1)
            turned = weight.detach().to(slope.dtype).transpose(1, 2)
            for first in range(0, len(flat), size):
                some = slice(first, first + size)
                normed = torch.bmm(flat[some], turned[some]).view(-1, *before.shape)
                into[place : place + len(normed)] = _pulled(before, after, normed)
                place += len(normed)
        into[place] = slopes[self.mlp_reading(layer)]

    def _norm_run(
        self, layer: int, taps: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_model"]]:
        """The stream and what the norm makes of it, with a graph between the two."""
        norm = self.hm.bridge.blocks[layer].ln1
        points = [module for module in norm.modules() if isinstance(module, HookPoint)]
        if any(point.fwd_hooks or point.bwd_hooks for point in points):
            # Somebody else's hooks may change what the norm does, so take the run's own graph.
            before, after = (taps[name] for name in self.norm(layer))
            return before, after
        # The bridge may write a norm out in many steps; the plain model's is the same function in one.
        with torch.enable_grad():
            stream = taps[self.norm(layer)[0]].detach().requires_grad_()
            return stream, norm.original_component(stream)


def _pulled(
    before: Float[Tensor, "row pos d_model"],
    after: Float[Tensor, "row pos d_model"],
    slopes: Float[Tensor, "unit row pos d_model"],
) -> Float[Tensor, "unit row pos d_model"]:
    """Pull many gradients at a norm's output back to its input."""
    (pulled,) = torch.autograd.grad(
        after, before, slopes.to(after.dtype), retain_graph=True, is_grads_batched=True
    )
    return pulled


def _pushed(
    before: Float[Tensor, "row pos d_model"],
    after: Float[Tensor, "row pos d_model"],
    changes: Float[Tensor, "unit row pos d_model"],
) -> Float[Tensor, "unit row pos d_model"]:
    """Push changes of a norm's input forward to its output: the pull is linear, and this is its slope."""
    with torch.enable_grad():
        slope = torch.zeros_like(after, requires_grad=True)
        (pulled,) = torch.autograd.grad(after, before, slope, create_graph=True)
    (pushed,) = torch.autograd.grad(
        pulled, slope, changes.to(pulled.dtype), retain_graph=True, is_grads_batched=True
    )
    return pushed
