"""Deltas and their algebra: add them up, cut them down, spread them over parameters.

1. A ``Delta`` is what is added to one slice of one parameter; several may change the same weights.
2. ``merged`` adds them up into at most one per parameter, over the smallest slice that holds them all.
3. ``restricted`` keeps what lies inside some slices. ``Ranked`` orders the entries of all deltas together,
   so that the largest can be kept; of equal entries, the first come first.
4. ``added`` gives the changed parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import EditError
from mechunlearn.models.arch import Slice

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to one slice of one parameter."""

    slice: Slice
    values: Float[Tensor, "..."]


def merged(deltas: Sequence[Delta], shapes: Shapes) -> tuple[Delta, ...]:
    """Add up the deltas of each parameter, also of slices that overlap.

    The result has one delta per parameter, in the order in which the parameters first come. ``shapes`` holds
    the shape of every parameter that is changed.

    Example:
        >>> rows = [Delta(Slice("w", 0, (row,)), torch.ones(1, 2)) for row in (0, 2, 2)]
        >>> (both,) = merged(rows, {"w": (4, 2)})
        >>> both.slice.index, both.values.tolist()
        ((0, 2), [[1.0, 1.0], [2.0, 2.0]])
    """
    by_name: dict[str, list[Delta]] = {}
    for delta in deltas:
        by_name.setdefault(delta.slice.name, []).append(delta)
    return tuple(_sum(group, shapes[name]) for name, group in by_name.items())


def _sum(deltas: Sequence[Delta], shape: tuple[int, ...]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    union = reduce(lambda a, b: _union(a, b, shape), [delta.slice for delta in deltas])
    dtype = reduce(torch.promote_types, [delta.values.dtype for delta in deltas])
    total = torch.zeros(union.shape(shape), dtype=dtype, device=deltas[0].values.device)
    for delta in deltas:
        _within(delta.slice, union).add_(total, delta.values.to(total))
    return Delta(union, total)


def _union(a: Slice, b: Slice, shape: tuple[int, ...]) -> Slice:
    """The smallest slice that holds two slices of one parameter."""
    if a == b:
        return a
    # Slices along different axes have no smaller slice in common than the whole parameter.
    if a.index is None or b.index is None or a.axis != b.axis or a.axis is None:
        return Slice(a.name)
    union = tuple(sorted({*a.index, *b.index}))
    # A slice that holds everything is written without an index, so that equal slices compare equal.
    return Slice(a.name) if len(union) == shape[a.axis] else Slice(a.name, a.axis, union)


def _within(part: Slice, wider: Slice) -> Slice:
    """A part of a parameter, in the indices of the tensor ``wider.of(parameter)``; ``wider`` must hold it."""
    if wider.index is None:
        return part
    if part.index == wider.index or part.index is None:
        return Slice(part.name)
    number = {position: number for number, position in enumerate(wider.index)}
    return Slice(part.name, part.axis, tuple(number[position] for position in part.index))


def restricted(deltas: Sequence[Delta], slices: Sequence[Slice]) -> tuple[Delta, ...]:
    """Keep what lies inside some slices, at most one per parameter; a delta without entries is dropped.

    Example:
        >>> full = Delta(Slice("w"), torch.tensor([1.0, 2.0, 3.0]))
        >>> (cut,) = restricted([full], [Slice("w", 0, (0, 2))])
        >>> cut.values.tolist()
        [1.0, 3.0]
    """
    allowed = {part.name: part for part in slices}
    cut = [_cut(delta, allowed[delta.slice.name]) for delta in deltas if delta.slice.name in allowed]
    return tuple(delta for delta in cut if delta.values.numel())


def _cut(delta: Delta, part: Slice) -> Delta:
    source = delta.slice
    if part.index is None or part == source:
        return delta
    if source.index is None:
        return Delta(part, part.of(delta.values))
    if part.axis == source.axis:
        common = Slice(source.name, source.axis, tuple(sorted({*source.index} & {*part.index})))
        return Delta(common, _within(common, source).of(delta.values))
    # Some rows of some columns are no slice: the columns stay, with zeros outside the rows.
    zeros = torch.zeros_like(delta.values)
    part.copy_(zeros, part.of(delta.values))
    return Delta(source, zeros)


@dataclass(frozen=True, eq=False)
class Ranked:
    """The entries of some deltas, by rank: larger ``sizes`` first, and those of size 0 never.

    ``values`` holds what a selected entry adds to its weight.
    """

    slices: tuple[Slice, ...]
    sizes: tuple[Float[Tensor, "..."], ...]
    values: tuple[Float[Tensor, "..."], ...]

    @property
    def total(self) -> int:
        """How many entries can be selected."""
        return sum(int((size > 0).sum()) for size in self.sizes)

    def first(self, count: int) -> tuple[Delta, ...]:
        """Deltas of the ``count`` largest entries, or of all; parameters without any are left out."""
        deltas = []
        for part, chosen, values in zip(self.slices, _largest(self.sizes, count), self.values, strict=True):
            if bool(chosen.any()):
                deltas.append(Delta(part, torch.where(chosen, values, torch.zeros_like(values))))
        return tuple(deltas)


def _largest(sizes: Sequence[Float[Tensor, "..."]], count: int) -> tuple[Bool[Tensor, "..."], ...]:
    """Masks of the ``count`` largest entries above 0, over all tensors together; of equal ones the first."""
    if not sizes:
        return ()
    flat = torch.cat([size.flatten().to(torch.promote_types(size.dtype, torch.float32)) for size in sizes])
    chosen = flat > 0
    if 0 <= count < int(chosen.sum()):
        # kthvalue counts from the smallest. With count 0, nothing is above infinity.
        bound = flat.kthvalue(len(flat) - count + 1).values if count else torch.inf
        # What is above the bound is in; of what equals it, as many as are still needed.
        chosen = flat > bound
        ties = (flat == bound).nonzero()[:, 0]
        chosen[ties[: count - int(chosen.sum())]] = True
    parts = torch.split(chosen, [size.numel() for size in sizes])
    return tuple(part.reshape(size.shape) for part, size in zip(parts, sizes, strict=True))


def by_size(deltas: Sequence[Delta]) -> Ranked:
    """Rank the entries of deltas, at most one delta per parameter, by their absolute value.

    Example:
        >>> ranked = by_size([Delta(Slice("w"), torch.tensor([1.0, -3.0, 2.0]))])
        >>> ranked.total, ranked.first(2)[0].values.tolist()
        (3, [0.0, -3.0, 2.0])
    """
    values = tuple(delta.values for delta in deltas)
    return Ranked(tuple(delta.slice for delta in deltas), tuple(v.abs() for v in values), values)


def dense(deltas: Sequence[Delta], shapes: Shapes) -> dict[str, Tensor]:
    """Spread deltas, also of slices that overlap, out over their whole parameters.

    Example:
        >>> dense([Delta(Slice("w", 0, (1,)), torch.ones(1))], {"w": (3,)})
        {'w': tensor([0., 1., 0.])}
    """
    spread = {}
    for delta in merged(deltas, shapes):
        zeros = delta.values.new_zeros(shapes[delta.slice.name])
        delta.slice.copy_(zeros, delta.values)
        spread[delta.slice.name] = zeros
    return spread


@torch.inference_mode(False)  # tensors made in that mode could never be trained
@torch.no_grad()
def added(deltas: Sequence[Delta], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The changed parameters by name; the deltas may overlap.

    Sums are formed in float32, or in the precision of weights or deltas if that is wider.
    """
    changed: dict[str, Tensor] = {}
    for delta in deltas:
        name = delta.slice.name
        before = changed.get(name, params[name].detach())
        wide = torch.promote_types(torch.promote_types(before.dtype, delta.values.dtype), torch.float32)
        # Copied at the first delta, to leave the model alone; further deltas go into the copy.
        changed[name] = before.to(wide, copy=name not in changed)
        old = delta.slice.of(changed[name])
        values = delta.values.to(old)
        # A weight whose delta is zero keeps its very bits: adding 0 to -0 would give +0.
        delta.slice.copy_(changed[name], torch.where(values == 0, old, old + values))
    return {name: value.to(params[name].dtype) for name, value in changed.items()}


def together(a: Localization, b: Localization) -> list[Site]:
    """The sites of the sum of two edits, without parts of a component that is there as a whole.

    Sites that share weights in another way are left for ``Localization`` to refuse.

    Example:
        >>> together(Localization(["L0.mlp"]), Localization(["L0.mlp.neuron[3]", "L1.attn"]))
        [Site.parse('L0.mlp'), Site.parse('L1.attn')]
    """
    both = {*a, *b}
    return sorted(site for site in both if not any(w.part is None and w in both for w in site.wider))


def meeting(a: Localization, b: Localization) -> Localization:
    """The sites that two localizations have in common: of two sites that share weights, the finer one.

    Example:
        >>> meeting(Localization(["L0.mlp", "L1.attn"]), Localization(["L0.mlp.neuron[3]", "L1.mlp"]))
        Localization(L0.mlp.neuron[3])
    """
    finer = [
        site
        for fine, coarse in ((a, b), (b, a))
        for site in fine
        if site in coarse or any(wider in coarse for wider in site.wider)
    ]
    return Localization(finer, source=a.source)


def require_alike(a: Shapes, b: Shapes) -> None:
    """Raise an ``EditError`` if two edits fit models of different shapes."""
    for name in a.keys() & b.keys():
        if a[name] != b[name]:
            raise EditError(
                f"{name} has shape {a[name]} in one edit and {b[name]} in the other: edits can be "
                "added only if they fit the same model"
            )


def require_fit(shapes: Shapes, params: Mapping[str, Tensor]) -> None:
    """Raise an ``EditError`` if the model lacks a parameter of the edit, or has it in another shape."""
    for name, shape in shapes.items():
        if name not in params:
            raise EditError(
                f"the edit changes {name!r}, which this model does not have; "
                "apply it to the model it was made on, or to one of the same architecture"
            )
        if tuple(params[name].shape) != shape:
            raise EditError(
                f"the edit was made for {name!r} of shape {shape}, and this model's is "
                f"{tuple(params[name].shape)}; apply it to the model it was made on"
            )
