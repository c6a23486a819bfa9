"""The identity of a model: a hash of all its weights, cached until a weight changes.

1. Hashing takes 3 s for 5 GB. So the hash is cached beside a stamp of every parameter: its address, how
   often it was written to, and some of its bytes.
2. While the stamps are the same, so is the hash. The bytes show writes that PyTorch does not count (through
   ``parameter.data``), unless only a few single weights change. ``HookedModel.sync`` clears the cache, after
   which any change shows.
3. Code that puts the same bits back, as leaving an edit does, calls ``restored``; the hash stays cached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

_SAMPLED = 64


@dataclass(frozen=True)
class Cached:
    """The hash of a model's weights, and the stamps of its parameters when it was computed."""

    digest: str
    stamps: Mapping[str, Hashable]


_CACHE: WeakKeyDictionary[HookedModel, Cached] = WeakKeyDictionary()


def digest(params: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that change when any weight, name, shape or precision does."""
    total = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name].detach().cpu().contiguous()
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # Bytes, since numpy has no bfloat16.
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def identity(hm: HookedModel) -> str:
    """The digest of a model's weights, computed only if they may have changed since the last time."""
    current = cached(hm)
    if current is None:
        current = _CACHE[hm] = Cached(digest(hm.params), _stamps(hm, hm.params))
    return current.digest


def cached(hm: HookedModel) -> Cached | None:
    """What is cached of a model, if its weights are still the same."""
    last = _CACHE.get(hm)
    return last if last is not None and last.stamps == _stamps(hm, hm.params) else None


def restored(hm: HookedModel, before: Cached, names: Iterable[str]) -> None:
    """Keep the digest after the named parameters were written to and put back, bit by bit.

    ``before`` is what was cached before the writes; stamps of the other parameters still count.
    """
    _CACHE[hm] = Cached(before.digest, {**before.stamps, **_stamps(hm, names)})


def clear(hm: HookedModel) -> None:
    """Clear what is cached of a model."""
    _CACHE.pop(hm, None)


def _stamps(hm: HookedModel, names: Iterable[str]) -> dict[str, Hashable]:
    return stamps({name: hm.params[name] for name in names})


def stamps(params: Mapping[str, Tensor]) -> dict[str, Hashable]:
    """A stamp of each tensor that changes when it is written to: address, write counter and a few bytes."""
    return {name: _stamp(tensor.detach()) for name, tensor in params.items()}


def _stamp(tensor: Tensor) -> Hashable:
    if tensor.is_inference():  # such tensors do not count what is written to them, so no two stamps are equal
        return object()
    flat = tensor.reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLED)].contiguous().view(torch.uint8)
    return tensor.data_ptr(), tensor._version, tensor.dtype, sample.cpu().numpy().tobytes()
