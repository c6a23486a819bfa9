"""Search for the values that make a model give a new answer.

1. A vector δ, one per fact and initially zero, is added to the matrix's output at the last token of the
   subject, in all contexts and in the essence row.
2. The loss of a fact is the mean over contexts of the target's negative log-likelihood per token, plus
   ``kl`` times the divergence of the essence's next token, KL(changed ‖ unchanged), plus ``decay`` times
   ``‖δ‖ / size²`` (the norm, not its square, as in the authors' code).
3. Adam takes at most ``steps`` steps; after each, δ is projected on a ball of radius ``bound`` times the
   size. A fact whose loss is below ``enough`` is not changed any more.

Facts are independent: a batch gives the same values as one fact after another.

Source: Meng et al. (2022), equation 4, and the authors' ``compute_v.py`` and ``compute_z.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.checks import above, at_least, integer
from mechunlearn.editing.closed_form.mlp_matrices import Memory
from mechunlearn.editing.closed_form.prompt_contexts import Contexts
from mechunlearn.editing.edits.history import History
from mechunlearn.errors import TrainingError
from mechunlearn.models.encoding.batch import IGNORED
from mechunlearn.models.hooked import HookedModel

TERMS = ("answer", "essence", "decay")


@dataclass(frozen=True)
class ValueSearch:
    """Options of the search for the values that make a model give the new answers, in ROME and MEMIT.

    Args:
        steps: maximal number of Adam steps; None for the authors': 20 in ROME, 25 in MEMIT (for GPT-J).
        lr: learning rate of Adam.
        kl: weight of the divergence of the next token after ``"{subject} is a"``.
        decay: weight of ``‖δ‖ / size²``. The size is the norm of what δ is added to: in ROME the matrix's
            output ``v₀``, in MEMIT the residual stream after the highest layer.
        bound: maximal norm of δ, in sizes; None for the authors' number: 4 in ROME (3 for GPT-2 medium), 0.75
            in MEMIT.
        enough: loss at which the search for a fact's value stops.

    Raises:
        TrainingError: a number is out of its range.

    Example:
        >>> mu.closed_form.ValueSearch(steps=10).lr
        0.5
    """

    steps: int | None = None
    lr: float | int = 0.5
    kl: float | int = 0.0625
    decay: float | int = 0.5
    bound: float | int | None = None
    enough: float | int = 0.05

    def __post_init__(self) -> None:
        if self.steps is not None:
            integer(TrainingError, 1, steps=self.steps)
        if self.bound is not None:
            above(TrainingError, 0, bound=self.bound)
        above(TrainingError, 0, lr=self.lr)
        at_least(TrainingError, 0, kl=self.kl, decay=self.decay, enough=self.enough)


@dataclass(frozen=True, eq=False)
class FoundValues:
    """The result of the search: what to add to the values, in float64 on the CPU, and the mean loss terms."""

    deltas: Float[Tensor, "fact d_model"]
    history: History


def find_values(
    hm: HookedModel,
    memory: Memory,
    contexts: Contexts,
    sizes: Float[Tensor, " fact"],
    search: ValueSearch,
    *,
    steps: int,
    bound: float | int,
    batch_size: int,
    progress: bool,
) -> FoundValues:
    """Search for the vector to add to each fact's values at ``memory``.

    ``hm`` must be a working copy, because its modules get a temporary hook. ``sizes`` are the norms that δ is
    measured by; ``steps`` and ``bound`` apply where ``search`` has None. Raises TrainingError if the loss is
    not finite, or if an answer does not depend on the values.
    """
    from tqdm.auto import tqdm

    steps = steps if search.steps is None else search.steps
    bound = bound if search.bound is None else search.bound
    parts = list(contexts.parts(batch_size))
    deltas, curves = [], []
    with tqdm(total=len(contexts), disable=not progress, desc="values", leave=False) as bar:
        for part, size in zip(parts, torch.split(sizes, [len(p) for p in parts]), strict=True):
            loss = _Loss(hm, memory, part, size.to(hm.device), search)
            delta, curve = _descend(loss, search.lr, steps, bound)
            deltas.append(delta.double().cpu())
            curves.append(curve.double().cpu())
            bar.update(len(part))
    longest = max(map(len, curves))
    # A group that stopped early repeats its last terms, so that all curves have the same length.
    by_fact = torch.cat([torch.cat([c, c[-1:].expand(longest - len(c), -1, -1)]) for c in curves], dim=1)
    records = [
        {"step": float(step), **dict(zip(TERMS, terms, strict=True))}
        for step, terms in enumerate(by_fact.mean(1).tolist(), start=1)
    ]
    return FoundValues(torch.cat(deltas), History(records, step=len(records)))


def _descend(
    loss: _Loss, lr: float | int, steps: int, bound: float | int
) -> tuple[Float[Tensor, "fact d_model"], Float[Tensor, "step fact term"]]:
    """Take Adam steps until every fact is done; the result includes the terms of each step."""
    delta = loss.start()
    optimizer = torch.optim.Adam([delta], lr=lr)
    active = torch.ones(len(delta), dtype=torch.bool, device=delta.device)
    curve = []
    for step in range(1, steps + 1):
        terms = loss(delta)
        total = terms.sum(1)
        if not bool(total.isfinite().all()):
            raise TrainingError(
                f"the loss is not finite at step {step} of the search for values: {total.tolist()}; the "
                "model is unchanged. Lower lr"
            )
        curve.append(terms.detach())
        active = active & (total.detach() >= loss.enough)
        if not bool(active.any()):
            break
        before = delta.detach().clone()
        (delta.grad,) = torch.autograd.grad(total.sum(), delta)
        if step == 1:
            loss.require_reached(delta.grad)
        optimizer.step()
        with torch.no_grad():
            norm = delta.norm(dim=1).clamp(min=torch.finfo(delta.dtype).tiny)
            projected = delta * (bound * loss.sizes / norm).clamp(max=1.0)[:, None]
            # Adam's momentum would otherwise move a fact that is done.
            delta.copy_(torch.where(active[:, None], projected, before))
    return delta.detach(), torch.stack(curve)


class _Loss:
    """The loss terms of some facts as a function of the vectors added to their values."""

    def __init__(
        self,
        hm: HookedModel,
        memory: Memory,
        contexts: Contexts,
        sizes: Float[Tensor, " fact"],
        search: ValueSearch,
    ) -> None:
        self._runner, self._memory, self._contexts, self._search = hm.hf, memory, contexts, search
        self.dtype = torch.promote_types(hm.dtype, torch.float32)
        self.sizes, self.enough = sizes.to(self.dtype), search.enough
        self._frozen = {name: parameter.detach() for name, parameter in hm.params.items()}
        # Logits are needed where an answer is predicted and, in essence rows, at the end of the prompt alone.
        batch, essence = contexts.batch, contexts.rows[:, -1]
        needed = batch.labels != IGNORED
        needed[essence] = False
        needed[essence, batch.end[essence]] = True
        self._columns = needed.any(0).nonzero()[:, 0]

    def start(self) -> Float[Tensor, "fact d_model"]:
        width = self._runner.config.get_text_config().hidden_size
        device = self.sizes.device
        return torch.zeros(len(self._contexts), width, dtype=self.dtype, device=device, requires_grad=True)

    def __call__(self, delta: Float[Tensor, "fact d_model"]) -> Float[Tensor, "fact term"]:
        logprobs, rows = self._logprobs(delta), self._contexts.rows
        labels = self._contexts.batch.labels[:, self._columns]
        mask = labels != IGNORED
        # Ignored labels are negative and cannot be gathered; their log-probabilities are masked instead.
        label_logprobs = logprobs.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(~mask, 0.0)
        per_row = -label_logprobs.sum(1) / mask.sum(1).clamp(min=1)
        answer = per_row[rows[:, :-1]].mean(1)
        now, before = self._essence(logprobs), self._before
        essence = self._search.kl * (now.exp() * (now - before)).sum(-1)
        decay = self._search.decay * delta.norm(dim=1) / self.sizes**2
        return torch.stack([answer, essence, decay], dim=1)

    def require_reached(self, gradient: Float[Tensor, "fact d_model"]) -> None:
        """Refuse a matrix that the answer does not depend on, as can happen in the last layer."""
        unreached = gradient.eq(0).all(1)
        if bool(unreached.any()):
            row = int(self._contexts.rows[int(unreached.int().argmax()), 0])
            prompt = "".join(self._contexts.batch.strings[row])
            raise TrainingError(
                f"what {self._memory.site} writes at the subject does not reach the answer of {prompt!r}: no "
                "attention above it can carry it on; choose a lower layer"
            )

    @cached_property
    def _before(self) -> Float[Tensor, "fact d_vocab"]:
        """The unchanged model's log-probabilities after the essence prompts."""
        with torch.no_grad():
            return self._essence(self._logprobs(self.start()))

    def _essence(self, logprobs: Float[Tensor, "row column d_vocab"]) -> Float[Tensor, "fact d_vocab"]:
        rows = self._contexts.rows[:, -1]
        return logprobs[rows, torch.searchsorted(self._columns, self._contexts.batch.end[rows])]

    def _logprobs(self, delta: Float[Tensor, "fact d_model"]) -> Float[Tensor, "row column d_vocab"]:
        """Run the model with δ added; log-probabilities at the needed columns only."""
        batch = self._contexts.batch
        added = delta.repeat_interleave(self._contexts.each + 1, dim=0)
        positions = (torch.arange(len(batch), device=added.device), batch.subject_last)

        def add(module: Any, args: Any, output: Tensor) -> Tensor:
            return output.index_put(positions, added.to(output.dtype), accumulate=True)

        window = slice(0, int(self._columns[-1]) + 1)
        kwargs = {
            "input_ids": batch.tokens[:, window],
            "attention_mask": batch.mask[:, window],
            "use_cache": False,
            "logits_to_keep": self._columns,
        }
        # Detached parameters, so that only δ gets a gradient.
        handle = self._runner.get_submodule(self._memory.module).register_forward_hook(add)
        try:
            logits: Tensor = torch.func.functional_call(self._runner, self._frozen, kwargs=kwargs).logits
        finally:
            handle.remove()
        return logits.to(self.dtype).log_softmax(-1)
