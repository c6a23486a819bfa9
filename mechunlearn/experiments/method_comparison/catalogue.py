"""The methods that are compared, each with its defaults, and the candidates it may choose from.

Every trained method chooses among the same learning rates, gentlest first; nothing else is tuned. Three have
options that depend on the size of the model; a rule sets them:

1. ``RMU(layer)`` and ``CircuitBreaker(layers)`` name blocks. The published ones lie at a quarter of the depth
   (7 of 32), and at a third and two thirds (10 and 20 of 32). Here they lie at the same shares, but never
   below the localization's first block, since states before it cannot change. The circuit breaker's horizon
   is twice the number of steps (300 of 150).
2. ``WeightMask`` trains shares of weights. Its learning rates are divided by the mean size of the weights
   that it may mask, so that a step moves them as far; its patience is the published share of the steps.

The closed forms have no learning rate. ROME tries layers, MEMIT and AlphaEdit how much running text counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing import objectives
from mechunlearn.editing.edits.recipes import Recipe, Stop
from mechunlearn.editing.objectives.requests import Objective
from mechunlearn.experiments.method_comparison.closed import Solve, candidates
from mechunlearn.models.hooked import HookedModel

RATES: Final = (1e-3, 3e-3, 1e-2)
STEPS: Final = 60
STOP: Final = Stop(every=5)
RMU_DEPTH, BREAKER_DEPTHS = 7 / 32, (10 / 32, 20 / 32)
PATIENCE = 15 / 50


@dataclass(frozen=True)
class MethodSetting:
    """What a method's options may depend on: the model, the localization, and the budget of steps."""

    hm: HookedModel
    localization: Localization
    steps: int

    @property
    def blocks(self) -> range:
        """The blocks whose output the localization can change."""
        first = min(site.layer or 0 for site in self.localization)
        return range(first, self.hm.sites.shape.n_layers)

    @property
    def weight(self) -> float:
        """The mean size of the weights of the localization."""
        sizes = [s.of(self.hm.params[s.name].detach()).abs() for s in self.hm.slices(self.localization)]
        return float(sum(size.sum() for size in sizes)) / sum(size.numel() for size in sizes)

    def up(self, share: float) -> int:
        """The block at a share of the depth, or the first that can change if that is higher."""
        return max(self.blocks[0], int(share * len(self.hm.sites.mlps())))


Make = Callable[[MethodSetting], Objective]

TRAINED: Final[Mapping[str, Make]] = {
    "Inject": lambda _: objectives.Inject(),
    "Forget": lambda _: objectives.Forget(),
    "GradientAscent": lambda _: objectives.GradientAscent(),
    "GradientDifference": lambda _: objectives.GradientDifference(),
    "GradientDifference (KL)": lambda _: objectives.GradientDifference(retain_loss="kl"),
    "NPO": lambda _: objectives.NPO(),
    "SimNPO": lambda _: objectives.SimNPO(),
    "DPO (refusal)": lambda _: objectives.DPO(),
    "DPO (new answer)": lambda _: objectives.DPO(alternative="new"),
    "AltPO": lambda _: objectives.AltPO(),
    "UNDIAL": lambda _: objectives.UNDIAL(),
    "CEU": lambda _: objectives.CEU(),
    "WGA": lambda _: objectives.WGA(),
    "SatImp": lambda _: objectives.SatImp(),
    "PDU": lambda _: objectives.PDU(),
    "RMU": lambda s: objectives.RMU(layer=s.up(RMU_DEPTH)),
    "CircuitBreaker": lambda s: objectives.CircuitBreaker(
        layers=tuple(dict.fromkeys(map(s.up, BREAKER_DEPTHS))), horizon=2 * s.steps
    ),
    "WeightMask": lambda s: objectives.WeightMask(patience=round(PATIENCE * s.steps)),
}
METHODS: Final = (*TRAINED, "ROME", "MEMIT", "AlphaEdit")


def options(
    method: str, hm: HookedModel, localization: Localization, *, steps: int, seed: int
) -> tuple[Recipe, ...] | tuple[Solve, ...]:
    """List the candidates a method chooses from, gentlest first; none where it cannot be run.

    ``method`` is one of ``METHODS``, ``seed`` the seed of the order of examples.
    """
    if method not in TRAINED:
        return candidates(method, hm, localization, seed=seed)
    setting = MethodSetting(hm, localization, steps)
    objective = TRAINED[method](setting)
    scale = setting.weight if isinstance(objective, objectives.WeightMask) else 1.0
    # Two digits: the size of the weights is a matter of scale, and the rates are printed.
    return tuple(
        Recipe(objective, steps=steps, lr=float(f"{lr / scale:.2g}"), seed=seed, stop=STOP) for lr in RATES
    )
