"""Relearning: fine-tune on half of the forget facts, and see whether the other half comes back.

1. Copy the attacked model in plain Hugging Face form; the user's model is only read.
2. Put LoRA adapters (peft) on every linear layer of the copy's blocks.
3. Train them for a few steps on the old answers of the facts that may be seen, in training phrasings, mixed
   with as many retain facts, which hold the rest in place.
4. Merge the adapters and return the change of the weights as an edit.

The training facts say nothing about the facts that are scored, so what returns was left in the weights.

Source: Deeb and Roger, "Do Unlearning Methods Remove Information from Language Model Weights?" (2024).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.auditing.attacks.attack import Context
from mechunlearn.auditing.attacks.intervention import WeightChange
from mechunlearn.core import metrics
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.errors import FactError, TrainingError
from mechunlearn.models import loading
from mechunlearn.models.arch import Slice
from mechunlearn.models.encoding.batch import IGNORED, Batch
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True)
class Relearn:
    """Fine-tune LoRA adapters on the old answers of half of the forget facts.

    Args:
        rank: rank of the adapters.
        alpha: the adapters are scaled by ``alpha / rank``.
        steps: number of AdamW steps.
        lr: peak learning rate, falling to zero as half a cosine.
        batch_size: number of forget examples a step, and of retain examples.
        name: name in the report; two attacks of one audit need different names.

    Example:
        >>> Relearn(steps=100).summary
        'LoRA of rank 8, 100 steps at lr 0.002'

    Source: Deeb and Roger (2024), arXiv 2410.08827.
    """

    rank: int = 8
    alpha: float = 16.0
    steps: int = 30
    lr: float = 2e-3
    batch_size: int = 8
    name: str = "relearning"

    @property
    def summary(self) -> str:
        """The attack in one line."""
        return f"LoRA of rank {self.rank}, {self.steps} steps at lr {self.lr:g}"

    def search(self, hm: HookedModel, context: Context, *, seed: int) -> WeightChange:
        """Fine-tune a copy and return the change of its weights.

        Args:
            hm: the attacked model, which stays as it is.
            context: the forget and retain facts that may be seen.
            seed: seed of the adapters' initial weights and of the order of examples.

        Raises:
            FactError: there are no forget facts to learn from.
            TrainingError: the loss or the weights are not finite.
        """
        if not context.forget:
            raise FactError("there are no forget facts to relearn from; give at least two, one for each half")
        # The caller's random state must not depend on whether an audit ran. The caller may be in inference
        # mode, in which nothing can be trained.
        forked_rng = torch.random.fork_rng(devices=[hm.device] if hm.device.type == "cuda" else [])
        with torch.inference_mode(False), forked_rng, warnings.catch_warnings():
            # peft warns of what it corrects itself, such as transposed weights in GPT-2.
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            adapted = self._adapted(hm)
            self._train(adapted, _Examples.of(hm, context, size=self.batch_size, seed=seed))
            merged = adapted.merge_and_unload()
        edit = _difference(hm, dict(merged.named_parameters()))
        if not all(bool(torch.isfinite(delta.values).all()) for delta in edit.deltas):
            raise self._diverged("the weights became infinite")
        seen = f"{len(context.forget)} forget and {len(context.retain or ())} retain facts"
        return WeightChange(edit, how=f"{self.summary}, on {seen}, seed {seed}")

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"relearning at lr {self.lr:g}: {what}, expected finite numbers; the model is unchanged. "
            "Lower Relearn(lr=...)"
        )

    def _adapted(self, hm: HookedModel) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type, unused-ignore]
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        # Merging writes into the base weights, which must not be those of `hm`.
        adapted = get_peft_model(loading.with_own_tensors(hm.hf), config)

        return adapted.eval()

    def _train(self, adapted: Any, examples: _Examples) -> None:
        trained = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(self.steps, 1))
        with torch.enable_grad():
            for step in range(1, self.steps + 1):
                loss = examples.loss(adapted)
                if not bool(torch.isfinite(loss)):
                    raise self._diverged(f"the loss at step {step} is {float(loss.detach())}")
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class _Examples:
    """Forget and retain examples in one batch, and an endless iterator over the rows of each kind."""

    batch: Batch
    orders: tuple[Iterator[Int[Tensor, " row"]], ...]

    @classmethod
    def of(cls, hm: HookedModel, context: Context, *, size: int, seed: int) -> _Examples:
        forget, retain = (
            [phrased for fact in facts for phrased in fact.phrasings("train")]
            for facts in (context.forget, context.retain or ())
        )
        starts = ((0, len(forget)), (len(forget), len(retain)))
        orders = tuple(_order(first, count, size, seed) for first, count in starts if count)
        return cls(encode(hm, [*forget, *retain]), orders)

    def loss(self, adapted: Any) -> Float[Tensor, ""]:
        """Negative log-likelihood per answer token, averaged within each kind and summed over both."""
        rows = [next(order) for order in self.orders]
        batch = self.batch.rows(torch.cat(rows)).trimmed()
        logits = adapted(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits
        # Ignored labels count as log-probability 0.
        logprobs = metrics.token_logprobs(logits, batch.labels).sum(1)
        tokens = (batch.labels != IGNORED).sum(1)
        counts = [len(indices) for indices in rows]
        kinds = zip(torch.split(logprobs, counts), torch.split(tokens, counts), strict=True)
        return torch.stack([-total.sum() / count.sum() for total, count in kinds]).sum()


def _order(first: int, count: int, size: int, seed: int) -> Iterator[Int[Tensor, " row"]]:
    """Yield ``size`` rows a step, from ``first`` on; every row comes once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    queue = torch.zeros(0, dtype=torch.long)
    while True:
        # With fewer rows than a step takes, the step takes them all.
        while len(queue) < min(size, count):
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        yield first + queue[:size]
        queue = queue[size:]


def _difference(hm: HookedModel, changed: dict[str, Tensor]) -> Edit:
    """The change of every parameter, as an edit."""
    deltas = []
    for name, before in hm.params.items():
        after = changed[name].detach().to(before.dtype)
        if not torch.equal(after, before.detach()):
            # A difference of half-precision weights would be rounded once more in their own dtype.
            wide = torch.float64 if before.dtype == torch.float64 else torch.float32
            deltas.append(Delta(Slice(name), (after.to(wide) - before.detach().to(wide)).cpu()))
    return Edit(
        deltas=tuple(deltas),
        localization=hm.sites.attns() | hm.sites.mlps(),
        shapes={delta.slice.name: tuple(hm.params[delta.slice.name].shape) for delta in deltas},
    )
