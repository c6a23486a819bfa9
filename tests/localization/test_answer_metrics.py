"""What is measured of a run: rows and words, metrics against hand-worked numbers, and every refusal."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers.patched_facts import FACTS, METRICS, OTHERS, SHORT, last_logit, wide
from helpers.patching_twin import FactTwin, logits, word_tokenizer
from helpers.patching_twin import full_softmax as full_softmax
from helpers.tiny_models import hf_model
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.localization.answer_tokens import contrast
from mechunlearn.localization.engine.cached_run import cached_run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.readout import FinalStates
from mechunlearn.localization.patching.answer_metrics import (
    Measure,
    Metric,
    answer_rows,
    metrics_of,
    name_of,
    words_of,
)
from mechunlearn.models.hooked import HookedModel


def test_words_that_feed_the_same_tokens_share_a_row() -> None:
    hm = wide("llama")
    words = [
        {"w20": 1.0, "w21": -0.5, "w22 w23": -0.25, "w22 w24": -0.25},
        {"w20 w21 w25": 1.0, "w20 w21": -1.0},
    ]
    asked = answer_rows(hm, [FACTS[0], FACTS[1]], words)
    # The first tokens are read in every row; the second in those that feed w22, or w20, and so on.
    assert asked.fact.tolist() == [0, 0, 1, 1] and not asked.cancels
    assert asked.weight.tolist() == [[1.0, -0.5], [-0.25, -0.25], [1.0, 0.0], [-1.0, 0.0]]
    assert asked.ids[:, 0].tolist() == [[20, -100, -100], [22, 23, -100], [20, 21, 25], [20, 21, -100]]
    assert asked.batch.lengths.tolist() == [6, 7, 4, 3] and asked.positions[:, 0].tolist() == [5, 5, 1, 1]
    assert asked.is_answer.tolist() == [[True, False], [False, False], [False, False], [False, False]]
    assert answer_rows(hm, SHORT, [contrast(fact) for fact in SHORT]).cancels


def whole(twin: FactTwin, f: int, word: str) -> Tensor:
    """All logits of a fact's prompt with a word."""
    return logits(twin.hm, twin.prompt(f, word))


@pytest.mark.parametrize("facts", [FACTS, SHORT])
def test_every_metric_of_a_run_is_what_its_definition_gives(family: str, facts: tuple[Fact, ...]) -> None:
    hm, twin = wide(family), FactTwin(wide(family), facts, OTHERS)
    metrics: tuple[Metric, ...] = (*METRICS, last_logit)
    asked = answer_rows(hm, facts, words_of(facts, metrics))
    run = cached_run(hm, asked.batch)
    measure = Measure(asked, metrics).against(hm, run)
    rows = Engine(hm).baseline(run, measure)
    found = torch.zeros(len(facts), len(metrics), dtype=torch.float64).index_add_(0, asked.fact, rows)
    for f in range(len(facts)):
        for m, metric in enumerate(metrics):
            wanted = twin.score(f, metric, partial(whole, twin, f))
            assert abs(float(found[f, m]) - wanted) < 1e-10, (f, metric)
    assert found[:, METRICS.index("kl")].abs().max() < 1e-10


def test_a_difference_of_single_tokens_reads_columns_and_nothing_else() -> None:
    hm = wide("gemma2")
    asked = answer_rows(hm, SHORT, words_of(SHORT, METRICS[:1]))
    run, measure = cached_run(hm, asked.batch), Measure(asked, ("logit_diff",))
    final = FinalStates(
        hm, run.resid[-1].gather(1, measure.positions[..., None].expand(-1, -1, run.resid[-1].shape[-1]))
    )
    rows = torch.arange(len(asked))
    by_columns = measure(final, rows)
    assert not measure.all_logits and "logits" not in final.__dict__
    torch.testing.assert_close(
        final.columns(asked.ids)[..., 0], final.logits[:, 0].gather(1, asked.ids[..., 0].clamp(min=0))
    )
    every = (final.logits[:, 0].gather(1, asked.ids[..., 0].clamp(min=0)) * asked.weight).sum(1)
    torch.testing.assert_close(by_columns[:, 0], every, rtol=0.0, atol=1e-12)


def test_a_users_hook_on_the_logits_is_heeded_by_a_difference_too() -> None:
    hm = wide("llama")
    asked = answer_rows(hm, SHORT, words_of(SHORT, METRICS[:1]))
    run = cached_run(hm, asked.batch)
    with hm.hooks([("unembed.hook_out", lambda x, hook: torch.tanh(x))]):
        found = Engine(hm).baseline(run, Measure(asked, METRICS[:1]))
        both = Engine(hm).baseline(run, Measure(asked, METRICS[:2]))
    torch.testing.assert_close(found[:, 0], both[:, 0], rtol=0.0, atol=1e-12)


def test_half_precision_differences_are_summed_in_single_precision() -> None:
    hm = HookedModel.from_hf(hf_model("llama"), word_tokenizer()).to(torch.bfloat16)
    fact = Fact("w14 w15", "w14", "w24", options=tuple(f"w{i}" for i in range(24, 31)))
    asked = answer_rows(hm, [fact], words_of([fact], METRICS[:1]))
    run, measure = cached_run(hm, asked.batch), Measure(asked, ("logit_diff",))
    shown = FinalStates(hm, run.resid[-1][:, -1:]).logits[0, 0].double()
    wanted = shown[24] - shown[25:31].mean()
    assert abs(float(Engine(hm).baseline(run, measure)) - wanted) < 1e-5


def test_a_function_is_told_which_facts_it_measures_and_cannot_disturb_the_others() -> None:
    hm, seen = wide("llama"), []

    def greedy(logits: Tensor, facts: Tensor) -> Tensor:
        seen.append(facts.tolist())
        return logits.max(1).values

    asked = answer_rows(hm, FACTS, words_of(FACTS, ("kl",)))
    run = cached_run(hm, asked.batch)
    Engine(hm).baseline(run, Measure(asked, (greedy,)))
    Engine(hm).baseline(run, Measure(asked, (greedy,), numbers=(7, 5, 3, 1)))
    assert seen == [[0, 1, 2, 3], [7, 5, 3, 1]] and name_of(greedy) == "greedy"


def test_what_is_compared_with_the_answer_is_the_foil_then_the_new_answer_then_the_options() -> None:
    everything = Fact("a b", "a", "x", foil="y", new="z", options=("x", "z", "q"))
    assert contrast(everything) == {"x": 1.0, "y": -1.0}
    assert contrast(Fact("a b", "a", "x", new="z", options=("x", "z", "q"))) == {"x": 1.0, "z": -1.0}
    assert contrast(Fact("a b", "a", "x", options=("x", "z", "q"))) == {"x": 1.0, "z": -0.5, "q": -0.5}
    with pytest.raises(
        FactError, match="'a b' has nothing to compare its answer 'x' with; give it `foil=`, `new=` or"
    ):
        contrast(Fact("a b", "a", "x"))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "logit diff",
            "metric must be one of 'logit_diff', .*; not 'logit diff', or a function of logits",
        ),
        (("kl", "odds"), "not 'odds'"),
        ((), "metric names one or more of .*; not none"),
        (("kl", "kl"), r"metrics need names of their own; not \['kl', 'kl'\]"),
        (
            [lambda logits, facts: logits[:, 0], lambda logits, facts: logits[:, 1]],
            r"'<lambda>', '<lambda>'.*def gives",
        ),
    ],
)
def test_metrics_that_do_not_exist_are_errors(metric: Any, message: str, unchecked: None) -> None:
    with pytest.raises(ScoresError, match=message):
        metrics_of(metric)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda logits, facts: logits.mean(), r"shape \(\)"),
        (lambda logits, facts: logits, r"shape \(4, 96\)"),
        (lambda logits, facts: 1.0, "float"),
    ],
)
def test_a_function_that_gives_no_number_per_row_is_an_error(
    function: Any, given: str, unchecked: None
) -> None:
    hm = wide("llama")
    asked = answer_rows(hm, FACTS, words_of(FACTS, ("kl",)))
    with pytest.raises(
        ScoresError, match=f"the metric '<lambda>' gave {given} for 4 rows of logits; it must give"
    ):
        Engine(hm).baseline(cached_run(hm, asked.batch), Measure(asked, (function,)))
