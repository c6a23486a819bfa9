"""Edits on disk: one safetensors file in a folder, with the deltas as tensors and the record in its header.

The record is everything but the deltas, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import Shape
from mechunlearn.core.tensor_files import TensorFormat
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.history import History
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.errors import DataError
from mechunlearn.models.arch import Arch, Slice

if TYPE_CHECKING:
    from mechunlearn.editing.edits.edits import Edit

FORMAT = TensorFormat("edit", "mechunlearn.edit/2", "copy or save the edit again")
FILE = "edit.safetensors"

_LIBRARIES = ("mechunlearn", "torch", "transformers", "transformer-lens")


@cache
def versions() -> Mapping[str, str]:
    """The versions of the libraries that an edit is made with."""
    return {name: metadata.version(name) for name in _LIBRARIES}


def save(edit: Edit, folder: str | Path) -> None:
    """Write an edit, whose record JSON must be able to hold, into a folder, which is made if needed."""
    record = json.dumps(_record(edit))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    deltas = {str(i): delta.values for i, delta in enumerate(edit.deltas)}
    FORMAT.write(target / FILE, deltas, {"record": record})


def load(source: str | Path) -> dict[str, Any]:
    """The fields of the edit that :func:`save` wrote, by name; ``source`` is its folder, or the file in it.

    A ``DataError`` is raised if the file is missing, cut short, altered or of another kind.
    """
    path = Path(source)
    path = path if path.is_file() else path / FILE
    deltas, texts = FORMAT.read(path)
    try:
        return _fields(json.loads(texts["record"]), [deltas[str(i)] for i in range(len(deltas))])
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path} is no whole edit: {error!r}; save the edit again") from None


def _record(edit: Edit) -> dict[str, Any]:
    """Everything but the deltas, as JSON can hold it."""
    return {
        "localization": [str(site) for site in edit.localization],
        "source": edit.localization.source,
        "shapes": {name: list(shape) for name, shape in edit.shapes.items()},
        "slices": [[d.slice.name, d.slice.axis, d.slice.index] for d in edit.deltas],
        "made_on": edit.made_on,
        "recipe": edit.recipe.to_json() if edit.recipe else None,
        "history": [dict(entry) for entry in edit.history],
        "step": edit.step,
        "arch": _arch(edit.arch),
        "versions": dict(edit.versions),
    }


def _fields(record: Mapping[str, Any], tensors: Sequence[Tensor]) -> dict[str, Any]:
    slices = [
        Slice(name, axis, None if index is None else tuple(index)) for name, axis, index in record["slices"]
    ]
    sizes = {name: torch.Size(shape) for name, shape in record["shapes"].items()}
    stored, arch = record["arch"], None
    if stored:
        arch = Arch(stored["architecture"], Shape(**stored["shape"]), stored["d_head"], sizes)
    recipe = Recipe.from_json(record["recipe"]) if record["recipe"] else None
    return {
        "deltas": tuple(Delta(s, t) for s, t in zip(slices, tensors, strict=True)),
        "localization": Localization(record["localization"], source=record["source"]),
        "shapes": {name: tuple(size) for name, size in sizes.items()},
        "made_on": record["made_on"],
        "recipe": recipe,
        "history": History(record["history"], step=record["step"], title=recipe.summary if recipe else ""),
        "step": record["step"],
        "arch": arch,
        "versions": record["versions"],
    }


def _arch(arch: Arch | None) -> dict[str, Any] | None:
    """The record of the table from sites to slices; the sizes of its parameters are the edit's shapes."""
    if arch is None:
        return None
    return {"architecture": arch.architecture, "shape": vars(arch.shape), "d_head": arch.d_head}
