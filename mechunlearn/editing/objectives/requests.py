"""What an objective may request, and what it receives.

An objective never sees a model. It *declares* what it reads. The trainer, which knows an objective only
through these declarations, runs the model and passes the tensors:

1. ``requests`` maps names, which the objective chooses, to :class:`Request` values: which examples, which
   answer, which positions, and whether logits, hidden states or outputs of the unedited model are needed.
2. The trainer calls the objective with one :class:`Outputs` for each name. Requests of one split receive the
   same questions in the same order at every step, whichever answers they request.
3. The objective returns its loss terms by name, already weighted; the trainer minimises their sum.

An objective with state (multipliers, schedules, control vectors) also has ``init`` and ``after_step``; the
state is a mapping of tensors and numbers that the trainer carries from one call to the next. An objective
that trains masks of the weights, instead of additions to them, also has ``penalty``.
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
    """Answers that are sampled from the unedited model and differ from the fact's own answer.

    Args:
        samples: number of answers drawn for each question; each pass over the questions uses one of them.
        temperature: sampling temperature.

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
    """One set of model outputs that an objective reads.

    Args:
        split: the forget set, the retain set, general text, or a corpus with its own labels.
        answer: which answer follows the prompt: a field of the fact, one of these texts (chosen anew for each
            question and pass), or a sampled one. Ignored for text and corpus.
        positions: ``"answer"``, the positions that predict the answer (in a corpus: those with a label), or
            ``"all"``, every position that predicts a token.
        hidden: block whose output, the residual stream after it, is returned as well, at the same positions.
        reference: what to return of the unedited model, at the same positions: the log-probability of each
            label, the log-probabilities of all tokens, or the hidden states.
        logits: whether logits are returned; if not, no block above ``hidden`` is run.

    Raises:
        TrainingError: there is no such split, answer, choice of positions or reference; or hidden states are
            needed and ``hidden`` names no block.

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
        for name, literal in choices:
            if getattr(self, name) not in get_args(literal):
                raise TrainingError(one_of(f"{name} of a Request", getattr(self, name), get_args(literal)))
        if self.answer == ():
            raise TrainingError("answer of a Request is an empty tuple; give at least one text")
        if self.hidden is None and (self.reference == "hidden" or not self.logits):
            raise TrainingError("a Request without logits, or of reference 'hidden', needs hidden= (a block)")


@dataclass(frozen=True)
class Outputs:
    """The tensors of one :class:`Request` at one step, with the positions of all examples along one axis.

    ``labels`` are the tokens to predict; ``row`` is the number of the example that a position belongs to, so
    that a loss can be summed over each answer. Logits that were not requested have width 0; other tensors
    that were not requested are None.
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
    """A loss that declares which model outputs it reads.

    It is called with the outputs, by the names of its requests, and returns its weighted terms by name.
    ``aim`` defines success on the forget set: ``"new"`` if the model gives the new answer, ``"forget"`` if it
    no longer gives the old one.
    """

    @property
    def aim(self) -> Literal["new", "forget"]:
        """What counts as success on the forget set."""
        ...

    @property
    def requests(self) -> Mapping[str, Request]:
        """The model outputs that the objective reads, by names of its choice."""
        ...


@runtime_checkable
class Stateful(Objective, Protocol):
    """An objective with a state that the trainer carries from step to step."""

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The state before the first step, computed from the first outputs."""
        ...

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The weighted loss terms."""
        ...

    def after_step(self, state: State, terms: Terms) -> State:
        """The state for the next step, after the weights were updated; ``terms`` carry no gradient."""
        ...


@runtime_checkable
class Masking(Objective, Protocol):
    """An objective that trains masks of the weights, with values from 0 to 1, instead of added deltas."""

    def penalty(self, removed: Mapping[str, Float[Tensor, "..."]], *, step: int) -> Terms:
        """The weighted penalty; ``removed`` is 1 minus the mask of each weight, ``step`` counts from 0."""
        ...
