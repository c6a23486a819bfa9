"""One step of training the MLPs of a third of the blocks: this library's, and a plain model's.

1. A text has one token more than is fed, so that both sides feed and predict equally many. The loss is the
   mean negative log-likelihood of all of them, or of the last few (the answers).
2. This library's step is the trainer's own. A plain one is what one writes without it: a Hugging Face model,
   the mean cross-entropy of the same positions, `backward`, fused AdamW. It asks for logits only where they
   are used.
3. A plain model trains the MLPs alone, every other parameter frozen, or all parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.models import PatchTask, setting
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.editing.edits.recipes import Optimizer, Recipe
from mechunlearn.editing.objectives.losses import nll
from mechunlearn.editing.objectives.requests import Outputs, Positions, Request
from mechunlearn.editing.training.activation_cache import CacheBudget
from mechunlearn.editing.training.examples import QUESTIONS_PER_TEXT
from mechunlearn.editing.training.limits import Limits
from mechunlearn.editing.training.optimization import Optimization
from mechunlearn.models.encoding.batch import IGNORED, Batch

FED = 32
"""Tokens fed per text; fewer where a tiny model is tried out."""
ANSWER = 4
"""Tokens at the end of a text that are its answer."""
BATCHES = 4
"""The corpus is so many batches; all are trained on before one comes again."""
LR = 1e-5
"""Small, as in fine-tuning; how fast a step is does not depend on it."""


@dataclass(frozen=True)
class Cut:
    """What is trained, and on what.

    Args:
        id: its name on the command line.
        third: which third of the blocks, from 0.
        positions: where the loss is.
        target: the least ratio that is aimed at beside the frozen step.
    """

    id: str
    third: int
    positions: Positions
    target: float

    def layers(self, setting: PatchTask) -> range:
        """The blocks whose MLPs are trained."""
        return range(self.third * setting.layers // 3, (self.third + 1) * setting.layers // 3)

    def sites(self, setting: PatchTask) -> Localization:
        """The MLPs that are trained."""
        return Localization([Site("mlp", layer) for layer in self.layers(setting)])


CUTS: Mapping[str, Cut] = {
    cut.id: cut
    for cut in (
        Cut("step_last_third", 2, "all", 1.25),
        Cut("step_last_third_answers", 2, "answer", 1.42),
        Cut("step_middle_third", 1, "all", 1.08),
        Cut("step_middle_third_answers", 1, "answer", 1.11),
    )
}


def model_of(shape: str, *, device: str, dtype: torch.dtype, quick: bool) -> PatchTask:
    """A random model, and texts of the length that is trained on.

    Args:
        shape: a key of `SHAPES`.
        device: where it lies.
        dtype: its precision.
        quick: build the tiny model of that family.
    """
    here = setting(shape, device=device, dtype=dtype, quick=quick)
    return here if quick else replace(here, length=FED)


@dataclass(frozen=True)
class NextTokens:
    """The mean negative log-likelihood per token of a corpus, as an objective of the trainer.

    Args:
        positions: of every token, or of the answers'.
    """

    positions: Positions
    aim: Literal["new", "forget"] = "new"

    @property
    def requests(self) -> Mapping[str, Request]:
        """The corpus."""
        return {"corpus": Request("corpus", positions=self.positions)}

    def __call__(self, readings: Mapping[str, Outputs]) -> Mapping[str, Float[Tensor, ""]]:
        """The loss."""
        return {"corpus": nll(readings["corpus"])}


@dataclass(frozen=True, eq=False)
class Trial:
    """A cut on a model, with its texts and the order in which they come.

    Args:
        setting: the model.
        cut: what is trained, and on what.
        corpus: the texts, with labels on the answers.
    """

    setting: PatchTask
    cut: Cut
    corpus: Batch

    @classmethod
    def of(cls, setting: PatchTask, cut: Cut) -> Trial:
        """Draw the texts.

        Args:
            setting: the model.
            cut: what is trained, and on what.
        """
        fed = setting.length
        longer = replace(setting, length=fed + 1)
        batch = Batch.of_tokens(longer.prompts(rows=BATCHES * setting.rows).clean)
        labels = torch.full_like(batch.tokens, IGNORED)
        labels[:, fed - ANSWER : fed] = batch.tokens[:, fed - ANSWER + 1 :]
        return cls(setting, cut, replace(batch, labels=labels))

    @property
    def positions(self) -> Int[Tensor, "position"]:
        """Where the loss is."""
        fed = self.corpus.tokens.shape[1] - 1
        first = 0 if self.cut.positions == "all" else fed - ANSWER
        return torch.arange(first, fed, device=self.setting.hm.device)

    def optimization(
        self,
        *,
        optimizer: str = "AdamW",
        lr: float = LR,
        limits: Limits = Limits(),  # noqa: B008
    ) -> Optimization:
        """The trainer, ready for its first step.

        Args:
            optimizer: the name of a class in ``torch.optim``.
            lr: its learning rate.
            limits: how much memory and disk the cache may use.
        """
        recipe = Recipe(
            NextTokens(self.cut.positions),
            lr=lr,
            optimizer=Optimizer(optimizer, schedule="constant"),
            batch_size=QUESTIONS_PER_TEXT * self.setting.rows,
            stop=None,
        )
        return Optimization.of(
            self.setting.hm,
            recipe,
            self.cut.sites(self.setting),
            Facts(),
            corpus=self.corpus,
            budget=CacheBudget.of(limits),
            checkpointing=False,
        )

    def order(self, steps: int) -> list[list[int]]:
        """Which texts the trainer takes at each step.

        Args:
            steps: how many.
        """
        feed = self.optimization().feed
        return [next(iter(part.values()))[1] for _ in range(steps) for part in feed.draw()]

    def names(self) -> set[str]:
        """The parameters that are trained."""
        return {part.name for part in self.setting.hm.slices(self.cut.sites(self.setting))}


class Ours:
    """The trainer's own steps.

    Args:
        trial: what is trained, and on what.
    """

    def __init__(self, trial: Trial) -> None:
        self.optimization = trial.optimization()

    def __call__(self, number: int) -> float:
        """Take a step, and give the loss it was taken on.

        Args:
            number: from 1.
        """
        return self.optimization.step(number)["corpus"]

    def fill(self) -> None:
        """Compute the entry states of all texts, which training would do at their first use."""
        for source in self.optimization.feed.sources.values():
            for store in source.states:
                if store is not None:
                    store.get(range(len(store)))


@dataclass(eq=False)
class Plain:
    """Steps of a plain model, where it trains on tensors of its own.

    Args:
        trial: what is trained, and on what.
        order: which texts come at each step.
        everything: train all parameters, instead of the cut's alone.
        in_place: train the setting's own tensors.
    """

    trial: Trial
    order: Sequence[Sequence[int]]
    everything: bool = False
    in_place: bool = False
    model: Any = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        plain, names = self.trial.setting.plain, self.trial.names()
        shared = {id(p): p for n, p in plain.named_parameters() if not self.everything and n not in names}
        self.model = plain if self.in_place else copy.deepcopy(plain, memo=shared)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.everything or name in names)
        trained: Iterable[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)

    def __call__(self, number: int) -> float:
        """Take a step, and give the loss it was taken on.

        Args:
            number: from 1.
        """
        loss = self.backward(number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss)

    def backward(self, number: int) -> Float[Tensor, ""]:
        """Give the trained parameters the gradient of a step, and return the loss.

        Args:
            number: from 1.
        """
        batch = self.trial.corpus.rows(self.order[number - 1])
        where = self.trial.positions
        output = self.model(
            input_ids=batch.tokens[:, :-1],
            attention_mask=batch.mask[:, :-1],
            use_cache=False,
            logits_to_keep=0 if self.trial.cut.positions == "all" else where,
        )
        loss = cross_entropy(output.logits.flatten(0, 1), batch.tokens[:, where + 1].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
