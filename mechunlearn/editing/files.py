"""Edits on disk: ``delta.safetensors`` for the deltas, ``edit.json`` for everything else.

1. The record holds a hash of the deltas and one of itself, so that a file that was cut short, altered or
   mixed with another edit's is noticed before it is used.
2. Both files are made in memory first: what cannot be written leaves no half of an edit behind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mechunlearn.errors import DataError

FORMAT = "mechunlearn.edit/1"
WEIGHTS = "delta.safetensors"
RECORD = "edit.json"

_AGAIN = "copy or save the edit again"


def write(folder: str | Path, record: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    """Write an edit's two files.

    Args:
        folder: made if needed.
        record: everything but the tensors, as JSON can hold it.
        tensors: the deltas, in order.
    """
    from safetensors.torch import save

    blob = save({str(i): tensor.detach().cpu().contiguous() for i, tensor in enumerate(tensors)})
    whole = {"format": FORMAT, **record}
    text = json.dumps({**whole, "hashes": _hashes(blob, whole)}, indent=1)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / WEIGHTS).write_bytes(blob)
    (target / RECORD).write_text(text + "\n", encoding="utf-8")


def read(folder: str | Path) -> tuple[dict[str, Any], list[Tensor]]:
    """Read an edit's two files, and check that they are whole and belong together.

    Args:
        folder: where :func:`write` wrote them.

    Raises:
        DataError: a file is missing, cut short, altered or of another kind.
    """
    from safetensors.torch import load

    source = Path(folder)
    try:
        text = (source / RECORD).read_bytes()
        blob = (source / WEIGHTS).read_bytes()
    except OSError as error:
        raise DataError(f"no edit in {str(folder)!r} ({error}); {_AGAIN}") from None
    record = _parsed(text, source / RECORD)
    hashes = _hashes(blob, record)
    for name in (WEIGHTS, RECORD):
        if record["hashes"].get(name) != hashes[name]:
            raise DataError(
                f"{source / name} was truncated or altered, its hash is not the one in {RECORD}; {_AGAIN}"
            )
    tensors = load(blob)
    return record, [tensors[str(i)] for i in range(len(tensors))]


def _hashes(blob: bytes, record: Mapping[str, Any]) -> dict[str, str]:
    """The hash of the deltas, and that of the record without its hashes."""
    rest = {key: value for key, value in record.items() if key != "hashes"}
    text = json.dumps(rest, sort_keys=True).encode()
    return {WEIGHTS: hashlib.sha256(blob).hexdigest(), RECORD: hashlib.sha256(text).hexdigest()}


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
