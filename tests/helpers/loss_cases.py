"""Every loss beside its plain twin, and what is special about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from helpers import slow_losses as slow
from helpers.handmade_readings import VOCAB, WIDTH
from mechunlearn.editing.objectives import hidden_losses, losses
from mechunlearn.editing.objectives.losses import log1m_prob, nll, npo
from mechunlearn.editing.objectives.requests import Outputs

TARGET = torch.linspace(-1.0, 1.0, WIDTH, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A loss, the same in plain floats, and what is special about it."""

    loss: Callable[[Outputs], Tensor]
    plain: Callable[[Outputs], float]
    leaf: str = "logits"
    frozen: bool = False  # part of it has no gradient on purpose
    bounded: bool = True  # below


CASES = {
    "nll": Case(nll, slow.nll),
    "log1m_prob": Case(lambda r: -log1m_prob(r), lambda r: -slow.log1m_prob(r)),
    "threshold": Case(lambda r: -log1m_prob(r, threshold=-5), lambda r: -slow.log1m_prob(r, -5)),
    "kl": Case(losses.kl, slow.kl),
    "npo": Case(lambda r: npo(r, beta=0.3), lambda r: slow.npo(r, 0.3)),
    "simnpo": Case(lambda r: losses.simnpo(r, beta=4.5, delta=0.5), lambda r: slow.simnpo(r, 4.5, 0.5)),
    "dpo": Case(
        lambda r: losses.dpo(r, unlike(r), beta=0.2), lambda r: slow.dpo(r, unlike(r), 0.2)
    ),
    "undial": Case(lambda r: losses.undial(r, beta=3.0), lambda r: slow.undial(r, 3.0)),
    "ceu": Case(lambda r: losses.ceu(r, skip=0), lambda r: slow.ceu(r, 0), frozen=True),
    "ceu skipping": Case(lambda r: losses.ceu(r, skip=1), lambda r: slow.ceu(r, 1), frozen=True),
    "wga": Case(
        lambda r: losses.weighted_ascent(r, power=1.5),
        lambda r: slow.weighted_ascent(r, 1.5, 0), frozen=True, bounded=False,
    ),
    "satimp": Case(
        lambda r: losses.weighted_ascent(r, power=5, doubt=1),
        lambda r: slow.weighted_ascent(r, 5, 1), frozen=True, bounded=False,
    ),
    "flatness": Case(losses.flatness, slow.flatness),
    "steering": Case(
        lambda r: hidden_losses.steering(r, TARGET), lambda r: slow.steering(r, TARGET.tolist()), "hidden"
    ),
    "drift": Case(hidden_losses.drift, slow.drift, "hidden"),
    "alignment": Case(hidden_losses.alignment, slow.alignment, "hidden"),
    "displacement": Case(hidden_losses.displacement, slow.displacement, "hidden"),
}  # fmt: skip


def unlike(one: Outputs) -> Outputs:
    """Other answers to the same questions."""
    return replace(one, labels=torch.where(one.labels < 0, one.labels, (one.labels + 3) % VOCAB))


def gradient(case: Case, one: Outputs) -> Tensor:
    leaf = getattr(one, case.leaf).detach().clone().requires_grad_()
    loss = case.loss(replace(one, **{case.leaf: leaf}))
    found: Tensor = torch.autograd.grad(loss, leaf)[0]
    return found
