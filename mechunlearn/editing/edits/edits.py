"""An edit as a value: deltas of slices of Hugging Face parameters, and how they were made.

1. A delta belongs to one :class:`~mechunlearn.models.arch.Slice` of one parameter. An edit changes only the
   weights it has deltas for.
2. ``applied`` adds the deltas in place, and on leaving puts the very bits back; ``apply`` makes a fork that
   shares every other tensor with the model. Both warn if the weights are not those it was made on.
3. Edits can be added, scaled, cut down to a localization and pruned (``edits.algebra``), and saved as a
   folder with one file, ``edit.safetensors`` (``edits.files``, ``edits.hub``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.editing.edits import algebra, base_model, files, hub, norms
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.history import History
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.errors import EditError
from mechunlearn.models import identity
from mechunlearn.models.arch import Arch

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of weights, confined to a localization.

    Args:
        deltas: what is added to each slice.
        localization: the sites the edit was confined to.
        shapes: the shape of every parameter that a delta changes, in the model the edit fits.
        made_on: identity of the model it was made on; empty if that is not known.
        recipe: how it was made, so that an audit can refit it elsewhere; None if it was not fitted.
        history: the loss terms of every step, and success and retention where they were measured.
        step: the step whose weights the edit has; 0 if it was not fitted.
        arch: the model's table from sites to slices, ``hm.arch``; without it an edit cannot be restricted.
        versions: the versions of the libraries it was made with.

    Example:
        >>> edit = Edit((), Localization())
        >>> len(edit.deltas), (edit + edit.scale(0.5)).deltas
        (0, ())
    """

    deltas: tuple[Delta, ...]
    localization: Localization
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    made_on: str = ""
    recipe: Recipe | None = None
    history: History = History()  # noqa: RUF009 - a frozen value
    step: int = 0
    arch: Arch | None = None
    versions: Mapping[str, str] = field(default_factory=files.versions)

    def __repr__(self) -> str:
        """Size, localization and recipe in one line."""
        count = sum(d.values.numel() for d in self.deltas)
        recipe = self.recipe.summary if self.recipe else "no recipe"
        return f"Edit({count:,} weights in {len(self.shapes)} parameters; {self.localization}; {recipe})"

    @contextmanager
    def applied(self, hm: HookedModel) -> Iterator[HookedModel]:
        """Hold the edit in the model's own weights for the length of a ``with`` block.

        Args:
            hm: the model; on leaving, also by an error, every bit is as it was.

        Raises:
            EditError: a parameter is missing or has another shape.

        Warns:
            IdentityWarning: the model's weights are not those the edit was made on.
        """
        self._check(hm, stacklevel=4)  # one frame more than in apply(): that of contextlib
        before = identity.cached(hm)
        saved = {name: hm.params[name].detach().clone() for name in self.shapes}
        try:
            with torch.no_grad():
                for name, value in algebra.added(self.deltas, hm.params).items():
                    hm.params[name].copy_(value)
            hm.sync()
            yield hm
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    hm.params[name].copy_(value)
            hm.sync()
            # The old bits are back, so the hash that was known before is right again.
            if before is not None:
                identity.restored(hm, before, saved)

    def apply(self, hm: HookedModel) -> HookedModel:
        """A changed copy of the model that shares every tensor the edit does not change.

        Args:
            hm: the model; it stays as it is.

        Raises:
            EditError: a parameter is missing or has another shape.

        Warns:
            IdentityWarning: the model's weights are not those the edit was made on.
        """
        self._check(hm, stacklevel=3)
        name = type(self.recipe.objective).__name__ if self.recipe else "edit"
        return hm.fork(algebra.added(self.deltas, hm.params), edit=f"{name} at {self.localization}")

    def scale(self, factor: float | int) -> Edit:
        """The edit with all deltas multiplied by a factor.

        Args:
            factor: the factor; -1 undoes the edit.
        """
        return self._changed(tuple(Delta(d.slice, d.values * factor) for d in self.deltas))

    def __add__(self, other: Edit) -> Edit:
        """Both edits at once: where they meet, their deltas add up.

        Raises:
            EditError: the two fit models of different shapes.
            LocalizationError: their sites share weights and neither holds the other, as ``L3.mlp.in`` and
                ``L3.mlp.neuron[7]``.
        """
        return self._with(other, 1, "sum of two edits")

    def __sub__(self, other: Edit) -> Edit:
        """This edit without another, such as a sum without one of its terms; raises what a sum raises."""
        return self._with(other, -1, "difference of two edits")

    def restrict(self, localization: Localization) -> Edit:
        """The part of the edit that lies inside a localization.

        Args:
            localization: sites of the model the edit fits, at any grain. Output biases belong to a whole
                ``attn`` or ``mlp``, and to none of its heads or neurons.

        Returns:
            An edit at the finer of the sites that share weights: an edited MLP restricted to one neuron is
            at that neuron, and so is an edited neuron restricted to its MLP.

        Raises:
            EditError: the edit does not say which architecture it fits.
            SiteError: a site is not of that architecture.

        Example:
            >>> hm = mu.world.model()
            >>> Edit((), Localization(), arch=hm.arch).restrict(hm.sites.mlps())
            Edit(0 weights in 0 parameters; Localization(); no recipe)
        """
        if self.arch is None:
            raise EditError(
                "the edit does not say which architecture it fits, so which weights a site has is not known; "
                "give it the model's, with dataclasses.replace(edit, arch=hm.arch)"
            )
        ModelSites(self.arch.shape, self.arch.count).check(localization)
        deltas = algebra.restricted(self.deltas, self.arch.slices(localization))
        return self._changed(deltas, algebra.meeting(self.localization, localization))

    def prune(self, k: int) -> Edit:
        """Keep the k largest entries of all deltas by absolute value, and set the others to zero.

        Of equally large entries the first are kept, in the order of parameters and of positions in them.

        Args:
            k: how many entries; more than there are keep all.

        Raises:
            EditError: ``k`` is negative.

        Example:
            >>> from mechunlearn.models.arch import Slice
            >>> delta = Delta(Slice("w"), torch.tensor([1.0, -3.0, 2.0]))
            >>> Edit((delta,), Localization(), {"w": (3,)}).prune(1).deltas[0].values
            tensor([ 0., -3.,  0.])
        """
        if k < 0:
            raise EditError(f"k is {k!r}; give how many entries to keep, 0 or more")
        return self._changed(algebra.by_size(algebra.merged(self.deltas, self.shapes)).first(k))

    def to_task_vector(self) -> dict[str, Tensor]:
        """The deltas of whole parameters by name, as tools that merge models take them.

        Returns:
            Tensors in the names and shapes of the plain Hugging Face model and the precision of the deltas,
            without the parameters that the edit does not change. A tied parameter has its first name.

        Example:
            >>> from mechunlearn.models.arch import Slice
            >>> delta = Delta(Slice("w", 0, (1,)), torch.ones(1))
            >>> Edit((delta,), Localization(), {"w": (3,)}).to_task_vector()
            {'w': tensor([0., 1., 0.])}
        """
        return algebra.dense(self.deltas, self.shapes)

    def norms(self, hm: HookedModel) -> Scores:
        """The Frobenius norm of the deltas of each site.

        Args:
            hm: the model the edit fits, for the table from sites to slices; it is not run.

        Raises:
            EditError: a parameter is missing or has another shape.
        """
        algebra.require_fit(self.shapes, hm.params)
        return norms.norms(self.deltas, self.shapes, self.localization, hm)

    def ranks(self, hm: HookedModel, *, tolerance: float | None = None) -> Scores:
        """The largest numerical rank among the delta matrices of each site.

        The numerical rank is the number of singular values above a share of the largest one; a bias has one.
        A head's matrices are its rows of Q, K and V and its columns of O.

        Args:
            hm: the model the edit fits, for the table from sites to slices; it is not run.
            tolerance: the share; None for the matrix's longer side times the precision of its numbers, so
                that a rounded product of thin matrices has their rank.

        Raises:
            EditError: a parameter is missing or has another shape, or the tolerance is not a share.
        """
        algebra.require_fit(self.shapes, hm.params)
        return norms.ranks(self.deltas, self.shapes, self.localization, hm, tolerance=tolerance)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``edit.safetensors`` into a folder, in place of an edit that was saved there.

        Args:
            folder: made if needed.
        """
        files.save(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub.

        Args:
            repo_id: as ``"user/name"``; the repository is made if needed.
            private: whether a new repository is private; None for the hub's default.

        Returns:
            The address of the commit.
        """
        return hub.push(self.save_pretrained, repo_id, private=private)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, revision: str | None = None) -> Edit:
        """Read what :meth:`save_pretrained` wrote, or :meth:`push_to_hub` sent.

        Args:
            folder: the folder, or the file in it; a string that names neither and is written
                ``"user/name"`` is a repository on the Hugging Face hub, and is downloaded.
            revision: a branch, tag or commit of that repository.

        Raises:
            DataError: there is no such file or repository, or it is cut short, altered or of another kind.
        """
        return cls(**files.load(hub.located(folder, revision)))

    def _changed(self, deltas: tuple[Delta, ...], localization: Localization | None = None) -> Edit:
        """The edit with other deltas, without recipe and history, which no longer describe it."""
        return replace(
            self,
            deltas=deltas,
            localization=self.localization if localization is None else localization,
            shapes={d.slice.name: self.shapes[d.slice.name] for d in deltas},
            recipe=None,
            history=History(),
            step=0,
        )

    def _with(self, other: Edit, factor: int, source: str) -> Edit:
        """This edit plus another times a factor, as a new edit."""
        algebra.require_alike(self.shapes, other.shapes)
        sites = algebra.together(self.localization, other.localization)
        shapes = {**self.shapes, **other.shapes}
        deltas = self.deltas + (other if factor == 1 else other.scale(factor)).deltas
        # An edit without deltas fits any model. A sum of edits of two models was made on neither.
        made_on = {edit.made_on for edit in (self, other) if edit.deltas}
        return Edit(
            deltas=algebra.merged(deltas, shapes),
            localization=Localization(sites, source=source if sites else ""),
            shapes=shapes,
            made_on=made_on.pop() if len(made_on) == 1 else "",
            arch=self.arch or other.arch,
        )

    def _check(self, hm: HookedModel, *, stacklevel: int) -> None:
        algebra.require_fit(self.shapes, hm.params)
        base_model.warn_of_another(hm, self.made_on if self.deltas else "", stacklevel=stacklevel)
