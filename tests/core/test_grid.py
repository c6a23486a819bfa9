"""The runner of grids: results in order, finished cells kept, errors beside, a broken run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.grid_cells import Add, Count, Interrupted, Raises, Threads, Unstorable
from hypothesis import given, settings
from hypothesis import strategies as st

from mechunlearn.core import grid
from mechunlearn.errors import DataError, GridError


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_cells_whatever_the_workers(workers: int) -> None:
    # The first cells take longest, so that they end last.
    cells = [Add(number, 1, seconds=0.2 if number < 2 else 0.0) for number in (3, 0, 5, 1)]
    results = grid.run(cells, workers=workers, progress=False)
    assert list(results.items()) == [(cell.key, {"sum": [cell.first + 1]}) for cell in cells]


def test_a_result_is_the_same_computed_or_read(tmp_path: Path) -> None:
    computed = grid.run([Add(1, 2)], tmp_path, progress=False)
    assert computed == {"1+2": {"sum": [3]}} == grid.run([Add(1, 2)], tmp_path, progress=False)
    assert files(tmp_path) == {"1+2.json": b'{"key": "1+2", "result": {"sum": [3]}}'}


def test_every_cell_computes_with_one_thread_and_the_callers_threads_come_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert grid.run([Threads("here")], progress=False) == {"here": 1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    cells = [Threads("a"), Threads("b")]
    assert grid.run(cells, workers=2, progress=False) == {"a": 1, "b": 1}


# -- going on -------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)))
def test_only_cells_without_a_result_are_run(first: set[int], second: set[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name) / "results", Path(name) / "log"
        log.touch()
        for numbers in (first, second):
            cells = [Count(number, str(log)) for number in sorted(numbers)]
            assert grid.run(cells, folder, progress=False) == {f"count-{n}": n for n in sorted(numbers)}
        ran = log.read_text(encoding="utf-8").split()
        assert ran == [str(number) for number in [*sorted(first), *sorted(second - first)]]


def test_a_run_that_is_interrupted_stops_at_once_and_goes_on_later(tmp_path: Path) -> None:
    log, results = tmp_path / "log", tmp_path / "results"
    cells: list[grid.Cell] = [Count(0, str(log)), Interrupted("stop"), Count(1, str(log))]
    with pytest.raises(KeyboardInterrupt):
        grid.run(cells, results, progress=False)
    assert list(files(results)) == ["count-0.json"]
    grid.run([Count(0, str(log)), Count(1, str(log))], results, progress=False)
    assert log.read_text(encoding="utf-8").split() == ["0", "1"]


@pytest.mark.parametrize(("stop", "workers"), [(signal.SIGKILL, 1), (signal.SIGINT, 2)])
def test_a_run_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, stop: signal.Signals, workers: int
) -> None:
    log, results = tmp_path / "log", tmp_path / "results"
    log.touch()
    code = (
        "from helpers.grid_cells import Count, Sleep; from mechunlearn.core import grid; "
        f"grid.run([Count(0, {str(log)!r}), Count(1, {str(log)!r}), Sleep('sleep')], "
        f"{str(results)!r}, workers={workers}, progress=False)"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            if {"count-0.json", "count-1.json"} <= set(files(results) if results.exists() else ()):
                break
            time.sleep(0.1)
        # As the terminal does, to the workers as well.
        os.killpg(process.pid, stop)
        assert process.wait(60) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    cells = [Count(0, str(log)), Count(1, str(log)), Count(2, str(log))]
    assert grid.run(cells, results, progress=False) == {"count-0": 0, "count-1": 1, "count-2": 2}
    assert sorted(log.read_text(encoding="utf-8").split()) == ["0", "1", "2"]
    assert all(json.loads(content)["result"] in (0, 1, 2) for content in files(results).values())


# -- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_kept_with_its_traceback_and_the_others_go_on(tmp_path: Path, workers: int) -> None:
    switch = tmp_path / "broken"
    switch.touch()
    folder = tmp_path / "results"
    cells: list[grid.Cell] = [Raises("bad", str(switch)), Add(1, 2), Add(2, 2)]
    with pytest.raises(
        GridError, match=r"1 of 3 cells failed: bad\. The first error is ValueError: no l"
    ) as e:
        grid.run(cells, folder, workers=workers, progress=False)
    assert f"tracebacks are in {folder}, and the next run tries these cells again" in str(e.value)
    assert e.value.results == {"1+2": {"sum": [3]}, "2+2": {"sum": [4]}}
    assert list(e.value.tracebacks) == ["bad"] and "in run" in e.value.tracebacks["bad"]
    assert set(files(folder)) == {"bad.error.txt", "1+2.json", "2+2.json"}
    assert files(folder)["bad.error.txt"].decode() == e.value.tracebacks["bad"]

    switch.unlink()
    assert list(grid.run(cells, folder, workers=workers, progress=False)) == ["bad", "1+2", "2+2"]
    assert set(files(folder)) == {"bad.json", "1+2.json", "2+2.json"}


def test_a_result_that_json_cannot_hold_is_an_error_of_its_cell() -> None:
    with pytest.raises(GridError, match=r"1 of 2 cells failed: set\. The first error is TypeError: .*set"):
        grid.run([Unstorable("set"), Add(0, 0)], progress=False)


def test_a_stored_result_that_is_damaged_or_of_another_cell_is_refused(tmp_path: Path) -> None:
    cells = [Add(1, 2)]
    grid.run(cells, tmp_path, progress=False)
    path = tmp_path / "1+2.json"
    content = path.read_text(encoding="utf-8")
    for damaged in (content[:-9], content.replace("1+2", "1+3"), "[]", '{"key": "1+2"}', "\udcff"):
        path.write_bytes(damaged.encode(errors="surrogateescape"))
        with pytest.raises(DataError, match=r"1\+2.json is not a whole cell: .*; delete it and run again"):
            grid.run(cells, tmp_path, progress=False)


@dataclass(frozen=True)
class Named:
    key: str

    def run(self) -> Any:
        raise AssertionError("is not run")


@pytest.mark.parametrize("key", ["", "a/b", "../a", ".hidden", "a b", "ä", "a" * 201, "a\n"])
def test_a_key_that_cannot_name_a_file_is_refused(key: str) -> None:
    with pytest.raises(GridError, match="which cannot name a file; use at most 200 of"):
        grid.run([Named(key)], progress=False)


@pytest.mark.parametrize("keys", [("a", "a"), ("npo", "NPO")])
def test_two_cells_with_one_key_are_refused(keys: tuple[str, str]) -> None:
    with pytest.raises(GridError, match=r"two cells have the keys .*; give each a key of its own"):
        grid.run([Named(key) for key in keys], progress=False)


@pytest.mark.usefixtures("unchecked")
def test_other_arguments_are_refused_with_the_choices() -> None:
    with pytest.raises(GridError, match="backend must be one of 'local'; not 'cloud'"):
        grid.run([], backend="cloud")  # type: ignore[arg-type]
    with pytest.raises(GridError, match="workers must be 1 or more; not 0"):
        grid.run([], workers=0)
