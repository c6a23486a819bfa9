"""Read metrics from the residual stream after the last block.

1. The final norm and the unembedding are the model's own, run at the positions that are read and nowhere
   else.
2. A difference of logits needs a few columns of the unembedding; other metrics need all of them, and rows are
   then read in parts, so that memory stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.models.hooked import HookedModel

LOGITS = 1 << 26
"""At most this many logits at a time: 256 MiB in float32."""


@dataclass(frozen=True)
class FinalStates:
    """The residual stream after the last block, at the positions that are read, and the logits it gives.

    The model's final norm and unembedding are used as they are now.
    """

    hm: HookedModel
    resid: Float[Tensor, "row answer d_model"]

    @cached_property
    def normed(self) -> Float[Tensor, "row answer d_model"]:
        """The states after the final norm."""
        normed: Tensor = self.hm.bridge.ln_final(self.resid)
        return normed

    @cached_property
    def logits(self) -> Float[Tensor, "row answer d_vocab"]:
        """All logits."""
        return self._capped(self.hm.bridge.unembed(self.normed))

    def columns(self, ids: Int[Tensor, "row word answer"]) -> Float[Tensor, "row word answer"]:
        """The logits of a few tokens per row and position; ids below 0 give those of token 0."""
        ids = ids.clamp(min=0)
        points = self.hm.bridge.hook_dict.items()
        if any(point.fwd_hooks for name, point in points if name.startswith("unembed.")):
            # Columns that are computed beside the logits would bypass the user's hooks on the logits.
            return self.logits.gather(2, ids.transpose(1, 2)).transpose(1, 2)
        head = self.hm.hf.get_output_embeddings()
        logits = torch.einsum("rad,rwad->rwa", self.normed, head.weight[ids])
        if getattr(head, "bias", None) is not None:
            logits = logits + head.bias[ids]
        return self._capped(logits)

    def _capped(self, logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        cap = getattr(self.hm.hf.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)


@runtime_checkable
class Readout(Protocol):
    """What to read in the rows of a run, and at which positions."""

    @property
    def positions(self) -> Int[Tensor, "row answer"]:
        """The positions read in each row of the run."""

    @property
    def all_logits(self) -> bool:
        """Whether all logits are needed, or only columns."""

    @property
    def width(self) -> int:
        """The number of metrics per row."""

    def __call__(self, final: FinalStates, rows: Int[Tensor, "read"]) -> Float[Tensor, "read metric"]:
        """Compute the metrics of some rows of the run from their final states."""


def read(
    hm: HookedModel, resid: Float[Tensor, "read answer d_model"], rows: Int[Tensor, "read"], readout: Readout
) -> Float[Tensor, "read metric"]:
    """Read rows in parts that fit the memory, in float64 on the CPU."""
    size = max(1, len(resid))
    if readout.all_logits:
        vocabulary = hm.hf.get_output_embeddings().weight.shape[0]
        size = max(1, LOGITS // (resid.shape[1] * vocabulary))
    pieces = (slice(start, start + size) for start in range(0, len(resid), size))
    metrics = [readout(FinalStates(hm, resid[piece]), rows[piece]).double().cpu() for piece in pieces]
    return torch.cat(metrics) if metrics else torch.zeros(0, readout.width, dtype=torch.float64)
