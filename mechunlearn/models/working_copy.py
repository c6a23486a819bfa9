"""A model to work on: what is read of it and what is searched for in it belong to one and the same model.

1. A fork shares the model's tensors and is in evaluation mode; hooks that the user put on the bridge stay
   behind with it.
2. Hooks of the plain model are copied along with its modules, and are taken off the copy.

So an edit is the same whether or not somebody is just looking at the model, or training it.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from mechunlearn.models.hooked import HookedModel


def working_copy(
    hm: HookedModel, replacements: Mapping[str, Float[Tensor, "..."]] | None = None
) -> HookedModel:
    """Fork a model without the hooks, and the mode, that its user has set.

    Args:
        hm: the model, which stays as it is.
        replacements: tensors of our own by parameter name, to be written into.

    Example:
        >>> from mechunlearn.models.working_copy import working_copy
        >>> hm = mu.world.model()
        >>> working_copy(hm).identity == hm.identity
        True
    """
    work = hm.fork(replacements)
    for module in work.hf.modules():
        for kind in ("forward", "forward_pre", "backward", "backward_pre"):
            getattr(module, f"_{kind}_hooks").clear()
    return work
