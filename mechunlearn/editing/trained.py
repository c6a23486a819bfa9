"""The slices of a localization as trainable tensors, beside weights that are frozen.

1. The localization becomes slices of Hugging Face parameters, and each slice one small tensor of deltas
   that starts at zero, in float32 or better.
2. The weights of a step are the frozen ones, with the deltas added: functions of the deltas, rounded to
   the model's precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechunlearn.model.arch import Slice
from mechunlearn.sites import Localization

if TYPE_CHECKING:
    from mechunlearn.model import HookedModel


@dataclass(frozen=True)
class Trained:
    """The trainable deltas, and the frozen weights they are added to.

    Args:
        slices: where the deltas belong, at most one per parameter.
        deltas: one tensor per slice.
        frozen: every parameter of the model, without gradient.
    """

    slices: tuple[Slice, ...]
    deltas: tuple[Tensor, ...]
    frozen: Mapping[str, Tensor]

    @classmethod
    def at(cls, hm: HookedModel, localization: Localization) -> Trained:
        """Start at zero everywhere in a localization.

        Args:
            hm: the model, which is only read.
            localization: sites of this model.

        Raises:
            SiteError: a site is not of this model.
        """
        slices = hm.slices(localization)
        frozen = {name: parameter.detach() for name, parameter in hm.params.items()}
        deltas = []
        for s in slices:
            whole = frozen[s.name]
            dtype = torch.promote_types(whole.dtype, torch.float32)
            zeros = torch.zeros(s.shape(whole.shape), dtype=dtype, device=whole.device)
            deltas.append(zeros.requires_grad_())
        return cls(slices, tuple(deltas), frozen)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter that is touched."""
        return {s.name: tuple(self.frozen[s.name].shape) for s in self.slices}

    def changed(self) -> dict[str, Tensor]:
        """The touched parameters, as functions of the deltas."""
        changed = {}
        for s, delta in zip(self.slices, self.deltas, strict=True):
            whole = self.frozen[s.name]
            changed[s.name] = s.add(whole.to(delta.dtype), delta).to(whole.dtype)
        return changed

    def weights(self) -> dict[str, Tensor]:
        """All parameters, the touched ones as functions of the deltas."""
        return {**self.frozen, **self.changed()}

    def snapshot(self) -> tuple[Tensor, ...]:
        """Copies of the deltas as they are."""
        return tuple(delta.detach().clone() for delta in self.deltas)
