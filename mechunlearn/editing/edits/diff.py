"""The edit between two checkpoints, such as a model and a fine-tune of it that was made elsewhere.

1. The two must have the same architecture, parameters, shapes and precision; parameters are compared bit by
   bit, but for the sign of zero.
2. A component is named as a whole if its output bias was changed, or every head or neuron. It is named by
   its heads or neurons if only some of them were changed, and an MLP by its matrices if only some of these.
3. Changed parameters that belong to no site (norms, positions, an untied unembedding) are an error, unless
   they are to be dropped or kept.
4. A delta is the difference in float32, and in float64 where adding that to the first model's weights would
   not give the second's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.core.sites.site import Site
from mechunlearn.editing.edits.algebra import Delta, added
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.errors import EditError, one_of
from mechunlearn.models import identity, loading
from mechunlearn.models.arch import Arch, Slice
from mechunlearn.models.hooked import HookedModel

Unowned = Literal["refuse", "drop", "keep"]
_SHOWN = 4


def diff(model_a: Any, model_b: Any, *, unowned: Unowned = "refuse") -> Edit:
    """Return the edit that turns one model into another.

    Args:
        model_a: the model before: a ``HookedModel``, or a plain Hugging Face model in memory.
        model_b: the model after, with the same parameters, shapes and precision.
        unowned: what to do with changed parameters that belong to no site (norms, positions, an untied
            unembedding): ``"refuse"``; ``"drop"`` them, so that the edit is confined to its localization but
            does not give all of the second model; or ``"keep"`` them as deltas outside the localization.

    Returns:
        An edit without a recipe, at the sites that were changed, as whole as possible. Applied to the first
        model it gives the second's very bits (in float64 up to rounding), unless a weight fell by a factor
        of half a billion or more.

    Raises:
        EditError: the models differ in architecture, parameters, shapes or precision, a difference is not
            finite, or parameters without a site were changed and are to be refused.
        ModelError: something is not a model in memory, or its family is not supported.

    Example:
        >>> hm = mu.world.model()
        >>> name = "model.layers.3.mlp.down_proj.weight"
        >>> diff(hm, hm.fork({name: hm.params[name] / 2})).localization
        Localization(L3.mlp.out; changed between two models)
    """
    if unowned not in get_args(Unowned):
        raise EditError(one_of("unowned", unowned, get_args(Unowned)))
    (arch, before), (arch_b, after) = _opened(model_a), _opened(model_b)
    _require_alike(arch, before, arch_b, after)
    moved = {name: before[name] != after[name].to(before[name].device) for name in before}
    moved = {name: where for name, where in moved.items() if bool(where.any())}
    free = _unowned(arch, moved, unowned)
    sites = [site for each in ModelSites(arch.shape, arch.count) for site in _changed(arch, each, moved)]
    parts = [*arch.slices(sites), *(Slice(name) for name in free if unowned == "keep")]
    deltas = tuple(_delta(part, before, after) for part in parts if part.name in moved)
    also = f", with {len(free)} parameters of no site" if free and unowned == "keep" else ""
    return Edit(
        deltas=deltas,
        localization=Localization(sites, source=f"changed between two models{also}"),
        shapes={delta.slice.name: tuple(before[delta.slice.name].shape) for delta in deltas},
        made_on=identity.digest(before),
        arch=arch,
    )


def _opened(model: Any) -> tuple[Arch, Mapping[str, Tensor]]:
    """The table and the parameters of a model of either kind."""
    if isinstance(model, HookedModel):
        return model.arch, {name: parameter.detach() for name, parameter in model.params.items()}
    loading.require_plain(model)
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return Arch.of(type(model).__name__, model.config, params), params


def _require_alike(
    arch: Arch, before: Mapping[str, Tensor], arch_b: Arch, after: Mapping[str, Tensor]
) -> None:
    tables = [(a.architecture, a.shape, a.d_head) for a in (arch, arch_b)]
    if tables[0] != tables[1]:
        raise EditError(
            f"the models differ: {_named(arch)} and {_named(arch_b)}; an edit turns a model into another "
            "of the same architecture and sizes"
        )
    if single := sorted(before.keys() ^ after.keys()):
        raise EditError(
            f"one of the models has {_listed(single)}, which the other does not; load both in the same way, "
            "without adapters (merge them first) and with the same tied weights"
        )
    for name in before:
        one, two = before[name], after[name]
        if one.shape != two.shape:
            raise EditError(
                f"{name!r} has shape {tuple(one.shape)} in the first model and {tuple(two.shape)} in the "
                "second; an edit turns a model into another of the same shapes"
            )
        if one.dtype != two.dtype:
            raise EditError(
                f"{name!r} is in {one.dtype} in the first model and in {two.dtype} in the second, so "
                "rounding would count as a change of every weight; load both in one precision"
            )


def _unowned(arch: Arch, moved: Mapping[str, Tensor], what: Unowned) -> list[str]:
    """The changed parameters that belong to no site."""
    owned = {part.name for part in arch.slices(ModelSites(arch.shape, arch.count))}
    free = [name for name in moved if name not in owned]
    if free and what == "refuse":
        raise EditError(
            f"{_listed(free)} differ{'s' * (len(free) == 1)} between the models and belong"
            f"{'s' * (len(free) == 1)} to no site (norms, positions and an untied unembedding do not), so no "
            "localization holds the change; leave them as they are in the first model with unowned='drop', "
            "or have them changed too with unowned='keep'"
        )
    return free


def _changed(arch: Arch, component: Site, moved: Mapping[str, Tensor]) -> Sequence[Site]:
    """The sites of one component that were changed."""
    names = {part.name for part in arch.slices([component]) if part.name in moved}
    if not names or component.kind == "embed":
        return [component] if names else []
    pieces = ModelSites(arch.shape, arch.count).pieces(component)
    # An output bias belongs to no head and no neuron, so a change of it names the component.
    shared = names - {part.name for part in arch.slices(pieces)}
    touched = [] if shared else list(_touched(arch, pieces, moved))
    if touched and len(touched) < len(pieces):
        return touched
    parts = [Site("mlp", component.layer, part=part) for part in ("in", "gate", "out")]
    parts = [part for part in parts if component.kind == "mlp" and arch.shape.problem(part) is None]
    some = [part for part in parts if names & {each.name for each in arch.slices([part])}]
    return some if len(some) < len(parts) else [component]


def _touched(arch: Arch, pieces: Sequence[Site], moved: Mapping[str, Tensor]) -> Iterator[Site]:
    """The heads or neurons in which anything was changed."""
    lines: dict[tuple[str, int], list[bool]] = {}
    for piece in pieces:
        for part in arch.slices([piece]):
            if part.name not in moved:
                continue
            key = part.name, part.axis or 0
            if key not in lines:
                # Once per parameter and axis: a reduction for every head or neuron would be slow.
                lines[key] = _lines(moved[part.name], key[1])
            if part.index is None or any(lines[key][position] for position in part.index):
                yield piece
                break


def _lines(moved: Bool[Tensor, "..."], axis: int) -> list[bool]:
    """Along one axis, where anything was changed."""
    others = [dim for dim in range(moved.ndim) if dim != axis]
    return [bool(line) for line in (moved.any(dim=others) if others else moved).tolist()]


def _delta(part: Slice, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Delta:
    """The difference at one slice, as wide as it must be to give the second model's bits."""
    # The models may be on different devices, and the deltas of an edit are on the CPU.
    old, new = (part.of(params[part.name].cpu()) for params in (before, after))
    narrow = torch.promote_types(old.dtype, torch.float32)
    for dtype in (narrow, torch.float64):
        delta = Delta(part, new.to(dtype) - old.to(dtype))
        # ``old`` is already cut to the slice, so here the delta covers all of the parameter.
        again = added([Delta(Slice(part.name), delta.values)], {part.name: old})[part.name]
        if torch.equal(again, new):
            break
    if not bool(delta.values.isfinite().all()):
        raise EditError(
            f"the difference of {part.name!r} is not finite, so one of the models holds infinities or "
            "not-a-numbers there; there is no edit between them"
        )
    return delta


def _named(arch: Arch) -> str:
    shape = arch.shape
    return f"{arch.architecture} of {shape.n_layers} layers, {shape.n_heads} heads and {shape.d_mlp} neurons"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
