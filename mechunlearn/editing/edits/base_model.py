"""Whether a model has the weights that an edit was made on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from mechunlearn.errors import IdentityWarning

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


def warn_of_another(hm: HookedModel, made_on: str, *, stacklevel: int) -> None:
    """Warn if a model's weights are not those that an edit was made on; an empty ``made_on`` is unknown.

    ``stacklevel`` counts as if the caller itself called ``warnings.warn``.
    """
    if not made_on or hm.identity == made_on:
        return
    edits = f", which carries {' and '.join(hm.edits)}" if hm.edits else ""
    warnings.warn(
        f"the edit was made on the weights {made_on} and is applied to others ({hm.identity}{edits}): "
        "what it does there may be something else. Apply it to the model it was made on, or say that "
        'this is meant with dataclasses.replace(edit, made_on="")',
        IdentityWarning,
        stacklevel=stacklevel + 1,
    )
