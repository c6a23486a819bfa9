"""The matrices that a closed form can rewrite: linear memories with an input that can be read.

1. ROME and MEMIT see the matrix ``W`` out of an MLP as a memory, ``W k = v``: what the neurons say (the
   key) is turned into what the MLP writes (the value). Keys can be read in every family, at
   ``blocks.5.mlp.out.hook_in``, so every ``L5.mlp.out`` is such a memory, and no other site is one.
2. A family stores the matrix as ``(outputs, inputs)`` or, in GPT-2's Conv1D, turned around. Here it is
   always ``[d_model d_mlp]`` in float64; what leaves as a delta is turned back.
3. The site's output bias, where a family has one, is a constant of the values and never moves.
4. Most families add the values to the residual stream as they are. Gemma-2 norms them first, so a wanted
   change of the stream has to be led back through the norm (``value_change``).

Source: Meng et al., "Locating and Editing Factual Associations in GPT" (2022), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.errors import LocalizationError, SiteError
from mechunlearn.models.arch import Slice
from mechunlearn.models.families import family_of
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True)
class Memory:
    """One matrix out of an MLP, in the orientation values by keys.

    Args:
        site: the site it belongs to, an ``mlp.out``.
        layer: the site's block.
        weight: the parameter's name in the plain Hugging Face model.
        turned: whether it is stored as ``(inputs, outputs)``.
        block: the block's name in the plain Hugging Face model.
    """

    site: Site
    layer: int
    weight: str
    turned: bool
    block: str

    @property
    def keys(self) -> str:
        """The hook point of the keys."""
        return f"blocks.{self.layer}.mlp.out.hook_in"

    @property
    def values(self) -> str:
        """The hook point of the values, before any norm."""
        return f"blocks.{self.layer}.mlp.out.hook_out"

    @property
    def stream(self) -> str:
        """The hook point of the residual stream after the block."""
        return f"blocks.{self.layer}.hook_resid_post"

    @property
    def module(self) -> str:
        """The name of the module whose output the values are."""
        return self.weight.removesuffix(".weight")

    def matrix(self, params: Mapping[str, Tensor]) -> Float[Tensor, "d_model d_mlp"]:
        """The matrix, in float64.

        Args:
            params: the model's parameters by name.
        """
        stored = params[self.weight].detach().double()
        return stored.T if self.turned else stored

    def delta(self, change: Float[Tensor, "d_model d_mlp"], params: Mapping[str, Tensor]) -> Delta:
        """A change of the matrix as an edit holds it: as it is stored, in float32 or better, on the CPU.

        Args:
            change: what is added to the matrix.
            params: the model's parameters by name, for the precision.
        """
        dtype = torch.promote_types(params[self.weight].dtype, torch.float32)
        stored = change.T if self.turned else change
        return Delta(Slice(self.weight), stored.to("cpu", dtype).contiguous())


def memories(hm: HookedModel, sites: Iterable[Site | str]) -> tuple[Memory, ...]:
    """The matrices at some sites, from the lowest layer up.

    Args:
        hm: the model, which is not run.
        sites: every one an ``mlp.out``.

    Raises:
        SiteError: a site is not of this model, or has no closed form.
        LocalizationError: there are none.

    Example:
        >>> memories(mu.world.model(), ["L3.mlp.out"])[0].weight
        'model.layers.3.mlp.down_proj.weight'
    """
    chosen = sorted({Site.parse(site) if isinstance(site, str) else site for site in sites})
    if not chosen:
        raise LocalizationError('no site is given; give the mlp.out of a layer, as in ["L3.mlp.out"]')
    hm.sites.check(chosen)
    family, found = family_of(hm.arch.architecture), []
    for site in chosen:
        if site.kind != "mlp" or site.part != "out" or site.layer is None:
            raise SiteError(
                f"{site} has no closed form: what can be solved for is a matrix whose inputs are read, "
                f"which in every family is the mlp.out of a layer; {_remedy(site)}"
            )
        block = f"{family.block}.{site.layer}"
        name = f"{block}.{family.names['out']}.weight"
        found.append(Memory(site, site.layer, name, family.outputs_axis == 1, block))
    return tuple(found)


def memories_in(hm: HookedModel, localization: Localization) -> tuple[Memory, ...]:
    """The matrices of a localization, from the lowest layer up.

    Args:
        hm: the model, which is not run.
        localization: made of ``mlp.out`` sites.

    Raises:
        LocalizationError: it is no localization, or an empty one.
        SiteError: a site is not of this model, or has no closed form.
    """
    if not isinstance(localization, Localization):
        raise LocalizationError(
            f"the localization is {localization!r}; give sites as a Localization, such as "
            'Localization(["L3.mlp.out"])'
        )
    return memories(hm, localization)


def _remedy(site: Site) -> str:
    if site.kind in ("mlp", "neuron"):
        return f"give L{site.layer}.mlp.out, or train {site} with mu.edit"
    if not site.has_weights:
        return f"give L{site.layer}.mlp.out"
    return f"give one such as L{site.layer or 0}.mlp.out, or train {site} with mu.edit"


@torch.no_grad()
def written(hm: HookedModel, memory: Memory, values: Float[Tensor, "*rows d_model"]) -> Tensor:
    """What values add to the residual stream: themselves, or what the family's norm makes of them.

    Args:
        hm: the model, of which only the norm is run.
        memory: where the values come from.
        values: what the matrix puts out, in float64.
    """
    norm = _norm(hm, memory)
    return values if norm is None else norm(values.to(hm.device, hm.dtype)).to(values)


@torch.no_grad()
def value_change(
    hm: HookedModel,
    memory: Memory,
    values: Float[Tensor, "*rows d_model"],
    change: Float[Tensor, "*rows d_model"],
) -> Float[Tensor, "*rows d_model"]:
    """How values must change for the residual stream to change as wanted.

    A norm gives every vector the same size, so through it only a direction can be had: the values are
    turned to where the norm's output points the way it should, and keep their own size.

    Args:
        hm: the model, of which only the norm is run.
        memory: where the values come from.
        values: what the matrix puts out now, in float64.
        change: what the stream should change by.
    """
    norm = _norm(hm, memory)
    if norm is None:
        return change
    # Equal inputs come out as the norm's gain, up to a factor that is lost when the size is set.
    gain: Tensor = norm(torch.ones(values.shape[-1], device=hm.device, dtype=hm.dtype)).to(values)
    aim: Tensor = (written(hm, memory, values) + change) / gain
    size = values.norm(dim=-1, keepdim=True) / aim.norm(dim=-1, keepdim=True)
    turned: Tensor = aim * size
    return turned - values


def _norm(hm: HookedModel, memory: Memory) -> Any:
    """The norm between the values and the stream; None in most families."""
    return getattr(hm.hf.get_submodule(memory.block), "post_feedforward_layernorm", None)
