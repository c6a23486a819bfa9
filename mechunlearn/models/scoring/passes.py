"""Run the plain model over a batch, and read its predictions at the answers.

1. The last answer token is only predicted, and not fed. Rows that are fed the same tokens are run once, so
   all options of one token share one row, read at several ids.
2. The rows run without gradient and without dropout, sorted by length, at most 256 at a time (fewer where
   the vocabulary is large).
3. Logits are computed only at the positions that predict the answers, if the model can do that, and read pass
   by pass, so that memory stays bounded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.encoding.encoder import HasTokenizer

ROWS = 256
LOGITS = 1 << 28  # at most this many logits at a time: 1 GiB in float32

Read = Callable[
    [Float[Tensor, "batch answer d_vocab"], Int[Tensor, "batch answer"]], Float[Tensor, "batch ..."]
]


@runtime_checkable
class HasModel(HasTokenizer, Protocol):
    """What scoring needs of a model: ``HookedModel`` has it."""

    @property
    def hf(self) -> Any:
        """The plain Hugging Face model."""


def forward(
    hm: HasModel, batch: Batch, *, read: Read = lambda logits, ids: logits
) -> Float[Tensor, "batch ..."]:
    """Run the plain model and read its logits at the answer positions.

    A row without labels is read at the prompt's last token. ``read`` gets the logits and the ids (padded by
    -100). Its result has a row per row of the batch, and should be small to bound the memory. Results are in
    the order of the batch. The model keeps its mode and its gradients.
    """
    positions, ids = batch.answer_positions, batch.answer_ids
    fed, row_of = _inputs(batch, positions)
    done, results = [], []
    with torch.no_grad(), _evaluating(hm.hf):
        for chunk in _chunks(fed, hm.hf.config.get_text_config().vocab_size):
            # From a distinct input to its row in this pass; -1 for inputs of other passes.
            index = torch.full_like(fed[:, 0], -1)
            index[chunk] = torch.arange(len(chunk), device=fed.device)
            rows = (index[row_of] >= 0).nonzero()[:, 0]
            logits, column = _logits(hm.hf, fed[chunk], torch.unique(positions[rows]))
            for part in torch.split(rows, _fitting(ids.shape[1] * logits.shape[-1])):
                picked = logits[index[row_of[part]][:, None], column[positions[part]]]
                results.append(read(picked, ids[part]))
                done.append(part)
    return torch.cat(results)[torch.cat(done).argsort()]


@contextmanager
def _evaluating(hf: nn.Module) -> Iterator[None]:
    """Switch dropout off inside a ``with`` block."""
    training = [module for module in hf.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _inputs(
    batch: Batch, positions: Int[Tensor, "batch answer"]
) -> tuple[Int[Tensor, "input pos"], Int[Tensor, "batch"]]:
    """The distinct rows to feed (-1 for padding), cut after the last position read, and each row's index."""
    position = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    fed = batch.tokens.masked_fill(position > positions[:, -1:], -1)
    distinct, row_of = torch.unique(fed, dim=0, return_inverse=True)
    return distinct, row_of


def _chunks(fed: Int[Tensor, "input pos"], d_vocab: int) -> Iterator[Int[Tensor, "rows"]]:
    """The rows of each pass, short ones first."""
    lengths = (fed >= 0).sum(1)
    order = lengths.argsort(stable=True)
    yield from torch.split(order, _fitting(int(lengths.max()) * d_vocab))


def _fitting(logits_per_row: int) -> int:
    return max(1, min(ROWS, LOGITS // logits_per_row))


def _logits(
    hf: Any, fed: Int[Tensor, "rows pos"], columns: Int[Tensor, "column"]
) -> tuple[Float[Tensor, "rows column d_vocab"], Int[Tensor, "width"]]:
    """Run one pass, and give the logits at some positions, with the index of each position in them."""
    fed = fed[:, : int((fed >= 0).sum(1).max())]
    column = torch.full_like(fed[0], -1)
    column[columns] = torch.arange(len(columns), device=fed.device)
    inputs = {"input_ids": fed.clamp(min=0), "attention_mask": (fed >= 0).long(), "use_cache": False}
    if "logits_to_keep" in inspect.signature(hf.forward).parameters:
        return hf(**inputs, logits_to_keep=columns).logits, column
    return hf(**inputs).logits[:, columns], column
