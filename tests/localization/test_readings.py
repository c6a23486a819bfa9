"""Where the original looks facts up is reported by three independent readings, as found."""

from __future__ import annotations

import pytest

import mechunlearn as mu
from mechunlearn.experiments.demo import page
from mechunlearn.experiments.demo.looking import LOOKUP, RANDOM, Look, look, pairs


@pytest.fixture(scope="module")
def seen() -> Look:
    return look(mu.world.model(), mu.world.facts(), seed=0)


def test_the_three_readings_stand_side_by_side_for_every_mlp(seen: Look) -> None:
    drawn = page.figures([seen], {}, mu.world.model().sites)["readings"]
    assert [trace.name for trace in drawn.data if trace.name] == [
        "probe gain",
        "swap effect",
        "accuracy lost to ablation",
    ]
    assert all(len(trace.y) == 8 for trace in drawn.data if trace.name)


def test_localizations_to_be_compared_have_equal_size(seen: Look) -> None:
    hm = mu.world.model()
    size = hm.size(seen.localizations[LOOKUP])
    for name, found in seen.localizations.items():
        if name not in ("all MLPs", "attention of the same layers", "everything"):
            assert abs(hm.size(found) - size) <= 0.05 * size, name


def test_random_mlps_lie_outside_the_lookup(seen: Look) -> None:
    assert seen.localizations[LOOKUP].isdisjoint(seen.localizations[RANDOM])


def test_pairs_go_from_the_first_mlps_to_the_last() -> None:
    by_depth = pairs(mu.world.model())
    assert list(by_depth) == ["0+1", "1+2", "2+3", "3+4", "4+5", "5+6", "6+7"]
