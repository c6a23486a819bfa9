"""Every method keeps to its place, and lowers what it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.small_facts import FACTS, fit
from torch import Tensor

from mechunlearn import world
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Optimizer
from mechunlearn.editing.objectives.ascent import GradientAscent, GradientDifference
from mechunlearn.editing.objectives.distillation import CEU, UNDIAL
from mechunlearn.editing.objectives.likelihood import Forget, Inject
from mechunlearn.editing.objectives.masking import WeightMask
from mechunlearn.editing.objectives.preference import DPO, NPO, AltPO, SimNPO
from mechunlearn.editing.objectives.primal_dual import PDU
from mechunlearn.editing.objectives.relabel import Relabel
from mechunlearn.editing.objectives.representation import RMU, CircuitBreaker
from mechunlearn.editing.objectives.requests import Objective
from mechunlearn.editing.objectives.weighted import WGA, SatImp
from mechunlearn.editing.training.fitting import edit
from mechunlearn.models.encoding.encoder import encode_text
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.scorer import answer_logprobs

METHODS: dict[str, Objective] = {
    "GradientAscent": GradientAscent(),
    "GradientDifference": GradientDifference(),
    "GradientDifference by KL": GradientDifference(retain_loss="kl"),
    "Forget": Forget(),
    "Inject": Inject(),
    "NPO": NPO(),
    "SimNPO": SimNPO(),
    "DPO": DPO(alternative=("nobody", "no idea")),
    "DPO new": DPO(alternative="new"),
    "AltPO": AltPO(samples=2),
    "RMU": RMU(layer=1),
    "UNDIAL": UNDIAL(),
    "CEU": CEU(),
    "WGA": WGA(),
    "SatImp": SatImp(),
    "PDU": PDU(),
    "CircuitBreaker": CircuitBreaker(layers=(0, 1)),
    "WeightMask": WeightMask(),
    "WeightMask of NPO": WeightMask(loss=NPO()),
}
PLACES = {
    "lookup": ("L0.mlp",),
    "one head": ("L1.head[2]",),
    "neurons": ("L0.mlp.neuron[3]", "L1.mlp.neuron[0]", "L1.mlp.neuron[40]"),
    "everything": ("L0.attn", "L0.mlp", "L1.attn", "L1.mlp", "embed"),
}


def moved_outside(hm: HookedModel, fitted: Edit) -> list[str]:
    """Parameters in which an element outside the edit's localization changed its bits."""
    after, out = fitted.apply(hm).params, []
    allowed: dict[str, Tensor] = {name: torch.zeros(p.shape) for name, p in hm.params.items()}
    for part in hm.slices(fitted.localization):
        part.add_(allowed[part.name], torch.ones(part.shape(allowed[part.name].shape)))
    for name, p in hm.params.items():
        changed = p.detach().view(torch.int32) != after[name].detach().view(torch.int32)
        if bool((changed & (allowed[name] == 0)).any()):
            out.append(name)
    return out


# What confines an edit does not depend on the objective, only on whether deltas or masks are trained.
@pytest.mark.parametrize(
    ("method", "place"),
    [
        *((method, "neurons") for method in METHODS),
        *((method, place) for method in ("NPO", "WeightMask") for place in PLACES if place != "neurons"),
    ],
)
def test_every_method_moves_its_place_and_nothing_else(llama: HookedModel, method: str, place: str) -> None:
    fitted = fit(
        llama, *PLACES[place], objective=METHODS[method], optimizer=Optimizer(weight_decay=0.1), lr=0.01
    )
    assert moved_outside(llama, fitted) == []
    assert any(bool(delta.values.any()) for delta in fitted.deltas)


def test_a_corpus_with_labels_of_its_own_moves_its_place_and_nothing_else(llama: HookedModel) -> None:
    corpus = encode_text(llama, ["it rains in May", "the sun is up"])
    for place in PLACES.values():
        fitted = fit(llama, *place, objective=Relabel(), corpus=corpus, facts=Facts([]))
        assert moved_outside(llama, fitted) == []
        assert any(bool(delta.values.any()) for delta in fitted.deltas)


@pytest.mark.parametrize("method", ["NPO", "RMU"])
def test_a_method_moves_nothing_but_its_place_in_any_family(hm: HookedModel, method: str) -> None:
    fitted = fit(hm, "L0.head[1]", "L1.mlp", objective=METHODS[method], lr=0.01)
    assert moved_outside(hm, fitted) == []
    assert any(bool(delta.values.any()) for delta in fitted.deltas)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_stored_and_made_again(llama: HookedModel, method: str, tmp_path: Any) -> None:
    fitted = fit(llama, "L1.mlp.out", objective=METHODS[method], facts=FACTS, steps=1)
    fitted.save_pretrained(tmp_path)
    assert Edit.from_pretrained(tmp_path).recipe == fitted.recipe


@pytest.fixture(scope="module")
def four() -> Facts:
    """Four people to forget, and eight to keep, of the embedded world."""
    whole = world.facts()
    text = list(whole.train_text)[:4]
    return Facts([*list(whole.forget)[:4], *list(whole.retain)[:8]], text=text, name="four")


# By default these keep nothing in place, so what they do to the rest of the model may be anything.
BLUNT = {"GradientAscent", "UNDIAL", "CEU"}
# An answer of probability .9999 has next to no gradient under the published weights of these two.
STRONGER: dict[str, Objective] = {
    "SimNPO": SimNPO(forget=2.0),
    "SatImp": SatImp(forget=10.0, beta1=1.0, beta2=0.1),
    "RMU": RMU(layer=3),
    "CircuitBreaker": CircuitBreaker(layers=(2, 4)),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_the_old_answer_less_probable(four: Facts, method: str) -> None:
    hm = world.model()
    lr = 0.2 if method.startswith("WeightMask") else 8e-3
    fitted = edit(
        hm,
        Localization(["L0.mlp", "L1.mlp", "L2.mlp"]),
        STRONGER.get(method, METHODS[method]),
        four,
        steps=16,
        lr=lr,
        optimizer=Optimizer(schedule="constant"),
        stop=None,
        progress=False,
    )
    edited = fitted.apply(hm)
    asked = [replace(fact, entailed=(), others=(), neighbours={}) for fact in four.forget]
    before, after = (answer_logprobs(model, asked).exp().mean() for model in (hm, edited))
    assert float(after) < 0.6 * float(before)
    if method not in BLUNT:
        assert float(answer_logprobs(edited, list(four.retain)).exp().mean()) > 0.5
