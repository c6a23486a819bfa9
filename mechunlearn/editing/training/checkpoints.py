"""Go on with training that was cut off, and end in the same bytes.

1. A checkpoint is one safetensors file that appears whole or not at all: trained tensors, the optimiser's
   and the objective's state, the best step so far, and in the header, as JSON, everything that is no tensor.
2. It holds a fingerprint of what it was made for: model, place, recipe, every token that is trained and
   judged on. A run of another kind refuses it.
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
    """Where a run of training leaves what it needs to go on.

    Args:
        folder: where the file is; made if needed.
        every: steps between two checkpoints.
        fingerprint: of what is trained on what.
    """

    folder: Path
    every: int
    fingerprint: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / FILE

    def prepare(self) -> None:
        """Make the folder now, and not when there is something to lose.

        Raises:
            DataError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"checkpoint is {str(self.folder)!r}: {error}; give a folder to write in"
            ) from None

    def save(
        self, descent: Optimization, judge: EarlyStopping | None, history: Records, *, done: bool
    ) -> None:
        """Write a checkpoint in place of the last.

        Args:
            descent: the run.
            judge: its judge, if it has one.
            history: the records of the steps taken.
            done: whether training has ended.
        """
        tensors = {f"trained.{i}": t for i, t in enumerate(descent.trained.tensors)}
        loose: dict[str, Any] = {}
        for i, state in descent.optimizer.state_dict()["state"].items():
            _sort(state, f"optimizer.{i}", tensors, loose)
        _sort(descent.state, "state", tensors, loose)
        if judge is not None:
            tensors |= {f"best.{i}": t for i, t in enumerate(judge.best)}
            loose["judge"] = [judge.step, judge.value if judge.best else None]
        record = {
            "fingerprint": self.fingerprint,
            "first": descent.first,
            "orders": {split: order.to_json() for split, order in descent.feed.orders.items()},
            "history": history,
            "done": done,
            "loose": loose,
        }
        # Cloned, since a state may hold one tensor under two names, and a file cannot.
        FORMAT.write(
            self.path, {n: t.detach().clone() for n, t in tensors.items()}, {"record": json.dumps(record)}
        )

    def load(self, descent: Optimization, judge: EarlyStopping | None) -> tuple[Records, bool]:
        """Put a run where the checkpoint left it, if there is one.

        Args:
            descent: the run, before its first step.
            judge: its judge, if it has one.

        Returns:
            The records of the steps taken, and whether training has ended.

        Raises:
            DataError: the file is damaged, or of a run of another kind.
        """
        for orphan in self.folder.glob(f"{FILE}.*"):  # of a process that was killed while it wrote
            orphan.unlink(missing_ok=True)
        if not self.path.exists():
            return [], False
        record, tensors = self._read()
        device = descent.trained.tensors[0].device
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        descent.trained.restore(_series(tensors, "trained"))
        loose = record["loose"]
        count = len(descent.trained.tensors)
        states = {i: _gather(f"optimizer.{i}", tensors, loose) for i in range(count)}
        groups = descent.optimizer.state_dict()["param_groups"]
        descent.optimizer.load_state_dict(
            {"state": {i: state for i, state in states.items() if state}, "param_groups": groups}
        )
        descent.state = _gather("state", tensors, loose)
        descent.first = record["first"]
        for split, order in record["orders"].items():
            descent.feed.orders[split].restore(order)
        if judge is not None and loose["judge"][1] is not None:
            judge.step, judge.value = loose["judge"]
            judge.best = tuple(_series(tensors, "best"))
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
    descent: Optimization, judge: EarlyStopping | None, *, model: str, sites: Iterable[object]
) -> str:
    """A hash of everything that decides the outcome of a run.

    Args:
        descent: the run.
        judge: its judge, if it has one.
        model: the identity of the model.
        sites: what is trained.

    Raises:
        TrainingError: the objective's representation does not tell its options.
    """
    name = repr(descent.recipe.objective)
    if " object at 0x" in name:
        raise TrainingError(
            f"the objective {name} does not tell its options, so a run of it cannot be told from another and "
            "resumed; make it a frozen dataclass, or leave checkpoint= out"
        )
    told = {"recipe": descent.recipe.to_json(), "model": model, "sites": sorted(map(str, sites))}
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=repr).encode())
    judged = [p.batch for p in (judge.forget, judge.retain) if p.batch is not None] if judge else []
    for batch in (*descent.feed.batches(), *judged):
        for tensor in (batch.tokens, batch.mask, batch.labels):
            found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()


def _sort(state: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor], loose: dict[str, Any]) -> None:
    """Tell tensors from numbers."""
    for name, value in state.items():
        (tensors if isinstance(value, Tensor) else loose)[f"{prefix}.{name}"] = value


def _gather(prefix: str, tensors: Mapping[str, Tensor], loose: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`_sort` told apart."""
    start = prefix + "."
    both: dict[str, Any] = {**tensors, **loose}
    return {name.removeprefix(start): value for name, value in both.items() if name.startswith(start)}


def _series(tensors: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    found = _gather(prefix, tensors, {})
    return [found[str(i)] for i in range(len(found))]
