"""Attention masks of models in float64 whose softmax is in float32.

A mask holds the lowest float64 where attention is not allowed, which is minus infinity in float32. Where a
position attends to nothing (padding on the left, or beyond a sliding window), the softmax of its row is then
not-a-number, and so is every later layer. The lowest float32 does the same without that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def bound(blocks: Iterable[nn.Module]) -> None:
    """Have blocks bound the masks that they are called with; blocks that do so already stay as they are."""
    for block in blocks:
        if _bounded not in block._forward_pre_hooks.values():
            block.register_forward_pre_hook(_bounded, with_kwargs=True)


def _bounded(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dtype == torch.float64:
        kwargs = {**kwargs, "attention_mask": mask.clamp(min=torch.finfo(torch.float32).min)}
    return args, kwargs
