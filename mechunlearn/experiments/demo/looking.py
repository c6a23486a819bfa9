"""The demo's first step: look, and turn three localizers into localizations of equal size.

1. Fact lookup credits MLPs by its own rule; how many it credits fixes the budget of parameters.
2. Causal tracing and attribution patching rank all components, and once more MLPs alone. Each spends the same
   budget; of a component that no longer fits, heads or neurons are taken.
3. Random MLPs outside the lookup are the control of equal size.
4. Mean-ablating MLPs on the subject is a third reading of where facts are looked up; it chooses nothing.
5. For scale: all MLPs, the attention of the same layers as the lookup, and everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.errors import ScoresError
from mechunlearn.experiments.demo.readings import ablation
from mechunlearn.localization.attribution.nodes import attribution
from mechunlearn.localization.fact_lookup.probe_and_swap import fact_lookup
from mechunlearn.localization.tracing.trace import causal_trace
from mechunlearn.models.hooked import HookedModel

LOOKUP = "fact lookup"
RANDOM = "random MLPs"
EVERYTHING = "everything"
TRACED = ("causal tracing", "attribution patching")
"""Output tracing as the paper compares with: the best components of any kind."""


@dataclass(frozen=True)
class Look:
    """The scores of the localizers, and the localizations that are edited in one draw."""

    lookup: Scores
    trace: Scores
    attribution: Scores
    ablation: Scores
    localizations: Mapping[str, Localization]


def look(hm: HookedModel, facts: Facts, *, seed: int, progress: bool = False) -> Look:
    """Run the three localizers on one group's facts and spend equal budgets.

    ``seed`` is the seed of noise, corruption, folds and random choices. Raises `ScoresError` if fact lookup
    credits no MLP.
    """
    lookup = fact_lookup(hm, facts.forget, fitted_on=facts.retain, seed=seed, progress=progress)
    trace = causal_trace(hm, facts.forget, sites=("mlp", "attn"), seed=seed, progress=progress)
    gradient = attribution(hm, facts.forget, seed=seed, progress=progress)
    credited = lookup.above(0.0)
    if not credited:
        raise ScoresError(
            "fact lookup credits no MLP, so there is no budget to compare with; "
            "lower min_gain or min_effect, or look at its evidence"
        )
    localizations = _equal(credited, trace, gradient, hm.sites, seed) | _scale(credited, hm.sites)
    return Look(lookup, trace, gradient, ablation(hm, facts.forget), localizations)


def _equal(
    credited: Localization, trace: Scores, gradient: Scores, sites: ModelSites, seed: int
) -> dict[str, Localization]:
    """Localizations of the size of the lookup."""
    budget = sites.size(credited)
    # MLPs only, and none of the lookup's, so that kind and size are the same and only the place differs.
    elsewhere = Localization(sites.mlps() - credited)
    return {
        LOOKUP: credited,
        TRACED[0]: trace.top(params=budget, fill=sites, seed=seed),
        f"{TRACED[0]}, MLPs": trace.only("mlp").top(params=budget, fill=sites, seed=seed),
        TRACED[1]: gradient.top(params=budget, fill=sites, seed=seed),
        f"{TRACED[1]}, MLPs": gradient.only("mlp").top(params=budget, fill=sites, seed=seed),
        RANDOM: sites.sample(like=credited, within=elsewhere, seed=seed),
    }


def _scale(credited: Localization, sites: ModelSites) -> dict[str, Localization]:
    """Localizations of other sizes, to see the range."""
    layers = {site.layer for site in credited}
    return {
        "all MLPs": sites.mlps(),
        "attention of the same layers": Localization(s for s in sites.attns() if s.layer in layers),
        EVERYTHING: Localization(sites),
    }


def pairs(hm: HookedModel) -> dict[str, Localization]:
    """Every two neighbouring MLPs, by depth."""
    count = hm.sites.shape.n_layers
    return {
        f"{layer}+{layer + 1}": Localization([f"L{layer}.mlp", f"L{layer + 1}.mlp"])
        for layer in range(count - 1)
    }
