"""Whether a model is the one an edit was made on, asked so often that it has to be cheap.

1. A model's identity is a hash of all its weights: 3 s for 5 GB. It is kept, beside a stamp of every
   parameter: where it lies, how often it was written to, and some of its bytes.
2. Where the stamps are the same, so is the identity. The bytes are for what writes past PyTorch's counter
   (``parameter.data``): all but a change of a few single weights shows in them.
3. What puts the very bits back, as leaving an edit does, may say so: then the identity is kept too.

It serves warnings alone. What is recorded, such as ``Edit.made_on``, is hashed anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mechunlearn.errors import IdentityWarning

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

_SAMPLED = 64


@dataclass(frozen=True)
class Known:
    """A model's identity, and the stamps of its parameters when it was computed."""

    identity: str
    stamps: Mapping[str, Hashable]


_KNOWN: WeakKeyDictionary[HookedModel, Known] = WeakKeyDictionary()


def known(hm: HookedModel) -> Known:
    """The identity of a model, computed if its weights may have changed since it last was.

    Args:
        hm: the model, which is only read.

    Example:
        >>> hm = mu.world.model()
        >>> known(hm).identity == hm.identity
        True
    """
    stamps = _stamps(hm, hm.params)
    before = _KNOWN.get(hm)
    if before is None or before.stamps != stamps:
        before = Known(hm.identity, stamps)
        _KNOWN[hm] = before
    return before


def restored(hm: HookedModel, before: Known, names: Iterable[str]) -> None:
    """Say that some parameters hold the very bits again that they once held.

    Args:
        hm: the model.
        before: what was known of it then; it stands as far as nothing else was written to since.
        names: the parameters that were written to and put back.
    """
    _KNOWN[hm] = Known(before.identity, {**before.stamps, **_stamps(hm, names)})


def warn_of_another(hm: HookedModel, made_on: str, *, stacklevel: int) -> Known | None:
    """Warn if a model's weights are not those that an edit was made on.

    Args:
        hm: the model.
        made_on: the identity of the model that the edit was made on; empty if that is not known.
        stacklevel: of the caller's caller, as ``warnings.warn`` counts it.

    Returns:
        What is known of the model, if it was asked.
    """
    if not made_on:
        return None
    found = known(hm)
    if found.identity != made_on:
        edits = f", which carries {' and '.join(hm.edits)}" if hm.edits else ""
        warnings.warn(
            f"the edit was made on the weights {made_on} and is applied to others ({found.identity}{edits}): "
            "what it does there may be something else. Apply it to the model it was made on, or say that "
            'this is meant with dataclasses.replace(edit, made_on="")',
            IdentityWarning,
            stacklevel=stacklevel + 1,
        )
    return found


def _stamps(hm: HookedModel, names: Iterable[str]) -> dict[str, Hashable]:
    return {name: _stamp(hm.params[name].detach()) for name in names}


def _stamp(tensor: Tensor) -> Hashable:
    if tensor.is_inference():  # such tensors do not count what is written to them
        return object()
    flat = tensor.reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLED)].contiguous().view(torch.uint8)
    return tensor.data_ptr(), tensor._version, tensor.dtype, sample.cpu().numpy().tobytes()
