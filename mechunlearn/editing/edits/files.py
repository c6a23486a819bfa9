"""Edits on disk: ``delta.safetensors`` for the deltas, ``edit.json`` for everything else.

1. The record holds a hash of the deltas and one of itself, so that a file that was cut short, altered or
   mixed with another edit's is noticed before it is used.
2. Both files are written beside the old ones, under names of their own, before either takes its place. The
   record goes first. Until then the old edit is whole; after it the new one is, since deltas that have not
   taken their place yet are found beside it. So whenever saving stops, one whole edit is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import Shape
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.history import History
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.errors import DataError
from mechunlearn.models.arch import Arch, Slice

if TYPE_CHECKING:
    from mechunlearn.editing.edits.edits import Edit

FORMAT = "mechunlearn.edit/1"
WEIGHTS = "delta.safetensors"
RECORD = "edit.json"

_AGAIN = "copy or save the edit again"
_NEW = ".new"
_LIBRARIES = ("mechunlearn", "torch", "transformers", "transformer-lens")


@cache
def versions() -> Mapping[str, str]:
    """The versions of the libraries that an edit is made with."""
    return {name: metadata.version(name) for name in _LIBRARIES}


def save(edit: Edit, folder: str | Path) -> None:
    """Write an edit's two files.

    Args:
        edit: with values that JSON can hold.
        folder: made if needed.
    """
    from safetensors.torch import save as packed

    record = {"format": FORMAT, **_record(edit)}
    tensors = [delta.values for delta in edit.deltas]
    blob = packed({str(i): tensor.detach().cpu().contiguous() for i, tensor in enumerate(tensors)})
    text = json.dumps({**record, "hashes": _hashes(blob, record)}, indent=1)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _settle(target)
    fresh = {name: target / f"{name}{_NEW}" for name in (RECORD, WEIGHTS)}
    try:
        _write(fresh[WEIGHTS], blob)
        _write(fresh[RECORD], f"{text}\n".encode())
    except BaseException:
        for file in fresh.values():
            file.unlink(missing_ok=True)
        raise
    for name, file in fresh.items():
        file.replace(target / name)


def load(folder: str | Path) -> dict[str, Any]:
    """Read an edit's two files, and check that they are whole and belong together.

    Args:
        folder: where :func:`save` wrote them.

    Returns:
        The fields of the edit by name.

    Raises:
        DataError: a file is missing, cut short, altered or of another kind.
    """
    from safetensors.torch import load as unpacked

    source = Path(folder)
    record, blob = _read(source)
    tensors = unpacked(blob)
    try:
        return _fields(record, [tensors[str(i)] for i in range(len(tensors))])
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{source / RECORD} is not a whole edit: {error!r}; save the edit again") from None


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
    stored, arch = record.get("arch"), None
    if stored:
        arch = Arch(stored["architecture"], Shape(**stored["shape"]), stored["d_head"], sizes)
    recipe = Recipe.from_json(record["recipe"]) if record["recipe"] else None
    return {
        "deltas": tuple(Delta(s, t) for s, t in zip(slices, tensors, strict=True)),
        "localization": Localization(record["localization"], source=record["source"]),
        "shapes": {name: tuple(size) for name, size in sizes.items()},
        "made_on": record["made_on"],
        "recipe": recipe,
        "history": History(record["history"], kept=record["step"], title=recipe.summary if recipe else ""),
        "step": record["step"],
        "arch": arch,
        "versions": record.get("versions", {}),
    }


def _arch(arch: Arch | None) -> dict[str, Any] | None:
    """What is needed to build the table again; the sizes are those of the edit's parameters."""
    if arch is None:
        return None
    return {"architecture": arch.architecture, "shape": vars(arch.shape), "d_head": arch.d_head}


def _write(file: Path, content: bytes) -> None:
    """Write a file whose bytes are on the disk when it takes its place."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _settle(folder: Path) -> None:
    """Put deltas into their place that an earlier saving left beside it, if the record is theirs."""
    waiting, record = folder / f"{WEIGHTS}{_NEW}", folder / RECORD
    there = waiting.is_file() and record.is_file()
    if there and _hash(waiting.read_bytes()).encode() in record.read_bytes():
        waiting.replace(folder / WEIGHTS)


def _read(source: Path) -> tuple[dict[str, Any], bytes]:
    """The record, and the deltas that belong to it."""
    try:
        record = _parsed((source / RECORD).read_bytes(), source / RECORD)
        waiting, wanted = source / f"{WEIGHTS}{_NEW}", record["hashes"].get(WEIGHTS)
        left = waiting.is_file() and _hash(waiting.read_bytes()) == wanted
        blob = (waiting if left else source / WEIGHTS).read_bytes()
    except OSError as error:
        raise DataError(f"no edit in {str(source)!r} ({error}); {_AGAIN}") from None
    hashes = _hashes(blob, record)
    for name in (WEIGHTS, RECORD):
        if record["hashes"].get(name) != hashes[name]:
            raise DataError(
                f"{source / name} was truncated or altered, its hash is not the one in {RECORD}; {_AGAIN}"
            )
    return record, blob


def _hashes(blob: bytes, record: Mapping[str, Any]) -> dict[str, str]:
    """The hash of the deltas, and that of the record without its hashes."""
    rest = {key: value for key, value in record.items() if key != "hashes"}
    return {WEIGHTS: _hash(blob), RECORD: _hash(json.dumps(rest, sort_keys=True).encode())}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} was truncated or altered ({error}); {_AGAIN}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{path} has format {found!r}, not {FORMAT!r}: it is not an edit of this version")
    if not isinstance(record.get("hashes"), dict):
        raise DataError(f"{path} was altered (it lacks its hashes); {_AGAIN}")
    return record
