"""Lists of texts, as users have them: lists, arrays, columns of tables, streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mechunlearn.core.checks import ErrorClass


def texts_of(error: ErrorClass, texts: Any, /, *, name: str) -> tuple[str, ...]:
    """The texts of a list, an array or a column.

    One string, which would be read letter by letter, and a mapping, which would be read key by key, are
    refused.

    Args:
        error: class of the error.
        texts: any iterable of strings.
        name: what the message calls them.

    Example:
        >>> from mechunlearn.errors import FactError
        >>> texts_of(FactError, ["In the rain.", "In the sun."], name="text")
        ('In the rain.', 'In the sun.')
    """
    return tuple(stream_of(error, texts, name=name))


def stream_of(error: ErrorClass, texts: Any, /, *, name: str) -> Iterator[str]:
    """The same one by one, for texts that are read while they are used."""
    if isinstance(texts, str):
        raise error(f"{name} is one string, {texts[:40]!r}; give a list of texts, as in [{texts[:20]!r}]")
    if isinstance(texts, Mapping):
        raise error(
            f"{name} is a {type(texts).__name__} with the keys {list(texts)}; give a list of texts, such as "
            f"one column of one split: data[{next(iter(texts), 'train')!r}]['text']"
        )
    if not isinstance(texts, Iterable):
        raise error(f"{name} is a {type(texts).__name__}; give a list of texts")
    columns = column_names(texts)
    if columns:
        raise error(
            f"{name} is a table with the columns {columns}; give one column, as in data[{columns[0]!r}]"
        )
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise error(f"{name}[{number}] is {text!r:.60}, not a string; give a list of texts")
        yield str(text)


def column_names(table: Any) -> list[str]:
    """The columns of a pandas ``DataFrame`` or a Hugging Face ``Dataset``; empty for anything else."""
    for attribute in ("column_names", "columns"):
        names = getattr(table, attribute, None)
        if isinstance(names, Iterable) and not isinstance(names, str | Mapping):
            return [str(name) for name in names]
    return []
