"""Probes against scikit-learn by hand, and on a model whose mechanism is known."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from planted import ANSWERS, NAMES, planted_facts, planted_model
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import tiny_facts, unchecked
from torch import Tensor

from mechunlearn.encoding import encode
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.facts import Facts
from mechunlearn.facts.fact import Fact
from mechunlearn.hooks import steer
from mechunlearn.model import HookedModel
from mechunlearn.probing import probe
from mechunlearn.readers import fit_probes, has_mid, probe_sites, states_at
from mechunlearn.sites import Site


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
    found = accuracy(probe(planted(), planted_facts(), progress=False))
    assert all(found[site] <= 0.4 for site in ("L0.resid_pre", "L0.resid_post", "L1.resid_mid"))
    assert all(found[site] == 1.0 for site in ("L1.resid_post", "L2.resid_mid", "L3.resid_post"))


def test_the_last_token_knows_only_after_the_carrier() -> None:
    found = accuracy(probe(planted(), planted_facts(), at="last", control=False, progress=False))
    assert found["L1.resid_post"] <= 0.4 and found["L2.resid_mid"] == 1.0


def test_the_control_stays_near_chance_where_the_probe_is_perfect() -> None:
    scores = probe(planted(), planted_facts(), progress=False)
    assert accuracy(scores, "shuffled control")["L1.resid_post"] <= 0.5


@pytest.mark.parametrize("at", ["last subject", "last"])
def test_states_are_read_where_they_are_asked_for(llama: HookedModel, at: str) -> None:
    facts, sites = tiny_facts(), probe_sites(llama)
    found = states_at(llama, facts, sites, at=at, batch_size=3)  # type: ignore[arg-type]
    for row, fact in enumerate(facts):
        one = encode(llama, [fact], answer=None)
        _, store = llama.run_with_cache(one.tokens)
        place = int(one.subject_last if at == "last subject" else one.end)
        for s, site in enumerate(sites):
            expected = store[llama.arch.hooks(site)[0].name][0, place].detach()
            torch.testing.assert_close(found[s, row].float(), expected, atol=2e-5, rtol=1e-4)


def test_every_layer_is_read_and_parallel_blocks_have_no_middle(hm: HookedModel, family: str) -> None:
    names = list(map(str, probe_sites(hm)))
    assert has_mid(hm) == (family != "neox")
    middle = [] if family == "neox" else ["L0.resid_mid", "L1.resid_mid"]
    assert set(names) == {"L0.resid_pre", "L0.resid_post", "L1.resid_post", *middle}


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
    found = accuracy(probe(planted(), both, control=False, progress=False))
    # The embedding gives every name away, so a leak between folds would show as a perfect reading.
    assert found["L0.resid_pre"] <= 0.4 and found["L1.resid_post"] == 1.0


def test_the_seed_decides() -> None:
    facts = planted_facts()[:16]
    first = probe(planted(), facts, seed=1, progress=False)
    assert first == probe(planted(), facts, seed=1, progress=False)
    assert first != probe(planted(), facts, seed=2, progress=False)


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


def test_steering_along_a_direction_changes_what_the_model_says() -> None:
    site, facts = Site.parse("L1.resid_post"), planted_facts()
    reader = fit_probes(planted(), facts, sites=[site])[site]
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
        ({"at": "first"}, ScoresError, "at must be one of 'last subject' or 'last'; not 'first'"),
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
