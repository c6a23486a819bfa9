"""Readings made by hand or at random, without any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from mechunlearn.editing.objectives.requests import Outputs, Request

VOCAB, WIDTH = 7, 4


def reading(logits: Any, labels: list[int], row: list[int], **parts: Tensor) -> Outputs:
    return Outputs(torch.as_tensor(logits), torch.tensor(labels), torch.tensor(row), **parts)


def shares(*rows: list[float]) -> Tensor:
    """Logits whose softmax gives these shares."""
    return torch.tensor(rows, dtype=torch.float64).log()


# Two answers: "b" (p = 3/4), and the two tokens "a b" (p = 1/2 * 1/4 = 1/8).
TWO = reading(shares([0.25, 0.75], [0.5, 0.5], [0.75, 0.25]), [1, 0, 1], [0, 1, 1])


def whole_reading(seed: int = 0, rows: tuple[int, ...] = (0, 1, 1, 2, 2, 2), spread: float = 2.0) -> Outputs:
    """Random numbers in every part, in float64."""
    random = torch.Generator().manual_seed(seed)
    count = len(rows)

    def normal(width: int) -> Tensor:
        return spread * torch.randn(count, width, dtype=torch.float64, generator=random)

    logits, before = normal(VOCAB), normal(VOCAB).log_softmax(-1)
    labels = torch.randint(VOCAB, (count,), generator=random)
    picked = before[torch.arange(count), labels]
    return Outputs(logits, labels, torch.tensor(rows), normal(WIDTH), picked, before, normal(WIDTH))


def map_parts(one: Outputs, change: Any) -> Outputs:
    """A reading with every tensor in it changed alike."""
    parts: Any = {f.name: getattr(one, f.name) for f in fields(one)}
    changed: Any = {name: None if part is None else change(part) for name, part in parts.items()}
    return replace(one, **changed)


def answering(requests: Mapping[str, Request], seed: int = 0) -> dict[str, Outputs]:
    """Random readings of exactly what was declared; those of one split belong to the same examples."""
    found = {}
    for number, (name, read) in enumerate(requests.items()):
        one = whole_reading(100 * seed + number)
        if not read.logits:
            one = replace(one, logits=one.logits[:, :0])
        if read.hidden is None:
            one = replace(one, hidden=None)
        kept = read.reference and f"reference_{read.reference}"
        names = {f.name for f in fields(one) if f.name.startswith("reference")}
        dropped: Any = dict.fromkeys(names - {kept})
        found[name] = replace(one, **dropped)
    return found
