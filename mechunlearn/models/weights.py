"""The weights of a model: those of a site, and all of them by TransformerLens's names.

1. A site's weights are slices of parameters, which `arch` finds; its activations are read at hook points.
2. By TransformerLens's names, stacked over layers, weights are copies for reading (``hm.W_Q[5] *= 0`` changes
   nothing). An edit, or ``hm.fork``, changes weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.core.sites.site import Site
from mechunlearn.models.arch import Arch, HookIndex, Slice


def _view(name: str, meaning: str) -> property:
    def read(self: Views) -> Any:
        return getattr(self.bridge, name)

    return property(read, doc=f"{meaning}; a copy, for reading.")


class Views:
    """TransformerLens's names for weights, as read-only properties."""

    @property
    def bridge(self) -> Any:
        """The bridge, from which weights are read."""
        raise NotImplementedError

    W_E = _view("W_E", "embedding [d_vocab d_model]")
    W_pos = _view("W_pos", "learned positions [n_ctx d_model], where the family has them")
    W_U = _view("W_U", "unembedding [d_model d_vocab]")
    b_U = _view("b_U", "unembedding bias [d_vocab]")
    W_Q = _view("W_Q", "queries [layer head d_model d_head]")
    W_K = _view("W_K", "keys [layer kv d_model d_head], one per head or per group")
    W_V = _view("W_V", "values [layer kv d_model d_head], one per head or per group")
    W_O = _view("W_O", "attention output [layer head d_head d_model]")
    b_Q = _view("b_Q", "query biases [layer head d_head]")
    b_K = _view("b_K", "key biases [layer kv d_head]")
    b_V = _view("b_V", "value biases [layer kv d_head]")
    b_O = _view("b_O", "attention output biases [layer d_model]")
    W_in = _view("W_in", "into the MLP [layer d_model d_mlp]")
    W_gate = _view("W_gate", "gates of a gated MLP [layer d_model d_mlp], else None")
    W_out = _view("W_out", "out of the MLP [layer d_mlp d_model]")
    b_in = _view("b_in", "biases into the MLP [layer d_mlp]")
    b_out = _view("b_out", "biases out of the MLP [layer d_model]")


class SiteWeights:
    """The methods of a model that translate sites."""

    arch: Arch

    @property
    def sites(self) -> ModelSites:
        """All sites of the model."""
        raise NotImplementedError

    def slices(self, sites: Iterable[Site]) -> tuple[Slice, ...]:
        """The slices of parameters that hold the weights of some sites, at most one per parameter.

        Args:
            sites: a localization, or any weight sites.

        Raises:
            SiteError: this model does not have a site, or it has no weights.

        Example:
            >>> hm = mu.world.model()
            >>> [part.name for part in hm.slices(mu.Localization(["L3.mlp.out"]))]
            ['model.layers.3.mlp.down_proj.weight']
        """
        chosen = list(sites)
        self.sites.check(chosen)
        return self.arch.slices(chosen)

    def size(self, sites: Iterable[Site]) -> int:
        """The number of parameters of some sites.

        Args:
            sites: a localization, or any weight sites.

        Example:
            >>> hm = mu.world.model()
            >>> hm.size(hm.sites) == hm.sites.total
            True
        """
        return self.sites.size(sites)

    def fraction(self, sites: Iterable[Site]) -> float:
        """The share of some sites in the parameters of all weight sites, from 0 to 1.

        Args:
            sites: a localization, or any weight sites.

        Example:
            >>> hm = mu.world.model()
            >>> hm.fraction(hm.sites)
            1.0
        """
        return self.size(sites) / self.sites.total

    def hook_points(self, site: Site | str) -> tuple[HookIndex, ...]:
        """The hook points at which a site is read and written, with its index on their head or neuron axis.

        Args:
            site: a site, or the string it prints as.

        Raises:
            SiteError: this model does not have the site.

        Example:
            >>> mu.world.model().hook_points("L5.head[2]")
            (HookIndex(name='blocks.5.attn.hook_z', index=2, axis=2),)
        """
        parsed = Site.parse(site) if isinstance(site, str) else site
        self.sites.check([parsed])
        return self.arch.hooks(parsed)
