"""Small cells for the runner of grids, in a module of their own, so that worker processes can import them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Add:
    """Adds two numbers, after some time; the sum is a tuple, which JSON makes a list."""

    first: int
    second: int
    seconds: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.first}+{self.second}"

    def run(self) -> dict[str, tuple[int]]:
        time.sleep(self.seconds)
        return {"sum": (self.first + self.second,)}


@dataclass(frozen=True)
class Count:
    """Writes its number into a log whenever it runs."""

    number: int
    log: str

    @property
    def key(self) -> str:
        return f"count-{self.number}"

    def run(self) -> int:
        with Path(self.log).open("a", encoding="utf-8") as log:
            log.write(f"{self.number}\n")
        return self.number


@dataclass(frozen=True)
class Sleep:
    """Runs until it is killed."""

    key: str

    def run(self) -> None:
        time.sleep(600)


@dataclass(frozen=True)
class Raises:
    """Fails as long as a file is there."""

    key: str
    switch: str

    def run(self) -> str:
        if Path(self.switch).exists():
            raise ValueError("no luck")
        return "fine"


@dataclass(frozen=True)
class Interrupted:
    """Behaves as if the user pressed Ctrl-C."""

    key: str

    def run(self) -> None:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Threads:
    """Returns the number of threads that torch would use."""

    key: str

    def run(self) -> int:
        return torch.get_num_threads()


@dataclass(frozen=True)
class Unstorable:
    """Returns what JSON cannot hold."""

    key: str

    def run(self) -> set[int]:
        return {1}
