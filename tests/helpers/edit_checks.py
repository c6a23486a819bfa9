"""Which weights an edit touched, and which it may."""

from __future__ import annotations

import torch
from torch import Tensor

from mechunlearn.editing.edits.edits import Edit
from mechunlearn.models.hooked import HookedModel


def touched(hm: HookedModel, edit: Edit) -> dict[str, Tensor]:
    """Where the bits of a model's parameters change when an edit is applied."""
    after = edit.apply(hm).params
    return {name: p.view(torch.int32) != after[name].view(torch.int32) for name, p in hm.params.items()}


def inside(hm: HookedModel, edit: Edit) -> dict[str, Tensor]:
    """The elements that belong to an edit's localization."""
    masks = {name: torch.zeros(p.shape) for name, p in hm.params.items()}
    for part in hm.slices(edit.localization):
        part.add_(masks[part.name], torch.ones(part.shape(masks[part.name].shape)))
    return {name: mask > 0 for name, mask in masks.items()}
