"""Every error this package raises, as one tree.

::

    MechUnlearnError
    ├── SiteError           a site string or a site of another model
    ├── LocalizationError   sites that cannot stand together, or none at all
    ├── ScoresError         a selection that the scores cannot give
    ├── FactError           a fact, or a collection of facts, that cannot be used
    ├── ModelError          a model that cannot be loaded or wrapped
    ├── HookError           a hook that names nothing, or never fires
    ├── EditError           an edit that does not fit, or cannot be read
    ├── TrainingError       a loss that is not finite, or diverges
    ├── DataError           a file that is truncated, altered or of another kind
    └── GridError           a grid of cells that cannot be run, or cells that failed

All are also ``ValueError``, so code that knows nothing of this package can catch them. A message names
the value, what was expected, and the remedy. The warnings, ``IdentityWarning`` and ``FallbackWarning``, are
``UserWarning``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class MechUnlearnError(ValueError):
    """The root of all errors raised on purpose by this package."""


class SiteError(MechUnlearnError):
    """A site string that cannot be read, or a site that the model does not have."""


class LocalizationError(MechUnlearnError):
    """Sites that overlap, that have no weights, or an empty set where one is needed."""


class ScoresError(MechUnlearnError):
    """A selection or reduction that these scores cannot give."""


class FactError(MechUnlearnError):
    """A fact, or a collection of facts, that cannot be used."""


class ModelError(MechUnlearnError):
    """A model that cannot be loaded, wrapped or saved."""


class HookError(MechUnlearnError):
    """A hook whose name is unknown, or that was requested and never fired."""


class EditError(MechUnlearnError):
    """An edit, or what it is solved from, that does not fit the model or cannot be read."""


class TrainingError(MechUnlearnError):
    """Training that cannot go on: a loss that is not finite, or that diverges."""


class DataError(MechUnlearnError):
    """A file that is truncated, altered, or not of the expected kind."""


class GridError(MechUnlearnError):
    """A grid of cells that cannot be run, or cells that failed; ``results`` and ``tracebacks`` are by key."""

    def __init__(
        self, message: str, *, results: Mapping[str, Any] = {}, tracebacks: Mapping[str, str] = {}
    ) -> None:
        super().__init__(message)
        self.results, self.tracebacks = dict(results), dict(tracebacks)


class IdentityWarning(UserWarning):
    """An edit, or key statistics, meets other weights than those it was made on."""


class FallbackWarning(UserWarning):
    """A model is run in a slower way than its family allows, since a check failed; results are the same."""


def one_of(what: str, value: object, choices: Iterable[object]) -> str:
    """Return the sentence of every "not among the choices" error; ``what`` is the argument's name.

    Example:
        >>> one_of("sites", "mpl", ["attn", "mlp"])
        "sites must be one of 'attn' or 'mlp'; not 'mpl'"
    """
    names = [repr(choice) for choice in choices]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    return f"{what} must be one of {listed}; not {value!r}"
