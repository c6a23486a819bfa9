"""One sweep over facts: every intervention at every place in every fact, metric by metric.

1. Rows are taken some at a time; for each part both runs are captured and the engine sweeps one of them
   with the other's activations.
2. Values of a fact's rows (its words) are added up, and those of its samples averaged.
3. In half precision a value depends on the shape of the batch it was computed in. How much is measured: a few
   jobs are run again, each alone in a complete run, and the largest difference is reported beside the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.errors import ScoresError
from mechunlearn.localization.engine.cached_run import Run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Jobs, Write
from mechunlearn.localization.patching.answer_metrics import AnswerRows, Measure
from mechunlearn.localization.patching.positions import Positions, places_of, where_of

_AGAIN = 8


@dataclass(frozen=True, eq=False)
class PatchTask:
    """One part of a sweep.

    Args:
        run: what is patched.
        source: the values written, by hook point.
        rows: the row of the source for every place and row of the run.
        measure: what is read of the run's rows.
        other: the metrics of the run that the values come from, per row of `run`; None for ablations.
        samples: rows of the run per clean row.
    """

    run: Run
    source: Mapping[str, Float[Tensor, "given ..."]]
    rows: Int[Tensor, "#place row"]
    measure: Measure
    other: Float[Tensor, "row metric"] | None
    samples: int

    @property
    def asked(self) -> AnswerRows:
        """What is asked of the run's rows."""
        return self.measure.asked


@dataclass(eq=False)
class SweepResult:
    """What a sweep found, per fact.

    Args:
        values: the metric of the patched run minus that of the run itself; not-a-number where a fact has no
            token at a place.
        patched: the metric of the run itself.
        other: the metric of the run that the values come from; zero for ablations.
        noise: the largest difference that another batch shape made; 0 where it was not looked for.
        complete: whether the model's blocks could not be entered, so that every patch was a complete run.
    """

    values: Float[Tensor, "fact site place metric"]
    patched: Float[Tensor, "fact metric"]
    other: Float[Tensor, "fact metric"]
    noise: float = 0.0
    complete: bool = False

    @classmethod
    def empty(cls, facts: int, sites: int, places: int, metrics: int) -> SweepResult:
        """Nothing found yet."""
        values = torch.zeros(facts, sites, places, metrics, dtype=torch.float64)
        return cls(values, torch.zeros_like(values[:, 0, 0]), torch.zeros_like(values[:, 0, 0]))

    def add(
        self,
        setting: PatchTask,
        values: Float[Tensor, "site place row metric"],
        baseline: Float[Tensor, "row metric"],
    ) -> None:
        """Add the metrics of a part's patched rows to their facts."""
        fact, share = setting.asked.fact, 1 / setting.samples
        change = (values - baseline).permute(2, 0, 1, 3)
        self.values.index_add_(0, fact, share * change)
        self.patched.index_add_(0, fact, share * baseline)
        if setting.other is not None:
            self.other.index_add_(0, fact, share * setting.other)

    def blank(self, setting: PatchTask, where: Bool[Tensor, "place row pos"]) -> None:
        """Note which facts of a part have no token at a place."""
        place, row = (~where.any(-1)).cpu().nonzero(as_tuple=True)
        self.values[setting.asked.fact[row], :, place] = torch.nan

    @property
    def shares(self) -> Float[Tensor, "fact site place metric"]:
        """The values as shares of the mean difference between the two runs.

        Raises:
            ScoresError: the two runs do not differ in a metric.
        """
        other, own = self.other.mean(0), self.patched.mean(0)
        gap = other - own
        if bool(((gap.abs() <= 1e-6 * (other.abs() + own.abs())) | ~gap.isfinite()).any()):
            raise ScoresError(
                f"normalized=True divides by the difference of the two runs, but on average they give "
                f"{[round(x, 6) for x in other.tolist()]} and {[round(x, 6) for x in own.tolist()]}; choose "
                "another corruption or metric, or leave it out"
            )
        return self.values / gap

    @property
    def remarks(self) -> str:
        """What a title adds: the noise of batch shapes, and that no block could be entered."""
        noise = f", ±{self.noise:.2g} from batch shapes" if self.noise else ""
        return noise + (", every patch a complete run" if self.complete else "")


def sweep(
    engine: Engine,
    settings: Iterator[PatchTask],
    writes: Sequence[tuple[Write, ...]],
    *,
    asked: AnswerRows,
    positions: Positions,
    bar: Any = None,
) -> SweepResult:
    """Sweep all parts.

    Args:
        engine: of the model.
        settings: the parts.
        writes: the interventions.
        asked: all that is asked, in all parts.
        positions: which places.
        bar: a progress bar that counts jobs.
    """
    places, facts = places_of(asked, positions), int(asked.fact.max()) + 1
    found: SweepResult | None = None
    for setting in settings:
        where = where_of(setting.asked, positions, places=places)
        shape = len(writes), *where.shape[:2], setting.measure.width
        found = found or SweepResult.empty(facts, len(writes), places, setting.measure.width)
        jobs = Jobs.grid(writes, where, source=setting.rows.expand(where.shape[:2]))
        values = engine.sweep(setting.run, setting.source, jobs, setting.measure, bar=bar)
        found.noise = max(found.noise, _noise(engine, setting, jobs, values))
        found.add(setting, values.view(shape), engine.baseline(setting.run, setting.measure))
        found.blank(setting, where)
    found = found or SweepResult.empty(facts, len(writes), places, 1)
    found.complete = bool(engine.reason)
    return found


def _noise(engine: Engine, setting: PatchTask, jobs: Jobs, values: Float[Tensor, "job metric"]) -> float:
    if engine.hm.dtype not in (torch.float16, torch.bfloat16):
        return 0.0
    # Jobs that change nothing have the baseline's value in every shape.
    baseline = engine.baseline(setting.run, setting.measure)[jobs.row.cpu()]
    ran = (values != baseline).any(1).nonzero()[:, 0]
    if not len(ran):
        return 0.0
    some = ran[torch.randperm(len(ran), generator=torch.Generator().manual_seed(0))[:_AGAIN]]
    alone = replace(engine, reason="to see what another shape makes of it", budget=1)
    again = alone.sweep(setting.run, setting.source, jobs.pick(some.to(jobs.row.device)), setting.measure)
    return float((again - values[some]).abs().max())
