"""Scores made up by hand: of components, of a trace over positions, of a probe over states."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.model_sites import ModelSites, Shape
from mechunlearn.core.sites.site import Site

LAYERS = 8
MLPS = [Site("mlp", layer) for layer in range(LAYERS)]
ATTNS = [Site("attn", layer) for layer in range(LAYERS)]
SIZES = {"mlp": 3000, "attn": 1600, "head": 400, "neuron": 30, "embed": 5000}
SITES = ModelSites(
    Shape(n_layers=LAYERS, n_heads=4, n_kv_heads=4, d_mlp=100, gated=False), lambda site: SIZES[site.kind]
)
TOTAL = LAYERS * (3000 + 1600)
GROUPS = ("first_subject", "last_subject", "further", "last")

numbers = st.floats(-1, 1, allow_subnormal=False)
per_site = arrays(np.float64, 2 * LAYERS, elements=numbers)
# Roots, so that neither the numbers nor their shares of a size are ever equal.
distinct = st.tuples(
    st.permutations([k**0.5 for k in range(1, 2 * LAYERS + 1)]),
    arrays(np.float64, 2 * LAYERS, elements=st.sampled_from([-1.0, 1.0])),
).map(lambda pair: np.array(pair[0]) * pair[1])


def counts(sites: list[Site]) -> dict[Site, int]:
    return {site: SIZES[site.kind] for site in sites if site.has_weights}


def component_scores(values: Any) -> Scores:
    """One number for every MLP and attention layer."""
    sites = MLPS + ATTNS
    return Scores.of(np.asarray(values), sites, params=counts(sites), title="tracing", unit="restored")


def trace(values: Any, *, sites: list[Site] = MLPS) -> Scores:
    """Facts by sites by positions, as causal tracing gives them."""
    dims = ("fact", "site", "pos")
    return Scores.of(np.asarray(values), sites, dims=dims, params=counts(sites), tokens=GROUPS, title="trace")


def probe() -> Scores:
    """Accuracy and control over states, as probing gives them."""
    states = [Site(kind, layer) for layer in range(LAYERS) for kind in ("resid_mid", "resid_post")]
    values = np.stack([np.linspace(0.2, 0.9, 16), np.full(16, 0.25)], axis=1)
    return Scores.of(values, states, dims=("site", "metric"), metrics=["accuracy", "control"], title="probe")
