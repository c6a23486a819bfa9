"""Measure steps of training in turn, and hold all sides to the same losses and gradients.

1. Every side takes each step in turn, the one that begins changing from step to step. So all meet the same
   load of the machine. The first step, in which memory is first touched, does not count.
2. A step's gradient is what one step of plain descent at rate 1 takes away: this library's is read off the
   trainer's own step, and must be the full gradient's entries, to 1e-5 of the largest of the tensor.
3. All sides train on the same texts, so the losses of each step must agree between those that train the same.
4. What fills the kept states is timed apart. It has paid for itself at the first step at which filling and
   stepping took less than stepping as the other side does.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from benchmarks.timing import TOLERANCE, Row, Time, timed
from benchmarks.works.training import Ours, Plain, Trial

GRADIENTS = 1e-5
"""Of the largest entry of a tensor's gradient, in float32."""
FROZEN = "the same loss, all other parameters frozen"
FULL = "full fine-tuning"


@dataclass(frozen=True)
class StepRow(Row):
    """One line of the table; ``cpu_ratio`` and ``wall_ratio`` are per step, filling left out.

    ``max_abs_diff`` is between gradients, and ``effect_scale`` the largest entry of the full one.
    """

    memory_ratio: float | None = None
    memory_target: float | None = None
    fill_cpu_s: float | None = None
    fill_texts: int | None = None
    fill_steps: float | None = None
    paid_at_step: int | None = None


def step_rows(trial: Trial, *, steps: int, judge: bool = True) -> list[StepRow]:
    """Measure the trainer's step beside a plain model's.

    Args:
        trial: what is trained, and on what.
        steps: how many count.
        judge: whether a difference beyond the tolerance ends the run.

    Raises:
        AssertionError: two sides do not agree.
    """
    order = trial.order(steps + 1)
    apart, scale, worst = gradients(trial, order)
    if judge and not worst <= GRADIENTS:
        raise AssertionError(
            f"{trial.cut.id}: the gradient of a step and the full gradient differ by {worst:.2e} of the "
            f"largest entry of a tensor; at most {GRADIENTS:g} was expected"
        )
    ours, device = Ours(trial), trial.setting.hm.device
    _, fill = timed(ours.fill, device)
    sides: dict[str, Callable[[int], float]] = {
        "ours": ours,
        FROZEN: Plain(trial, order),
        FULL: Plain(trial, order, everything=True),
    }
    spent, losses = race_steps(sides, steps + 1, device)
    if judge:
        _agree(trial.cut.id, losses)
    row = StepRow(
        trial.cut.id,
        "",
        max_abs_diff=apart,
        threads=torch.get_num_threads(),
        effect_scale=scale,
        rounds=steps,
        fill_cpu_s=fill.cpu,
        fill_texts=len(trial.corpus),
        note=_note(ours, trial),
    )
    rows = [_beside(row, peer, _median(spent["ours"]), _median(spent[peer])) for peer in (FROZEN, FULL)]
    return [replace(rows[0], target=trial.cut.target), rows[1]]


def gradients(trial: Trial, order: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """Compare the gradient of the trainer's first step with the same entries of the full gradient.

    Gives the largest difference, the full gradient's largest entry, and the largest difference as a share of
    the largest entry of its tensor.

    Args:
        trial: what is trained, and on what.
        order: which texts come at each step.
    """
    optimization = trial.optimization(optimizer="SGD", lr=1.0)
    optimization.step(1)
    full = Plain(trial, order[:1], everything=True)
    full.backward(1)
    expected = {name: p.grad for name, p in full.model.named_parameters()}
    apart, scale, worst = 0.0, 0.0, 0.0
    for part, moved in zip(optimization.trained.slices, optimization.trained.deltas(), strict=True):
        grad = expected[part.name]
        entries = part.of(torch.zeros_like(full.model.get_parameter(part.name)) if grad is None else grad)
        largest, difference = float(entries.abs().max()), float((entries + moved).detach().abs().max())
        apart, scale = max(apart, difference), max(scale, largest)
        worst = max(worst, difference / largest if largest else difference)
    return apart, scale, worst


def race_steps(
    sides: Mapping[str, Callable[[int], float]], steps: int, device: torch.device
) -> tuple[dict[str, list[Time]], dict[str, list[float]]]:
    """Take steps in turn; gives the times of all but the first, and all losses.

    Args:
        sides: what takes a step, given its number from 1, and gives the loss.
        steps: how many.
        device: is waited for before a clock is read.
    """
    spent: dict[str, list[Time]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    gc.collect()
    for number in range(1, steps + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            loss, time = timed(lambda step=sides[name], n=number: step(n), device)  # type: ignore[misc]
            losses[name].append(loss)
            spent[name].append(time)
    return {name: times[1:] for name, times in spent.items()}, losses


def _agree(name: str, losses: Mapping[str, Sequence[float]]) -> None:
    """Those that train the same must have the same losses; full fine-tuning only the first."""
    for number, (ours, frozen) in enumerate(zip(losses["ours"], losses[FROZEN], strict=True), start=1):
        _close(f"{name}, step {number}", ours, frozen)
    _close(f"{name}, {FULL}", losses["ours"][0], losses[FULL][0])


def _close(what: str, ours: float, peer: float) -> None:
    if not abs(ours - peer) <= TOLERANCE * abs(peer):
        raise AssertionError(
            f"{what}: the losses are {ours:.8g} and {peer:.8g}; a difference of at most {TOLERANCE:g} of "
            "them was expected"
        )


def paid_at(fill: float, ours: float, peer: float) -> int | None:
    """The first step after which filling and stepping took no more than stepping as the other side does.

    None if a step of the other side costs no more than one of ours.

    Args:
        fill: what filling costs.
        ours: what a step of ours costs.
        peer: what a step of the other side costs.
    """
    return max(1, math.ceil(fill / (peer - ours))) if peer > ours else None


def _note(ours: Ours, trial: Trial) -> str:
    """What a reader of the numbers has to know."""
    if ours.optimization.runner.reason:
        return f"the whole model is run at every step: {ours.optimization.runner.reason}"
    size, step = len(trial.corpus), sum(map(len, trial.order(1)))
    return f"{size} texts are kept, {size // step} steps of {step}"


def _beside(row: StepRow, peer: str, ours: Time, peer_time: Time) -> StepRow:
    fill = row.fill_cpu_s or 0.0
    # A clock of CPU time may stand still while a tiny step is taken.
    cpu, wall = max(ours.cpu, 1e-9), max(ours.wall, 1e-9)
    return replace(
        row,
        peer=peer,
        cpu_ratio=peer_time.cpu / cpu,
        wall_ratio=peer_time.wall / wall,
        ours_cpu_s=ours.cpu,
        ours_wall_s=ours.wall,
        peer_cpu_s=peer_time.cpu,
        peer_wall_s=peer_time.wall,
        load=os.getloadavg()[0],
        fill_steps=fill / cpu,
        paid_at_step=paid_at(fill, ours.cpu, peer_time.cpu),
    )


def _median(times: Sequence[Time]) -> Time:
    return Time(median(time.cpu for time in times), median(time.wall for time in times))
