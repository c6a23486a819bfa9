"""Objectives on hidden states: neither logits nor blocks above the last one they read are computed."""

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
from mechunlearn.editing.objectives.rows import required
from mechunlearn.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class RMU(Weights):
    """Representation misdirection: the hidden states of the forget set are moved towards one random vector.

    Loss: ``mean ||h - c u||^2 / d_model`` over the positions of each forget example (all that predict a
    token), then over examples, with u a random unit vector. The retain set and text have the same loss with
    the unedited model's states in place of ``c u``.

    When it fails: only blocks up to ``layer`` are trained (the published method trains the MLPs of the last
    three of these). If c is small compared with the states' norms nothing is forgotten; if it is very large
    the text term needs a large weight (published 100 to 1600).

    Args:
        layer: block whose output is steered; published 7 of 32.
        forget: weight of the steering.
        retain: weight of the distance of the retain set's states from the unedited model's.
        text: weight of the same distance on general text.
        coefficient: c, the norm of the target. None for twice the median norm of the forget set's states in
            the first batch (published 6.5, for norms of 2.3 to 3.2).
        zero_mean: whether the mean of the random vector is subtracted before it is normalised. LayerNorm
            subtracts the mean of its input, which for a vector drawn from [0, 1), as published, is about 75 %
            of the squared norm; under RMSNorm it does no harm.

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
        """Hidden states at all positions; for the retained data also the unedited model's."""
        forget = Request("forget", positions="all", hidden=self.layer, logits=False)
        retained: dict[str, Request] = {split: _compared(split, self.layer) for split in self.kept}
        return {"forget": forget, **retained}

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The control vector ``c u``; ``seed`` determines u."""
        states = required(outputs["forget"].hidden, "hidden states", "hidden=a block")
        length = self.coefficient
        if length is None:
            length = 2 * typical_norm(outputs["forget"])
        direction = control_vector(states.shape[-1], seed=seed, zero_mean=self.zero_mean)
        return {"control": (length * direction).to(states.device)}

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        control = torch.as_tensor(state["control"])
        retained: dict[str, Float[Tensor, ""]] = {
            split: weight * drift(outputs[split]) for split, weight in self.kept.items()
        }
        return {"forget": self.forget * steering(outputs["forget"], control), **retained}

    def after_step(self, state: State, terms: Terms) -> State:
        """The same state: the control vector is fixed."""
        return state


@dataclass(frozen=True, kw_only=True)
class CircuitBreaker(Weights):
    """Representation rerouting: the hidden states of the forget set are made orthogonal to what they were.

    Loss at step t: ``a (1 - t / horizon) max(0, cos(h, h_ref))`` on the forget set, plus ``a (t / horizon)
    ||h - h_ref||`` on the retain set and text; means over layers and over positions (all that predict a
    token). So training starts with the forget set and ends with the retained data.

    When it fails: the cosine is stationary where training starts (h is h_ref), so a plain gradient step does
    nothing at first. Optimisers that scale gradients by their size, such as AdamW, leave this point, unless
    the retain terms, which are distances and have a full gradient from the start, hold all states in place:
    then lower their weights. A state that is orthogonal to the old one may still carry a trace of the answer.

    Args:
        layers: blocks whose outputs are rerouted; published 10 and 20 of 32. The published retain term
            compares all blocks, this one the same blocks.
        forget: weight of the rerouting.
        retain: weight of the distance of the retain set's states from the unedited model's.
        text: weight of the same distance on general text.
        strength: a, the weight of the whole loss; published 10.
        horizon: step at which all weight is on the retained data; published 300, of which 150 were run, so
            that both weights ended at one half.

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
        if isinstance(self.layers, list):  # JSON stores a tuple as a list
            object.__setattr__(self, "layers", tuple(self.layers))
        nonempty = isinstance(self.layers, tuple) and bool(self.layers)
        require(nonempty, TrainingError, "layers", self.layers, "a tuple of blocks")
        for layer in self.layers:
            integer(TrainingError, 0, layers=layer)
        at_least(TrainingError, 0, strength=self.strength)
        integer(TrainingError, 1, horizon=self.horizon)

    @property
    def requests(self) -> Mapping[str, Request]:
        """Hidden states at all positions, of the model and of the unedited model, by split and layer."""
        splits: tuple[Literal["forget", "retain", "text"], ...] = ("forget", *self.kept)
        return {f"{split} {layer}": _compared(split, layer) for split in splits for layer in self.layers}

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The number of steps taken, 0; the outputs and the seed are not used."""
        return {"step": 0}

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        progress = min(int(state["step"]) / self.horizon, 1.0)
        cosines = [alignment(outputs[f"forget {layer}"]) for layer in self.layers]
        terms = {"forget": self.forget * self.strength * (1 - progress) * torch.stack(cosines).mean()}
        for split, weight in self.kept.items():
            distances = [displacement(outputs[f"{split} {layer}"]) for layer in self.layers]
            terms[split] = weight * self.strength * progress * torch.stack(distances).mean()
        return terms

    def after_step(self, state: State, terms: Terms) -> State:
        """The number of steps taken, plus one."""
        return {"step": int(state["step"]) + 1}


def control_vector(width: int, *, seed: int, zero_mean: bool) -> Float[Tensor, " d_model"]:
    """A random direction of norm 1; the global random state is neither used nor changed."""
    direction = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    if zero_mean:
        direction = direction - direction.mean()
    return direction / direction.square().sum().sqrt()


def _compared(split: Literal["forget", "retain", "text"], layer: int) -> Request:
    return Request(split, positions="all", hidden=layer, reference="hidden", logits=False)
