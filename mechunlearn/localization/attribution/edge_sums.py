"""The three forms of edge attribution, which differ in the runs that give the gradients.

1. The change of what every sender writes, corrupt minus clean, is computed once per batch of rows.
2. Layer by layer, the gradients of the layer's receivers are computed, and multiplied in one matrix product
   with the changes of all senders before them.
3. ``at_clean`` and ``between_inputs`` have one change and one mean gradient for each edge.
4. ``between_activations`` runs each group of senders (embeddings, the heads of a layer, its MLP) at points
   between what it writes in the two prompts, and sums the edges of that group alone. Under post-norms what a
   head writes depends on the point, too, so products are averaged, and not gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.hooks import Hook
from mechunlearn.localization.attribution.gradients import (
    START,
    corrupt_activations,
    gradients_at,
    run_with_taps,
)
from mechunlearn.localization.attribution.graph import Graph
from mechunlearn.localization.patching.answer_metrics import AnswerRows
from mechunlearn.localization.patching.pairs import Pairs
from mechunlearn.models.activations import activations


class Steps(NamedTuple):
    """Points ``1/m, 2/m, ... 1`` on the way from corrupt to clean; ``batch_size`` is rows times points."""

    number: int
    batch_size: int

    def chunks(self, rows: int) -> Iterator[list[float]]:
        """The points, as many at a time as fit into a pass with this number of rows."""
        points, size = [k / self.number for k in range(1, self.number + 1)], max(1, self.batch_size // rows)
        yield from (points[start : start + size] for start in range(0, self.number, size))


class EdgeSums:
    """The sums of change times gradient over the edges of some rows.

    ``shares`` is the weight of each token in each place, from `shares_of`. The attribute ``values`` holds the
    sums [row sender receiver place]. They mean nothing for pairs that are no edge; `edge_estimates` masks
    them.
    """

    def __init__(self, graph: Graph, pairs: Pairs, shares: Float[Tensor, "row pos place"]) -> None:
        self.graph, self.pairs, self.answers, self.shares = graph, pairs, pairs.answers, shares
        self.hm = graph.hm
        size = (len(self.answers), len(graph.senders), len(graph.receivers), shares.shape[-1])
        dtype = torch.promote_types(self.hm.dtype, torch.float32)
        self.values = torch.zeros(size, dtype=dtype, device=self.hm.device)

    def change(
        self, clean: Float[Tensor, "row pos *unit"], corrupt: Float[Tensor, "row pos *unit"]
    ) -> Float[Tensor, "row pos *unit"]:
        """Corrupt minus clean, and exactly 0 before the first token that differs."""
        differs = self.pairs.differs.to(self.values.dtype)
        change = (corrupt - clean.detach()).to(self.values.dtype)
        return change * differs.reshape(differs.shape + (1,) * (change.ndim - 2))

    def corrupt(self) -> dict[str, Tensor]:
        """The corrupt run's activations at which all writes are read."""
        return corrupt_activations(self.hm, self.pairs, self.graph.all_write_names)

    def repeated(self, times: int) -> AnswerRows:
        """All rows one after another, several times."""
        return self.answers.rows(torch.arange(len(self.answers)).repeat(times))

    def writes(
        self, clean: Mapping[str, Tensor], corrupt: Mapping[str, Tensor]
    ) -> Float[Tensor, "sender row pos d_model"]:
        """The change of what each sender writes; under post-norms `clean` holds the taps of a run."""
        start = self.change(clean[START], corrupt[START])
        writes = start.new_empty(len(self.graph.senders), *start.shape)
        writes[0] = start
        for layer in self.graph.layers:
            z, out = (self.change(clean[name], corrupt[name]) for name in self.graph.write_names(layer))
            self.graph.head_writes(layer, z, clean, writes[self.graph.heads(layer)])
            writes[self.graph.mlp(layer)] = out
        return writes

    def add(
        self,
        senders: slice,
        writes: Float[Tensor, "sender run pos d_model"],
        receivers: slice,
        gradients: Float[Tensor, "receiver run pos d_model"],
        *,
        share: float = 1.0,
    ) -> None:
        """Add changes times gradients, weighted by ``share``, to the sums of these senders and receivers.

        ``writes`` and ``gradients`` hold the rows once, or all rows several times, one tile after another.
        """
        gradients = gradients.to(writes.dtype)
        if self.shares.shape[-1] == 1:
            # With one place all positions count alike, and the matrix product can sum over them. Positions
            # before the first difference add nothing, since the change there is 0.
            left, right = gradients.flatten(2).transpose(0, 1), writes.flatten(2).permute(1, 2, 0)
            product = torch.bmm(left, right).transpose(1, 2)[..., None]
        else:
            run, pos = writes.shape[1:3]
            left, right = gradients.flatten(1, 2).transpose(0, 1), writes.flatten(1, 2).permute(1, 2, 0)
            products = torch.bmm(left, right).view(run, pos, len(gradients), len(writes))
            shares = self.shares.repeat(run // len(self.answers), 1, 1).to(products.dtype)
            product = torch.einsum("rpvs,rpb->rsvb", products, shares)
        tiles = product.view(-1, len(self.answers), *product.shape[1:])
        self.values[:, senders, receivers] += share * tiles.sum(0)


def at_clean(sums: EdgeSums) -> None:
    """Sum all edges with the gradients of the clean run."""
    graph = sums.graph
    names = [*graph.all_write_names, *graph.post_norms, *graph.taps(graph.layers)]
    metric, taps = run_with_taps(sums.hm, sums.answers, names)
    gradients = gradients_at(graph.read_names(graph.layers), metric, taps, retain_graph=True)
    writes = sums.writes(taps, sums.corrupt())
    for receivers, at_receivers in graph.receiver_gradients(graph.layers, taps, gradients):
        before = graph.before(receivers)
        sums.add(before, writes[before], receivers, at_receivers)


def between_inputs(sums: EdgeSums, steps: Steps) -> None:
    """Sum all edges with gradients averaged over runs whose embeddings lie between corrupt and clean."""
    graph = sums.graph
    _, clean = run_with_taps(sums.hm, sums.answers, [*graph.all_write_names, *graph.post_norms])
    corrupt = sums.corrupt()
    writes = sums.writes(clean, corrupt)
    for points in steps.chunks(len(sums.answers)):
        between = _between(START, points, clean[START].detach(), corrupt[START])
        rows = sums.repeated(len(points))
        metric, taps = run_with_taps(sums.hm, rows, graph.taps(graph.layers), hooks=[between])
        gradients = gradients_at(graph.read_names(graph.layers), metric, taps, retain_graph=True)
        for receivers, at_receivers in graph.receiver_gradients(graph.layers, taps, gradients):
            before = graph.before(receivers)
            total = at_receivers.view(len(at_receivers), len(points), *writes.shape[1:]).sum(1)
            sums.add(before, writes[before], receivers, total, share=1 / steps.number)


def between_activations(sums: EdgeSums, steps: Steps) -> None:
    """Sum each sender's edges over runs in which what it writes lies between corrupt and clean."""
    graph = sums.graph
    clean, corrupt = activations(sums.hm, sums.answers.batch, graph.all_write_names), sums.corrupt()
    for layer in (-1, *graph.layers):
        for name in [START] if layer < 0 else graph.write_names(layer):
            change = sums.change(clean[name], corrupt[name])
            for points in steps.chunks(len(sums.answers)):
                between = _between(name, points, clean[name], corrupt[name])
                _add_senders(sums, layer, between, torch.cat([change] * len(points)), steps)


def _add_senders(
    sums: EdgeSums, layer: int, between: Hook, change: Float[Tensor, "run pos *unit"], steps: Steps
) -> None:
    """Add the edges of a layer's heads, of its MLP or (for layer -1) of the embeddings, from some runs.

    ``between`` writes what lies between corrupt and clean. ``change`` has an axis of heads if heads send.
    """
    graph, runs = sums.graph, sums.repeated(len(change) // len(sums.answers))
    heads, later = change.ndim == 4, range(layer + 1, len(graph.layers))
    # A layer's own MLP reads its heads, unless the two run in parallel.
    mlp = [graph.mlp_read_name(layer)] if heads and not graph.hm.arch.parallel else []
    posts = graph.post_norm(layer) if heads else []
    metric, taps = run_with_taps(sums.hm, runs, [*posts, *mlp, *graph.taps(later)], hooks=[between])
    gradients = gradients_at([*mlp, *graph.read_names(later)], metric, taps, retain_graph=True)
    senders, writes = graph.mlp(layer), change[None]
    if heads:
        senders, size = graph.heads(layer), (change.shape[2], *change.shape[:2], sums.hm.cfg.d_model)
        writes = change.new_empty(size)
        graph.head_writes(layer, change, taps, writes)
    for name in mlp:
        stop = graph.columns(layer).stop
        sums.add(senders, writes, slice(stop - 1, stop), gradients[name][None], share=1 / steps.number)
    for receivers, at_receivers in graph.receiver_gradients(later, taps, gradients):
        sums.add(senders, writes, receivers, at_receivers, share=1 / steps.number)


def _between(
    name: str,
    points: list[float],
    clean: Float[Tensor, "row pos *unit"],
    corrupt: Float[Tensor, "row pos *unit"],
) -> Hook:
    """A hook that writes what lies between corrupt and clean, for all rows at each point in turn."""
    written = torch.cat([torch.lerp(corrupt, clean, point) for point in points])
    return Hook(name, lambda activation, hook=None: written)
