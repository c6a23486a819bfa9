"""Preference objectives: the old answer is rejected, with or without another answer that is preferred.

All compare log-probabilities of whole answers (sums over tokens; only SimNPO divides by the length), and all
but SimNPO compare them with those of the unedited model, which are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.core.checks import above, finite
from mechunlearn.editing.objectives.losses import dpo, npo, simnpo
from mechunlearn.editing.objectives.requests import Answer, Outputs, Request, Sampled, Terms
from mechunlearn.editing.objectives.retain_terms import RetainTerms
from mechunlearn.errors import TrainingError

REFUSALS = ("I don't know", "I'm not sure", "I have no idea", "I can't say")


@dataclass(frozen=True, kw_only=True)
class NPO(RetainTerms):
    """Negative preference optimisation: ascent that slows down once an answer has become improbable.

    Loss: ``-(2 / beta) log sigmoid(-beta log(p / p_ref))``, averaged over answers, plus the retain terms. It
    is ``(2 / beta) log 2`` at the start and bounded below by 0; as beta approaches 0 it becomes gradient
    ascent.

    When it fails: with a small beta it diverges like ascent, only later; with a large one it stops while the
    answer can still be elicited. Like ascent it starts slowly where an answer is certain.

    Args:
        forget: weight of the old answers' loss.
        retain: weight of the loss on the retain set's own answers.
        text: weight of the loss on general text; the published method has no such term.
        retain_loss: ``"nll"``, or ``"kl"``, the divergence from the unedited model.
        beta: inverse temperature; the larger, the sooner an answer that became less likely is left alone.
            Published 0.1, and 0.0225 to 0.5 elsewhere.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> mu.objectives.NPO().requests["forget"].reference
        'label_logprobs'

    Source: Zhang et al., "Negative Preference Optimization" (2024).
    """

    beta: float | int = 0.1
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        above(TrainingError, 0, beta=self.beta)

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers with the unedited model's log-probabilities of them, and the retained data."""
        return {"forget": Request("forget", reference="label_logprobs"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        forget = npo(outputs["forget"], beta=self.beta)
        return {"forget": self.forget * forget, **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class SimNPO(RetainTerms):
    """NPO without a reference model, on the mean log-likelihood per token.

    Loss: ``-(2 / beta) log sigmoid(beta (nll - delta))``, averaged over answers, plus the retain terms. The
    mean per token removes the effect of an answer's length on its log-probability.

    When it fails: without a reference, answers that were improbable from the start are lowered as far as the
    others; results depend strongly on beta and the weight. Like ascent it starts slowly where an answer is
    certain: there set ``forget`` to 1 or more, or use a higher learning rate.

    Args:
        forget: weight of the old answers' loss; 0.125 as in open-unlearning's configuration.
        retain: weight of the loss on the retain set's own answers.
        text: weight of the loss on general text; the published method has no such term.
        retain_loss: ``"nll"``, or ``"kl"``, the divergence from the unedited model.
        beta: inverse temperature; the larger, the sooner an improbable answer is left alone. Published from
            0.1 to 5.5.
        delta: target of the mean negative log-likelihood per token, in nats.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> mu.objectives.SimNPO().requests["forget"].reference is None
        True

    Source: Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning"
    (2024).
    """

    forget: float | int = 0.125
    beta: float | int = 4.5
    delta: float | int = 0.0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        above(TrainingError, 0, beta=self.beta)
        finite(TrainingError, delta=self.delta)

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers of the forget set, and the retained data."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        forget = simnpo(outputs["forget"], beta=self.beta, delta=self.delta)
        return {"forget": self.forget * forget, **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class _Preferring(RetainTerms):
    """Prefer another answer to the old one, relative to the unedited model."""

    beta: float | int = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        above(TrainingError, 0, beta=self.beta)

    @property
    def preferred(self) -> Answer | tuple[str, ...] | Sampled:
        """The answer that is preferred."""
        raise NotImplementedError

    @property
    def requests(self) -> Mapping[str, Request]:
        """Both answers with the unedited model's log-probabilities, and the retained data."""
        return {
            "win": Request("forget", answer=self.preferred, reference="label_logprobs"),
            "lose": Request("forget", reference="label_logprobs"),
            **self.keep_reads(),
        }

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        forget = dpo(outputs["win"], outputs["lose"], beta=self.beta)
        return {"forget": self.forget * forget, **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class DPO(_Preferring):
    """Direct preference optimisation: a refusal, or any other answer, is preferred to the old one.

    Loss: ``-(2 / beta) log sigmoid(beta (log(p_w / p_w_ref) - log(p_l / p_l_ref)))``, averaged over
    questions, where w is the alternative and l the old answer, plus the retain terms. It is ``(2 / beta) log
    2`` at the start and bounded below by 0.

    When it fails: the model learns to refuse questions of this form, including questions that should be
    answered. A long, improbable refusal can gain so much log-probability that it alone satisfies the
    preference, while the old answer stays as likely as before: then use an alternative of the same form as
    the answer.

    Args:
        forget: weight of the preference.
        retain: weight of the loss on the retain set's own answers.
        text: weight of the loss on general text; the published method has no such term.
        retain_loss: ``"nll"``, or ``"kl"``, the divergence from the unedited model.
        beta: inverse temperature; the larger, the sooner a learned preference is left alone; published 0.05
            to 0.5.
        alternative: the preferred answer: ``"new"`` or ``"foil"``, a field of the fact; or a tuple of texts,
            one of which is chosen for each question at each pass, by the seed of the run.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> mu.objectives.DPO(alternative="foil").requests["win"].answer
        'foil'

    Source: Rafailov et al., "Direct Preference Optimization" (2023); for unlearning, Maini et al.,
    "TOFU" (2024).
    """

    alternative: Literal["new", "foil"] | tuple[str, ...] = REFUSALS

    def __post_init__(self) -> None:
        super().__post_init__()
        option: object = self.alternative
        if isinstance(option, list):  # JSON stores a tuple as a list
            object.__setattr__(self, "alternative", tuple(option))
        texts = isinstance(option, tuple | list) and option and all(isinstance(t, str) and t for t in option)
        if not (texts or option in ("new", "foil")):
            raise TrainingError(f"alternative is {option!r}; give 'new', 'foil', or a tuple of texts")

    @property
    def aim(self) -> Literal["new", "forget"]:
        """``"new"`` if the alternative is the new answer, else ``"forget"``."""
        return "new" if self.alternative == "new" else "forget"

    @property
    def preferred(self) -> Answer | tuple[str, ...] | Sampled:
        """The answer that is preferred."""
        return self.alternative


@dataclass(frozen=True, kw_only=True)
class AltPO(_Preferring):
    """Prefer plausible wrong answers, sampled from the model itself, to the old one.

    The loss is that of :class:`DPO`. Because the alternatives are the model's own, answers keep their form,
    and no refusal is taught.

    When it fails: where the model knows only one answer, its other samples are far-fetched; and a model that
    now states something else with certainty is not a model without the knowledge.

    Args:
        forget: weight of the preference.
        retain: weight of the loss on the retain set's own answers.
        text: weight of the loss on general text; the published method has no such term.
        retain_loss: ``"nll"``, or ``"kl"``, the divergence from the unedited model.
        beta: inverse temperature; the larger, the sooner a learned preference is left alone; published 0.05
            to 0.5.
        samples: number of wrong answers drawn for each question; each pass over the questions uses one of
            them.
        temperature: sampling temperature.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> mu.objectives.AltPO(samples=2).requests["win"].answer
        Sampled(samples=2, temperature=1.0)

    Source: Mekala et al., "Alternate Preference Optimization for Unlearning Factual Knowledge in Large
    Language Models" (2024).
    """

    samples: int = 5
    temperature: float | int = 1.0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        Sampled(self.samples, self.temperature)  # checks both

    @property
    def preferred(self) -> Answer | tuple[str, ...] | Sampled:
        """Sampled answers of the unedited model."""
        return Sampled(self.samples, self.temperature)
