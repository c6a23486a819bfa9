"""The slices of a localization as trainable tensors, beside weights that are frozen.

1. The localization becomes slices of Hugging Face parameters, and each slice one small tensor that starts
   at zero, in float32 or better: the deltas that are added to the weights, or (``masked``) the share of each
   weight that is taken away, from 0 to 1.
2. The weights of a step are the frozen ones with the deltas added: functions of the trained tensors,
   rounded to the model's precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechunlearn.core.sites.localization import Localization
from mechunlearn.models.arch import Slice

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True)
class Trained:
    """The trainable tensors, one per slice, and the frozen weights they change.

    A parameter has at most one slice. If ``masked``, the tensors are the shares of each weight that are
    taken away, from 0 to 1.
    """

    slices: tuple[Slice, ...]
    tensors: tuple[Tensor, ...]
    frozen: Mapping[str, Tensor]
    masked: bool = False

    @classmethod
    def at(cls, hm: HookedModel, localization: Localization, *, masked: bool = False) -> Trained:
        """Start at zero everywhere in a localization; a ``SiteError`` if a site is not of this model."""
        slices = hm.slices(localization)
        frozen = {s.name: hm.params[s.name].detach() for s in slices}
        tensors = []
        for s in slices:
            weight = frozen[s.name]
            # The optimiser's small steps would be rounded away in half precision.
            dtype = torch.promote_types(weight.dtype, torch.float32)
            zeros = torch.zeros(s.shape(weight.shape), dtype=dtype, device=weight.device)
            tensors.append(zeros.requires_grad_())
        return cls(slices, tuple(tensors), frozen, masked)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter that is changed."""
        return {s.name: tuple(self.frozen[s.name].shape) for s in self.slices}

    def deltas(self) -> tuple[Tensor, ...]:
        """What is added to each slice."""
        if not self.masked:
            return self.tensors
        return tuple(
            -removed * s.of(self.frozen[s.name]).to(removed.dtype)
            for s, removed in zip(self.slices, self.tensors, strict=True)
        )

    def changed(self) -> dict[str, Tensor]:
        """The changed parameters, as functions of the trained tensors."""
        changed = {}
        for s, delta in zip(self.slices, self.deltas(), strict=True):
            weight = self.frozen[s.name]
            changed[s.name] = s.add(weight.to(delta.dtype), delta).to(weight.dtype)
        return changed

    @torch.no_grad()
    def confine(self) -> None:
        """Clamp masks that the optimiser pushed past 0 or 1."""
        if self.masked:
            for removed in self.tensors:
                removed.clamp_(0, 1)

    def by_name(self) -> dict[str, Tensor]:
        """The trained tensors by the parameter they belong to."""
        return {s.name: tensor for s, tensor in zip(self.slices, self.tensors, strict=True)}

    def snapshot(self) -> tuple[Tensor, ...]:
        """Copies of the deltas as they are."""
        return tuple(delta.detach().clone() for delta in self.deltas())

    @torch.no_grad()
    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Set the trained tensors, one per slice, bit for bit."""
        for current, saved in zip(self.tensors, tensors, strict=True):
            current.copy_(saved)
