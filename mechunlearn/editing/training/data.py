"""Give an objective what it declared to read.

1. Every split is encoded once before training, per answer that is read of it (`examples`). A step takes
   ``batch_size`` questions of every split and a quarter as many texts, the same questions for all answers.
2. The model runs once per split and answer, from the first edited block on: the states that enter this
   block are cached (`activation_cache`). Logits are computed at the positions that are read, and tokens
   after the last of these are not fed.
3. What the unedited model gives (``reference``) is computed once per example, on the frozen weights, and
   cached too: single numbers where only the labels' log-probabilities are compared.
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
from mechunlearn.editing.objectives.requests import Outputs, Reference, Request
from mechunlearn.editing.training.activation_cache import CHUNK, ActivationCache, CacheBudget
from mechunlearn.editing.training.examples import Order, key_of, labels_of, per_step, variants
from mechunlearn.editing.training.partial_forward import Runner
from mechunlearn.errors import TrainingError
from mechunlearn.models.encoding.batch import IGNORED, Batch

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

Key = tuple[str, str]
"""A split, and the answer that is read of it."""
MicroBatch = dict[Key, tuple[int, list[int]]]
"""For every source the number of a variant, and the rows to run."""
LOGITS = 1 << 27
"""Logits of the unedited model computed at a time: half a GiB in float32."""


@dataclass(eq=False)
class _Source:
    """One split with one answer: its variants, and the caches of each; no states if no block is skipped."""

    variants: tuple[Batch, ...]
    states: tuple[ActivationCache | None, ...]
    references: tuple[Mapping[str, ActivationCache], ...]


@dataclass(frozen=True, eq=False)
class DataFeed:
    """Draws examples step by step, and gives an objective the outputs it requests.

    ``frozen`` holds the unedited weights of the trained parameters. A step takes ``batch_size`` questions of
    each split and a quarter as many texts, in ``micro_batches`` parts that are run one after the other.
    """

    runner: Runner
    frozen: Mapping[str, Tensor]
    requests: Mapping[str, Request]
    sources: dict[Key, _Source]
    orders: Mapping[str, Order]
    batch_size: int
    micro_batches: int

    @classmethod
    def of(
        cls,
        hm: HookedModel,
        runner: Runner,
        requests: Mapping[str, Request],
        facts: Facts,
        *,
        frozen: Mapping[str, Tensor],
        budget: CacheBudget,
        batch_size: int,
        seed: int,
        micro_batches: int = 1,
        corpus: Batch | None = None,
    ) -> DataFeed:
        """Encode the examples that are read, and reserve the caches.

        ``runner`` enters no later than the first block that is read. ``seed`` is that of the order of the
        examples and of sampled answers. ``corpus`` is encoded text with labels of its own.

        A ``FactError`` is raised if a set that is read is empty or a fact lacks the answer that is read, a
        ``TrainingError`` if a set has fewer examples than there are parts.
        """
        sources: dict[Key, _Source] = {}
        feed = cls(runner, frozen, requests, sources, {}, batch_size, micro_batches)
        keys = sorted({key_of(request) for request in requests.values()})
        for key in keys:
            requested = feed._requested(key)
            batches = variants(hm, facts, corpus, next(iter(requested.values())), seed=seed)
            states = tuple(feed._states(batch, budget) if runner.enters else None for batch in batches)
            # The references are computed from the states, so the source must stand before their caches do.
            sources[key] = _Source(batches, states, ())
            references = tuple(feed._references(key, i, requested, budget) for i in range(len(batches)))
            sources[key] = replace(sources[key], references=references)
        orders = {}
        # One order per split, whatever its number of answers: that of the first key, which comes last here.
        for key in reversed(keys):
            total = len(sources[key].variants[0])
            least = min(total, per_step(key[0], batch_size))
            if micro_batches > least:
                raise TrainingError(
                    f"micro_batches is {micro_batches}, and a step takes {least} examples of the {key[0]} "
                    f"set; give micro_batches of at most {least}, or a larger batch_size"
                )
            orders[key[0]] = Order(total, random.Random(f"{seed} {key}"))
        return replace(feed, orders=orders)

    def draw(self) -> list[MicroBatch]:
        """The examples of the next step, in micro-batches."""
        drawn = {s: order.next(per_step(s, self.batch_size)) for s, order in sorted(self.orders.items())}
        parts: list[MicroBatch] = []
        for number in range(self.micro_batches):
            part = {}
            for key, source in self.sources.items():
                rows, turn = drawn[key[0]]
                low, high = (len(rows) * n // self.micro_batches for n in (number, number + 1))
                # Every pass over the questions uses the next variant of their answers.
                part[key] = (turn % len(source.variants), rows[low:high])
            parts.append(part)
        return parts

    def read(self, part: MicroBatch, weights: Mapping[str, Tensor]) -> dict[str, Outputs]:
        """The outputs of each request on a micro-batch, with the trained parameters set to ``weights``."""
        outputs: dict[str, Outputs] = {}
        references: dict[str, dict[str, Tensor]] = {}
        # What is cached must come from the unedited model, also where it is computed at this very step.
        self.runner.set_weights(self.frozen)
        for key, (variant, rows) in part.items():
            for name, cache in self.sources[key].references[variant].items():
                references[name] = {f"reference_{self.requests[name].reference}": torch.cat(cache.get(rows))}
        states = {key: self._entry(key, variant, rows) for key, (variant, rows) in part.items()}
        self.runner.set_weights(weights)
        for key, (variant, rows) in part.items():
            batch = self.sources[key].variants[variant].rows(rows).trimmed()
            for name, output in self._run(batch, self._requested(key), states[key]).items():
                reference: Any = references.get(name, {})
                outputs[name] = replace(output, **reference)
        return outputs

    def computed(self) -> int:
        """How many entry states and references were computed so far, counted in examples."""
        caches = [
            cache
            for source in self.sources.values()
            for cache in (*source.states, *(c for refs in source.references for c in refs.values()))
        ]
        return sum(cache.computed for cache in caches if cache is not None)

    def _requested(self, key: Key) -> dict[str, Request]:
        """The requests that are served by one run of the examples of a key."""
        return {name: request for name, request in self.requests.items() if key_of(request) == key}

    def _entry(self, key: Key, variant: int, rows: list[int]) -> Float[Tensor, "row pos d_model"] | None:
        cache = self.sources[key].states[variant]
        return None if cache is None else pad_sequence(cache.get(rows), batch_first=True)

    def _states(self, batch: Batch, budget: CacheBudget) -> ActivationCache:
        """A cache of the states that enter the first edited block."""
        lengths = batch.lengths.tolist()

        def compute(rows: list[int]) -> list[Float[Tensor, "rows ..."]]:
            some = batch.rows(rows).trimmed()
            states = self.runner.states(some.tokens, some.mask)
            return [state[: lengths[i]] for state, i in zip(states, rows, strict=True)]

        return ActivationCache.of(lengths, compute, budget, width=self._bytes("hidden"))

    def _references(
        self, key: Key, variant: int, requests: Mapping[str, Request], budget: CacheBudget
    ) -> dict[str, ActivationCache]:
        """Caches of what the unedited model gives, for the requests that compare with it."""
        caches = {}
        for name, request in requests.items():
            if request.reference is not None:
                # Hidden states need no logits; the other references do, even if the request reads none.
                request = replace(request, logits=request.reference != "hidden")
                caches[name] = self._reference(key, variant, request, budget)
        return caches

    def _reference(self, key: Key, variant: int, request: Request, budget: CacheBudget) -> ActivationCache:
        batch = self.sources[key].variants[variant]
        counts = (labels_of(batch, request) != IGNORED).sum(1).tolist()
        vocabulary = self.runner.hm.hf.config.get_text_config().vocab_size
        # Logits are by far the largest, so their chunks are cut to at most LOGITS numbers.
        chunk = max(1, min(CHUNK, LOGITS // (max(counts) * vocabulary))) if request.logits else CHUNK

        def compute(rows: list[int]) -> list[Float[Tensor, "rows ..."]]:
            references: list[Tensor] = []
            # In chunks here too: examples that are not cached come as many as a step takes.
            for some in torch.split(torch.tensor(rows), chunk):
                state = self._entry(key, variant, some.tolist())
                with torch.no_grad():
                    output = self._run(batch.rows(some).trimmed(), {"": request}, state)[""]
                references += torch.split(_compared(request, output), [counts[i] for i in some.tolist()])
            return references

        return ActivationCache.of(counts, compute, budget, width=self._bytes(request.reference), chunk=chunk)

    def _bytes(self, reference: Reference | None) -> int:
        """Bytes of a reference at one position; an entry state takes as many as ``"hidden"``."""
        config = self.runner.hm.hf.config.get_text_config()
        dtype: torch.dtype = self.runner.hm.hf.get_input_embeddings().weight.dtype
        if reference == "hidden":
            return int(config.hidden_size) * dtype.itemsize
        wide = torch.promote_types(dtype, torch.float32).itemsize
        return wide * (int(config.vocab_size) if reference == "logprobs" else 1)

    def _run(
        self, batch: Batch, requests: Mapping[str, Request], state: Float[Tensor, "row pos d_model"] | None
    ) -> dict[str, Outputs]:
        """Run the model once on a batch, and pick out of it what each request asks for.

        ``state`` is what enters the first edited block; None to run the whole model.
        """
        labels = {name: labels_of(batch, request) for name, request in requests.items()}
        # A position sees only those before it: what comes after the last that is read need not be fed.
        read = torch.stack([one != IGNORED for one in labels.values()]).any(0)
        fed = slice(0, int(read.any(0).nonzero()[-1, 0]) + 1)
        # The vocabulary is wide, so logits are formed only in the columns where some request reads them. The
        # model takes the same columns for all rows; which of them a row reads is picked out below.
        spoken = [(labels[name] != IGNORED) & request.logits for name, request in requests.items()]
        columns = torch.stack(spoken).any(0).any(0).nonzero()[:, 0]
        output = self.runner.run(
            batch.tokens[:, fed],
            batch.mask[:, fed],
            columns=columns,
            hidden=[request.hidden for request in requests.values() if request.hidden is not None],
            state=None if state is None else state[:, fed],
        )
        outputs = {}
        for name, request in requests.items():
            where = labels[name] != IGNORED
            outputs[name] = Outputs(
                # The mask of positions is cut to the columns, or to the positions fed, as the tensor was.
                logits=_at(output.logits, where[:, columns])
                if request.logits
                else output.logits.new_empty(int(where.sum()), 0),
                labels=labels[name][where],
                row=where.nonzero()[:, 0],
                hidden=None if request.hidden is None else _at(output.hidden[request.hidden], where[:, fed]),
            )
        return outputs

    def release(self) -> None:
        """Free the caches now: they and the feed refer to each other, so Python would free them late."""
        self.sources.clear()

    def batches(self) -> Iterator[Batch]:
        """All examples, encoded."""
        for key in sorted(self.sources):
            yield from self.sources[key].variants


def _at(
    values: Float[Tensor, "row pos width"], where: Bool[Tensor, "row pos"]
) -> Float[Tensor, "token width"]:
    """The positions that are read, without a copy where these are all."""
    return values.flatten(0, 1) if bool(where.all()) else values[where]


def _compared(request: Request, output: Outputs) -> Float[Tensor, "token ..."]:
    """The part of the unedited model's outputs that a request compares with."""
    if request.reference == "hidden" and output.hidden is not None:
        return output.hidden
    logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
    logprobs = logits.log_softmax(-1)
    if request.reference == "logprobs":
        return logprobs
    return logprobs.gather(-1, output.labels[:, None])[:, 0]
