"""Unlearning as a constrained problem: flatten the logits, subject to a bound on the retain loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.core.checks import above, finite, integer
from mechunlearn.editing.objectives.losses import flatness
from mechunlearn.editing.objectives.requests import Outputs, Request, State, Terms
from mechunlearn.editing.objectives.retain_terms import RetainTerms
from mechunlearn.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class PDU(RetainTerms):
    """Primal-dual unlearning: the weight of the retain term follows how far its bound is broken.

    Loss: ``forget * mean (max_v z_v - mean_v z_v)^2`` over the tokens of the old answers, plus
    ``multiplier * (L_retain - bound)``. After a step the multiplier becomes
    ``max(0, multiplier + rate (L_retain - bound))``: it grows while the bound is broken and falls to 0 once
    there is room.

    When it fails: flattened logits make the model say anything, not another sensible answer; and a bound
    below what the model can reach lets the multiplier grow without end.

    Args:
        forget: weight of the flattening.
        retain: the multiplier at the first step, above 0; published 1, 50 (MUSE) and 100 (TOFU).
        text: weight of general text, fixed; the published method has no such term.
        retain_loss: ``"nll"`` or ``"kl"``: what L_retain is.
        bound: of L_retain, in nats per token; published 0.3 (TOFU) and 0.1 to 1.5 (MUSE).
        rate: by which the multiplier moves; published 1 and 5.
        warmup: so many first steps leave the multiplier as it is; published as some epochs, 0 here.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> import torch
        >>> pdu = mu.objectives.PDU(bound=0.3)
        >>> pdu.after_step(pdu.init({}, seed=0), {"retain": torch.tensor(0.5)})
        {'multiplier': 1.5, 'step': 1}

    Source: Entesari et al., "Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language
    Models" (2025).
    """

    bound: float | int = 0.3
    rate: float | int = 1.0
    warmup: int = 0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        above(TrainingError, 0, retain=self.retain, rate=self.rate)
        finite(TrainingError, bound=self.bound)
        integer(TrainingError, 0, warmup=self.warmup)

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers of the forget set, and what is kept."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The multiplier as it starts; neither the outputs nor the seed matter."""
        return {"multiplier": float(self.retain), "step": 0}

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``.

        The value of ``retain`` is the excess of the retain loss over its bound, and its gradient that of the
        retain loss times the multiplier, so that the excess is known also while the multiplier is 0.
        """
        kept = self.keep_terms(outputs)
        excess = kept["retain"] / self.retain - self.bound
        kept["retain"] = excess.detach() + state["multiplier"] * (excess - excess.detach())
        return {"forget": self.forget * flatness(outputs["forget"]), **kept}

    def after_step(self, state: State, terms: Terms) -> State:
        """The multiplier moved by the excess of the retain loss, and never below 0."""
        step, multiplier = int(state["step"]) + 1, float(state["multiplier"])
        if step > self.warmup:
            multiplier = max(0.0, multiplier + self.rate * float(terms["retain"]))
        return {"multiplier": multiplier, "step": step}
