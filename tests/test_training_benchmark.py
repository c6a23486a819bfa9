"""The trainer's benchmark runs, and all sides agree; how fast they are is not tested."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import memory, step_memory, steps, training
from benchmarks.models import setting
from benchmarks.step_table import BEGIN, END, put_in
from benchmarks.steps import FROZEN, FULL, GRADIENTS, StepRow, gradients, paid_at, race_steps, step_rows
from benchmarks.works.training import CUTS, Ours, Plain, Trial

PROMISED = {"work", "peer", "cpu_ratio", "wall_ratio", "max_abs_diff", "threads", "memory_ratio"}
IDS = ["step_last_third", "step_last_third_answers", "step_middle_third", "step_middle_third_answers"]


def trial(cut: str = "step_last_third") -> Trial:
    return Trial.of(setting(quick=True), CUTS[cut])


class Astray(Trial):
    """Has the plain sides train on other texts than the trainer does."""

    def order(self, steps: int) -> list[list[int]]:
        return [[(row + 1) % len(self.corpus) for row in rows] for rows in super().order(steps)]


def astray() -> Astray:
    right = trial()
    return Astray(**{field.name: getattr(right, field.name) for field in fields(right)})


@pytest.mark.parametrize("shape", ["gpt2-small", "gemma-2-9b"])
def test_all_sides_of_every_step_agree_and_rows_are_written(tmp_path: Path, shape: str) -> None:
    chosen = [word for name in IDS for word in ("--only", name)]
    path = tmp_path / "rows.json"
    rows = training.main(["--quick", "--steps", "1", "--shape", shape, "--json", str(path), *chosen])
    written = json.loads(path.read_text())
    assert [(row["work"], row["peer"]) for row in written] == [
        (i, peer) for i in IDS for peer in (FROZEN, FULL)
    ]
    for row, record in zip(rows, written, strict=True):
        assert record.keys() >= PROMISED
        assert row.cpu_ratio is not None and row.wall_ratio is not None and row.threads == 1
        assert row.max_abs_diff is not None and row.effect_scale is not None
        assert 0 < row.effect_scale and row.max_abs_diff <= GRADIENTS * row.effect_scale
        assert row.note == "8 texts are kept, 4 steps of 2"  # both families are entered from the middle


def test_a_gradient_of_other_texts_ends_the_run() -> None:
    apart, scale, worst = gradients(astray(), astray().order(1))
    assert worst > 0.1 and apart > 0.1 * scale
    with pytest.raises(
        AssertionError, match=r"step_last_third: the gradient of a step and the full gradient"
    ):
        step_rows(astray(), steps=1)


def test_losses_of_other_texts_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "gradients", lambda *given: (0.0, 1.0, 0.0))
    with pytest.raises(AssertionError, match=r"step_last_third, step 1: the losses are \d"):
        step_rows(astray(), steps=1)


@pytest.mark.parametrize("everything", [False, True])
def test_a_plain_step_moves_what_it_trains_and_never_the_model_it_was_made_of(everything: bool) -> None:
    of = trial()
    before = {name: p.clone() for name, p in of.setting.plain.named_parameters()}
    plain = Plain(of, of.order(1), everything=everything)
    plain(1)
    moved = {n for n, p in plain.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == (set(before) if everything else of.names())
    assert all(torch.equal(p, before[n]) for n, p in of.setting.plain.named_parameters())


def test_filling_computes_every_text_once_and_steps_compute_none() -> None:
    ours = Ours(trial())
    ours.fill()
    feed = ours.optimization.feed
    assert feed.computed() == len(feed.sources["corpus", ""].variants[0]) == 8
    for number in range(1, 6):
        ours(number)
    assert feed.computed() == 8


def test_sides_take_turns_and_their_first_step_does_not_count() -> None:
    taken: list[str] = []

    def side(name: str) -> Callable[[int], float]:
        def step(number: int) -> float:
            taken.append(f"{name}{number}")
            return float(number)

        return step

    spent, losses = race_steps({name: side(name) for name in "abc"}, 3, torch.device("cpu"))
    assert taken == ["b1", "c1", "a1", "c2", "a2", "b2", "a3", "b3", "c3"]
    assert [len(times) for times in spent.values()] == [2, 2, 2]
    assert losses["a"] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "fill, ours, theirs, step",
    [(2.0, 1.0, 1.5, 4), (2.1, 1.0, 1.5, 5), (0.0, 1.0, 9.0, 1), (1.0, 2.0, 2.0, None)],
)
def test_filling_has_paid_for_itself_when_what_steps_save_makes_it_up(
    fill: float, ours: float, theirs: float, step: int | None
) -> None:
    assert paid_at(fill, ours, theirs) == step
    if step is not None:
        assert fill + step * ours <= step * theirs


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process holds now")
def test_what_a_process_holds_grows_by_a_tensor() -> None:
    before = memory.held("cpu")
    kept = torch.ones(2**24)
    assert 60 < memory.held("cpu") - before < 70
    assert memory.most_held("cpu") > before + 60
    assert kept.nbytes == 64 * 2**20


@pytest.mark.parametrize("side", ["ours", FROZEN, FULL])
def test_a_peak_above_the_loaded_model_is_measured(side: str) -> None:
    found = step_memory.peak("step_last_third", side, "gpt2-small", "cpu", "float32", 1, quick=True)
    assert found > -1  # of a tiny model it is lost in the pages that the system has yet to count


def test_memory_is_a_share_of_each_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"ours": 30.0, FROZEN: 20.0, FULL: 100.0}
    monkeypatch.setattr(step_memory, "elsewhere", lambda module, arguments: known[arguments[1]])
    rows = step_memory.step_memory_rows("gpt2-small", "cpu", "float32", quick=True)
    assert {row.work for row in rows} == {"step_memory"}
    assert [row.peer for row in rows[:2]] == [f"{FULL}, step_last_third", f"{FROZEN}, step_last_third"]
    assert [(row.memory_ratio, row.memory_target) for row in rows[:2]] == [(0.3, 0.35), (1.5, None)]


def test_tables_take_the_place_of_those_before_and_leave_the_page_as_it_is() -> None:
    peaks = {"ours": 30.0, FROZEN: 20.0, FULL: 1000.0}
    rows = [
        StepRow("step_last_third", FROZEN, 1.375, 1.4, 1e-8, target=1.25),
        StepRow(
            "step_memory",
            f"{FULL}, step_last_third",
            peak_memory_mb=peaks,
            memory_ratio=0.03,
            memory_target=0.35,
        ),
    ]
    page = put_in(f"above\n{BEGIN}\nold\n{END}\nbelow\n", rows, "a machine\nversions\na model\n")
    assert page.startswith(f"above\n{BEGIN}\n") and page.endswith(f"{END}\nbelow\n") and "old" not in page
    assert "Measured on: a machine; versions." in page
    assert "| `step_last_third` | all else frozen | 1.38x | 1.40x | 1.25x |" in page
    assert "| `step_last_third` | 30 | 20 | 1,000 | 0.03 | 0.35 |" in page
    assert put_in(page, rows, "a machine\nversions\na model\n") == page
    with pytest.raises(ValueError, match="the page has no place for the tables; write <!-- training"):
        put_in("nothing", rows, "")
