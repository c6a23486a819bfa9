"""The preference that a lookup needs: for the facts' answers over those of other subjects.

1. Every fact is set beside the same prompt about another subject. The preference is the log-probability of
   the fact's own answer minus that of the other subject's.
2. The gap is how much of it is lost, on average over facts, when the other prompt is fed: in nats.
3. Effects are shares of the gap. Without a gap there are no shares, and no lookup to find.
"""

from __future__ import annotations

from collections.abc import Sequence

from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.patching.activation import patch_tasks
from mechunlearn.localization.patching.answer_metrics import Metric
from mechunlearn.localization.patching.pairs import pair
from mechunlearn.models.hooked import HookedModel

_METRIC: tuple[Metric, ...] = ("logit_diff",)


def preference_gap(
    hm: HookedModel, facts: Sequence[Fact], swapped: Sequence[Fact], *, batch_size: int = 64
) -> float:
    """Measure the gap of facts, whose `foil` is the other subject's answer, from one run of both prompts."""
    engine, gap = Engine.of(hm), 0.0
    pairs = pair(hm, facts, _METRIC, corrupt=swapped)
    for task in patch_tasks(hm, pairs, _METRIC, (), direction="noising", batch_size=batch_size):
        assert task.source_metrics is not None, "both runs are captured"
        gap += float((engine.baseline(task.run, task.measure) - task.source_metrics).sum())
    return gap / len(facts)


def require_preference(gap: float) -> None:
    """Raise FactError if the model does not prefer the facts' answers."""
    if not gap > 0:
        raise FactError(
            f"the model does not prefer these facts' answers to those of other subjects (by {gap:.3g} nats "
            "on average, where more than 0 is needed); see which it knows with mu.validate(hm, facts)"
        )
