"""Deltas, and what can be made of them: adding up, picking out, spreading out.

1. A ``Delta`` is what is added to one slice of one parameter; several may touch the same weights.
2. ``merged`` adds them up into at most one per parameter, over the smallest slice that holds them all.
3. ``restricted`` keeps what lies inside given slices. ``ranked`` orders the entries of all deltas together,
   so that the largest can be kept; entries that are equally large come in the order of the deltas.
4. ``added`` gives the changed parameters. A weight whose delta is zero keeps its very bits: adding 0 to
   -0 would not.
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
    """Add up what touches the same parameter.

    Args:
        deltas: any, also of slices that overlap.
        shapes: the shape of every parameter that is touched.

    Returns:
        One delta per parameter, in the order in which the parameters first come.

    Example:
        >>> rows = [Delta(Slice("w", 0, (row,)), torch.ones(1, 2)) for row in (0, 2, 2)]
        >>> (both,) = merged(rows, {"w": (4, 2)})
        >>> both.slice.index, both.values.tolist()
        ((0, 2), [[1.0, 1.0], [2.0, 2.0]])
    """
    touching: dict[str, list[Delta]] = {}
    for delta in deltas:
        touching.setdefault(delta.slice.name, []).append(delta)
    return tuple(_sum(found, shapes[name]) for name, found in touching.items())


def _sum(deltas: Sequence[Delta], shape: tuple[int, ...]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    held = reduce(lambda one, other: _holding(one, other, shape), [delta.slice for delta in deltas])
    dtype = reduce(torch.promote_types, [delta.values.dtype for delta in deltas])
    total = torch.zeros(held.shape(shape), dtype=dtype, device=deltas[0].values.device)
    for delta in deltas:
        _inside(delta.slice, held).add_(total, delta.values.to(total))
    return Delta(held, total)


def _holding(one: Slice, other: Slice, shape: tuple[int, ...]) -> Slice:
    """The smallest slice that holds two slices of one parameter."""
    if one == other:
        return one
    if one.index is None or other.index is None or one.axis != other.axis or one.axis is None:
        return Slice(one.name)
    union = tuple(sorted({*one.index, *other.index}))
    return Slice(one.name) if len(union) == shape[one.axis] else Slice(one.name, one.axis, union)


def _inside(part: Slice, whole: Slice) -> Slice:
    """A slice of a parameter as a slice of what a wider one takes out of it, along the same axis."""
    if whole.index is None:
        return part
    if part.index == whole.index or part.index is None:
        return Slice(part.name)
    place = {position: number for number, position in enumerate(whole.index)}
    return Slice(part.name, part.axis, tuple(place[position] for position in part.index))


def restricted(deltas: Sequence[Delta], slices: Sequence[Slice]) -> tuple[Delta, ...]:
    """Keep what lies inside some slices.

    Args:
        deltas: what is to be cut down.
        slices: at most one per parameter.

    Example:
        >>> whole = Delta(Slice("w"), torch.tensor([1.0, 2.0, 3.0]))
        >>> (kept,) = restricted([whole], [Slice("w", 0, (0, 2))])
        >>> kept.values.tolist()
        [1.0, 3.0]
    """
    allowed = {part.name: part for part in slices}
    cut = [_cut(delta, allowed[delta.slice.name]) for delta in deltas if delta.slice.name in allowed]
    return tuple(delta for delta in cut if delta.values.numel())


def _cut(delta: Delta, part: Slice) -> Delta:
    own = delta.slice
    if part.index is None or part == own:
        return delta
    if own.index is None:
        return Delta(part, part.of(delta.values))
    if part.axis == own.axis:
        common = Slice(own.name, own.axis, tuple(sorted({*own.index} & {*part.index})))
        return Delta(common, _inside(common, own).of(delta.values))
    # Some rows of some columns are no slice: the columns stay, with zeros outside the rows.
    zeros = torch.zeros_like(delta.values)
    part.copy_(zeros, part.of(delta.values))
    return Delta(own, zeros)


@dataclass(frozen=True, eq=False)
class Ranked:
    """The entries of some deltas in the order in which they are kept.

    Args:
        slices: where the entries stand.
        sizes: how much each entry counts, 0 for one that is never kept; shaped like the slices.
        values: what is added to the weight of each entry that is kept.
    """

    slices: tuple[Slice, ...]
    sizes: tuple[Float[Tensor, "..."], ...]
    values: tuple[Float[Tensor, "..."], ...]

    @property
    def total(self) -> int:
        """How many entries there are to keep."""
        return sum(int((size > 0).sum()) for size in self.sizes)

    def first(self, count: int) -> tuple[Delta, ...]:
        """The largest entries; parameters that none of them belongs to are left out.

        Args:
            count: how many; all there are, if there are fewer.
        """
        kept = []
        for part, chosen, values in zip(self.slices, _largest(self.sizes, count), self.values, strict=True):
            if bool(chosen.any()):
                kept.append(Delta(part, torch.where(chosen, values, torch.zeros_like(values))))
        return tuple(kept)


def _largest(sizes: Sequence[Float[Tensor, "..."]], count: int) -> tuple[Bool[Tensor, "..."], ...]:
    """Which entries are the largest ``count`` of all that are above 0; of equals the first."""
    if not sizes:
        return ()
    flat = torch.cat([size.flatten().to(torch.promote_types(size.dtype, torch.float32)) for size in sizes])
    chosen = flat > 0
    if 0 <= count < int(chosen.sum()):
        bound = flat.kthvalue(len(flat) - count + 1).values if count else torch.inf
        chosen = flat > bound
        ties = (flat == bound).nonzero()[:, 0]
        chosen[ties[: count - int(chosen.sum())]] = True
    parts = torch.split(chosen, [size.numel() for size in sizes])
    return tuple(part.reshape(size.shape) for part, size in zip(parts, sizes, strict=True))


def by_size(deltas: Sequence[Delta]) -> Ranked:
    """Rank the entries of deltas, at most one per parameter, by their absolute value.

    Args:
        deltas: as :func:`merged` gives them.

    Example:
        >>> ranked = by_size([Delta(Slice("w"), torch.tensor([1.0, -3.0, 2.0]))])
        >>> ranked.total, ranked.first(2)[0].values.tolist()
        (3, [0.0, -3.0, 2.0])
    """
    values = tuple(delta.values for delta in deltas)
    return Ranked(tuple(delta.slice for delta in deltas), tuple(v.abs() for v in values), values)


def dense(deltas: Sequence[Delta], shapes: Shapes) -> dict[str, Tensor]:
    """Spread deltas out over their whole parameters.

    Args:
        deltas: any, also of slices that overlap.
        shapes: the shape of every parameter that is touched.

    Example:
        >>> dense([Delta(Slice("w", 0, (1,)), torch.ones(1))], {"w": (3,)})
        {'w': tensor([0., 1., 0.])}
    """
    spread = {}
    for delta in merged(deltas, shapes):
        whole = delta.values.new_zeros(shapes[delta.slice.name])
        delta.slice.copy_(whole, delta.values)
        spread[delta.slice.name] = whole
    return spread


@torch.inference_mode(False)  # tensors made in that mode could never be trained
@torch.no_grad()
def added(deltas: Sequence[Delta], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The changed parameters; sums are formed in float32, or in what is wider of weights and deltas.

    Args:
        deltas: any, also of slices that overlap.
        params: the parameters as they are, by name.
    """
    changed: dict[str, Tensor] = {}
    for delta in deltas:
        name = delta.slice.name
        before = changed.get(name, params[name].detach())
        wide = torch.promote_types(torch.promote_types(before.dtype, delta.values.dtype), torch.float32)
        changed[name] = before.to(wide, copy=name not in changed)
        old = delta.slice.of(changed[name])
        values = delta.values.to(old)
        delta.slice.copy_(changed[name], torch.where(values == 0, old, old + values))
    return {name: value.to(params[name].dtype) for name, value in changed.items()}


def together(one: Localization, other: Localization) -> list[Site]:
    """The sites of two edits that are added: a whole component takes in its own parts.

    Whatever else shares weights is left for ``Localization`` to refuse.

    Example:
        >>> together(Localization(["L0.mlp"]), Localization(["L0.mlp.neuron[3]", "L1.attn"]))
        [Site.parse('L0.mlp'), Site.parse('L1.attn')]
    """
    both = {*one, *other}
    return sorted(site for site in both if not any(w.part is None and w in both for w in site.wider))


def meeting(one: Localization, other: Localization) -> Localization:
    """The sites in which two localizations meet: of two that share weights the finer.

    Example:
        >>> meeting(Localization(["L0.mlp", "L1.attn"]), Localization(["L0.mlp.neuron[3]", "L1.mlp"]))
        Localization(L0.mlp.neuron[3])
    """
    finer = [
        site
        for mine, theirs in ((one, other), (other, one))
        for site in mine
        if site in theirs or any(wider in theirs for wider in site.wider)
    ]
    return Localization(finer, source=one.source)


def require_alike(one: Shapes, other: Shapes) -> None:
    """Refuse two edits of models of different shapes.

    Raises:
        EditError: a parameter has two shapes.
    """
    for name in one.keys() & other.keys():
        if one[name] != other[name]:
            raise EditError(
                f"{name} has shape {one[name]} in one edit and {other[name]} in the other: edits can be "
                "added only if they fit the same model"
            )


def require_fit(shapes: Shapes, params: Mapping[str, Tensor]) -> None:
    """Refuse a model that an edit does not fit.

    Raises:
        EditError: a parameter is missing or has another shape.
    """
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
