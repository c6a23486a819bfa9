"""Named tensors with some texts about them in one safetensors file, checked when it is read.

1. The texts stand in the file's header, with the format's version and a hash over texts and tensors.
2. Safetensors itself notices a file that was cut short, the hash one that was altered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mechunlearn.core.files import write_with
from mechunlearn.errors import DataError


@dataclass(frozen=True)
class TensorFormat:
    """One kind of file: what it holds and what to do if it cannot be read (for messages), and its version."""

    kind: str
    version: str
    remedy: str

    def write(self, path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
        """Write tensors that share no memory, and texts (none named ``format`` or ``hash``), by name."""
        from safetensors.torch import save_file

        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {"format": self.version, **texts, "hash": _hash(plain, texts)}
        write_with(path, lambda draft: save_file(plain, draft, metadata=header))

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Read tensors and texts; DataError if the file is missing, cut short, altered or of another kind."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                texts = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except OSError as error:
            raise DataError(f"no {self.kind} in {str(path)!r} ({error}); {self.remedy}") from None
        except SafetensorError as error:
            raise self._damaged(path, str(error)) from None
        version, digest = texts.pop("format", None), texts.pop("hash", None)
        if version != self.version:
            raise DataError(
                f"{path} has format {version!r}, not {self.version!r}: it does not hold the {self.kind} of "
                f"this version; {self.remedy}"
            )
        if digest != _hash(tensors, texts):
            raise self._damaged(path, "its hash is not that of its contents")
        return tensors, texts

    def _damaged(self, path: Path, why: str) -> DataError:
        return DataError(f"{path} is no whole {self.kind} ({why}): truncated or altered; {self.remedy}")


def _hash(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(texts.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # Bytes, since numpy has no bfloat16.
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
