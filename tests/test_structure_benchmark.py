"""The figures of ``benchmarks/structure.py`` are those that one counts by hand."""

from __future__ import annotations

from pathlib import Path

from benchmarks.structure import measure

LOOKING = '''"""A module."""
from typing import TYPE_CHECKING

import mechunlearn.errors
from mechunlearn.looking import __name__ as name

if TYPE_CHECKING:
    from mechunlearn.cutting import cut


class Sites:
    def __eq__(self, other):
        return True

    def first(self, found, *rest):
        """Two lines
        of docstring."""

        def inner(a, b=0, *, c=0, **d):
            own = a
            return own

        return inner
'''
CUTTING = "def cut(sites):\n    from mechunlearn import errors\n    return [site for site in sites]\n"


def test_a_package_counted_by_hand(tmp_path: Path) -> None:
    package = tmp_path / "mechunlearn"
    for room, source in (("looking", LOOKING), ("cutting", CUTTING)):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text(source)
    (package / "errors.py").write_text("")
    (package / "__init__.py").write_text("from mechunlearn.cutting import cut\n")
    assert measure(tmp_path) == {
        "entries under the package": "3",
        "of these, rooms (packages)": "2",
        "files": "4",
        "lines": f"{LOOKING.count(chr(10)) + CUTTING.count(chr(10)) + 1}",
        "functions": "4",
        "function length, median": "3",
        "function length, 90th percentile": "7",
        "longest function": "7 (`looking/__init__.py:first`)",
        "functions that bind a filler name": "2 (50.0%)",
        "import arrows between top-level parts": "2",
        "parameters of the longest signature": "4 (`looking/__init__.py:inner`)",
    }
