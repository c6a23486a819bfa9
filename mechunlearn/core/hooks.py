"""Hooks as values: a hook point, and a function that reads or writes there, as a plain tuple.

TransformerLens takes a :class:`Hook`, ``(name, function)``, as it is, so these mix with a user's own
functions in one list. Every writing hook works like this:

1. ``at`` becomes a mask over batch and position: everything, one position, one position per row, or the mask
   itself.
2. A new tensor takes the new value where the mask is true (with ``index``: for that head or neuron alone) and
   the activation elsewhere. The activation itself is not written to, so a cache of it does not change, and
   gradients flow through both parts.

Hooks at one point run in the order of the list, and a later one gets what an earlier one returned. The model
that runs hooks checks that each fired.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.errors import HookError, one_of

At = int | Int[Tensor, "batch"] | Bool[Tensor, "batch pos"] | None
"""The positions to write: None for all, one position, one position per row, or a mask."""


@runtime_checkable
class Store(Protocol):
    """Activations by name: a dictionary, or TransformerLens's ``ActivationCache``."""

    def __getitem__(self, name: str, /) -> Tensor:
        """The activation of that name."""


class Hook(NamedTuple):
    """A hook point's name and the function that runs there.

    The function is called as ``fn(activation, hook=hook_point)`` and returns the new activation, or ``None``
    to leave it alone.

    Args:
        name: a TransformerLens hook name, such as ``"blocks.3.hook_mlp_out"``.
        fn: the function that runs there.

    Example:
        >>> name, fn = Hook("blocks.0.hook_mlp_out", lambda activation, hook: 2 * activation)
        >>> name
        'blocks.0.hook_mlp_out'
    """

    name: str
    fn: Callable[..., Tensor | None]


def cache(name: str, store: MutableMapping[str, Tensor]) -> Hook:
    """Read an activation: store a detached clone in ``store[name]``.

    Args:
        name: the hook point.
        store: any mutable mapping; an earlier entry of that name is replaced.

    Example:
        >>> store: dict[str, Tensor] = {}
        >>> _ = cache("hook_embed", store).fn(torch.ones(1, 2, 3))
        >>> store["hook_embed"].shape
        torch.Size([1, 2, 3])
    """

    def read(activation: Tensor, hook: Any = None) -> None:
        # A clone, since code after this hook may write into the activation in place.
        store[name] = activation.detach().clone()

    return Hook(name, read)


def patch(
    name: str,
    source: Float[Tensor, "..."] | Store,
    *,
    at: At = None,
    index: int | None = None,
) -> Hook:
    """Write an activation of another run.

    Args:
        name: the hook point.
        source: an activation of the same shape (one row serves the whole batch), or a dictionary or cache
            with an entry ``name``, looked up when the hook fires.
        at: the positions to write.
        index: one head or neuron, on the axis after the position.

    Raises:
        HookError: the source has no such entry or does not fit (when the hook fires).

    Example:
        >>> hook = patch("hook_embed", torch.ones(1, 2, 3), at=-1)
        >>> hook.fn(torch.zeros(1, 2, 3))[0, :, 0].tolist()
        [0.0, 1.0]
    """

    def write(activation: Tensor, hook: Any = None) -> Tensor:
        value = _fitting(name, source, activation)
        return torch.where(_region(name, activation, at, index), value, activation)

    return Hook(name, write)


def patch_middle(layer: int, source: Float[Tensor, "..."] | Store, *, at: At = None) -> list[Hook]:
    """Write the residual stream between a layer's attention and its MLP; this takes two hooks.

    ``hook_resid_mid`` lies on the MLP's branch: a patch there changes what the MLP reads, but not the stream
    beside it. So attention's output is set to the new state minus the block's input.

    Args:
        layer: the block.
        source: as for `patch`; the entry is ``blocks.{layer}.hook_resid_mid``.
        at: the positions to write.

    Raises:
        HookError: the source has no such entry or does not fit (when the hooks fire).

    Example:
        >>> hm, store = mu.world.model(), {}
        >>> hooks = [mu.cache("blocks.1.hook_resid_mid", store), mu.cache("blocks.1.hook_mlp_out", store)]
        >>> _ = hm.run_with_hooks("Mary Lee plays", fwd_hooks=hooks)
        >>> hooks = [*patch_middle(1, store), mu.cache("blocks.1.hook_resid_post", after := {})]
        >>> _ = hm.run_with_hooks("Mary Roe plays", fwd_hooks=hooks)
        >>> expected = store["blocks.1.hook_resid_mid"] + store["blocks.1.hook_mlp_out"]
        >>> torch.allclose(after["blocks.1.hook_resid_post"], expected, atol=1e-5)
        True
    """
    name, out = f"blocks.{layer}.hook_resid_mid", f"blocks.{layer}.hook_attn_out"
    before: dict[str, Float[Tensor, "row pos d_model"]] = {}

    def read(activation: Tensor, hook: Any = None) -> None:
        before["stream"] = activation

    def write(activation: Tensor, hook: Any = None) -> Tensor:
        output = _fitting(name, source, activation) - before["stream"]
        return torch.where(_region(out, activation, at), output, activation)

    return [Hook(f"blocks.{layer}.hook_resid_pre", read), Hook(out, write)]


def noise(name: str, *, at: At = None, std: float, seed: int) -> Hook:
    """Add Gaussian noise; the same seed adds the same noise to an activation of the same shape.

    Args:
        name: the hook point.
        at: the positions to disturb.
        std: the standard deviation, in the activation's own units.
        seed: seed of the hook's own random generator.

    Example:
        >>> hook = noise("hook_embed", at=0, std=1.0, seed=0)
        >>> bool((hook.fn(torch.zeros(1, 2, 3)) == hook.fn(torch.zeros(1, 2, 3))).all())
        True
    """

    def write(activation: Tensor, hook: Any = None) -> Tensor:
        # On the CPU in float32, so that the noise does not depend on the model's device or precision.
        values = torch.randn(activation.shape, generator=torch.Generator().manual_seed(seed))
        noised = activation + std * values.to(activation)
        return torch.where(_region(name, activation, at), noised, activation)

    return Hook(name, write)


def ablate(
    name: str,
    *,
    to: Literal["zero", "mean"] | Float[Tensor, "..."] = "zero",
    at: At = None,
    index: int | None = None,
) -> Hook:
    """Ablate an activation: write zero, its mean, or another value.

    Args:
        name: the hook point.
        to: ``"zero"``; ``"mean"``, over the rows and positions that are written (padding too, unless ``at``
            leaves it out); or a tensor that broadcasts against what is written (with ``index``: against that
            head or neuron).
        at: the positions to write.
        index: one head or neuron, on the axis after the position.

    Raises:
        HookError: ``to`` is something else.

    Example:
        >>> ablate("blocks.0.attn.hook_z", index=1).fn(torch.ones(1, 1, 2, 2)).tolist()
        [[[[1.0, 1.0], [0.0, 0.0]]]]
    """
    if isinstance(to, str) and to not in ("zero", "mean"):
        raise HookError(one_of("to", to, ["zero", "mean"]) + ", or a tensor")

    def write(activation: Tensor, hook: Any = None) -> Tensor:
        region = _region(name, activation, at, index)
        if isinstance(to, Tensor):
            value = to.to(activation) if index is None else _spread(to.to(activation), activation, index)
        elif to == "zero":
            value = torch.zeros_like(activation)
        else:
            value = activation[_mask(name, activation, at)].mean(0)
        return torch.where(region, value, activation)

    return Hook(name, write)


def steer(name: str, direction: Float[Tensor, "..."], *, scale: float = 1.0, at: At = None) -> Hook:
    """Add a direction to an activation.

    Args:
        name: the hook point.
        direction: broadcasts against the activation; usually ``[d_model]``.
        scale: the factor of the direction.
        at: the positions to steer.

    Example:
        >>> steer("hook_embed", torch.tensor([1.0, 0.0]), scale=3.0).fn(torch.zeros(1, 1, 2)).tolist()
        [[[3.0, 0.0]]]

    Source: Turner et al. 2023, activation addition.
    """

    def write(activation: Tensor, hook: Any = None) -> Tensor:
        steered = activation + scale * direction.to(activation)
        return torch.where(_region(name, activation, at), steered, activation)

    return Hook(name, write)


def _fitting(name: str, source: Tensor | Store, activation: Tensor) -> Tensor:
    """Return the values to write; HookError if they do not fit the activation."""
    try:
        value = source if isinstance(source, Tensor) else source[name]
    except KeyError:
        raise HookError(
            f"patch of {name!r} found no entry of that name in its source; cache it first"
        ) from None
    if value.shape[1:] != activation.shape[1:] or value.shape[0] not in (1, activation.shape[0]):
        raise HookError(
            f"patch of {name!r} has shape {tuple(value.shape)}, but the activation is "
            f"{tuple(activation.shape)}; pass one row, or a row per prompt, of the same length"
        )
    return value.to(activation)


def _mask(name: str, activation: Tensor, at: At) -> Bool[Tensor, "batch pos"]:
    """The mask of ``at`` over the activation's rows and positions."""
    batch, pos = activation.shape[:2]
    if isinstance(at, Tensor) and at.dtype == torch.bool:
        if at.shape != (batch, pos):
            raise HookError(
                f"at= of the hook on {name!r} is a mask of shape {tuple(at.shape)}, but the activation has "
                f"{batch} rows and {pos} positions"
            )
        return at.to(activation.device)
    mask = torch.zeros(batch, pos, dtype=torch.bool, device=activation.device)
    if at is None:
        return ~mask
    chosen = torch.as_tensor(at, device=activation.device).expand(batch) if isinstance(at, int) else at
    if chosen.shape != (batch,) or bool(((chosen < -pos) | (chosen >= pos)).any()):
        raise HookError(
            f"at= of the hook on {name!r} is {chosen.tolist()}; expected one position, or one per row, "
            f"for {batch} rows of {pos} positions"
        )
    mask[torch.arange(batch, device=mask.device), chosen.to(mask.device)] = True
    return mask


def _spread(value: Tensor, activation: Tensor, index: int) -> Tensor:
    """Expand one head's or neuron's value over the whole axis; the mask then selects that entry."""
    one = activation[:, :, index]
    return value.expand(one.shape).unsqueeze(2).expand(activation.shape)


def _region(name: str, activation: Tensor, at: At, index: int | None = None) -> Bool[Tensor, "..."]:
    """The mask of what is written, with as many axes as the activation."""
    mask = _mask(name, activation, at)
    # [batch pos] gets one axis of size 1 for every further axis of the activation.
    mask = mask.reshape(mask.shape + (1,) * (activation.ndim - 2))
    if index is not None:
        if activation.ndim < 3 or not -activation.shape[2] <= index < activation.shape[2]:
            raise HookError(
                f"index= of the hook on {name!r} is {index}, but the activation's shape is "
                f"{tuple(activation.shape)}; it selects on the axis after the position"
            )
        here = torch.zeros(activation.shape[2], dtype=torch.bool, device=activation.device)
        here[index] = True
        # [head 1 ...] broadcasts against the mask's [batch pos 1 ...].
        mask = mask & here.reshape((-1,) + (1,) * (activation.ndim - 3))
    return mask
