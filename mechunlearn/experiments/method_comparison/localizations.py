"""Where every method is run: where facts are looked up, at random, and everywhere.

1. *Fact lookup*: the MLPs that ``fact_lookup`` credits, as in the demo.
2. *Random*: components of the same number of parameters, by a seed.
3. *Everything*: all weight sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.errors import ScoresError
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP
from mechunlearn.localization.fact_lookup.probe_and_swap import fact_lookup
from mechunlearn.models.hooked import HookedModel

RANDOM = "random"


def localizations(hm: HookedModel, facts: Facts, *, seed: int) -> Mapping[str, Localization]:
    """Choose the three localizations, by name.

    ``seed`` is the seed of the probes' folds and of the random choice. Raises `ScoresError` if fact lookup
    credits no MLP.
    """
    lookup = fact_lookup(hm, facts.forget, fitted_on=facts.retain, seed=seed, progress=False).above(0.0)
    if not lookup:
        raise ScoresError("fact lookup credits no MLP, so there is nothing to compare; look at its evidence")
    return {
        LOOKUP: lookup,
        RANDOM: hm.sites.sample(like=lookup, seed=seed),
        EVERYTHING: Localization(hm.sites),
    }


def described(localization: Localization) -> str:
    """Describe a localization: components by name, heads and neurons by their number.

    Example:
        >>> described(mu.Localization(["L1.attn", "L5.mlp.neuron[0]", "L5.mlp.neuron[7]"]))
        'L1.attn, 2 neurons of L5.mlp'
    """
    names = [str(site) for site in localization if site.index is None]
    parts = Counter((site.kind, site.wider[-1]) for site in localization if site.index is not None)
    return ", ".join([*names, *(f"{n} {kind}{'s' * (n > 1)} of {wide}" for (kind, wide), n in parts.items())])
