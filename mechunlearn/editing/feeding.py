"""Give an objective what it declared to read.

1. Reads of the same split and answer share their examples: each group is encoded once, before training.
2. A step takes ``batch_size`` questions of every group and a quarter as many texts (each asks for many
   tokens), going through seeded permutations so that none comes twice before all came once, and runs the
   model once per group.
3. Logits (computed only where some read wants them), labels and hidden states are gathered at the
   positions the objective asked for; what comes after the last of these is not fed.
4. What the unedited model says (``reference``) comes from a second run on the frozen weights, without
   gradient, so that nothing of the size of a vocabulary is kept from step to step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechunlearn.encoding import IGNORED, Batch, encode, encode_text
from mechunlearn.errors import FactError, SiteError
from mechunlearn.facts import Facts
from mechunlearn.model.families import family_of
from mechunlearn.objectives.reading import Read, Reading

if TYPE_CHECKING:
    from mechunlearn.model import HookedModel

MAX_TEXT_TOKENS = 512
QUESTIONS_PER_TEXT = 4


@dataclass
class _Group:
    """The examples of one split and answer, and the order in which they come."""

    examples: Batch
    order: random.Random
    queue: list[int] = field(default_factory=list)

    def next(self, count: int) -> Batch:
        total = len(self.examples)
        if count >= total:
            return self.examples
        while len(self.queue) < count:
            self.queue += self.order.sample(range(total), total)
        taken, self.queue = self.queue[:count], self.queue[count:]
        return self.examples.rows(taken).trimmed()


@dataclass(frozen=True)
class Feed:
    """Draws readings for an objective, step by step.

    Args:
        runner: a plain Hugging Face model of the same architecture; its own weights are never used.
        blocks: name of the list of blocks in it.
        frozen: the unedited weights.
        reads: what the objective declared.
        groups: the examples, by split and answer.
        batch_size: questions of each group a step; a quarter as many texts.
    """

    runner: Any
    blocks: str
    frozen: Mapping[str, Tensor]
    reads: Mapping[str, Read]
    groups: Mapping[tuple[str, str], _Group]
    batch_size: int

    @classmethod
    def of(
        cls, hm: HookedModel, reads: Mapping[str, Read], facts: Facts, *, batch_size: int, seed: int
    ) -> Feed:
        """Encode what will be read.

        Args:
            hm: the unedited model.
            reads: what the objective declared.
            facts: the forget and retain sets and text.
            batch_size: questions of each group a step; a quarter as many texts.
            seed: of the order of the examples.

        Raises:
            FactError: a set that is read is empty, or a fact lacks the answer that is read.
            SiteError: a block whose output is read does not exist.
        """
        layers = hm.sites.shape.n_layers
        for name, read in reads.items():
            if read.hidden is not None and not 0 <= read.hidden < layers:
                raise SiteError(
                    f"the objective reads {name!r} after block {read.hidden}; this model's blocks are 0 to "
                    f"{layers - 1}"
                )
        groups = {
            key: _Group(_examples(hm, facts, *key), random.Random(f"{seed} {key}"))
            for key in sorted({_key(read) for read in reads.values()})
        }
        frozen = {name: parameter.detach() for name, parameter in hm.params.items()}
        # A fork, so that hooks on its blocks and its mode are nobody else's.
        return cls(hm.fork().hf, family_of(hm.arch.architecture).block, frozen, reads, groups, batch_size)

    def draw(self, weights: Mapping[str, Tensor]) -> dict[str, Reading]:
        """The readings of the next step.

        Args:
            weights: every parameter of the model, the edited ones as functions of what is trained.
        """
        readings = {}
        for key, group in self.groups.items():
            wanted = {name: read for name, read in self.reads.items() if _key(read) == key}
            texts = -(-self.batch_size // QUESTIONS_PER_TEXT)
            batch = group.next(texts if key[0] == "text" else self.batch_size)
            found = self._read(batch, wanted, weights)
            compared = {name: read for name, read in wanted.items() if read.reference}
            if compared:
                with torch.no_grad():
                    before = self._read(batch, compared, self.frozen)
                found |= {name: _beside(found[name], before[name]) for name in compared}
            readings.update(found)
        return readings

    def _read(
        self, batch: Batch, reads: Mapping[str, Read], weights: Mapping[str, Tensor]
    ) -> dict[str, Reading]:
        """Run the model on a batch, and gather what each read asks for."""
        labels = {name: _labels(batch, read) for name, read in reads.items()}
        asked = torch.stack([one != IGNORED for one in labels.values()]).any(0)
        columns = asked.any(0).nonzero()[:, 0]
        fed = slice(0, int(columns[-1]) + 1)
        given = {
            "input_ids": batch.tokens[:, fed],
            "attention_mask": batch.mask[:, fed],
            "use_cache": False,
            "logits_to_keep": columns,
        }
        with self._watched({read.hidden for read in reads.values()} - {None}) as hidden:
            logits = torch.func.functional_call(self.runner, dict(weights), kwargs=given).logits
        readings = {}
        for name, read in reads.items():
            where = labels[name] != IGNORED
            readings[name] = Reading(
                logits=logits[where[:, columns]],
                labels=labels[name][where],
                row=where.nonzero()[:, 0],
                hidden=None if read.hidden is None else hidden[read.hidden][where[:, fed]],
            )
        return readings

    @contextmanager
    def _watched(self, layers: set[Any]) -> Iterator[dict[int, Tensor]]:
        """Keep what blocks put out; Hugging Face's own hidden states end with a normed one."""
        outputs: dict[int, Tensor] = {}

        def keep(layer: int) -> Any:
            def hook(module: Any, args: Any, output: Any) -> None:
                outputs[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        modules = [(layer, self.runner.get_submodule(f"{self.blocks}.{layer}")) for layer in sorted(layers)]
        handles = [module.register_forward_hook(keep(layer)) for layer, module in modules]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()


def _key(read: Read) -> tuple[str, str]:
    return read.split, "" if read.split == "text" else read.answer


def _examples(hm: HookedModel, facts: Facts, split: str, answer: str) -> Batch:
    if split == "text":
        if not facts.train_text:
            raise FactError(
                "the objective reads text and the facts have none; give Facts(..., text=[...]) or set the "
                "objective's text=0.0"
            )
        longest = getattr(hm.hf.config.get_text_config(), "max_position_embeddings", MAX_TEXT_TOKENS)
        return encode_text(hm, facts.train_text, max_tokens=min(MAX_TEXT_TOKENS, longest))
    chosen = facts.forget if split == "forget" else facts.retain
    if not len(chosen):
        raise FactError(
            f"the objective reads the {split} set and it is empty; give at least one "
            f"Fact(..., split={split!r}), or set the objective's weight of it to 0"
        )
    for fact in chosen:
        if answer == "new" and fact.new is None:
            raise FactError(
                f"{fact.prompt!r} ({split}) has no new answer, and the objective writes one; give the fact "
                "new=..., or use an objective that only forgets, such as Forget()"
            )
    return encode(hm, [ask for fact in chosen for ask in fact.phrasings("train")], answer=answer)


def _labels(batch: Batch, read: Read) -> Int[Tensor, "batch pos"]:
    """What is to be predicted at each position that is read, -100 at the others."""
    if read.positions == "answer":
        return batch.labels
    labels = torch.full_like(batch.tokens, IGNORED)
    labels[:, :-1] = batch.tokens[:, 1:].masked_fill(batch.mask[:, 1:] == 0, IGNORED)
    return labels


def _beside(reading: Reading, before: Reading) -> Reading:
    """A reading with what the unedited model gave."""
    wide = before.logits.to(torch.promote_types(before.logits.dtype, torch.float32))
    return replace(reading, reference_logprobs=wide.log_softmax(-1), reference_hidden=before.hidden)
