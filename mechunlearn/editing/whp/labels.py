"""Generic labels: what a model that never read the text might predict, for every row of logits.

``v_generic = v_base - α · ReLU(v_reinforced - v_base)``, and the label is its argmax:

1. The first `v_base` are the base model's logits on the *translated* text, at the row's partner.
2. `v_reinforced` are the reinforced model's logits on the *original* text. Tokens that it raises above the
   base model come from the text and are lowered; tokens that it lowers are left alone (ReLU).
3. Inside the ReLU the base model reads either the translated text again, as published, or the original, so
   that both models are compared on the same text.
4. The first tokens of translations that have appeared are lowered by a constant: after ``Jon went up to him
   and said: my name is``, a model that reads ``Harry`` must not be trained to say ``Jon``.

Everything here is a pure function of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.editing.whp.alignment import NONE, Alignment
from mechunlearn.models.encoding.batch import IGNORED


def generic_labels(
    base: Float[Tensor, "translated_row d_vocab"],
    reinforced: Float[Tensor, "row d_vocab"],
    alignment: Alignment,
    *,
    base_original: Float[Tensor, "row d_vocab"] | None = None,
    alpha: float | int = 5.0,
    first_tokens: Mapping[str, Sequence[int]] | None = None,
    lowered: float | int = 5.0,
) -> Int[Tensor, " row"]:
    """The generic label of every row, which is the target of that row's own logits, without a further shift.

    Args:
        base: logits of the base model on the translated text.
        reinforced: logits of the reinforced model on the original text.
        alignment: the partner of each row in the translation.
        base_original: logits of the base model on the original text, to compare with `reinforced`; None
            compares `base` instead.
        alpha: factor by which logits that reinforcing raised are lowered below the base model's.
        first_tokens: for each translation the ids it may begin with; lowered once the translation has
            appeared.
        lowered: how much these are lowered, in logits.

    Returns:
        Token ids; -100 where a row has no partner.

    Example:
        >>> base, reinforced = torch.tensor([[0.0, 3.0, 2.0]]), torch.tensor([[0.0, 4.0, 2.0]])
        >>> same = Alignment(torch.tensor([0]), repeated=0, seen=())
        >>> generic_labels(base, reinforced, same, alpha=0), generic_labels(base, reinforced, same)
        (tensor([1]), tensor([2]))

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), sections 2.1 to 2.3.
    """
    has_partner = alignment.rows != NONE
    # Rows without a partner read row 0; their labels are masked at the end.
    partner = alignment.rows.clamp(min=0).to(base.device)
    generic = _upcast(base)[partner]
    compared = generic if base_original is None else _upcast(base_original)
    # With alpha 0 an infinite logit would become nan (0 * inf).
    if alpha:
        generic = generic - alpha * torch.relu(_upcast(reinforced) - compared)
    generic = _lower(generic, alignment, first_tokens or {}, lowered)
    return generic.argmax(-1).masked_fill(~has_partner.to(base.device), IGNORED)


def _lower(
    logits: Float[Tensor, "row d_vocab"],
    alignment: Alignment,
    first_tokens: Mapping[str, Sequence[int]],
    amount: float | int,
) -> Float[Tensor, "row d_vocab"]:
    """Lower each first token once, from the row on which a translation that it begins has appeared."""
    since: dict[int, int] = {}
    for seen in alignment.seen:
        for token in first_tokens.get(seen.translation, ()):
            since[token] = min(seen.row, since.get(token, seen.row))
    logits = logits.clone()
    for token, row in since.items():
        logits[row:, token] -= amount
    return logits


def _upcast(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
