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
    """Primal-dual unlearning: the weight of the retain term grows while the retain loss exceeds its bound.

    Loss: ``forget * mean (max_v z_v - mean_v z_v)^2`` over the tokens of the old answers, plus
    ``multiplier * (L_retain - bound)``. After each step the multiplier becomes
    ``max(0, multiplier + rate (L_retain - bound))``: it grows while L_retain is above the bound and falls, at
    most to 0, while it is below.

    When it fails: with flat logits the model produces arbitrary tokens, not another sensible answer; and if
    the bound is below what the model can reach, the multiplier grows without limit.

    Args:
        forget: weight of the flattening.
        retain: multiplier at the first step, above 0; published 1, 50 (MUSE) and 100 (TOFU).
        text: fixed weight of the loss on general text; the published method has no such term.
        retain_loss: L_retain: ``"nll"``, or ``"kl"``, the divergence from the unedited model.
        bound: bound on L_retain, in nats per token; published 0.3 (TOFU) and 0.1 to 1.5 (MUSE).
        rate: step size of the multiplier; published 1 and 5.
        warmup: number of first steps that leave the multiplier as it is; published as some epochs, 0 here.

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
        """The old answers of the forget set, and the retained data."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The initial multiplier; the outputs and the seed are not used."""
        return {"multiplier": float(self.retain), "step": 0}

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``.

        The value of ``retain`` is ``L_retain - bound``, without the multiplier, while its gradient is that of
        ``multiplier * L_retain``; so ``after_step`` can read the excess also while the multiplier is 0.
        """
        terms = self.keep_terms(outputs)
        # ``keep_terms`` weights the loss by ``retain``, which here is only the first multiplier.
        excess = terms["retain"] / self.retain - self.bound
        terms["retain"] = excess.detach() + state["multiplier"] * (excess - excess.detach())
        return {"forget": self.forget * flatness(outputs["forget"]), **terms}

    def after_step(self, state: State, terms: Terms) -> State:
        """The multiplier after its step by the excess of the retain loss."""
        step, multiplier = int(state["step"]) + 1, float(state["multiplier"])
        if step > self.warmup:
            multiplier = max(0.0, multiplier + self.rate * float(terms["retain"]))
        return {"multiplier": multiplier, "step": step}
