"""A copy of a model without the user's hooks, so that these do not change what is computed with it.

1. A fork shares the model's tensors and is in evaluation mode. It has a bridge of its own, without the hooks
   that the user set on the model's.
2. Hooks of the plain model are copied along with its modules, and are removed from the copy.

So an edit is the same whether or not the model is hooked, or in training mode.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from mechunlearn.models import loading
from mechunlearn.models.hooked import HookedModel


def working_copy(
    hm: HookedModel, replacements: Mapping[str, Float[Tensor, "..."]] | None = None
) -> HookedModel:
    """Fork a model without the user's hooks, in evaluation mode; replacements may be written into."""
    work = hm.fork(replacements)
    for module in work.hf.modules():
        for kind in ("forward", "forward_pre", "backward", "backward_pre"):
            getattr(module, f"_{kind}_hooks").clear()
    loading.attend_in_float64(work.hf)  # by a hook of ours
    return work
