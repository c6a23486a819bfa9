"""An edit is a value: slice deltas in Hugging Face coordinates, with where they came from.

1. A delta belongs to one :class:`~mechunlearn.model.arch.Slice` of one named parameter. What an edit does not
   list it cannot move.
2. ``applied`` adds the deltas in place and puts the very bits back on leaving; ``apply`` makes a fork
   that shares every other tensor with the model.
3. On disk an edit is ``delta.safetensors`` and ``edit.json``; see ``editing.files``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.editing import files
from mechunlearn.editing.recipes import Recipe
from mechunlearn.errors import DataError, EditError
from mechunlearn.model.arch import Slice
from mechunlearn.scores import Scores
from mechunlearn.sites import Localization

if TYPE_CHECKING:
    from mechunlearn.model import HookedModel


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to one slice of one parameter."""

    slice: Slice
    values: Float[Tensor, "..."]


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of weights, confined to a localization.

    Args:
        deltas: what is added where.
        localization: the sites the edit was confined to.
        shapes: the shape of every parameter that a delta touches, in the model the edit fits.
        made_on: identity of the model it was made on.
        recipe: how it was made, so that an audit can refit it elsewhere; None if it was not fitted.
        history: one record per step: the loss terms, and at the steps that were judged ``success`` and
            ``retention`` on validation phrasings.
        step: the step whose weights were kept; 0 if it was not fitted.

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
    history: tuple[Mapping[str, float], ...] = ()
    step: int = 0

    def __repr__(self) -> str:
        """Size, place and recipe in one line."""
        weights = sum(d.values.numel() for d in self.deltas)
        how = self.recipe.summary if self.recipe else "no recipe"
        return f"Edit({weights:,} weights in {len(self.shapes)} parameters; {self.localization}; {how})"

    @contextmanager
    def applied(self, hm: HookedModel) -> Iterator[HookedModel]:
        """Hold the edit in the model's own weights for the length of a ``with`` block.

        Args:
            hm: the model; on leaving, whatever happened inside, every bit is as it was.

        Raises:
            EditError: a parameter is missing or has another shape.
        """
        self._check(hm)
        saved = {name: hm.params[name].detach().clone() for name in self.shapes}
        try:
            with torch.no_grad():
                for name, value in self._edited(hm).items():
                    hm.params[name].copy_(value)
            hm.sync()
            yield hm
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    hm.params[name].copy_(value)
            hm.sync()

    def apply(self, hm: HookedModel) -> HookedModel:
        """A changed copy of the model that shares every tensor the edit leaves alone.

        Args:
            hm: the model; it stays as it is.

        Raises:
            EditError: a parameter is missing or has another shape.
        """
        self._check(hm)
        what = type(self.recipe.objective).__name__ if self.recipe else "edit"
        return hm.fork(self._edited(hm), edit=f"{what} at {self.localization}")

    def scale(self, factor: float) -> Edit:
        """The same edit, so many times as strong.

        Args:
            factor: what every delta is multiplied by; -1 undoes the edit.
        """
        deltas = tuple(Delta(d.slice, d.values * factor) for d in self.deltas)
        return replace(self, deltas=deltas, recipe=None, history=(), step=0)

    def __add__(self, other: Edit) -> Edit:
        """Both edits at once: where they meet, their deltas add up.

        Raises:
            EditError: the two fit models of different shapes.
            LocalizationError: their sites share weights and neither holds the other, as ``L3.mlp.in`` and
                ``L3.mlp.neuron[7]``.
        """
        for name in self.shapes.keys() & other.shapes.keys():
            if self.shapes[name] != other.shapes[name]:
                raise EditError(
                    f"{name} has shape {self.shapes[name]} in one edit and {other.shapes[name]} in the "
                    "other: edits can be added only if they fit the same model"
                )
        both = {*self.localization, *other.localization}
        # A whole component takes in its own parts; everything else that meets is refused by Localization.
        sites = [site for site in both if not any(w.part is None and w in both for w in site.wider)]
        return Edit(
            deltas=_merged(self.deltas + other.deltas),
            localization=Localization(sites, source="sum of two edits" if sites else ""),
            shapes={**self.shapes, **other.shapes},
            made_on=self.made_on if self.made_on == other.made_on else "",
        )

    def norms(self, hm: HookedModel) -> Scores:
        """How far each site of the localization was moved: the Frobenius norm of its deltas.

        Args:
            hm: the model the edit fits, for the table from sites to slices; it is not run.

        Raises:
            EditError: a parameter is missing or has another shape.
        """
        self._check(hm)
        sites = tuple(self.localization)
        shapes = {s.name: hm.params[s.name].shape for s in hm.slices(sites)} | dict(self.shapes)
        dense = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        for delta in self.deltas:
            delta.slice.add_(dense[delta.slice.name], delta.values.cpu())
        norms = [
            float(torch.stack([s.of(dense[s.name]).norm() for s in hm.slices([site])]).norm())
            for site in sites
        ]
        return Scores.of(
            torch.tensor(norms),
            sites,
            dims=("site",),
            params={site: hm.size([site]) for site in sites},
            total_params=hm.sites.total,
            title="How far each site was moved",
            unit="Frobenius norm",
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``delta.safetensors`` and ``edit.json``.

        Args:
            folder: made if needed.
        """
        record: dict[str, Any] = {
            "localization": [str(site) for site in self.localization],
            "source": self.localization.source,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "slices": [[d.slice.name, d.slice.axis, d.slice.index] for d in self.deltas],
            "made_on": self.made_on,
            "recipe": self.recipe.to_json() if self.recipe else None,
            "history": [dict(entry) for entry in self.history],
            "step": self.step,
        }
        files.write(folder, record, [delta.values for delta in self.deltas])

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub.

        Args:
            repo_id: as ``"user/name"``; the repository is made if needed.
            private: whether a new repository is private; None for the hub's default.

        Returns:
            The address of the commit.
        """
        import tempfile

        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload edit"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Edit:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: the folder with the two files.

        Raises:
            DataError: a file is missing, cut short, altered or of another kind.
        """
        record, tensors = files.read(folder)
        try:
            return cls._from_record(record, tensors)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{Path(folder) / files.RECORD} is not a whole edit: {error!r}; save the edit again"
            ) from None

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], tensors: Sequence[Tensor]) -> Edit:
        slices = [
            Slice(name, axis, None if index is None else tuple(index))
            for name, axis, index in record["slices"]
        ]
        return cls(
            deltas=tuple(Delta(s, t) for s, t in zip(slices, tensors, strict=True)),
            localization=Localization(record["localization"], source=record["source"]),
            shapes={name: tuple(shape) for name, shape in record["shapes"].items()},
            made_on=record["made_on"],
            recipe=Recipe.from_json(record["recipe"]) if record["recipe"] else None,
            history=tuple(record["history"]),
            step=record["step"],
        )

    def _check(self, hm: HookedModel) -> None:
        for name, shape in self.shapes.items():
            if name not in hm.params:
                raise EditError(
                    f"the edit changes {name!r}, which this model does not have; "
                    "apply it to the model it was made on, or to one of the same architecture"
                )
            if tuple(hm.params[name].shape) != shape:
                raise EditError(
                    f"the edit was made for {name!r} of shape {shape}, and this model's is "
                    f"{tuple(hm.params[name].shape)}; apply it to the model it was made on"
                )

    def _edited(self, hm: HookedModel) -> dict[str, Tensor]:
        """The new value of every touched parameter; sums are formed in float32 or better."""
        edited: dict[str, Tensor] = {}
        for delta in self.deltas:
            name = delta.slice.name
            base = edited.get(name)
            if base is None:
                base = hm.params[name].detach().clone()
                base = base if base.dtype == torch.float64 else base.float()
            edited[name] = delta.slice.add(base, delta.values.to(base))
        return {name: value.to(hm.params[name].dtype) for name, value in edited.items()}


def _merged(deltas: Sequence[Delta]) -> tuple[Delta, ...]:
    """One delta per slice: those of equal slices added up."""
    merged: dict[Slice, Tensor] = {}
    for delta in deltas:
        before = merged.get(delta.slice)
        merged[delta.slice] = delta.values if before is None else before + delta.values
    return tuple(Delta(s, values) for s, values in merged.items())
