"""Facts for the data of training, and short ways to draw batches of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from helpers.small_facts import FACTS
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.editing.objectives.requests import Outputs, Request
from mechunlearn.editing.training.activation_cache import CacheBudget
from mechunlearn.editing.training.data import DataFeed
from mechunlearn.editing.training.partial_forward import Runner
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.hooked import HookedModel

WORDS = {f"prompt {i:02}": f"word {i:02}" for i in range(20)}


MANY = Facts([Fact(prompt, "prompt", word) for prompt, word in WORDS.items()], text=[*WORDS] * 2, name="many")


MANY_NEW = Facts([fact.replace(new=f"new {i:02}") for i, fact in enumerate(MANY)])


def feed(
    hm: HookedModel,
    requests: Mapping[str, Request],
    facts: Facts = FACTS,
    *,
    trained: Mapping[str, Tensor] | None = None,
    entry: int = 0,
    memory: int = 1 << 24,
    batch_size: int = 32,
    seed: int = 0,
    parts: int = 1,
    corpus: Batch | None = None,
) -> DataFeed:
    names = () if trained is None else tuple(trained)
    return DataFeed.of(
        hm,
        Runner.of(hm, names, entry=entry),
        requests,
        facts,
        frozen={name: hm.params[name].detach() for name in names},
        budget=CacheBudget(memory, 0, None),
        batch_size=batch_size,
        seed=seed,
        micro_batches=parts,
        corpus=corpus,
    )


def draw(source: DataFeed, weights: Mapping[str, Tensor] | None = None) -> dict[str, Outputs]:
    """The readings of a step that is run in one part."""
    (part,) = source.draw()
    return source.read(part, weights or {})


def spoken(hm: HookedModel, reading: Outputs) -> list[str]:
    """The labels of each example as text."""
    rows = range(int(reading.row.max()) + 1)
    return [hm.tokenizer.decode(reading.labels[reading.row == row]) for row in rows]
