"""What the engine reads after the last token: a difference of two logits, or a probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.models import Prompts
from mechunlearn.localization.engine.readout import FinalStates


@dataclass(frozen=True, eq=False)
class Difference:
    """The logit of each row's answer minus that of its foil.

    Args:
        prompts: whose answers are read.
    """

    prompts: Prompts
    all_logits: bool = False
    width: int = 1

    @property
    def positions(self) -> Int[Tensor, "row 1"]:
        """The last position of every row."""
        return _last(self.prompts.clean)

    def __call__(self, final: FinalStates, rows: Int[Tensor, "read"]) -> Float[Tensor, "read 1"]:
        """Read some rows."""
        found = final.columns(self.prompts.answers[rows][..., None])
        return found[:, 0] - found[:, 1]


@dataclass(frozen=True, eq=False)
class Probability:
    """The probability of one token in all rows.

    Args:
        tokens: what the rows run.
        answer: the token.
    """

    tokens: Int[Tensor, "row pos"]
    answer: int
    all_logits: bool = True
    width: int = 1

    @property
    def positions(self) -> Int[Tensor, "row 1"]:
        """The last position of every row."""
        return _last(self.tokens)

    def __call__(self, final: FinalStates, rows: Int[Tensor, "read"]) -> Float[Tensor, "read 1"]:
        """Read some rows."""
        return final.logits.softmax(-1)[..., self.answer]


def _last(tokens: Int[Tensor, "row pos"]) -> Int[Tensor, "row 1"]:
    return torch.full_like(tokens[:, :1], tokens.shape[1] - 1)
