"""Edits on the Hugging Face hub: sent as the file that is saved, fetched by name and revision.

1. What is on the disk is read from there. Only a string that names no file or folder and is written
   ``user/name`` is looked up on the hub.
2. What was downloaded once is read again without a network, from Hugging Face's cache.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from mechunlearn.editing.edits import files
from mechunlearn.errors import DataError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def push(save: Callable[[Path], None], repo_id: str, *, private: bool | None) -> str:
    """Upload what ``save`` writes into a folder, and return the address of the commit.

    The repository ``"user/name"`` is made if needed, ``private`` or not; None for the hub's default.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    hub.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload edit"))


def located(source: str | Path, revision: str | None) -> Path:
    """The folder or file of an edit, downloaded if ``source`` is a repository ``"user/name"`` on the hub.

    A ``DataError`` is raised if there is no such repository, or if a path on the disk has a ``revision``.
    """
    folder = Path(source).expanduser()
    if folder.exists() or isinstance(source, Path) or not _REPOSITORY.fullmatch(source):
        if revision is not None:
            raise DataError(
                f"revision {revision!r} was given with {str(source)!r}, which is read from the disk; "
                'revisions are of repositories on the Hugging Face hub, written "user/name"'
            )
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[files.FILE]))
    except (OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise DataError(
            f"there is no folder {source!r} here, and no such edit could be fetched from the Hugging Face "
            f"hub{at} ({type(error).__name__}: {' '.join(str(error).split())[:200]}); give a folder written "
            'by save_pretrained, or a repository that push_to_hub made, as "user/name"'
        ) from error
