"""A model on paper, its sites and sizes with no weights behind them, and strategies that draw sites."""

from __future__ import annotations

from hypothesis import strategies as st

from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import ModelSites, Shape
from mechunlearn.core.sites.site import Site

SHAPE = Shape(n_layers=8, n_heads=8, n_kv_heads=8, d_mlp=64, gated=True)
GROUPED = Shape(n_layers=4, n_heads=8, n_kv_heads=2, d_mlp=96, gated=False)


def model_sites(shape: Shape = SHAPE, *, d_model: int = 64, bias: bool = True) -> ModelSites:
    """A model on paper: every weight of a real one counted, with its biases."""
    d_head, matrices = d_model // shape.n_heads, 3 if shape.gated else 2
    query = d_head * (d_model + bias)
    projections = 1 if shape.grouped else 3
    part = {"q": query, "k": query, "v": query, "o": d_head * d_model}
    heads = shape.n_heads * (query + part["o"]) + 2 * shape.n_kv_heads * query
    neuron = matrices * d_model + (matrices - 1) * bias
    mlp_part = {"out": shape.d_mlp * d_model + d_model * bias}

    def counts(site: Site) -> int:
        if site.kind == "head":
            return part[site.part] if site.part else projections * query + part["o"]
        if site.kind == "mlp" and site.part:
            return mlp_part.get(site.part, shape.d_mlp * (d_model + bias))
        return {
            "embed": 1000 * d_model,
            "attn": heads + d_model * bias,
            "kv": 2 * query,
            "mlp": shape.d_mlp * neuron + d_model * bias,
            "neuron": neuron,
        }[site.kind]

    return ModelSites(shape, counts)


SITES = model_sites()

layers = st.integers(0, 7)
indices = st.integers(0, 7)
whole = st.one_of(st.just(Site("embed")), st.builds(Site, st.sampled_from(("attn", "mlp")), layers))
states = st.one_of(
    st.builds(Site, st.sampled_from(("resid_pre", "resid_mid", "resid_post")), layers),
    st.builds(Site, st.just("pattern"), layers, indices),
)
pieces = st.one_of(
    st.builds(Site, st.just("head"), layers, indices, st.sampled_from((None, "q", "k", "v", "o"))),
    st.builds(Site, st.just("kv"), layers, indices),
    st.builds(Site, st.just("mlp"), layers, part=st.sampled_from(("in", "gate", "out"))),
    st.builds(Site, st.just("neuron"), layers, indices),
)
sites = st.one_of(whole, states, pieces)
weight_sites = st.one_of(whole, pieces)
localizations = st.builds(Localization, st.sets(whole))
fine = st.sets(st.builds(Site, st.sampled_from(("head", "neuron")), layers, indices)).map(Localization)
