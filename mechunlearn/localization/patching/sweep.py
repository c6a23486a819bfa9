"""One sweep over facts: every intervention at every place in every fact, metric by metric.

1. Rows are swept in parts; for each part both runs are captured, and the engine writes activations of one
   into the other.
2. Values of a fact's rows (its words) are added up, and those of its samples averaged.
3. In half precision a value depends on the shape of the batch it was computed in. A few patches are run
   again, each alone in a complete run, and the largest difference is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.errors import ScoresError
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Patches, Write
from mechunlearn.localization.patching.answer_metrics import AnswerRows, Measure
from mechunlearn.localization.patching.positions import Positions, places_of, where_of

_AGAIN = 8


@dataclass(frozen=True, eq=False)
class PatchTask:
    """One part of a sweep: a run to patch, and the activations that are written, by hook point.

    ``rows`` is the row of the source for every place and row of the run. ``source_metrics`` are those of the
    run that the activations come from, None for ablations. ``samples`` counts rows of the run per clean row.
    """

    run: CachedRun
    source: Mapping[str, Float[Tensor, "source ..."]]
    rows: Int[Tensor, "#place row"]
    measure: Measure
    source_metrics: Float[Tensor, "row metric"] | None
    samples: int

    @property
    def answers(self) -> AnswerRows:
        """The words to score in the run's rows."""
        return self.measure.answers


@dataclass(eq=False)
class SweepResult:
    """The result of a sweep, per fact; ``patched`` and ``source`` are metrics of the two runs themselves.

    ``values`` are changes from ``patched``, not-a-number where a fact has no token at a place. ``source`` is
    0 for ablations. ``noise`` is the largest difference that another batch shape made, 0 where it was not
    measured. ``complete`` is True if every patch was a complete run, since no block could be entered.
    """

    values: Float[Tensor, "fact site place metric"]
    patched: Float[Tensor, "fact metric"]
    source: Float[Tensor, "fact metric"]
    noise: float = 0.0
    complete: bool = False

    @classmethod
    def empty(cls, facts: int, sites: int, places: int, metrics: int) -> SweepResult:
        """Start at 0."""
        values = torch.zeros(facts, sites, places, metrics, dtype=torch.float64)
        return cls(values, torch.zeros_like(values[:, 0, 0]), torch.zeros_like(values[:, 0, 0]))

    def add(
        self,
        task: PatchTask,
        values: Float[Tensor, "site place row metric"],
        baseline: Float[Tensor, "row metric"],
    ) -> None:
        """Add the metrics of a part's patched rows to their facts."""
        fact, share = task.answers.fact, 1 / task.samples
        change = (values - baseline).permute(2, 0, 1, 3)
        self.values.index_add_(0, fact, share * change)
        self.patched.index_add_(0, fact, share * baseline)
        if task.source_metrics is not None:
            self.source.index_add_(0, fact, share * task.source_metrics)

    def blank(self, task: PatchTask, where: Bool[Tensor, "place row pos"]) -> None:
        """Write not-a-number where facts of a part have no token at a place."""
        index, row = (~where.any(-1)).cpu().nonzero(as_tuple=True)
        self.values[task.answers.fact[row], :, index] = torch.nan

    @property
    def shares(self) -> Float[Tensor, "fact site place metric"]:
        """The values as shares of the mean difference of the two runs; ScoresError if there is none."""
        source, patched = self.source.mean(0), self.patched.mean(0)
        gap = source - patched
        if bool(((gap.abs() <= 1e-6 * (source.abs() + patched.abs())) | ~gap.isfinite()).any()):
            raise ScoresError(
                f"normalized=True divides by the difference of the two runs, but on average they give "
                f"{[round(x, 6) for x in source.tolist()]} and {[round(x, 6) for x in patched.tolist()]}; "
                "choose another corruption or metric, or leave it out"
            )
        return self.values / gap

    @property
    def remarks(self) -> str:
        """What a title adds: the noise of batch shapes, and that no block could be entered."""
        noise = f", ±{self.noise:.2g} from batch shapes" if self.noise else ""
        return noise + (", every patch a complete run" if self.complete else "")


def sweep(
    engine: Engine,
    tasks: Iterator[PatchTask],
    writes: Sequence[tuple[Write, ...]],
    *,
    answers: AnswerRows,
    positions: Positions,
    bar: Any = None,
) -> SweepResult:
    """Sweep all parts; `answers` are their rows together, and `writes` the interventions."""
    places, facts = places_of(answers, positions), int(answers.fact.max()) + 1
    result: SweepResult | None = None
    for task in tasks:
        where = where_of(task.answers, positions, places=places)
        shape = len(writes), *where.shape[:2], task.measure.width
        result = result or SweepResult.empty(facts, len(writes), places, task.measure.width)
        patches = Patches.grid(writes, where, source=task.rows.expand(where.shape[:2]))
        values = engine.sweep(task.run, task.source, patches, task.measure, bar=bar)
        result.noise = max(result.noise, _noise(engine, task, patches, values))
        result.add(task, values.view(shape), engine.baseline(task.run, task.measure))
        result.blank(task, where)
    result = result or SweepResult.empty(facts, len(writes), places, 1)
    result.complete = bool(engine.reason)
    return result


def _noise(engine: Engine, task: PatchTask, patches: Patches, values: Float[Tensor, "patch metric"]) -> float:
    if engine.hm.dtype not in (torch.float16, torch.bfloat16):
        return 0.0
    # A patch that changes nothing has the value of the baseline, whatever the shape: only others can differ.
    baseline = engine.baseline(task.run, task.measure)[patches.row.cpu()]
    ran = (values != baseline).any(1).nonzero()[:, 0]
    if not len(ran):
        return 0.0
    chosen = ran[torch.randperm(len(ran), generator=torch.Generator().manual_seed(0))[:_AGAIN]]
    # A reason makes every patch a complete run, and a budget of one token puts each in a batch of its own.
    alone = replace(engine, reason="to compare batch shapes", budget=1)
    again = alone.sweep(task.run, task.source, patches.pick(chosen.to(patches.row.device)), task.measure)
    return float((again - values[chosen]).abs().max())
