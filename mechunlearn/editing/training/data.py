"""Give an objective what it declared to read.

1. Every split is encoded once before training, per answer that is read of it (`examples`). A step takes
   ``batch_size`` questions of every split and a quarter as many texts, the same questions for all answers.
2. The model runs once per split and answer, from the first edited block on: the entry states of the
   examples are kept (`keeping`). Logits are computed only where some read wants them; what comes after the
   last position that is read is not fed.
3. What the unedited model says (``reference``) is computed once per example, on the frozen weights, and
   kept too: single numbers where only the labels' log-probabilities are compared.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mechunlearn.core.facts.collection import Facts
from mechunlearn.editing.objectives.reading import Outputs, Reference, Request
from mechunlearn.editing.training.activation_cache import CHUNK, ActivationCache, CacheBudget
from mechunlearn.editing.training.examples import Order, key_of, labels_of, per_step, variants
from mechunlearn.editing.training.partial_forward import Runner
from mechunlearn.errors import SiteError, TrainingError
from mechunlearn.models.encoding.batch import IGNORED, Batch

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

Key = tuple[str, str]
LOGITS = 1 << 27  # of the reference, computed at a time: half a GiB in float32


@dataclass(eq=False)
class _Source:
    """One split with one answer: its variants, and what is kept of each."""

    variants: tuple[Batch, ...]
    states: tuple[ActivationCache | None, ...]
    references: tuple[Mapping[str, ActivationCache], ...]


@dataclass(frozen=True, eq=False)
class DataFeed:
    """Draws readings for an objective, step by step.

    Args:
        runner: runs the model with the weights of a step.
        frozen: the unedited weights of the parameters that are trained.
        requests: what the objective declared.
        sources: the examples, by split and answer.
        orders: the order of the examples of each split.
        batch_size: questions of each split a step; a quarter as many texts.
        parts: a step's examples are run in so many parts, one after the other.
    """

    runner: Runner
    frozen: Mapping[str, Tensor]
    requests: Mapping[str, Request]
    sources: dict[Key, _Source]
    orders: Mapping[str, Order]
    batch_size: int
    parts: int

    @classmethod
    def of(
        cls,
        hm: HookedModel,
        runner: Runner,
        requests: Mapping[str, Request],
        facts: Facts,
        *,
        frozen: Mapping[str, Tensor],
        room: CacheBudget,
        batch_size: int,
        seed: int,
        parts: int = 1,
        corpus: Batch | None = None,
    ) -> DataFeed:
        """Encode what will be read.

        Args:
            hm: the unedited model.
            runner: runs the model; it enters no later than the first block that is read.
            requests: what the objective declared.
            facts: the forget and retain sets and text.
            frozen: the unedited weights of the parameters that are trained.
            room: for what is kept from step to step.
            batch_size: questions of each split a step; a quarter as many texts.
            seed: of the order of the examples, and of answers that are drawn.
            parts: a step's examples are run in so many parts.
            corpus: encoded text with labels of its own.

        Raises:
            FactError: a set that is read is empty, or a fact lacks the answer that is read.
            TrainingError: a set has fewer examples than there are parts.
        """
        sources: dict[Key, _Source] = {}
        feed = cls(runner, frozen, requests, sources, {}, batch_size, parts)
        keys = sorted({key_of(read) for read in requests.values()})
        for key in keys:
            own = {name: read for name, read in requests.items() if key_of(read) == key}
            batches = variants(hm, facts, corpus, next(iter(own.values())), seed=seed)
            sources[key] = _Source(
                batches,
                tuple(feed._states(batch, room) if runner.enters else None for batch in batches),
                (),
            )
            references = tuple(feed._references(key, i, own, room) for i in range(len(batches)))
            sources[key] = replace(sources[key], references=references)
        orders = {}
        for key in reversed(keys):
            total = len(sources[key].variants[0])
            least = min(total, per_step(key[0], batch_size))
            if parts > least:
                raise TrainingError(
                    f"micro_batches is {parts}, and a step takes {least} examples of the {key[0]} set; give "
                    f"micro_batches of at most {least}, or a larger batch_size"
                )
            orders[key[0]] = Order(total, random.Random(f"{seed} {key}"))
        return replace(feed, orders=orders)

    def draw(self) -> list[dict[Key, tuple[int, list[int]]]]:
        """The examples of the next step: for each part, which variant and which rows of every source."""
        taken = {s: order.next(per_step(s, self.batch_size)) for s, order in sorted(self.orders.items())}
        parts: list[dict[Key, tuple[int, list[int]]]] = []
        for number in range(self.parts):
            part = {}
            for key, source in self.sources.items():
                rows, turn = taken[key[0]]
                low, high = (len(rows) * n // self.parts for n in (number, number + 1))
                part[key] = (turn % len(source.variants), rows[low:high])
            parts.append(part)
        return parts

    def read(
        self, part: Mapping[Key, tuple[int, list[int]]], weights: Mapping[str, Tensor]
    ) -> dict[str, Outputs]:
        """The readings of one part of a step.

        Args:
            part: one of what :meth:`draw` gave.
            weights: the trained parameters, as functions of what is trained.
        """
        readings: dict[str, Outputs] = {}
        kept: dict[str, dict[str, Tensor]] = {}
        self.runner.put(self.frozen)
        for key, (variant, rows) in part.items():
            for name, store in self.sources[key].references[variant].items():
                kept[name] = {str(self.requests[name].reference): torch.cat(store.get(rows))}
        states = {key: self._entry(key, *where) for key, where in part.items()}
        self.runner.put(weights)
        for key, (variant, rows) in part.items():
            own = {name: read for name, read in self.requests.items() if key_of(read) == key}
            # Rows in one piece, as they were when one answer was all there was to read.
            batch = self.sources[key].variants[variant].rows(rows).trimmed()
            for name, reading in self._run(batch, own, states[key]).items():
                more: Any = {f"reference_{what}": value for what, value in kept.get(name, {}).items()}
                readings[name] = replace(reading, **more)
        return readings

    def computed(self) -> int:
        """How many entry states and references were computed so far, in examples."""
        stores = [
            store
            for source in self.sources.values()
            for store in (*source.states, *(s for refs in source.references for s in refs.values()))
        ]
        return sum(store.passes for store in stores if store is not None)

    def _entry(self, key: Key, variant: int, rows: list[int]) -> Tensor | None:
        store = self.sources[key].states[variant]
        return None if store is None else pad_sequence(store.get(rows), batch_first=True)

    def _states(self, batch: Batch, room: CacheBudget) -> ActivationCache:
        """A store of the entry states of some examples."""
        lengths = batch.lengths.tolist()

        def compute(rows: list[int]) -> list[Float[Tensor, "rows ..."]]:
            some = batch.rows(rows).trimmed()
            states = self.runner.states(some.tokens, some.mask)
            return [state[: lengths[i]] for state, i in zip(states, rows, strict=True)]

        return ActivationCache.of(lengths, compute, room, width=self._bytes("hidden"))

    def _references(
        self, key: Key, variant: int, requests: Mapping[str, Request], room: CacheBudget
    ) -> dict[str, ActivationCache]:
        """Stores of what the unedited model gives to the examples, for the reads that compare with it."""
        return {
            name: self._reference(key, variant, replace(read, logits=read.reference != "hidden"), room)
            for name, read in requests.items()
            if read.reference is not None
        }

    def _reference(self, key: Key, variant: int, read: Request, room: CacheBudget) -> ActivationCache:
        batch = self.sources[key].variants[variant]
        counts = (labels_of(batch, read) != IGNORED).sum(1).tolist()
        vocabulary = self.runner.hm.hf.config.get_text_config().vocab_size
        chunk = max(1, min(CHUNK, LOGITS // (max(counts) * vocabulary))) if read.logits else CHUNK

        def compute(rows: list[int]) -> list[Float[Tensor, "rows ..."]]:
            found: list[Tensor] = []
            for some in torch.split(torch.tensor(rows), chunk):
                state = self._entry(key, variant, some.tolist())
                with torch.no_grad():
                    reading = self._run(batch.rows(some).trimmed(), {"": read}, state)[""]
                found += torch.split(_compared(read, reading), [counts[i] for i in some.tolist()])
            return found

        return ActivationCache.of(counts, compute, room, width=self._bytes(read.reference), chunk=chunk)

    def _bytes(self, what: Reference | None) -> int:
        """The size of one position's entry state, or of what is compared with there."""
        config = self.runner.hm.hf.config.get_text_config()
        dtype: torch.dtype = self.runner.hm.hf.get_input_embeddings().weight.dtype
        if what == "hidden":
            return int(config.hidden_size) * dtype.itemsize
        wide = torch.promote_types(dtype, torch.float32).itemsize
        return wide * (int(config.vocab_size) if what == "logprobs" else 1)

    def _run(self, batch: Batch, requests: Mapping[str, Request], state: Tensor | None) -> dict[str, Outputs]:
        """Run the model on a batch, and gather what each read asks for."""
        labels = {name: labels_of(batch, read) for name, read in requests.items()}
        asked = torch.stack([one != IGNORED for one in labels.values()]).any(0)
        fed = slice(0, int(asked.any(0).nonzero()[-1, 0]) + 1)
        spoken = torch.stack([(labels[n] != IGNORED) & read.logits for n, read in requests.items()]).any(0)
        columns = spoken.any(0).nonzero()[:, 0]
        output = self.runner.run(
            batch.tokens[:, fed],
            batch.mask[:, fed],
            columns=columns,
            hidden=[read.hidden for read in requests.values() if read.hidden is not None],
            state=None if state is None else state[:, fed],
        )
        readings = {}
        for name, read in requests.items():
            where = labels[name] != IGNORED
            readings[name] = Outputs(
                logits=_at(output.logits, where[:, columns])
                if read.logits
                else output.logits.new_empty(int(where.sum()), 0),
                labels=labels[name][where],
                row=where.nonzero()[:, 0],
                hidden=None if read.hidden is None else _at(output.hidden[read.hidden], where[:, fed]),
            )
        return readings

    def release(self) -> None:
        """Let go of all that is kept; stores and feed refer to each other, and nobody else knows when."""
        self.sources.clear()

    def batches(self) -> Iterator[Batch]:
        """All examples, for telling one set of them from another."""
        for key in sorted(self.sources):
            yield from self.sources[key].variants


def first_block(hm: HookedModel, entry: int, requests: Mapping[str, Request]) -> int:
    """The block at which runs may begin: the first that is edited, or an earlier one that is read.

    Args:
        hm: the model.
        entry: the first block that is edited.
        requests: what the objective declared.

    Raises:
        SiteError: a block whose output is read does not exist.
    """
    layers = hm.sites.shape.n_layers
    for name, read in requests.items():
        if read.hidden is not None and not 0 <= read.hidden < layers:
            raise SiteError(
                f"the objective reads {name!r} after block {read.hidden}; this model's blocks are 0 to "
                f"{layers - 1}"
            )
    return min([entry, *(read.hidden for read in requests.values() if read.hidden is not None)])


def _at(
    values: Float[Tensor, "row pos width"], where: Bool[Tensor, "row pos"]
) -> Float[Tensor, "token width"]:
    """The positions that are read, without a copy where these are all."""
    return values.flatten(0, 1) if bool(where.all()) else values[where]


def _compared(read: Request, reading: Outputs) -> Float[Tensor, "token ..."]:
    """The part of a reading of the unedited model that is compared with."""
    if read.reference == "hidden" and reading.hidden is not None:
        return reading.hidden
    logits = reading.logits.to(torch.promote_types(reading.logits.dtype, torch.float32))
    logprobs = logits.log_softmax(-1)
    if read.reference == "logprobs":
        return logprobs
    return logprobs.gather(-1, reading.labels[:, None])[:, 0]
