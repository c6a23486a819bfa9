"""Resume training that was broken off, and end in the same bytes.

1. A checkpoint is one safetensors file that appears whole or not at all: trained tensors, the optimiser's
   and the objective's state, the best step so far, and in the header, as JSON, everything that is no tensor.
2. It holds a fingerprint of the run: model, localization, recipe, every token that is trained on or measured.
   Another run refuses it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mechunlearn.core.tensor_files import TensorFormat
from mechunlearn.editing.training.early_stopping import EarlyStopping
from mechunlearn.editing.training.optimization import Optimization
from mechunlearn.errors import DataError, TrainingError

FORMAT = TensorFormat("checkpoint", "mechunlearn.training/2", "delete it to begin anew")
FILE = "training.safetensors"

Records = list[dict[str, float]]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, every ``every`` steps; each replaces the last.

    ``fingerprint`` is a hash of all that decides the run's outcome.
    """

    folder: Path
    every: int
    fingerprint: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / FILE

    def prepare(self) -> None:
        """Make the folder before training, so that nothing is lost if that fails with a ``DataError``."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"checkpoint is {str(self.folder)!r}: {error}; give a folder to write in"
            ) from None

    def save(
        self, run: Optimization, stopping: EarlyStopping | None, history: Records, *, done: bool
    ) -> None:
        """Write a checkpoint in place of the last; ``done`` tells whether training has ended."""
        tensors = {f"trained.{i}": t for i, t in enumerate(run.trained.tensors)}
        loose: dict[str, Any] = {}
        for i, state in run.optimizer.state_dict()["state"].items():
            _sort(state, f"optimizer.{i}", tensors, loose)
        _sort(run.state, "state", tensors, loose)
        if stopping is not None:
            tensors |= {f"best.{i}": t for i, t in enumerate(stopping.best)}
            # JSON has no -inf, which is the value before the first measurement.
            loose["judge"] = [stopping.step, stopping.value if stopping.best else None]
        record = {
            "fingerprint": self.fingerprint,
            "first": run.first,
            "orders": {split: order.to_json() for split, order in run.feed.orders.items()},
            "history": history,
            "done": done,
            "loose": loose,
        }
        # Cloned, since a state may hold one tensor under two names, and a file cannot.
        FORMAT.write(
            self.path, {n: t.detach().clone() for n, t in tensors.items()}, {"record": json.dumps(record)}
        )

    def load(self, run: Optimization, stopping: EarlyStopping | None) -> tuple[Records, bool]:
        """Put a new run where the checkpoint left it; gives the records so far, and whether it has ended.

        A ``DataError`` is raised if the file is damaged, or of another run.
        """
        for orphan in self.folder.glob(f"{FILE}.*"):  # the draft of a process that was killed while it wrote
            orphan.unlink(missing_ok=True)
        if not self.path.exists():
            return [], False
        record, tensors = self._read()
        device = run.trained.tensors[0].device
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        run.trained.restore(_series(tensors, "trained"))
        loose = record["loose"]
        count = len(run.trained.tensors)
        states = {i: _gather(f"optimizer.{i}", tensors, loose) for i in range(count)}
        # Only the moments are stored: rate and decay are the recipe's. Plain SGD has no state at all.
        groups = run.optimizer.state_dict()["param_groups"]
        run.optimizer.load_state_dict(
            {"state": {i: state for i, state in states.items() if state}, "param_groups": groups}
        )
        run.state = _gather("state", tensors, loose)
        run.first = record["first"]
        for split, order in record["orders"].items():
            run.feed.orders[split].restore(order)
        if stopping is not None and loose["judge"][1] is not None:
            stopping.step, stopping.value = loose["judge"]
            stopping.best = tuple(_series(tensors, "best"))
        return record["history"], record["done"]

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors, texts = FORMAT.read(self.path)
        record = json.loads(texts["record"])
        if record["fingerprint"] != self.fingerprint:
            raise DataError(
                f"{self.path} is of another run: the model, the place, the recipe or the facts differ; give "
                "checkpoint= another folder, or delete the file to begin anew"
            )
        return record, tensors


def fingerprint(
    run: Optimization, stopping: EarlyStopping | None, *, model: str, sites: Iterable[object]
) -> str:
    """A hash of everything that decides the outcome of a run; ``model`` is the model's identity.

    A ``TrainingError`` is raised if the objective's representation does not tell its options.
    """
    name = repr(run.recipe.objective)
    if " object at 0x" in name:
        raise TrainingError(
            f"the objective {name} does not tell its options, so a run of it cannot be told from another and "
            "resumed; make it a frozen dataclass, or leave checkpoint= out"
        )
    record = {"recipe": run.recipe.to_json(), "model": model, "sites": sorted(map(str, sites))}
    digest = hashlib.sha256(json.dumps(record, sort_keys=True, default=repr).encode())
    measured = (stopping.forget.batch, stopping.retain.batch) if stopping else ()
    for batch in (*run.feed.batches(), *(each for each in measured if each is not None)):
        for tensor in (batch.tokens, batch.mask, batch.labels):
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _sort(state: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor], loose: dict[str, Any]) -> None:
    """File a state's tensors and its other values, each under a prefixed name."""
    for name, value in state.items():
        (tensors if isinstance(value, Tensor) else loose)[f"{prefix}.{name}"] = value


def _gather(prefix: str, tensors: Mapping[str, Tensor], loose: Mapping[str, Any]) -> dict[str, Any]:
    """The state that :func:`_sort` filed."""
    start = prefix + "."
    both: dict[str, Any] = {**tensors, **loose}
    return {name.removeprefix(start): value for name, value in both.items() if name.startswith(start)}


def _series(tensors: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    numbered = _gather(prefix, tensors, {})
    return [numbered[str(i)] for i in range(len(numbered))]
