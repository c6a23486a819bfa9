"""Run the core of the tests with the lowest versions that are declared, and with the newest that are served.

1. uv resolves ``pyproject.toml`` twice: every direct dependency at its lower bound, and everything at its
   newest. Each resolution is installed into a throw-away environment, with the package itself and pytest.
2. In each, the core of the tests runs: the laws of all families, generation against the plain model, the
   engine's agreement with hooked runs, edits and their files, attacks, an audit, and the command line.
3. The table (date, versions, what failed) is printed, ready for ``docs/models.md``.

Run it with ``make versions``; the downloads are some gigabytes the first time.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/models", "tests/localization/test_engine.py", "tests/localization/test_block_functions.py",
    "tests/editing/edits", "tests/auditing/test_attacks.py", "tests/test_cli.py",
    "tests/auditing/test_audit.py::test_the_same_seed_gives_the_same_rows",
)  # fmt: skip
SHOWN = ("torch", "transformers", "transformer-lens", "numpy", "datasets", "peft", "typer")
RUNNERS = ("pytest", "hypothesis", "beartype")


@dataclass(frozen=True)
class Outcome:
    """What one environment held, and which tests failed in it."""

    name: str
    versions: dict[str, str]
    passed: int
    failed: tuple[str, ...]

    def row(self) -> str:
        """The line of the table."""
        held = " | ".join(self.versions.get(name, "–") for name in SHOWN)
        failed = "none" if not self.failed else ", ".join(f"`{name}`" for name in self.failed)
        return f"| {self.name} | {held} | {self.passed} | {failed} |"


def table(outcomes: list[Outcome], *, date: datetime.date) -> str:
    """The table in Markdown, under its date."""
    head = f"| {date} | {' | '.join(SHOWN)} | passed | failed |"
    return "\n".join([head, "| --- " * (len(SHOWN) + 3) + "|", *(outcome.row() for outcome in outcomes)])


def failures(printed: str) -> tuple[int, tuple[str, ...]]:
    r"""The number of tests that passed, and the names of those that did not, from what pytest printed.

    Example:
        >>> failures("FAILED tests/a.py::test_b[x] - AssertionError\n1 failed, 7 passed in 3.0s")
        (7, ('test_b[x]',))
    """
    names = re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", printed, flags=re.MULTILINE)
    passed = re.search(r"(\d+) passed", printed)
    return int(passed[1]) if passed else 0, tuple(names)


def tried(name: str, resolution: str, folder: Path) -> Outcome:
    """Build one environment, and run the tests in it."""
    pins, python = folder / f"{name}.txt", folder / name / "bin" / "python"
    _run("uv", "pip", "compile", "-q", "--resolution", resolution, ROOT / "pyproject.toml", "-o", pins)
    _run("uv", "venv", "-q", "--python", sys.executable, folder / name)
    _run("uv", "pip", "install", "-q", "-p", python, "-r", pins, *RUNNERS)
    _run("uv", "pip", "install", "-q", "-p", python, "--no-deps", "-e", ROOT)
    # Without the type checks of every call, whose plugin old versions of jaxtyping load too late.
    command = [str(python), "-m", "pytest", "-q", "-o", "addopts=-p no:cacheprovider", *TESTS]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{name}: the tests could not run\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    lines = (line.split("==") for line in pins.read_text().splitlines() if "==" in line and line[0] != " ")
    versions = {package: version.split()[0] for package, version in lines}
    return Outcome(name, versions, *failures(done.stdout))


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)


def main() -> None:
    """Try both ends, and print the table."""
    parser = argparse.ArgumentParser(description="Run the core of the tests at both ends of the versions.")
    parser.add_argument("--folder", type=Path, help="keep the environments here; default: a temporary folder")
    chosen = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if chosen is None else chosen.resolve()
        ends = (("lowest", "lowest-direct"), ("newest", "highest"))
        outcomes = [tried(name, resolution, folder) for name, resolution in ends]
    print(table(outcomes, date=datetime.date.today()))
    if any(outcome.failed for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
