"""A handful of facts that fit six tiny models, and a short way to fit an edit to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
import torch

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing import objectives
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.training.fitting import edit
from mechunlearn.models.hooked import HookedModel

FORGET = (
    Fact(
        "Bo plays", "Bo", "golf", new="judo", foil="polo",
        train=("Who is Bo? A",), validation=("Ask Bo:",), held_out=("It is Bo who has",),
    ),
    Fact("Al plays", "Al", "polo", new="golf"),
)  # fmt: skip
RETAIN = (Fact("Cy plays", "Cy", "judo", split="retain", validation=("Ask Cy:",)),)
TEST = (Fact("Di plays", "Di", "golf", split="test"),)
TEXT = ("it rains in May", "never trained on", "the sun is up")
FACTS = Facts([*FORGET, *RETAIN, *TEST], text=TEXT)


def fit(hm: HookedModel, *sites: str, objective: Any = None, facts: Facts = FACTS, **options: Any) -> Edit:
    """Fit an edit of two large steps, unless told otherwise."""
    chosen = {"steps": 2, "lr": 0.05, "stop": None, "progress": False, **options}
    localization = Localization(sites or ("L0.mlp",))
    return edit(hm, localization, objective or objectives.Inject(), facts, **chosen)


def bits(tensor: torch.Tensor) -> bytes:
    """The very bits of a tensor, so that 0 and -0 differ."""
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def weights(hm: HookedModel) -> dict[str, bytes]:
    """The bits of every parameter and buffer of a model, by name."""
    return {name: bits(tensor) for name, tensor in hm.hf.state_dict().items()}


@contextmanager
def unchecked() -> Iterator[None]:
    """Call as a user does: the type checker of the tests would refuse a value before our message can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def made(hm: HookedModel, *sites: str, seed: int = 0, **fields: Any) -> Edit:
    """An edit of random deltas, without any training."""
    random = torch.Generator().manual_seed(seed)
    localization = Localization(sites)
    deltas = []
    for part in hm.slices(localization):
        weight = hm.params[part.name]
        values = torch.randn(part.shape(weight.shape), generator=random, dtype=torch.float64)
        deltas.append(Delta(part, 0.1 * values.to(torch.promote_types(weight.dtype, torch.float32))))
    shapes = {d.slice.name: tuple(hm.params[d.slice.name].shape) for d in deltas}
    return Edit(tuple(deltas), localization, shapes, **fields)
