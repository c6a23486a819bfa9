"""Named tensors with a few facts about them in one safetensors file, checked when it is read.

1. The facts stand in the file's header, with a hash over them and the tensors: a file that was altered is
   noticed, and safetensors itself notices one that was cut short.
2. The file is written beside its place and moved there: it appears whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mechunlearn.errors import DataError

FORMAT = "mechunlearn.key_statistics/1"
_AGAIN = "make the key statistics again, or copy the file again"


def write(path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors and what is known about them.

    Args:
        path: of the file.
        tensors: by name.
        facts: short texts by name.
    """
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, **facts, "hash": _hash(held, facts)}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(target.name + ".part")
    try:
        save_file(held, draft, metadata=header)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`write` wrote.

    Args:
        path: of the file.

    Raises:
        DataError: the file is missing, cut short, altered or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"no whole key statistics in {str(path)!r} ({error}); {_AGAIN}") from None
    if facts.pop("format", None) != FORMAT:
        raise DataError(f"{path} is a safetensors file of another kind; expected {FORMAT!r}")
    if facts.pop("hash", None) != _hash(tensors, facts):
        raise DataError(f"{path} was altered, its hash is not its contents'; {_AGAIN}")
    return tensors, facts


def _hash(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(facts.items())).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
