"""The search for values against a slow twin: TransformerLens, one unpadded text at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.key_twin import PREFIXES, WRITTEN, contexts, ids_of, known, matrix, means
from helpers.small_facts import unchecked, weights
from helpers.tiny_models import hf_model
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.closed_form.mass_editing import memit
from mechunlearn.editing.closed_form.prompt_contexts import sample_prefixes
from mechunlearn.editing.closed_form.rank_one_edit import rome
from mechunlearn.editing.closed_form.values import ValueSearch
from mechunlearn.errors import TrainingError
from mechunlearn.models.hooked import HookedModel

FACT = Fact("So Bo plays", "Bo", "golf", new="judo", foil="polo")
PLACE = Localization(["L0.mlp.out"])
OPTIONS: dict[str, Any] = {"steps": 6, "lr": 0.5, "kl": 0.5, "decay": 0.5, "bound": 1.0, "enough": 0.0}


@pytest.fixture(scope="module")
def wide(tokenizer: Any) -> HookedModel:
    """A model in float64 whose attention TransformerLens computes in float64 too."""
    return HookedModel.from_hf(hf_model("gpt2"), tokenizer).to(torch.float64)


def by_hand(
    hm: HookedModel, fact: Fact, target: str, size: float, *, steps: int, lr: float, kl: float, decay: float,
    bound: float, enough: float,
) -> tuple[Tensor, list[list[float]]]:  # fmt: skip
    """What to add to the value of a fact, and the loss terms of every step."""
    essence = f"{fact.subject} is a"
    before = hm.bridge(torch.tensor([ids_of(hm, essence)]))[0, -1].log_softmax(-1).detach()
    delta, history = torch.zeros(32, dtype=torch.float64, requires_grad=True), []
    optimizer = torch.optim.Adam([delta], lr=lr)

    def run(text: str, whole: str) -> Tensor:
        at = len(ids_of(hm, text[: text.rindex(fact.subject) + len(fact.subject)])) - 1

        def add(values: Tensor, hook: Any) -> Tensor:
            return values + torch.zeros_like(values).index_add(1, torch.tensor([at]), delta[None, None])

        hooks = [("blocks.0.mlp.out.hook_out", add)]
        logits: Tensor = hm.bridge.run_with_hooks(torch.tensor([ids_of(hm, whole)]), fwd_hooks=hooks)
        return logits[0].log_softmax(-1)

    for _ in range(steps):
        losses = []
        for text in contexts(fact, PREFIXES):
            whole, start = f"{text} {target}", len(ids_of(hm, text))
            ids = ids_of(hm, whole)
            said = run(text, whole)
            losses.append(-torch.stack([said[i - 1, ids[i]] for i in range(start, len(ids))]).mean())
        now = run(essence, essence)[-1]
        terms = [
            torch.stack(losses).mean(),
            kl * (now.exp() * (now - before)).sum(),
            decay * delta.norm() / size**2,
        ]
        history.append([float(term.detach()) for term in terms])
        if sum(history[-1]) < enough:
            break
        optimizer.zero_grad()
        sum(terms[1:], terms[0]).backward(inputs=[delta])
        optimizer.step()
        with torch.no_grad():
            delta *= min(1.0, bound * size / float(delta.norm()))
    return delta.detach(), history


def found(
    hm: HookedModel, method: Any, fact: Fact, search: ValueSearch, **options: Any
) -> tuple[np.ndarray, list[list[float]]]:
    """What a method added to the value of a fact, and its history."""
    edit = method(
        hm, PLACE, Facts([fact]), statistics=known(hm, "L0.mlp.out"), prefixes=PREFIXES, progress=False,
        search=search, **options,
    )  # fmt: skip
    moved = matrix(edit.apply(hm), 0) - matrix(hm, 0)
    key = means(hm, 0, Facts([fact]), PREFIXES)["keys"][0]
    return moved @ key, [[record[name] for name in ("answer", "essence", "decay")] for record in edit.history]


@pytest.mark.parametrize(
    ("method", "measured", "search", "options"),
    [
        (rome, "values", {}, {}),
        (rome, "values", {"bound": 9.0, "enough": 6.05, "decay": 0.0}, {}),
        (memit, "stream", {}, {"weight": 0}),
    ],
)
def test_the_value_is_what_a_slow_twin_finds(
    wide: HookedModel, method: Any, measured: str, search: dict[str, Any], options: dict[str, Any]
) -> None:
    size = float(np.linalg.norm(means(wide, 0, Facts([FACT]), PREFIXES)[measured][0]))
    chosen = {**OPTIONS, **search}
    expected, history = by_hand(wide, FACT, "judo", size, **chosen)
    delta, curve = found(wide, method, FACT, ValueSearch(**chosen), **options)
    np.testing.assert_allclose(delta, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(curve, history, atol=1e-6)
    assert 0.1 < float(expected.norm()) <= chosen["bound"] * size + 1e-9
    if chosen["enough"]:
        assert 1 < len(history) < 6 and sum(history[-1]) < chosen["enough"]


@pytest.mark.parametrize(
    ("target", "answer"), [("new", "judo"), ("foil", "polo"), ("nobody", "nobody"), (["a man"], "a man")]
)
def test_the_target_is_a_field_of_the_fact_or_any_text(wide: HookedModel, target: Any, answer: str) -> None:
    options = {**OPTIONS, "steps": 1}
    expected = by_hand(wide, FACT, answer, 1.0, **options)[1]
    _, curve = found(wide, rome, FACT, ValueSearch(**options), target=target)
    np.testing.assert_allclose(curve[0][0], expected[0][0], atol=1e-9)


def test_many_facts_at_once_are_each_fact_alone(wide: HookedModel) -> None:
    """One of them is done long before the others, and stays where it was."""
    facts = Facts([FACT, *WRITTEN, Fact("Who is Cy? A", "Cy", "golf", new="be")])
    statistics = known(wide, "L0.mlp.out")
    search = ValueSearch(**{**OPTIONS, "enough": 4.9})
    options: dict[str, Any] = {"search": search, "prefixes": (), "progress": False, "weight": 0}
    whole, small = (
        memit(wide, PLACE, facts, statistics=statistics, batch_size=size, **options) for size in (64, 3)
    )
    moved = matrix(whole.apply(wide), 0) - matrix(wide, 0)
    np.testing.assert_allclose(moved, matrix(small.apply(wide), 0) - matrix(wide, 0), atol=1e-9)
    keys, steps = means(wide, 0, facts, ())["keys"], []
    for key, fact in zip(keys, facts, strict=True):
        alone = memit(wide, PLACE, Facts([fact]), statistics=statistics, **options)
        expected = (matrix(alone.apply(wide), 0) - matrix(wide, 0)) @ key
        np.testing.assert_allclose(moved @ key, expected, atol=1e-6)
        steps.append(alone.step)
    assert min(steps) < max(steps) == whole.step


def test_sampled_prefixes_are_so_many_of_so_many_tokens(wide: HookedModel) -> None:
    some = sample_prefixes(wide, [(3, 5), (2, 10)], seed=0)
    assert len(some) == 5 and all(prefix.endswith(".") for prefix in some)
    assert some == sample_prefixes(wide, [(3, 5), (2, 10)], seed=0)
    assert some != sample_prefixes(wide, [(3, 5), (2, 10)], seed=1)
    assert max(len(ids_of(wide, prefix)) for prefix in some) <= 10 + 2


def test_where_nothing_carries_the_value_on_there_is_nothing_to_find(llama: HookedModel) -> None:
    place, message = (
        Localization(["L1.mlp.out"]),
        "L1.mlp.out writes at the subject does not reach the answer",
    )
    with pytest.raises(TrainingError, match=message + " of .*So Bo plays.*; no|.*choose a lower layer"):
        rome(llama, place, Facts([FACT]), statistics=known(llama, "L1.mlp.out"), prefixes=(), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; give a whole number from 1"),
        ({"lr": 0.0}, "lr is 0.0; give a number above 0"),
        ({"bound": -1}, "bound is -1; give a number above 0"),
        ({"kl": -0.1}, "kl is -0.1; give a number from 0"),
        ({"decay": -1.0}, "decay is -1.0; give a number from 0"),
        ({"enough": -1}, "enough is -1; give a number from 0"),
        ({"steps": 2.5}, "steps is 2.5; give a whole number"),
        ({"lr": "fast"}, "lr is 'fast'; give a number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(TrainingError, match=message):
        ValueSearch(**options)


def test_a_loss_that_is_not_finite_is_an_error(llama: HookedModel) -> None:
    broken = llama.fork({"model.norm.weight": torch.full((32,), torch.nan)})
    before, statistics = weights(broken), known(broken, "L0.mlp.out")
    with pytest.raises(TrainingError, match=r"the loss is not finite at step 1 .*the model is unchanged"):
        rome(broken, PLACE, Facts([FACT]), statistics=statistics, prefixes=(), progress=False)
    assert weights(broken) == before
