"""Run a grid of cells, keep every result in a file, and go on where a run was broken off.

1. A cell is a frozen value that another process can receive. Its `key` names its file, and its `run()`
   returns a small value that JSON can hold.
2. Cells whose results are in the folder are not run again. The others run in worker processes, and this
   process writes each result as it arrives, so that a run that is broken off loses only the cells at work.
3. An error in a cell is written as a traceback, and the other cells go on. The next run tries it again.
4. Every cell computes with one thread, so that its result does not depend on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from mechunlearn.core.files import write_text
from mechunlearn.errors import DataError, GridError, one_of

BACKENDS = ("local",)
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")


@runtime_checkable
class Cell(Protocol):
    """One piece of work, such as one method at one localization."""

    @property
    def key(self) -> str:
        """The name of the cell's file; cells whose results differ must have different keys."""

    def run(self) -> Any:
        """Compute the result: numbers, texts, lists and dictionaries with texts as keys."""


def run(
    cells: Sequence[Cell],
    folder: str | Path | None = None,
    *,
    workers: int = 1,
    backend: Literal["local"] = "local",
    progress: bool = True,
) -> dict[str, Any]:
    """Run cells and return their results by key, in the order of the cells.

    ``folder`` holds the results and is created if needed; None keeps nothing. With one worker, all cells run
    in this process. Results pass through JSON, whether computed or read: a tuple comes back as a list.

    Raises:
        GridError: a cell failed (raised after all others are done), two cells have one key, a key cannot
            name a file, or an argument is out of its range.
        DataError: a stored result is damaged.
    """
    if backend not in BACKENDS:
        raise GridError(one_of("backend", backend, BACKENDS))
    if workers < 1:
        raise GridError(f"workers must be 1 or more; not {workers}")
    by_key = _by_key(cells)
    store = None if folder is None else Path(folder)
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
    results = (
        {} if store is None else {key: _load(store, key) for key in by_key if _file(store, key).exists()}
    )
    missing = {key: cell for key, cell in by_key.items() if key not in results}
    errors: dict[str, str] = {}
    for key, result, error in _outcomes(missing, workers, progress=progress):
        if error:
            errors[key] = error
        else:
            results[key] = result
        if store is not None:
            _save(store, key, result, error)
    ordered = {key: results[key] for key in by_key if key in results}
    if errors:
        raise GridError(_failure(errors, len(by_key), store), results=ordered, tracebacks=errors)
    return ordered


def fingerprint(*parts: object) -> str:
    """Hash what a result depends on, for a cell's key; different parts must have a different `repr`.

    Example:
        >>> fingerprint("NPO", 0.001)  # must not change: the names of stored results depend on it
        '3e0d2867d82625af'
    """
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _by_key(cells: Sequence[Cell]) -> dict[str, Cell]:
    by_key: dict[str, Cell] = {}
    # Some file systems do not tell capital letters from small ones.
    folded: dict[str, str] = {}
    for cell in cells:
        key = cell.key
        if not _KEY.fullmatch(key):
            raise GridError(
                f"a cell has the key {key!r}, which cannot name a file; use at most 200 of "
                "A-Z a-z 0-9 . _ + -, with a letter or a digit first"
            )
        twin = folded.setdefault(key.casefold(), key)
        if key in by_key or twin != key:
            raise GridError(f"two cells have the keys {twin!r} and {key!r}; give each a key of its own")
        by_key[key] = cell
    return by_key


def _outcomes(cells: Mapping[str, Cell], workers: int, *, progress: bool) -> Iterator[tuple[str, Any, str]]:
    """Yield each cell's key, result and traceback (empty if it succeeded), as soon as it is done."""
    from joblib import Parallel, delayed  # type: ignore[import-untyped]
    from tqdm.auto import tqdm

    # Unordered, since an outcome that waits for its turn would be lost if the run is broken off.
    parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered", pre_dispatch="all")
    outcomes = parallel(delayed(_attempt)(key, cell) for key, cell in cells.items())
    yield from tqdm(outcomes, total=len(cells), desc="cells", disable=not progress)


def _attempt(key: str, cell: Cell) -> tuple[str, Any, str]:
    try:
        with one_thread():
            # Through JSON here, so that a result that JSON cannot hold is an error of its cell.
            return key, json.loads(json.dumps(cell.run())), ""
    except Exception:
        return key, None, traceback.format_exc()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as cells do, until the block is left."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threads = torch.get_num_threads()
    try:
        with threadpool_limits(limits=1):
            # torch keeps a number of its own beside the libraries'.
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(threads)


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _load(folder: Path, key: str) -> Any:
    path = _file(folder, key)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["key"] != key:
            raise ValueError(f"it holds the result of {record['key']!r}")
        return record["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a whole cell: {error!r}; delete it and run again") from None


def _save(folder: Path, key: str, result: Any, error: str) -> None:
    error_file = folder / f"{key}.error.txt"
    if error:
        write_text(error_file, error)
    else:
        write_text(_file(folder, key), json.dumps({"key": key, "result": result}))
        error_file.unlink(missing_ok=True)


def _failure(errors: Mapping[str, str], total: int, folder: Path | None) -> str:
    first = next(iter(errors.values())).strip().splitlines()[-1]
    where = (
        "" if folder is None else f"; tracebacks are in {folder}, and the next run tries these cells again"
    )
    return f"{len(errors)} of {total} cells failed: {', '.join(errors)}. The first error is {first}{where}"
