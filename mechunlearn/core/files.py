"""Write files so that a reader finds the old one or the new one, whole, after a kill at any moment.

1. The new content is written to a draft beside the file, and flushed to the disk.
2. The draft then takes the file's name, which is one step of the file system; and the folder is flushed, so
   that the name is on the disk as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_with(path: str | Path, write: Callable[[Path], object]) -> None:
    """Replace a file, in a folder that exists, by what ``write`` writes to the path it is called with."""
    # A link stays a link: the file it points to is replaced.
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        write(target)  # a device or a pipe has no content to lose, and must not be replaced by a file
        return
    # The number of the process keeps apart the drafts of several that write the same file.
    draft = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        write(draft)
        _flush(draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    _flush(target.parent)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file, in a folder that exists, by some bytes."""
    write_with(path, lambda draft: draft.write_bytes(content))


def write_text(path: str | Path, text: str) -> None:
    """Replace a file by text in UTF-8; text that cannot be encoded is an error before any file is touched."""
    write_bytes(path, text.encode())


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
