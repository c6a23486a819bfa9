"""The three forms of edge attribution, which differ in the runs that give the gradients.

1. What every sender would write differently, corrupt minus clean, is laid out once per batch of rows.
2. Layer by layer, the gradients of that layer's receivers are built, multiplied with all writes that precede
   them in one matrix product, and dropped.
3. ``at_clean`` takes the gradients of the clean run; ``between_inputs`` averages them over runs whose
   embeddings lie between corrupt and clean. Each edge then has one write and one mean gradient.
4. ``between_activations`` runs each group of senders (embeddings, the heads of a layer, its MLP) at points
   between what it writes in the two prompts, and adds up the edges of that group alone. Under post-norms what
   a head writes depends on the point too, so products are averaged, and not gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.hooks import Hook
from mechunlearn.localization.attribution.gradients import START, corrupt_run, slopes, tapped
from mechunlearn.localization.attribution.graph import Graph
from mechunlearn.localization.patching.answer_metrics import AnswerRows
from mechunlearn.localization.patching.pairs import Pairs
from mechunlearn.models.activations import activations


class Steps(NamedTuple):
    """Points on the way from corrupt to clean: ``1/m, 2/m, ... 1``.

    Args:
        number: how many.
        batch_size: runs per pass, rows times points.
    """

    number: int
    batch_size: int

    def chunks(self, rows: int) -> Iterator[list[float]]:
        """As many points at a time as fit into a pass for so many rows."""
        points, size = [k / self.number for k in range(1, self.number + 1)], max(1, self.batch_size // rows)
        yield from (points[start : start + size] for start in range(0, self.number, size))


class EdgeSums:
    """The edges of some rows, as they are added up.

    Args:
        graph: the senders and receivers.
        pairs: the rows.
        shares: how much each token counts to each place, as `shares_of` gives it.

    Attributes:
        values: the sums [row sender receiver place]; 0 where no edge can be.
    """

    def __init__(self, graph: Graph, pairs: Pairs, shares: Float[Tensor, "row pos place"]) -> None:
        self.graph, self.pairs, self.asked, self.shares = graph, pairs, pairs.answers, shares
        self.hm = graph.hm
        size = (len(self.asked), len(graph.senders), len(graph.receivers), shares.shape[-1])
        dtype = torch.promote_types(self.hm.dtype, torch.float32)
        self.values = torch.zeros(size, dtype=dtype, device=self.hm.device)

    def change(
        self, clean: Float[Tensor, "row pos *unit"], corrupt: Float[Tensor, "row pos *unit"]
    ) -> Float[Tensor, "row pos *unit"]:
        """Corrupt minus clean, and exactly nothing before the first token that differs."""
        differs = self.pairs.differs.to(self.values.dtype)
        change = (corrupt - clean.detach()).to(self.values.dtype)
        return change * differs.reshape(differs.shape + (1,) * (change.ndim - 2))

    def corrupt(self) -> dict[str, Tensor]:
        """Where all writes are seen, in the corrupt run."""
        return corrupt_run(self.hm, self.pairs, self.graph.writings)

    def tiled(self, times: int) -> AnswerRows:
        """All rows one after another, `times` over."""
        return self.asked.rows(torch.arange(len(self.asked)).repeat(times))

    def writes(
        self, clean: Mapping[str, Tensor], corrupt: Mapping[str, Tensor]
    ) -> Float[Tensor, "sender row pos d_model"]:
        """What each sender would write differently; under post-norms `clean` holds taps of a run."""
        start = self.change(clean[START], corrupt[START])
        writes = start.new_empty(len(self.graph.senders), *start.shape)
        writes[0] = start
        for layer in self.graph.layers:
            z, out = (self.change(clean[name], corrupt[name]) for name in self.graph.writing(layer))
            self.graph.head_writes(layer, z, clean, writes[self.graph.heads(layer)])
            writes[self.graph.mlp(layer)] = out
        return writes

    def add(
        self,
        senders: slice,
        writes: Float[Tensor, "sender run pos d_model"],
        receivers: slice,
        readers: Float[Tensor, "receiver run pos d_model"],
        *,
        share: float = 1.0,
    ) -> None:
        """Multiply writes with gradients; runs are the rows, or all rows several times over."""
        readers = readers.to(writes.dtype)
        if self.shares.shape[-1] == 1:
            # All positions count alike, and those before the first difference write nothing.
            left, right = readers.flatten(2).transpose(0, 1), writes.flatten(2).permute(1, 2, 0)
            product = torch.bmm(left, right).transpose(1, 2)[..., None]
        else:
            run, pos = writes.shape[1:3]
            left, right = readers.flatten(1, 2).transpose(0, 1), writes.flatten(1, 2).permute(1, 2, 0)
            products = torch.bmm(left, right).view(run, pos, len(readers), len(writes))
            shares = self.shares.repeat(run // len(self.asked), 1, 1).to(products.dtype)
            product = torch.einsum("rpvs,rpb->rsvb", products, shares)
        tiles = product.view(-1, len(self.asked), *product.shape[1:])
        self.values[:, senders, receivers] += share * tiles.sum(0)


def at_clean(sums: EdgeSums) -> None:
    """Add up all edges with the gradients of the clean run."""
    graph = sums.graph
    metric, taps = tapped(
        sums.hm, sums.asked, [*graph.writings, *graph.post_norms, *graph.taps(graph.layers)]
    )
    gradients = slopes(metric, taps, graph.readings(graph.layers), keep=True)
    writes = sums.writes(taps, sums.corrupt())
    for receivers, readers in graph.read(graph.layers, taps, gradients):
        before = graph.before(receivers)
        sums.add(before, writes[before], receivers, readers)


def between_inputs(sums: EdgeSums, steps: Steps) -> None:
    """Add up all edges with gradients averaged over runs whose embeddings lie between corrupt and clean."""
    graph = sums.graph
    _, clean = tapped(sums.hm, sums.asked, [*graph.writings, *graph.post_norms])
    corrupt = sums.corrupt()
    writes = sums.writes(clean, corrupt)
    for points in steps.chunks(len(sums.asked)):
        between = _between(START, points, clean[START].detach(), corrupt[START])
        metric, taps = tapped(sums.hm, sums.tiled(len(points)), graph.taps(graph.layers), hooks=[between])
        gradients = slopes(metric, taps, graph.readings(graph.layers), keep=True)
        for receivers, readers in graph.read(graph.layers, taps, gradients):
            before = graph.before(receivers)
            total = readers.view(len(readers), len(points), *writes.shape[1:]).sum(1)
            sums.add(before, writes[before], receivers, total, share=1 / steps.number)


def between_activations(sums: EdgeSums, steps: Steps) -> None:
    """Add up each sender's edges over runs in which what it writes lies between corrupt and clean."""
    graph = sums.graph
    clean, corrupt = activations(sums.hm, sums.asked.batch, graph.writings), sums.corrupt()
    for layer in (-1, *graph.layers):
        for name in [START] if layer < 0 else graph.writing(layer):
            change = sums.change(clean[name], corrupt[name])
            for points in steps.chunks(len(sums.asked)):
                between = _between(name, points, clean[name], corrupt[name])
                _one_sender(sums, layer, between, torch.cat([change] * len(points)), steps)


def _one_sender(
    sums: EdgeSums, layer: int, between: Hook, change: Float[Tensor, "run pos *unit"], steps: Steps
) -> None:
    """The edges of a layer's heads, of its MLP or, before the first layer, of the embeddings in some runs."""
    graph, runs = sums.graph, sums.tiled(len(change) // len(sums.asked))
    heads, later = change.ndim == 4, range(layer + 1, len(graph.layers))
    # A layer's own MLP reads its heads, unless the two run in parallel.
    own = [graph.mlp_reading(layer)] if heads and not graph.hm.arch.parallel else []
    posts = graph.post_norm(layer) if heads else []
    metric, taps = tapped(sums.hm, runs, [*posts, *own, *graph.taps(later)], hooks=[between])
    gradients = slopes(metric, taps, [*own, *graph.readings(later)], keep=True)
    senders, writes = graph.mlp(layer), change[None]
    if heads:
        senders, size = graph.heads(layer), (change.shape[2], *change.shape[:2], sums.hm.cfg.d_model)
        writes = change.new_empty(size)
        graph.head_writes(layer, change, taps, writes)
    for name in own:
        place = graph.columns(layer).stop
        sums.add(senders, writes, slice(place - 1, place), gradients[name][None], share=1 / steps.number)
    for receivers, readers in graph.read(later, taps, gradients):
        sums.add(senders, writes, receivers, readers, share=1 / steps.number)


def _between(
    name: str,
    points: list[float],
    clean: Float[Tensor, "row pos *unit"],
    corrupt: Float[Tensor, "row pos *unit"],
) -> Hook:
    """Write what lies between corrupt and clean, for all rows at each point in turn."""
    written = torch.cat([torch.lerp(corrupt, clean, point) for point in points])
    return Hook(name, lambda activation, hook=None: written)
