"""From sites to weights and hooks: the slices of Hugging Face parameters, and the hook points, of a site.

A weight site names a part of the computation (``L5.head[2]``). For training and saving it is a slice of
parameters of the plain Hugging Face model (``model.layers.5.self_attn.q_proj.weight``), for hooks a hook
point (``blocks.5.attn.hook_z``). Tests prove the translation: zeroing a site's slice is the same as writing
zero at its hook.

1. The family's row in ``families`` gives the names of its matrices and their layout.
2. Every matrix is a run of equally wide units along one axis (heads, key-value groups, neurons): unit ``i``
   covers ``offset + i * stride ... + width``. Q, K, V, in and gate are cut along their outputs, and the same
   entries of their bias go with them; O and out are cut along their inputs, and their bias stays behind.
3. A site is a list of such units, or of whole matrices with all their biases (``L5.attn``, ``L3.mlp``).
4. Many sites are coalesced into one ``Slice`` per parameter, so that the neurons of a layer are one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.sites.model_sites import Shape
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ModelError, SiteError
from mechunlearn.models.families import HOOKS, Family, family_of


@dataclass(frozen=True)
class Slice:
    """A part of one Hugging Face parameter: sorted indices along one axis, or (None) all of it.

    Example:
        >>> rows = Slice("w", 0, (0, 2))
        >>> rows.of(torch.tensor([[1.0], [2.0], [3.0]])).flatten().tolist()
        [1.0, 3.0]
        >>> rows.add(torch.zeros(3, 1), torch.ones(2, 1)).flatten().tolist()
        [1.0, 0.0, 1.0]
    """

    name: str
    axis: int | None = None
    index: tuple[int, ...] | None = None

    @cached_property
    def _positions(self) -> Int[Tensor, " count"]:
        return torch.tensor(self.index or (), dtype=torch.long)

    def _at(self, tensor: Tensor) -> tuple[int, Tensor]:
        return self.axis or 0, self._positions.to(tensor.device)

    def of(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Copy the slice out of a parameter, or of a tensor of its shape; gradients pass."""
        return tensor.clone() if self.index is None else tensor.index_select(*self._at(tensor))

    def add(self, tensor: Float[Tensor, "..."], delta: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the parameter with ``delta`` (shaped like ``of``) added to the slice; gradients pass."""
        return tensor + delta if self.index is None else tensor.index_add(*self._at(tensor), delta)

    @torch.no_grad()
    def add_(self, tensor: Float[Tensor, "..."], delta: Float[Tensor, "..."]) -> None:
        """Add ``delta`` to the slice, in place."""
        if self.index is None:
            tensor.add_(delta)
        else:
            tensor.index_add_(*self._at(tensor), delta.to(tensor))

    @torch.no_grad()
    def copy_(self, tensor: Float[Tensor, "..."], values: Float[Tensor, "..."]) -> None:
        """Write ``values`` (shaped like ``of``) into the slice, in place and bit by bit."""
        if self.index is None:
            tensor.copy_(values)
        else:
            tensor.index_copy_(*self._at(tensor), values.to(tensor))

    @torch.no_grad()
    def zero_(self, tensor: Float[Tensor, "..."]) -> None:
        """Set the slice to zero, in place."""
        if self.index is None:
            tensor.zero_()
        else:
            tensor.index_fill_(*self._at(tensor), 0.0)

    def shape(self, parameter: Iterable[int]) -> tuple[int, ...]:
        """The shape of ``of`` for the shape of a parameter."""
        sizes = list(parameter)
        if self.axis is not None and self.index is not None:
            sizes[self.axis] = len(self.index)
        return tuple(sizes)

    def numel(self, params: Mapping[str, Tensor]) -> int:
        """The number of weights in the slice, given the model's parameters by name."""
        return torch.Size(self.shape(params[self.name].shape)).numel()


@dataclass(frozen=True)
class HookIndex:
    """A hook point, and a site's head, group or neuron on ``axis`` of its activation (None: all of it)."""

    name: str
    index: int | None = None
    axis: int = 2


@dataclass(frozen=True, eq=False)
class Arch:
    """The table of families, filled in for one model: from sites to slices of parameters and to hooks.

    ``architecture`` is a key of ``FAMILIES``; ``sizes`` holds the shape of every parameter. In a ``parallel``
    block the MLP reads what attention reads, so there is no ``resid_mid``; it matters for hooks only.
    """

    architecture: str
    shape: Shape
    d_head: int
    sizes: Mapping[str, torch.Size]
    parallel: bool = False

    @classmethod
    def of(cls, architecture: str, config: Any, params: Mapping[str, Tensor]) -> Arch:
        """Fill in the table; ModelError if the architecture, or a parameter of its row, is missing."""
        row, sizes = family_of(architecture), {name: parameter.shape for name, parameter in params.items()}
        heads, blocks = config.num_attention_heads, range(config.num_hidden_layers)
        expected = [f"{row.block}.{layer}.{name}.weight" for layer in blocks for name in row.names.values()]
        for name in (row.embed, *expected):
            if name not in sizes:
                raise ModelError(
                    f"this {architecture} has no parameter {name!r}, which its family should have. Load an "
                    "unquantized model without adapters (merge them first)."
                )
        shape = Shape(
            n_layers=config.num_hidden_layers,
            n_heads=heads,
            n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            d_mlp=sizes[f"{row.block}.0.{row.names['in']}.weight"][row.outputs_axis],
            gated="gate" in row.names,
        )
        d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
        # GPT-NeoX comes in both kinds, so the model decides and not the name of its family.
        parallel = bool(getattr(config, "use_parallel_residual", False))
        return cls(architecture, shape, d_head, sizes, parallel)

    @property
    def prepends_bos(self) -> bool:
        """Whether the family's models were trained with a BOS token in front."""
        return self._family.prepends_bos

    @property
    def _family(self) -> Family:
        return family_of(self.architecture)

    def _parts(self, site: Site) -> tuple[str, ...]:
        if site.part is not None:
            return (site.part,)
        if site.kind == "kv":
            return ("k", "v")
        if site.kind == "head" and self.shape.grouped:
            return ("q", "o")
        if site.kind in ("head", "attn"):
            return ("q", "k", "v", "o")
        return tuple(part for part in ("in", "gate", "out") if part in self._family.names)

    def _unit(self, part: str, unit: int) -> tuple[int, range]:
        """The axis and the indices of one head, key-value group or neuron in the matrix of ``part``."""
        outputs = self._family.outputs_axis
        if part in ("in", "gate", "out"):
            return (1 - outputs if part == "out" else outputs), range(unit, unit + 1)
        width, stride, offset = self.d_head, self.d_head, 0
        if part != "o" and self._family.layout == "joined":
            offset = "qkv".index(part) * self.shape.n_heads * width
        elif part != "o" and self._family.layout == "interleaved":
            # Q, K, V of head 0, then of head 1: the heads of one part stand three widths apart.
            stride, offset = 3 * width, "qkv".index(part) * width
        start = offset + unit * stride
        return (1 - outputs if part == "o" else outputs), range(start, start + width)

    def _collect(self, site: Site, into: dict[str, tuple[int, set[int]] | None]) -> None:
        """Add one site's indices to those collected per parameter (None: the whole parameter)."""
        if site.kind == "embed":
            into[self._family.embed] = None
            return
        for part in self._parts(site):
            matrix = f"{self._family.block}.{site.layer}.{self._family.names[part]}"
            if site.index is None:
                into.update(
                    {name: None for name in (f"{matrix}.weight", f"{matrix}.bias") if name in self.sizes}
                )
                continue
            axis, positions = self._unit(part, site.index)
            targets = [(f"{matrix}.weight", axis)]
            if part not in ("o", "out") and f"{matrix}.bias" in self.sizes:
                targets.append((f"{matrix}.bias", 0))
            for name, along in targets:
                collected = into.setdefault(name, (along, set()))
                if collected is not None:
                    collected[1].update(positions)

    def slices(self, sites: Iterable[Site]) -> tuple[Slice, ...]:
        """The slices that hold the weights of some sites, at most one per parameter; SiteError for states."""
        collected: dict[str, tuple[int, set[int]] | None] = {}
        for site in sites:
            if not site.has_weights:
                raise SiteError(f"{site} is a state and has no weights; name the component, such as L0.mlp")
            self._collect(site, collected)
        slices = []
        for name in (name for name in self.sizes if name in collected):
            part = collected[name]
            # A slice that covers its axis is the whole parameter, which needs no index_select.
            if part is None or len(part[1]) == self.sizes[name][part[0]]:
                slices.append(Slice(name))
            else:
                slices.append(Slice(name, part[0], tuple(sorted(part[1]))))
        return tuple(slices)

    def count(self, site: Site) -> int:
        """The number of weights of one site."""
        return sum(torch.Size(s.shape(self.sizes[s.name])).numel() for s in self.slices([site]))

    def hooks(self, site: Site) -> tuple[HookIndex, ...]:
        """The hook points that read and write a site; SiteError for ``resid_mid`` of a parallel block."""
        if site.kind == "embed":
            return (HookIndex("hook_embed"),)
        block = f"blocks.{site.layer}."
        if site.kind == "kv":
            return tuple(HookIndex(f"{block}attn.hook_{part}", site.index) for part in self._parts(site))
        if site.kind == "resid_mid" and self.parallel:
            raise SiteError(
                f"{self.architecture} runs attention and MLP in parallel, so there is no {site}; "
                f"use L{site.layer}.resid_post"
            )
        name = HOOKS[f"{site.kind}.{site.part}" if site.part else site.kind]
        if site.part == "in" and self.shape.gated:
            name = "mlp.hook_pre_linear"
        return (HookIndex(block + name, site.index, 1 if site.kind == "pattern" else 2),)

    def joined(self) -> Iterable[tuple[str, Slice]]:
        """Where Q, K and V share a parameter: each parameter of the bridge, and the slice that it copies."""
        if self._family.layout == "split":
            return
        heads = range(self.shape.n_heads)
        for layer in range(self.shape.n_layers):
            matrix = f"{self._family.block}.{layer}.{self._family.names['q']}"
            for part in "qkv":
                units = [self._unit(part, head) for head in heads]
                positions = tuple(position for _, unit in units for position in unit)
                yield f"{layer}.{part}.weight", Slice(f"{matrix}.weight", units[0][0], positions)
                if f"{matrix}.bias" in self.sizes:
                    yield f"{layer}.{part}.bias", Slice(f"{matrix}.bias", 0, positions)
