"""The graph of senders, which write into the residual stream, and receivers, which read it.

1. Senders write: the embeddings (all that enters block 0), every head, every MLP. Receivers read: the queries
   of every head, the keys and values of every head (under grouped queries: of every group), every MLP, and
   the end of the stream, from which the logits are computed.
2. What a head writes is its part of ``hook_z`` times its slice of ``W_O``. Under post-norms the sum of all
   heads passes one more norm; there a head's difference goes through that norm's derivative.
3. A receiver's gradient is the metric's gradient at the stream *as that receiver alone reads it*: that at its
   queries, keys or values, times its slice of ``W_Q``, ``W_K`` or ``W_V``, through the derivative of the
   norm. An MLP's is the gradient at the input of its norm.
4. Norms are differentiated by autograd, at the run's stream and for many heads at once.
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
"""Numbers per product: about what fits into the cache of a processor core."""


@dataclass(frozen=True)
class Graph:
    """The senders and receivers of a model, in the order in which it computes."""

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
        """The indices of a layer's heads among the senders."""
        start = 1 + layer * (self._heads + 1)
        return slice(start, start + self._heads)

    def mlp(self, layer: int) -> slice:
        """The index of a layer's MLP among the senders; for layer -1, of the embeddings."""
        return slice(self.heads(layer).stop, self.heads(layer).stop + 1)

    def before(self, receivers: slice) -> slice:
        """The indices of all senders that can reach some receivers of one layer, or the end of the stream."""
        # The end of the stream follows the last layer's receivers, so it counts as one layer more. A layer's
        # own heads are among the senders for its MLP alone; `edges` tells where there is no edge.
        layer = receivers.start // self.columns(0).stop
        return slice(0, self.heads(layer).stop if layer in self.layers else len(self.senders))

    def columns(self, layer: int) -> slice:
        """The indices of a layer's receivers: those of its attention, and last its MLP."""
        width = len(self._attention(0)) + 1
        return slice(layer * width, (layer + 1) * width)

    def edges(self) -> Bool[Tensor, "sender receiver"]:
        """True where an edge can be: from a sender to every receiver that reads after it has written."""
        exists = torch.zeros(len(self.senders), len(self.receivers), dtype=torch.bool)
        for layer in self.layers:
            columns = self.columns(layer)
            exists[: self.heads(layer).start, columns] = True
            exists[self.heads(layer), columns.stop - 1] = not self.hm.arch.parallel
        exists[:, -1] = True
        return exists

    def write_names(self, layer: int) -> list[str]:
        """The hook points of what a layer's heads and its MLP write (of heads, ``z``)."""
        return [f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out"]

    @property
    def all_write_names(self) -> list[str]:
        """The hook points of what all senders write."""
        return [START, *(name for layer in self.layers for name in self.write_names(layer))]

    def post_norm(self, layer: int) -> list[str]:
        """The hook points before and after the norm between a layer's attention and the stream, if any."""
        if not hasattr(self.hm.bridge.blocks[layer], "ln1_post"):
            return []
        return [f"blocks.{layer}.ln1_post.hook_in", f"blocks.{layer}.ln1_post.hook_out"]

    @property
    def post_norms(self) -> list[str]:
        """Those of all layers."""
        return [name for layer in self.layers for name in self.post_norm(layer)]

    def norm(self, layer: int) -> list[str]:
        """The hook points before and after the norm through which a layer's attention reads."""
        return [f"blocks.{layer}.ln1.hook_in", f"blocks.{layer}.ln1.hook_out"]

    def _layer_read_names(self, layer: int) -> list[str]:
        return [*(f"blocks.{layer}.attn.hook_{part}" for part in "qkv"), self.mlp_read_name(layer)]

    def mlp_read_name(self, layer: int) -> str:
        """The hook point at which a layer's MLP reads the stream: the input of its norm."""
        return f"blocks.{layer}.ln2.hook_in"

    @property
    def end(self) -> str:
        """The hook point of the end of the stream."""
        return f"blocks.{self.layers[-1]}.hook_resid_post"

    def taps(self, layers: Iterable[int]) -> list[str]:
        """The hook points to tap for the receivers of some layers and the end of the stream."""
        names = (name for layer in layers for name in (*self.norm(layer), *self._layer_read_names(layer)))
        return [*names, self.end]

    def read_names(self, layers: Iterable[int]) -> list[str]:
        """The hook points at which gradients are needed for the receivers of some layers and the end."""
        return [*(name for layer in layers for name in self._layer_read_names(layer)), self.end]

    def receiver_gradients(
        self, layers: Iterable[int], taps: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> Iterator[tuple[slice, Float[Tensor, "receiver row pos d_model"]]]:
        """Indices and gradients of the receivers, layer by layer; each layer overwrites the one before."""
        end = gradients[self.end]
        # One buffer for all layers: memory fresh from the system costs more than the arithmetic on it.
        wide = torch.promote_types(end.dtype, torch.float32)
        buffer = end.new_empty(self.columns(0).stop, *end.shape, dtype=wide)
        for layer in layers:
            self._layer_gradients(layer, taps, gradients, buffer)
            yield self.columns(layer), buffer
        last = len(self.layers) * self.columns(0).stop
        yield slice(last, last + 1), end[None]

    def head_writes(
        self,
        layer: int,
        change: Float[Tensor, "row pos head d_head"],
        taps: Mapping[str, Tensor],
        into: Float[Tensor, "head row pos d_model"],
    ) -> None:
        """Compute the change of the stream from the change of each head's ``z``, in the run of the taps."""
        weight = self.hm.bridge.blocks[layer].attn.W_O.detach().to(change.dtype)
        torch.bmm(change.flatten(0, 1).transpose(0, 1), weight, out=into.flatten(1, 2))
        if post := self.post_norm(layer):
            into.copy_(_jvp(taps[post[0]], taps[post[1]], into))

    def _layer_gradients(
        self,
        layer: int,
        taps: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        into: Float[Tensor, "receiver row pos d_model"],
    ) -> None:
        """Compute the gradients of a layer's receivers at the stream as each reads it, the MLP's last."""
        attn = self.hm.bridge.blocks[layer].attn
        before, after = self._norm_run(layer, taps)
        receiver, size = 0, max(1, _CACHED // before.numel())
        for part, weight in (("q", attn.W_Q), ("k", attn.W_K), ("v", attn.W_V)):
            gradient = gradients[f"blocks.{layer}.attn.hook_{part}"]
            flat = gradient.flatten(0, 1).transpose(0, 1)
            transposed = weight.detach().to(gradient.dtype).transpose(1, 2)
            for first in range(0, len(flat), size):
                some = slice(first, first + size)
                normed = torch.bmm(flat[some], transposed[some]).view(-1, *before.shape)
                into[receiver : receiver + len(normed)] = _vjp(before, after, normed)
                receiver += len(normed)
        into[receiver] = gradients[self.mlp_read_name(layer)]

    def _norm_run(
        self, layer: int, taps: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_model"]]:
        """The stream before and after the norm, with a graph between the two."""
        norm = self.hm.bridge.blocks[layer].ln1
        points = [module for module in norm.modules() if isinstance(module, HookPoint)]
        if any(point.fwd_hooks or point.bwd_hooks for point in points):
            # The user's hooks may change what the norm does, so take the graph of the run.
            before, after = (taps[name] for name in self.norm(layer))
            return before, after
        # The bridge may compute a norm in many steps; the plain model's is the same function in one.
        with torch.enable_grad():
            stream = taps[self.norm(layer)[0]].detach().requires_grad_()
            return stream, norm.original_component(stream)


def _vjp(
    before: Float[Tensor, "row pos d_model"],
    after: Float[Tensor, "row pos d_model"],
    gradients: Float[Tensor, "unit row pos d_model"],
) -> Float[Tensor, "unit row pos d_model"]:
    """The gradients at a norm's input from those at its output (vector-Jacobian products)."""
    (products,) = torch.autograd.grad(
        after, before, gradients.to(after.dtype), retain_graph=True, is_grads_batched=True
    )
    return products


def _jvp(
    before: Float[Tensor, "row pos d_model"],
    after: Float[Tensor, "row pos d_model"],
    changes: Float[Tensor, "unit row pos d_model"],
) -> Float[Tensor, "unit row pos d_model"]:
    """The changes of a norm's output from those of its input (Jacobian-vector products)."""
    # The run left a graph for vector-Jacobian products only. But such a product is linear in its vector, so
    # its derivative by that vector, at any value, gives the Jacobian-vector products.
    with torch.enable_grad():
        vector = torch.zeros_like(after, requires_grad=True)
        (product,) = torch.autograd.grad(after, before, vector, create_graph=True)
    (products,) = torch.autograd.grad(
        product, vector, changes.to(product.dtype), retain_graph=True, is_grads_batched=True
    )
    return products
