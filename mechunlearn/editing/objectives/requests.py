"""What an objective may ask for, and what it is given.

An objective never sees a model. It *declares* what it reads, and the trainer, which knows objectives
only through these declarations, runs the model and hands the tensors over:

1. ``requests`` maps a name of the objective's choice to a :class:`Request`: which examples, which answer,
   which positions, and whether logits, hidden states or the unedited model's outputs are wanted.
2. The trainer calls the objective with a :class:`Outputs` under each of these names. Reads of one split
   see the same questions in the same order at every step, whatever answers they ask for.
3. The objective returns its loss terms by name, already weighted; the trainer minimises their sum.

An objective with state (multipliers, schedules, control vectors) also has ``init`` and ``after_step``; the
state is a mapping of tensors and numbers that the trainer carries from one call to the next. One that
trains masks of the weights instead of what is added to them also has ``penalty``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.checks import above, integer
from mechunlearn.errors import TrainingError, one_of

Split = Literal["forget", "retain", "text", "corpus"]
Answer = Literal["answer", "new", "foil"]
Positions = Literal["answer", "all"]
Reference = Literal["label_logprobs", "logprobs", "hidden"]


@dataclass(frozen=True)
class Sampled:
    """Answers that the unedited model itself gives, other than the fact's own.

    Args:
        samples: how many to draw for each question; a pass over the questions uses one of them each.
        temperature: of the sampling.

    Raises:
        TrainingError: a number is out of its range.
    """

    samples: int = 5
    temperature: float | int = 1.0

    def __post_init__(self) -> None:
        integer(TrainingError, 1, samples=self.samples)
        above(TrainingError, 0, temperature=self.temperature)


@dataclass(frozen=True)
class Request:
    """One thing an objective reads.

    Args:
        split: the forget set, the retain set, general text, or a corpus with labels of its own.
        answer: which answer follows the prompt: a field of the fact, one of these texts (drawn anew for
            each question and pass), or one the model gives. Ignored for text and corpus.
        positions: the positions that predict the answer (in a corpus: that have a label), or all that
            predict a token.
        hidden: also the residual stream after this block, at the same positions.
        reference: also this of the unedited model, at the same positions: the log-probability of each
            label, of every token, or the hidden states.
        logits: whether the model's logits are wanted; without them nothing above ``hidden`` is run.

    Raises:
        TrainingError: there is no such split, answer, choice of positions or reference, or hidden states
            are compared and none are read.

    Example:
        >>> Request("forget", answer="new").positions
        'answer'
    """

    split: Split
    answer: Answer | tuple[str, ...] | Sampled = "answer"
    positions: Positions = "answer"
    hidden: int | None = None
    reference: Reference | None = None
    logits: bool = True

    def __post_init__(self) -> None:
        choices = [("split", Split), ("positions", Positions)]
        choices += [("answer", Answer)] if isinstance(self.answer, str) else []
        choices += [("reference", Reference)] if self.reference is not None else []
        for name, known in choices:
            if getattr(self, name) not in get_args(known):
                raise TrainingError(one_of(f"{name} of a Request", getattr(self, name), get_args(known)))
        if self.answer == ():
            raise TrainingError("answer of a Request is an empty tuple; give at least one text")
        if self.hidden is None and (self.reference == "hidden" or not self.logits):
            raise TrainingError("a Request without logits, or of reference 'hidden', needs hidden= (a block)")


@dataclass(frozen=True)
class Outputs:
    """The tensors of one :class:`Request` at one step, positions of all examples in one axis.

    ``labels`` are the tokens to be predicted; ``row`` tells which example a position belongs to, so
    that sums over an answer can be formed. Logits that were not asked for are of width 0; the others are
    there if they were asked for.
    """

    logits: Float[Tensor, "token d_vocab"]
    labels: Int[Tensor, " token"]
    row: Int[Tensor, " token"]
    hidden: Float[Tensor, "token d_model"] | None = None
    reference_label_logprobs: Float[Tensor, " token"] | None = None
    reference_logprobs: Float[Tensor, "token reference_vocab"] | None = None
    reference_hidden: Float[Tensor, "token d_model"] | None = None


State = Mapping[str, Tensor | float | int]
Terms = Mapping[str, Float[Tensor, ""]]


@runtime_checkable
class Objective(Protocol):
    """A loss that declares what it reads.

    It is called with the outputs by the names of its requests, and returns its weighted terms by name.
    ``aim`` says what counts as success on the forget set: ``"new"``, the new answer is given;
    ``"forget"``, the old one is not.
    """

    @property
    def aim(self) -> Literal["new", "forget"]:
        """What counts as success on the forget set."""
        ...

    @property
    def requests(self) -> Mapping[str, Request]:
        """What the objective requests, under names of its own."""
        ...


@runtime_checkable
class Stateful(Objective, Protocol):
    """An objective that carries something from step to step."""

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The state before the first step, from the first outputs."""
        ...

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The weighted loss terms."""
        ...

    def after_step(self, state: State, terms: Terms) -> State:
        """The state for the next step, once the weights have moved; the terms carry no gradient."""
        ...


@runtime_checkable
class Masking(Objective, Protocol):
    """An objective that trains a mask of the weights, from 0 to 1, instead of what is added to them."""

    def penalty(self, removed: Mapping[str, Float[Tensor, "..."]], *, step: int) -> Terms:
        """The weighted terms of the mask: how much of each weight is masked away (0 to 1), from step 0."""
        ...
