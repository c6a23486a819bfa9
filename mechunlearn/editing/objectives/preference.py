"""Preference objectives: the old answer is a rejected one, with or without another to be preferred.

All of them compare log-probabilities of whole answers (sums over tokens; SimNPO alone divides by the
length), and all but SimNPO compare them with those of the unedited model, which are computed once.
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

    Loss: ``-(2 / beta) log sigmoid(-beta log(p / p_ref))``, averaged over answers, plus the terms that keep
    the rest. Exactly ``(2 / beta) log 2`` at the start; gradient ascent as beta tends to 0; bounded below by
    0.

    When it fails: with a small beta it diverges like ascent, only later; with a large one it stops while the
    answer can still be drawn out. Like ascent it hardly starts where an answer is certain.

    Args:
        forget: weight of the old answers.
        retain: weight of the retain set's own answers.
        text: weight of general text; the published method has no such term.
        retain_loss: ``"nll"`` or ``"kl"``, the divergence from the unedited model.
        beta: how soon an answer that became less likely counts as forgotten; published 0.1, and 0.0225 to 0.5
            elsewhere.

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
        """The old answers, beside what the unedited model gives them, and what is kept."""
        return {"forget": Request("forget", reference="label_logprobs"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        forget = npo(outputs["forget"], beta=self.beta)
        return {"forget": self.forget * forget, **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class SimNPO(RetainTerms):
    """NPO without a reference model, by the mean log-likelihood per token.

    Loss: ``-(2 / beta) log sigmoid(beta (nll - delta))``, averaged over answers, plus the terms that keep the
    rest. What an answer's length does to its log-probability is divided out.

    When it fails: it knows no starting point, so answers that were improbable from the start are pushed as
    far as the others; results depend strongly on beta and the weight. Like ascent it hardly starts where an
    answer is certain: there give ``forget`` 1 or more, or a higher learning rate.

    Args:
        forget: weight of the old answers; 0.125 as in open-unlearning's configuration.
        retain: weight of the retain set's own answers.
        text: weight of general text; the published method has no such term.
        retain_loss: ``"nll"`` or ``"kl"``, the divergence from the unedited model.
        beta: how soon an improbable answer counts as forgotten; published from 0.1 to 5.5.
        delta: the negative log-likelihood per token that is aimed beyond, in nats.

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
        """The old answers of the forget set, and what is kept."""
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
        """The answer to be preferred."""
        raise NotImplementedError

    @property
    def requests(self) -> Mapping[str, Request]:
        """Preferred and old answers to the same questions, beside the unedited model's, and what is kept."""
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
    """Direct preference: a refusal, or any other answer, is preferred to the old one.

    Loss: ``-(2 / beta) log sigmoid(beta (log(p_w / p_w_ref) - log(p_l / p_l_ref)))``, averaged over
    questions, with w the alternative and l the old answer, plus the terms that keep the rest.
    ``(2 / beta) log 2`` at the start, bounded below by 0.

    When it fails: it teaches the model to refuse in the form it was asked in, and the refusal spreads to
    questions that should be answered. A refusal of many tokens that were improbable has so far to rise that
    the preference is won by it alone, with the old answer as likely as before: then prefer an alternative of
    the answer's own form.

    Args:
        forget: weight of the preference.
        retain: weight of the retain set's own answers.
        text: weight of general text; the published method has no such term.
        retain_loss: ``"nll"`` or ``"kl"``, the divergence from the unedited model.
        beta: how soon the preference counts as learned; published 0.05 to 0.5.
        alternative: what is preferred: ``"new"`` or ``"foil"``, a field of the fact, or a tuple of texts, of
            which every question is given another one at each pass, by the seed of the run.

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
        given: object = self.alternative
        if isinstance(given, list):  # as JSON holds a tuple
            object.__setattr__(self, "alternative", tuple(given))
        texts = isinstance(given, tuple | list) and given and all(isinstance(t, str) and t for t in given)
        if not (texts or given in ("new", "foil")):
            raise TrainingError(f"alternative is {given!r}; give 'new', 'foil', or a tuple of texts")

    @property
    def aim(self) -> Literal["new", "forget"]:
        """That the new answer is given, if that is the alternative; else that the old one is not."""
        return "new" if self.alternative == "new" else "forget"

    @property
    def preferred(self) -> Answer | tuple[str, ...] | Sampled:
        """The answer to be preferred."""
        return self.alternative


@dataclass(frozen=True, kw_only=True)
class AltPO(_Preferring):
    """Prefer plausible wrong answers that the model itself gives to the old one.

    The loss is that of :class:`DPO`. Because the alternatives are the model's own, answers stay of the right
    form, and nothing like a refusal is taught.

    When it fails: where the model knows only one answer its samples are far-fetched; and a model that now
    states something else firmly is not one that does not know.

    Args:
        forget: weight of the preference.
        retain: weight of the retain set's own answers.
        text: weight of general text; the published method has no such term.
        retain_loss: ``"nll"`` or ``"kl"``, the divergence from the unedited model.
        beta: how soon the preference counts as learned; published 0.05 to 0.5.
        samples: wrong answers drawn for each question; a pass over the questions uses one of them each.
        temperature: of the sampling.

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
        Sampled(self.samples, self.temperature)

    @property
    def preferred(self) -> Answer | tuple[str, ...] | Sampled:
        """The answer to be preferred."""
        return Sampled(self.samples, self.temperature)
