"""Probes against scikit-learn by hand, and on a model whose mechanism is known."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.planted import ANSWERS, NAMES, planted_facts, planted_model
from helpers.tiny_facts import tiny_facts, unchecked
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.hooks import steer
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.localization.probing.linear_probes import (
    PROBE_KINDS,
    ProbeKind,
    fit_linear,
    fit_probes,
)
from mechunlearn.localization.probing.probe import probe
from mechunlearn.models.activations import probe_sites, states_at
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel


@cache
def planted() -> HookedModel:
    return planted_model()


def rephrased(facts: Facts) -> Facts:
    """The same facts in a second phrasing of the planted model's few words."""
    return Facts([*facts, *(fact.asking(f"playing {fact.subject} is playing") for fact in facts)])


def accuracy(scores: Any, metric: str = "accuracy") -> dict[str, float]:
    values = scores.sel(metric=metric).reduce().values.values
    return dict(zip(map(str, scores.sites), values.tolist(), strict=True))


def test_a_planted_lookup_shows_as_a_step() -> None:
    accuracies = accuracy(probe(planted(), planted_facts(), progress=False))
    assert all(accuracies[site] <= 0.4 for site in ("L0.resid_pre", "L0.resid_post", "L1.resid_mid"))
    assert all(accuracies[site] == 1.0 for site in ("L1.resid_post", "L2.resid_mid", "L3.resid_post"))


def test_the_last_token_knows_only_after_the_carrier() -> None:
    accuracies = accuracy(probe(planted(), planted_facts(), positions="last", control=False, progress=False))
    assert accuracies["L1.resid_post"] <= 0.4 and accuracies["L2.resid_mid"] == 1.0


def test_the_control_stays_near_chance_where_the_probe_is_perfect() -> None:
    scores = probe(planted(), planted_facts(), progress=False)
    assert accuracy(scores, "shuffled control")["L1.resid_post"] <= 0.5


def by_hand(reader: str, C: float) -> Any:
    """What scikit-learn has of that name."""
    models = {
        "logistic": LogisticRegression(C=C, max_iter=2000),
        "ridge": RidgeClassifier(alpha=1 / (2 * C)),
        "mean_difference": NearestCentroid(),
    }
    return make_pipeline(StandardScaler(), models[reader])


@pytest.mark.parametrize("reader", PROBE_KINDS)
@pytest.mark.parametrize("labels", [2, 5])
def test_every_reader_says_what_scikit_learn_says(reader: ProbeKind, labels: int) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(1, 3, (90, 7)), draw.choice(list("abcde")[:labels], 90)
    x[:, 0] += (y == "a") * 4.0
    new = draw.normal(1, 3, (200, 7))
    said = fit_linear(x, y, 0.1, kind=reader).predict(new)
    assert np.array_equal(said, by_hand(reader, 0.1).fit(x, y).predict(new)) and len(set(said)) > 1


@pytest.mark.parametrize("reader", PROBE_KINDS)
def test_a_cheap_reader_finds_the_planted_lookup_as_well(reader: ProbeKind) -> None:
    accuracies = accuracy(probe(planted(), planted_facts(), kind=reader, control=False, progress=False))
    assert all(accuracies[site] <= 0.45 for site in ("L0.resid_pre", "L0.resid_post", "L1.resid_mid"))
    assert all(accuracies[site] == 1.0 for site in ("L1.resid_post", "L2.resid_mid", "L3.resid_post"))


def test_the_result_does_not_depend_on_how_many_are_fitted_at_a_time(llama: HookedModel) -> None:
    facts = rephrased(planted_facts()[:20])
    first, second = (probe(planted(), facts, n_jobs=n_jobs, progress=False) for n_jobs in (None, 2))
    assert first == second
    one, two = (fit_probes(llama, tiny_facts(), n_jobs=n_jobs) for n_jobs in (None, 2))
    assert list(one) == list(two) == probe_sites(llama)
    assert all(torch.equal(one[site].weight, two[site].weight) for site in one)


def test_the_progress_bar_counts_sites(capsys: pytest.CaptureFixture[str]) -> None:
    probe(planted(), planted_facts()[:16], control=False)
    assert "9/9" in capsys.readouterr().err


def test_it_is_scikit_learns_regression_on_scikit_learns_split() -> None:
    facts = planted_facts()
    fitted, scored = facts[:25], facts[25:]
    sites = probe_sites(planted())
    scores = probe(planted(), fitted, test=scored, C=0.3, control=False, progress=False)
    for s, states in enumerate(states_at(planted(), facts, sites).numpy()):
        by_hand = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000))
        by_hand.fit(states[:25], [fact.answer for fact in fitted])
        right = by_hand.predict(states[25:]) == [fact.answer for fact in scored]
        assert np.array_equal(scores.values[:, s, 0].values, right)


def test_all_phrasings_of_one_subject_are_on_one_side() -> None:
    both = rephrased(planted_facts())
    accuracies = accuracy(probe(planted(), both, control=False, progress=False))
    # The embedding gives every name away, so a leak between folds would show as a perfect reading.
    assert accuracies["L0.resid_pre"] <= 0.4 and accuracies["L1.resid_post"] == 1.0


def test_the_seed_decides() -> None:
    facts = planted_facts()[:16]
    first = probe(planted(), facts, seed=1, progress=False)
    assert first == probe(planted(), facts, seed=1, progress=False)
    assert first != probe(planted(), facts, seed=2, progress=False)


@pytest.mark.parametrize("reader", ["ridge", "mean_difference"])
@pytest.mark.parametrize("answers", [ANSWERS, ANSWERS[:2]])
def test_a_folded_reader_scores_raw_states_as_the_pipeline_does(
    answers: tuple[str, ...], reader: ProbeKind
) -> None:
    facts = planted_facts().where(lambda fact: fact.answer in answers)
    site = Site.parse("L1.resid_post")
    folded = fit_probes(planted(), facts, sites=[site], kind=reader, C=0.5)[site]
    states, spoken = states_at(planted(), facts, [site])[0], [fact.answer for fact in facts]
    logits = folded.logprobs(states)
    scaled = torch.tensor(StandardScaler().fit_transform(states.numpy()))
    if reader == "ridge":
        ridge = RidgeClassifier(alpha=1.0).fit(scaled.numpy(), spoken)
        expected = torch.tensor(ridge.decision_function(scaled.numpy())).reshape(len(facts), -1)
        expected = expected if len(answers) > 2 else torch.cat([0 * expected, expected], dim=1)
    else:
        there = [[said == label for said in spoken] for label in folded.labels]
        means = torch.stack([scaled[torch.tensor(rows)].mean(0) for rows in there])
        expected = -(torch.cdist(scaled, means) ** 2) / 2
    torch.testing.assert_close(logits, expected.log_softmax(-1), atol=1e-8, rtol=0)
    assert folded.predict(states) == tuple(spoken)


@pytest.mark.parametrize("answers", [ANSWERS, ANSWERS[:2]])
def test_a_fitted_probe_reads_as_scikit_learn_does(answers: tuple[str, ...]) -> None:
    facts = planted_facts().where(lambda fact: fact.answer in answers)
    site = Site.parse("L1.resid_post")
    reader = fit_probes(planted(), facts, sites=[site])[site]
    states = states_at(planted(), facts, [site])[0]
    by_hand = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    by_hand.fit(states.numpy(), [fact.answer for fact in facts])
    expected = torch.tensor(by_hand.predict_proba(states.numpy()))
    torch.testing.assert_close(reader.logprobs(states).exp(), expected, atol=1e-9, rtol=0)
    assert reader.predict(states) == tuple(by_hand.predict(states.numpy()))


def test_a_fitted_probe_is_a_hook_that_reads_every_position() -> None:
    site, facts = Site.parse("L2.resid_post"), planted_facts()
    reader = fit_probes(planted(), facts, sites=[site])[site]
    batch, store = encode(planted(), facts, answer=None), dict[str, Tensor]()
    planted().run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=[reader.hook(store)])
    at_subject = store["L2.resid_post"][torch.arange(len(batch)), batch.subject_last]
    assert store["L2.resid_post"].shape == (*batch.tokens.shape, len(ANSWERS))
    assert [reader.labels[i] for i in at_subject.argmax(-1)] == [fact.answer for fact in facts]


@pytest.mark.parametrize("how", PROBE_KINDS)
def test_steering_along_a_direction_changes_what_the_model_says(how: ProbeKind) -> None:
    site, facts = Site.parse("L1.resid_post"), planted_facts()
    reader = fit_probes(planted(), facts, sites=[site], kind=how)[site]
    batch = encode(planted(), facts, answer=None)
    push = steer(reader.name, reader.direction("golf"), scale=40.0, at=batch.subject)
    logits = planted().run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=[push])
    said = logits[torch.arange(len(batch)), batch.end].argmax(-1)
    assert float((said == planted().to_single_token("golf")).float().mean()) > 0.9
    assert float(reader.direction("golf").norm()) == pytest.approx(1)


def test_an_unknown_label_names_the_known_ones() -> None:
    site = Site.parse("L1.resid_post")
    reader = fit_probes(planted(), planted_facts(), sites=[site])[site]
    with pytest.raises(
        ScoresError, match="label must be one of 'chess', 'golf', 'judo' or 'polo'; not 'tennis'"
    ):
        reader.direction("tennis")


ONE = Facts(Fact(f"{name} is playing", name, "golf") for name in NAMES[:6])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"positions": "first"},
            ScoresError,
            "positions must be one of 'last_subject' or 'last'; not 'first'",
        ),
        (
            {"kind": "lasso"},
            ScoresError,
            "kind must be one of 'logistic', 'ridge' or 'mean_difference'; not",
        ),
        ({"C": 0}, ScoresError, "C must be above 0 .larger values regularise less.; not 0"),
        ({"batch_size": 0}, ScoresError, "batch_size must be above zero; not 0"),
        ({"folds": 1}, ScoresError, "folds must be at least 2; not 1"),
        (
            {"facts": ONE},
            FactError,
            "fitted on has 1 different answers; give facts with at least two",
        ),
        ({"facts": planted_facts()[:1]}, FactError, "has 1 different subjects; give facts with at least two"),
        (
            {"test": planted_facts()[:2]},
            FactError,
            "2 subjects, such as 'Ala', are both fitted and scored",
        ),
    ],
)
def test_what_cannot_be_probed_is_an_error(options: dict[str, Any], error: Any, message: str) -> None:
    options = {"facts": planted_facts()} | options
    with unchecked(), pytest.raises(error, match=message):
        probe(planted(), options.pop("facts"), progress=False, **options)
