"""Objectives on hidden states: nothing above the last block they read is run, and no logits are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.checks import above, at_least, integer, require
from mechunlearn.editing.objectives.hidden_losses import (
    alignment,
    displacement,
    drift,
    steering,
    typical_norm,
)
from mechunlearn.editing.objectives.requests import Outputs, Request, State, Terms
from mechunlearn.editing.objectives.retain_terms import Weights
from mechunlearn.editing.objectives.rows import given
from mechunlearn.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class RMU(Weights):
    """Representation misdirection: hidden states of the forget set are driven to one random vector.

    Loss: ``mean ||h - c u||^2 / d_model`` over the positions of each forget example (all that predict a
    token), then over examples; the retain set and text are kept by the same distance from the unedited
    model's states.

    When it fails: only blocks up to ``layer`` are trained, and the published model trains the MLPs of the
    last three of these. If c is small next to the states' norms nothing is forgotten; if it is huge the
    text term must be weighted up (published 100 to 1600).

    Args:
        layer: the block whose output is steered; published 7 of 32.
        forget: weight of the steering.
        retain: weight of the distance of the retain set's states from the unedited model's.
        text: the same of general text.
        coefficient: c, the length of the target. None takes twice the median norm of the forget set's states
            in the first batch: the published 6.5 for norms of 2.3 to 3.2.
        zero_mean: whether u is freed of its mean before it is made of length 1. LayerNorm takes the mean off
            whatever it reads, and of a vector drawn from [0, 1), as published, that is about 75 % of the
            squared norm; under RMSNorm it does no harm.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> mu.objectives.RMU(layer=2, text=0.0).requests["forget"].logits
        False

    Source: Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning" (2024).
    """

    layer: int
    coefficient: float | int | None = None
    zero_mean: bool = True
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(TrainingError, 0, layer=self.layer)
        if self.coefficient is not None:
            above(TrainingError, 0, coefficient=self.coefficient)

    @property
    def requests(self) -> Mapping[str, Request]:
        """Hidden states at all positions, of what is kept beside the unedited model's."""
        forget = Request("forget", positions="all", hidden=self.layer, logits=False)
        kept: dict[str, Request] = {split: _beside(split, self.layer) for split in self.kept}
        return {"forget": forget, **kept}

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The control vector: drawn by the seed, of the length of c."""
        states = given(outputs["forget"].hidden, "hidden states", "hidden=a block")
        length = self.coefficient
        if length is None:
            length = 2 * typical_norm(outputs["forget"])
        drawn = control_vector(states.shape[-1], seed=seed, zero_mean=self.zero_mean)
        return {"control": (length * drawn).to(states.device)}

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        control = torch.as_tensor(state["control"])
        kept: dict[str, Float[Tensor, ""]] = {
            split: weight * drift(outputs[split]) for split, weight in self.kept.items()
        }
        return {"forget": self.forget * steering(outputs["forget"], control), **kept}

    def after_step(self, state: State, terms: Terms) -> State:
        """The same: the control vector is fixed."""
        return state


@dataclass(frozen=True, kw_only=True)
class CircuitBreaker(Weights):
    """Representation rerouting: hidden states of the forget set are turned away from what they were.

    Loss at step t: ``a (1 - t / horizon) max(0, cos(h, h_ref))`` on the forget set, plus
    ``a (t / horizon) ||h - h_ref||`` on the retain set and text; means over layers and over positions (all
    that predict a token). Turning comes first, keeping later.

    When it fails: the cosine is stationary where training starts (h is h_ref), so a plain gradient step does
    nothing at first. Optimisers that scale gradients by their size, such as AdamW, get away from there,
    unless the terms that keep the rest, which are distances and pull at full force from the start, hold all
    states as they are: lower their weights. A state at a right angle may still hold a trace of the answer.

    Args:
        layers: the blocks whose outputs are turned; published 10 and 20 of 32. The published retain term
            compares all blocks, this one the same blocks.
        forget: weight of the turning.
        retain: weight of the distance of the retain set's states from the unedited model's.
        text: the same of general text.
        strength: a, the weight of the whole; published 10.
        horizon: steps until all weight is on keeping; published 300, of which 150 were run, so that both
            weights ended at one half.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> sorted(mu.objectives.CircuitBreaker(layers=(1, 2), text=0.0).requests)
        ['forget 1', 'forget 2', 'retain 1', 'retain 2']

    Source: Zou et al., "Improving Alignment and Robustness with Circuit Breakers" (2024).
    """

    layers: tuple[int, ...]
    strength: float | int = 10.0
    horizon: int = 300
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layers, list):  # as JSON holds a tuple
            object.__setattr__(self, "layers", tuple(self.layers))
        listed = isinstance(self.layers, tuple) and bool(self.layers)
        require(listed, TrainingError, "layers", self.layers, "a tuple of blocks")
        for layer in self.layers:
            integer(TrainingError, 0, layers=layer)
        at_least(TrainingError, 0, strength=self.strength)
        integer(TrainingError, 1, horizon=self.horizon)

    @property
    def requests(self) -> Mapping[str, Request]:
        """Hidden states at all positions, beside the unedited model's."""
        splits: tuple[Literal["forget", "retain", "text"], ...] = ("forget", *self.kept)
        return {f"{split} {layer}": _beside(split, layer) for split in splits for layer in self.layers}

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The number of steps taken; neither the outputs nor the seed matter."""
        return {"step": 0}

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        progress = min(int(state["step"]) / self.horizon, 1.0)
        turned = [alignment(outputs[f"forget {layer}"]) for layer in self.layers]
        terms = {"forget": self.forget * self.strength * (1 - progress) * torch.stack(turned).mean()}
        for split, weight in self.kept.items():
            moved = [displacement(outputs[f"{split} {layer}"]) for layer in self.layers]
            terms[split] = weight * self.strength * progress * torch.stack(moved).mean()
        return terms

    def after_step(self, state: State, terms: Terms) -> State:
        """One step more."""
        return {"step": int(state["step"]) + 1}


def control_vector(width: int, *, seed: int, zero_mean: bool) -> Float[Tensor, " d_model"]:
    """Draw a direction of length 1 from a generator of its own.

    Args:
        width: of the residual stream.
        seed: of the draw; the global random state is neither used nor moved.
        zero_mean: whether its mean is taken off first.
    """
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    if zero_mean:
        drawn = drawn - drawn.mean()
    return drawn / drawn.square().sum().sqrt()


def _beside(split: Literal["forget", "retain", "text"], layer: int) -> Request:
    return Request(split, positions="all", hidden=layer, reference="hidden", logits=False)
