"""What is written is whole: after an error, an interrupt or a kill the old content stands, or the new."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import stop_button

from mechunlearn.core import files
from mechunlearn.core.files import write_bytes, write_text, write_with

OLD, NEW = b"old" * 1000, b"new content" * 100_000


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[:50_000])
        file.flush()
        die()


def moved(path: Path, target: Path) -> None:
    path.rename(target)
    die()


STEPS: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "before": (Path, "write_bytes", die),
    "half": (Path, "write_bytes", half_written),
    "written": (os, "fsync", die),
    "moving": (Path, "replace", die),
    "moved": (Path, "replace", moved),
}


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def test_text_and_bytes_are_written_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "Größe\r\n1\n")
    write_bytes(str(tmp_path / "bytes"), b"\x00\r\n")
    assert (tmp_path / "text").read_bytes() == "Größe\r\n1\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\r\n"
    assert sorted(names(tmp_path)) == ["bytes", "text"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [True, False], ids=["over another", "first"])
def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new(tmp_path: Path, step: str, before: bool) -> None:
    file = tmp_path / "file"
    if before:
        file.write_bytes(OLD)
    child = os.fork()
    if not child:
        setattr(*STEPS[step])
        write_bytes(file, NEW)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if step == "moved" or before:
        assert file.read_bytes() == (NEW if step == "moved" else OLD)
    else:
        assert not file.exists()
    write_bytes(file, NEW)
    assert file.read_bytes() == NEW


@pytest.mark.parametrize("place", [(files, "_flush"), (os, "fsync"), (Path, "replace")], ids=str)
def test_an_interrupt_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str]
) -> None:
    write_bytes(tmp_path / "file", OLD)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(*place, stop_button)
        write_bytes(tmp_path / "file", NEW)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == OLD


def half(path: Path) -> None:
    path.write_bytes(b"half a f")
    raise OSError("no space left")


def nothing(path: Path) -> None:
    raise OSError("no space left")


@pytest.mark.parametrize("write", [half, nothing])
def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write_bytes(tmp_path / "file", OLD)
    with pytest.raises(OSError, match="no space left"):
        write_with(tmp_path / "file", write)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == OLD


def test_text_that_cannot_be_encoded_touches_nothing(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", OLD)
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "\ud800")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == OLD


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "link").symlink_to("file")
    write_bytes(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == NEW
    write_text(os.devnull, "gone")
    assert Path(os.devnull).is_char_device()


def test_a_folder_in_the_way_or_missing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "text")
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "file", "text")
    assert names(tmp_path) == ["folder"]
