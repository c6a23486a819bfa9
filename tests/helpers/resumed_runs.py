"""Runs of training that can be killed and gone on with in another process.

As a script it starts every run in a process of its own, which kills itself after some steps and leaves its
checkpoints in a folder.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from helpers.deep_models import deep_model
from helpers.small_facts import FACTS, fit
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Optimizer, Stop
from mechunlearn.editing.objectives.likelihood import Inject
from mechunlearn.editing.objectives.requests import Outputs, Request, State
from mechunlearn.editing.training.limits import Limits
from mechunlearn.models.hooked import HookedModel

MANY = Facts(
    [
        *FACTS,
        Fact("Ed plays", "Ed", "golf", new="judo"),
        Fact("Flo plays", "Flo", "judo", new="golf"),
        Fact("Gus plays", "Gus", "golf", split="retain"),
        Fact("Hal plays", "Hal", "polo", split="retain"),
    ],
    text=FACTS.text * 2,
)


@dataclass(frozen=True)
class Drifting:
    """Its aim and its weight move from step to step, and its answers vary from pass to pass."""

    aim: ClassVar[Literal["new", "forget"]] = "new"
    requests: ClassVar[Mapping[str, Request]] = {
        "forget": Request("forget", ("golf", "polo", "judo"), hidden=2, reference="hidden"),
        "retain": Request("retain", reference="label_logprobs"),
    }

    def init(self, readings: Mapping[str, Outputs], *, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        return {"weight": 1.0, "steps": 0, "aim": torch.randn(32, generator=generator)}

    def __call__(self, readings: Mapping[str, Outputs], state: State) -> dict[str, Tensor]:
        one, other = readings["forget"], readings["retain"]
        assert one.hidden is not None and other.reference_label_logprobs is not None
        logprobs = other.logits.log_softmax(-1).gather(-1, other.labels[:, None])[:, 0]
        return {
            "steer": state["weight"] * (one.hidden - state["aim"]).square().mean(),
            "write": -one.logits.log_softmax(-1).gather(-1, one.labels[:, None]).mean(),
            "keep": (logprobs - other.reference_label_logprobs).square().mean(),
        }

    def after_step(self, state: State, terms: Mapping[str, Tensor]) -> State:
        aim, weight, steps = state["aim"], float(state["weight"]), int(state["steps"])
        return {"aim": aim + 0.1 * terms["steer"], "weight": 0.9 * weight, "steps": steps + 1}


@dataclass(frozen=True)
class Turning:
    """Raises the new answer for ten steps, and lowers it from then on."""

    aim: ClassVar[Literal["new", "forget"]] = "new"
    requests: ClassVar[Mapping[str, Request]] = {"forget": Request("forget", "new")}

    def init(self, readings: Mapping[str, Outputs], *, seed: int) -> State:
        return {"left": 10}

    def __call__(self, readings: Mapping[str, Outputs], state: State) -> dict[str, Tensor]:
        reading, sign = readings["forget"], 1 if state["left"] > 0 else -1
        return {"loss": -sign * reading.logits.log_softmax(-1).gather(-1, reading.labels[:, None]).mean()}

    def after_step(self, state: State, terms: Mapping[str, Tensor]) -> State:
        return {"left": state["left"] - 1}


RUNS: dict[str, dict[str, Any]] = {
    "adam": {
        "objective": Inject(),
        "stop": Stop(1.0, 1.0, every=2),
        "optimizer": Optimizer(warmup=2, clip=1.0),
    },
    "state": {"objective": Drifting(), "optimizer": Optimizer(micro_batches=2), "seed": 3},
    "sgd": {"objective": Inject(text=0.0), "optimizer": Optimizer("SGD"), "limits": Limits(memory=20_000)},
}
STEPS, EVERY, KILLED = 9, 2, 5


def train(hm: HookedModel, name: str, folder: Path | None, *, every: int = EVERY, **options: Any) -> Edit:
    """One of the runs; its batches are smaller than the sets."""
    common = {"steps": STEPS, "lr": 0.01, "facts": MANY, "checkpoint": folder, "limits": Limits()}
    chosen = {**common, **RUNS[name], **options}
    chosen["limits"] = replace(chosen["limits"], batch_size=3, checkpoint_every=every)
    return fit(hm, "L2.mlp", "L3.head[1]", **chosen)


def kill(step: int, terms: Mapping[str, float]) -> None:
    """End the process at once."""
    if step == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny = deep_model()
    for run in RUNS:
        child = os.fork()
        if not child:
            train(tiny, run, Path(sys.argv[1]) / run, callback=kill)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        print(run, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "not killed")
