"""What training cannot change is kept within bounds, and what is kept does not depend on the order."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.deep_models import deep_model, tolerance
from helpers.small_facts import FACTS, bits, fit, unchecked
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import Split
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Recipe, Stop
from mechunlearn.editing.objectives.likelihood import Inject
from mechunlearn.editing.objectives.preference import DPO
from mechunlearn.editing.training.activation_cache import ActivationCache, CacheBudget
from mechunlearn.editing.training.early_stopping import EarlyStopping
from mechunlearn.editing.training.limits import Limits
from mechunlearn.editing.training.optimization import Optimization
from mechunlearn.errors import TrainingError
from mechunlearn.models.hooked import HookedModel

COUNTS = (3, 1, 4, 1, 5, 9, 2)
WIDTH = 2
ROW = WIDTH * 8
"""Bytes of one row of two float64."""


@dataclass
class Source:
    """Rows that tell which examples they were computed beside, as batches of floats do in their last bits."""

    asked: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, examples: list[int]) -> list[Tensor]:
        self.asked.append(tuple(examples))
        return [rows(i, examples) for i in examples]


def rows(example: int, beside: Sequence[int]) -> Tensor:
    values = torch.arange(COUNTS[example] * WIDTH, dtype=torch.float64).reshape(-1, WIDTH)
    return values + 100 * example + 1e-6 * sum(2.0**i for i in beside)


def chunk_of(example: int, size: int) -> list[int]:
    first = example // size * size
    return list(range(first, min(first + size, len(COUNTS))))


orders = st.lists(st.lists(st.integers(0, len(COUNTS) - 1), min_size=1, max_size=7), min_size=1, max_size=6)


@given(orders, st.integers(1, 8))
def test_what_is_kept_does_not_depend_on_the_order_of_first_use(order: list[list[int]], size: int) -> None:
    source = Source()
    store = ActivationCache.of(COUNTS, source, CacheBudget(1 << 20, 0, None), width=ROW, chunk=size)
    for examples in order:
        for i, found in zip(examples, store.get(examples), strict=True):
            assert torch.equal(found, rows(i, chunk_of(i, size)))
    assert len(set(source.asked)) == len(source.asked), "no chunk is computed twice"
    assert store.computed == sum(map(len, source.asked)) <= len(store) == len(COUNTS)


@given(orders, st.integers(1, 8), st.integers(0, 30), st.integers(0, 30))
def test_bounds_hold_and_every_row_is_right(
    order: list[list[int]], size: int, memory: int, disk: int
) -> None:
    budget = CacheBudget(memory * ROW, disk * ROW, None)
    stores = [ActivationCache.of(COUNTS, Source(), budget, width=ROW, chunk=size) for _ in range(3)]
    for store, examples in zip(itertools.cycle(stores), order, strict=False):
        for i, found in zip(examples, store.get(examples), strict=True):
            # Right up to what was computed beside it.
            assert (found - rows(i, [])).abs().max() < 2e-4
        held = [store._flat.nbytes for store in stores if store._flat is not None]
        assert budget.memory >= 0 and budget.disk >= 0
        assert sum(held) <= (memory + disk) * ROW - budget.memory - budget.disk


@given(orders, st.integers(1, 8), st.integers(0, 25))
def test_what_fits_is_kept_and_the_rest_is_computed_at_each_use(
    order: list[list[int]], size: int, memory: int
) -> None:
    source = Source()
    store = ActivationCache.of(COUNTS, source, CacheBudget(memory * ROW, 0, None), width=ROW, chunk=size)
    store.get(order[0])
    ends = list(itertools.accumulate(COUNTS))
    fits = [i for i, end in enumerate(ends) if end <= memory]
    assert store.fitting == len(fits)
    for examples in order:
        once = len(source.asked)
        first, second = store.get(examples), store.get(examples)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        for i, found in zip(examples, first, strict=True):
            beside = chunk_of(i, size) if i in fits else [j for j in dict.fromkeys(examples) if j not in fits]
            assert torch.equal(found, rows(i, beside))
        again = {i for asked in source.asked[once:] for i in asked}
        assert {i for i in examples if i not in fits} <= again


def test_room_is_taken_from_memory_first_and_from_the_disk_when_memory_is_full(tmp_path: Path) -> None:
    budget = CacheBudget(sum(COUNTS) * ROW, sum(COUNTS) * ROW + 7, tmp_path)
    stores = [ActivationCache.of(COUNTS, Source(), budget, width=ROW) for _ in range(3)]
    for store in stores:
        store.get([0])
    assert [store.fitting for store in stores] == [len(COUNTS), len(COUNTS), 0]
    assert (budget.memory, budget.disk) == (0, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_on_disk_is_in_a_file_that_is_not_there(tmp_path: Path) -> None:
    source = Source()
    store = ActivationCache.of(COUNTS, source, CacheBudget(0, 1 << 20, tmp_path), width=ROW, chunk=3)
    before = store.get([6, 0])
    assert list(tmp_path.iterdir()) == [] and store.fitting == len(COUNTS)
    again = store.get([0, 6])
    assert source.asked == [(0, 1, 2), (6,)]
    assert torch.equal(before[0], again[1]) and torch.equal(before[1], again[0])
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(tmp_path) in mapped.read_text()
        del store, before, again
        assert str(tmp_path) not in mapped.read_text()


@pytest.mark.parametrize("name", ["memory", "disk"])
def test_a_bound_below_nothing_is_refused(name: str) -> None:
    with unchecked(), pytest.raises(TrainingError, match=f"{name} is -1; give a number of bytes, 0 for none"):
        Limits(**{name: -1})  # type: ignore[arg-type]
    assert Limits(memory=0, disk=0) == Limits(32, 0)


# -- the same edit --------------------------------------------------------------------------------------

SPLITS: tuple[Split, ...] = ("forget",) * 9 + ("retain",) * 9
MANY = Facts(
    [
        Fact(f"Man {i} plays", f"Man {i}", "golf", new="judo", foil="polo", split=split)
        for i, split in enumerate(SPLITS)
    ],
    text=FACTS.text * 3,
)


@cache
def model(dtype: torch.dtype = torch.float32) -> HookedModel:
    return deep_model().to(dtype)


def edited(limits: Limits, dtype: torch.dtype = torch.float32, **options: Any) -> Edit:
    """An edit of examples that come in another company at every step."""
    limits = replace(limits, batch_size=4)
    return fit(model(dtype), "L2.mlp", steps=4, lr=0.01, facts=MANY, limits=limits, **options)


def values(edit: Edit) -> list[bytes]:
    return [bits(d.values) for d in edit.deltas]


def test_memory_and_disk_give_the_same_bytes(tmp_path: Path) -> None:
    kept = edited(Limits())
    assert values(edited(Limits(memory=0, disk=1 << 30, folder=tmp_path))) == values(kept)
    assert values(edited(Limits(memory=3000, disk=1 << 30, folder=tmp_path))) == values(kept)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("memory", [0, 3000, 20_000])
def test_what_is_not_kept_gives_the_same_edit_to_rounding(memory: int) -> None:
    # Batches of other examples round otherwise, and only in their last bits.
    kept, other = (edited(Limits(memory=m), torch.float64) for m in (1 << 30, memory))
    apart = [(a.values - b.values).abs().max() for a, b in zip(kept.deltas, other.deltas, strict=True)]
    assert max(map(float, apart)) < tolerance("llama") and float(kept.deltas[0].values.abs().max()) > 0.01
    assert values(edited(Limits(memory=memory))) == values(edited(Limits(memory=memory)))


def test_what_is_judged_does_not_depend_on_what_is_kept() -> None:
    stop = Stop(goal=1.0, min_retention=1.0, every=2)
    histories = [edited(Limits(memory=m), torch.float64, stop=stop).history for m in (0, 20_000, 1 << 30)]
    judged = [[(e.get("success"), e.get("retention")) for e in history] for history in histories]
    assert judged[0] == judged[1] == judged[2] and judged[0][1] != (None, None)


def test_what_was_kept_is_let_go_as_soon_as_training_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    # A loop of edits must not hold the memory of those before until the collector of cycles comes by.
    kept: list[weakref.ref[Tensor]] = []
    plain = ActivationCache._fill

    def filled(self: ActivationCache, examples: list[int]) -> None:
        plain(self, examples)
        assert self._flat is not None
        kept.append(weakref.ref(self._flat))

    monkeypatch.setattr(ActivationCache, "_fill", filled)
    gc.collect()
    gc.disable()
    try:
        edited(Limits())
        assert len(kept) == 3 and all(flat() is None for flat in kept)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "objective", [Inject(), DPO(alternative=("no", "never"), retain_loss="kl")], ids=repr
)
@pytest.mark.parametrize("memory", [0, 5000, 40_000, 80_000, 1 << 20])
def test_training_and_judging_together_stay_within_the_bound(memory: int, objective: Any) -> None:
    hm, budget = model(), CacheBudget(memory, 0, None)
    recipe = Recipe(objective, steps=9, batch_size=4)
    options: dict[str, Any] = {"corpus": None, "budget": budget, "checkpointing": False}
    run = Optimization.of(hm, recipe, Localization(["L2.mlp"]), MANY, **options)
    stopping = EarlyStopping.of(hm, Stop(), objective, MANY, run.trained, runner=run.runner, budget=budget)
    for step in range(1, 7):
        run.step(step)
        stopping.measure(step)
        stores = [
            store
            for source in run.feed.sources.values()
            for store in (*source.states, *(s for found in source.references for s in found.values()))
        ]
        held = sum(s._flat.nbytes for s in stores if s is not None and s._flat is not None)
        held += sum(state.nbytes for state in stopping._memory.values())
        assert held <= memory - budget.memory and budget.memory >= 0
    assert held >= 0.5 * min(memory, 60_000)
