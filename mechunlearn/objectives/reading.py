"""What an objective may ask for, and what it is given.

An objective never sees a model. It *declares* what it reads, and the trainer, which knows objectives
only through these declarations, runs the model and hands the tensors over:

1. ``reads`` maps a name of the objective's choice to a :class:`Read`: which examples, which answer,
   which positions, and whether hidden states or the unedited model's outputs are wanted too.
2. The trainer calls the objective with a :class:`Reading` under each of these names.
3. The objective returns its loss terms by name, already weighted; the trainer minimises their sum.

An objective with state (multipliers, masks, control vectors) also has ``init`` and ``after_step``; the
state is a value that the trainer carries from one call to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.errors import TrainingError, one_of

Split = Literal["forget", "retain", "text"]
Answer = Literal["answer", "new", "foil"]
Positions = Literal["answer", "all"]


@dataclass(frozen=True)
class Read:
    """One thing an objective reads.

    Args:
        split: the forget set, the retain set, or general text.
        answer: which answer follows the prompt; ignored for text.
        positions: the positions that predict the answer, or all that predict a token.
        hidden: also the residual stream after this block, at the same positions.
        reference: also what the model gave before the edit, at the same positions.

    Raises:
        TrainingError: there is no such split, answer or choice of positions.

    Example:
        >>> Read("forget", answer="new").positions
        'answer'
    """

    split: Split
    answer: Answer = "answer"
    positions: Positions = "answer"
    hidden: int | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("split", Split), ("answer", Answer), ("positions", Positions)):
            if getattr(self, name) not in get_args(choices):
                raise TrainingError(one_of(f"{name} of a Read", getattr(self, name), get_args(choices)))


@dataclass(frozen=True)
class Reading:
    """The tensors of one :class:`Read` at one step, positions of all examples in one axis.

    ``labels`` are the tokens to be predicted; ``row`` tells which example a position belongs to, so
    that sums over an answer can be formed. The last three are there if they were asked for.
    """

    logits: Float[Tensor, "token d_vocab"]
    labels: Int[Tensor, " token"]
    row: Int[Tensor, " token"]
    hidden: Float[Tensor, "token d_model"] | None = None
    reference_logprobs: Float[Tensor, "token d_vocab"] | None = None
    reference_hidden: Float[Tensor, "token d_model"] | None = None


Terms = Mapping[str, Float[Tensor, ""]]


@runtime_checkable
class Objective(Protocol):
    """A loss that declares what it reads.

    ``aim`` says what counts as success on the forget set: ``"new"``, the new answer is given;
    ``"forget"``, the old one is not.
    """

    @property
    def aim(self) -> Literal["new", "forget"]:
        """What counts as success on the forget set."""
        ...

    @property
    def reads(self) -> Mapping[str, Read]:
        """What the objective reads, under names of its own."""
        ...


@runtime_checkable
class Stateless(Objective, Protocol):
    """An objective that is a function of its readings alone."""

    def __call__(self, readings: Mapping[str, Reading]) -> Terms:
        """The weighted loss terms."""
        ...


@runtime_checkable
class Stateful(Objective, Protocol):
    """An objective that carries something from step to step."""

    def init(self, readings: Mapping[str, Reading], *, seed: int) -> Any:
        """The state before the first step, from the first readings."""
        ...

    def __call__(self, readings: Mapping[str, Reading], state: Any) -> Terms:
        """The weighted loss terms."""
        ...

    def after_step(self, state: Any, terms: Terms) -> Any:
        """The state for the next step, once the weights have moved; the terms carry no gradient."""
        ...
