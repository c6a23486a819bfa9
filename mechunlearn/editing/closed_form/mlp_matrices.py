"""The matrices that a closed form can change: linear memories whose inputs can be read.

1. ROME and MEMIT treat the output matrix ``W`` of an MLP as a memory, ``W k = v``: it maps the neurons'
   activations (the key) to the MLP's output (the value). Keys can be read in every family, at
   ``blocks.5.mlp.out.hook_in``, so every ``L5.mlp.out`` is such a memory, and no other site is one.
2. A family stores the matrix as ``(outputs, inputs)`` or, in GPT-2's Conv1D, transposed. Here it is always
   ``[d_model d_mlp]`` in float64; deltas are transposed back.
3. The site's output bias, where a family has one, is a constant part of the values and never changes.
4. Most families add the values to the residual stream directly. Gemma-2 normalises them first, so a change
   of the stream must be translated into one of the values (``value_change``).

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
    """The output matrix of one MLP; ``matrix`` and ``delta`` use the orientation ``[d_model d_mlp]``.

    ``weight`` and ``block`` are names in the plain Hugging Face model; ``turned`` is whether the weight is
    stored as ``(inputs, outputs)``.
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
        """The matrix, in float64."""
        stored = params[self.weight].detach().double()
        return stored.T if self.turned else stored

    def delta(self, change: Float[Tensor, "d_model d_mlp"], params: Mapping[str, Tensor]) -> Delta:
        """A change in the stored orientation, in float32 or better, on the CPU, as an edit holds it."""
        dtype = torch.promote_types(params[self.weight].dtype, torch.float32)
        stored = change.T if self.turned else change
        return Delta(Slice(self.weight), stored.to("cpu", dtype).contiguous())


def memories(hm: HookedModel, sites: Iterable[Site | str]) -> tuple[Memory, ...]:
    """The matrices at ``mlp.out`` sites, from the lowest layer up.

    Raises SiteError if a site is not of this model or has no closed form, LocalizationError if there is none.
    """
    unique = sorted({Site.parse(site) if isinstance(site, str) else site for site in sites})
    if not unique:
        raise LocalizationError('no site is given; give the mlp.out of a layer, as in ["L3.mlp.out"]')
    hm.sites.check(unique)
    family, matrices = family_of(hm.arch.architecture), []
    for site in unique:
        if site.kind != "mlp" or site.part != "out" or site.layer is None:
            raise SiteError(
                f"{site} has no closed form: what can be solved for is a matrix whose inputs are read, "
                f"which in every family is the mlp.out of a layer; {_remedy(site)}"
            )
        block = f"{family.block}.{site.layer}"
        name = f"{block}.{family.names['out']}.weight"
        matrices.append(Memory(site, site.layer, name, family.outputs_axis == 1, block))
    return tuple(matrices)


def memories_in(hm: HookedModel, localization: Localization) -> tuple[Memory, ...]:
    """The matrices of a localization, as :func:`memories`; LocalizationError if it is not a Localization."""
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
    """What the values add to the residual stream: themselves, or the output of the family's norm."""
    norm = _norm(hm, memory)
    return values if norm is None else norm(values.to(hm.device, hm.dtype)).to(values)


@torch.no_grad()
def value_change(
    hm: HookedModel,
    memory: Memory,
    values: Float[Tensor, "*rows d_model"],
    change: Float[Tensor, "*rows d_model"],
) -> Float[Tensor, "*rows d_model"]:
    """The change of the values that changes the residual stream by ``change``.

    The output of a norm has a fixed size, so through a norm only its direction can be set: the values are
    rotated so that the norm's output has the required direction, and keep their own size.
    """
    norm = _norm(hm, memory)
    if norm is None:
        return change
    # A vector of ones gives the norm's gain, up to a factor that cancels when the size is set.
    gain: Tensor = norm(torch.ones(values.shape[-1], device=hm.device, dtype=hm.dtype)).to(values)
    direction: Tensor = (written(hm, memory, values) + change) / gain
    scale = values.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)
    rotated: Tensor = direction * scale
    return rotated - values


def _norm(hm: HookedModel, memory: Memory) -> Any:
    """The norm between the values and the stream; None in most families."""
    return getattr(hm.hf.get_submodule(memory.block), "post_feedforward_layernorm", None)
