"""Ask both models for the generic labels of a text.

1. The text is cut into blocks, and each block translated and aligned on its own: what was mentioned in one
   block is news in the next.
2. The reinforced model reads the block, the base model its translation (and, if asked, the block too), and
   `generic_labels` makes labels of their logits.
3. Blocks and labels make an encoded batch, which trains like any other text:
   ``mu.edit(hm, loc, mu.objectives.Relabel(), facts, corpus=labels.batch)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.whp.alignment import align
from mechunlearn.editing.whp.labels import generic_labels
from mechunlearn.editing.whp.text_blocks import as_anchors, blocks, tokens_of
from mechunlearn.errors import FactError, TrainingError, one_of
from mechunlearn.models.encoding.batch import IGNORED, Batch
from mechunlearn.models.encoding.encoder import HasTokenizer, encode_text
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.passes import forward

DeltaContext = Literal["translated", "original"]


class Row(NamedTuple):
    """One token of the text: what stands there, and what is taught instead (None: nothing is)."""

    block: int
    text: str
    label: str | None


@dataclass(frozen=True)
class Relabelled:
    """A text with generic labels.

    Args:
        batch: the blocks that have a label; ``labels[b, t]`` is what ``logits[b, t]`` is to predict.
        own: the text's own next tokens at the same places, -100 past the end of a block.
        names: every label as text, by id.
        repeated: how many rows were left out because they predict an anchor mentioned before.
    """

    batch: Batch
    own: Int[Tensor, "batch pos"]
    names: Mapping[int, str]
    repeated: int

    @property
    def kept(self) -> float:
        """The share of the text's tokens that have a label."""
        return float((self.batch.labels != IGNORED).sum() / (self.own != IGNORED).sum())

    @property
    def changed(self) -> float:
        """The share of the labels that differ from the text."""
        asked = self.batch.labels != IGNORED
        return float((self.batch.labels != self.own)[asked].float().mean())

    def rows(self) -> Iterator[Row]:
        """Every token of the text beside its label, to look at."""
        for number, strings in enumerate(self.batch.strings):
            for position, text in enumerate(strings[1:]):
                label = int(self.batch.labels[number, position])
                yield Row(number, text, None if label == IGNORED else self.names[label])

    def __repr__(self) -> str:
        return (
            f"Relabelled({len(self.batch)} blocks of {int((self.own != IGNORED).sum())} tokens: "
            f"{self.kept:.0%} with a label, {self.changed:.0%} of the labels other than the text; "
            f"{self.repeated} predict an anchor mentioned before)"
        )


def relabel(
    hm: HookedModel,
    reinforced: HookedModel | Edit,
    texts: Sequence[str],
    anchors: Mapping[str, str],
    *,
    alpha: float | int = 5.0,
    block: int = 512,
    delta_context: DeltaContext = "translated",
    lowered: float | int = 5.0,
    progress: bool = True,
) -> Relabelled:
    """Give a text the labels that a model might predict which never read it.

    Args:
        hm: the model that is to forget the text.
        reinforced: the same, trained further on it: see :func:`reinforce`.
        texts: running text, in passages.
        anchors: generic expressions by idiosyncratic ones; see :func:`propose_anchors`.
        alpha: how far logits that reinforcing raised are pushed down; 0 uses the translation alone.
        block: tokens in a block at most, BOS included.
        delta_context: what the base model reads where the reinforced one is compared with it: the
            ``"translated"`` text, as published, or the ``"original"``, as the reinforced one does.
        lowered: by how many logits the beginnings of translations are lowered once these have appeared.
        progress: whether to show a bar.

    Raises:
        FactError: there is no text, no label is left, the anchors are no mapping, or an expression fits no
            block.
        TrainingError: an option is out of range, or `reinforced` is neither a model nor an edit.
        EditError: `reinforced` is an edit that does not fit the model.

    Example:
        >>> hm, text = mu.world.model(), mu.whp.corpus()
        >>> labels = mu.whp.relabel(hm, hm, text.passages[:1], text.anchors, progress=False)
        >>> labels.batch.labels.shape == labels.batch.tokens.shape
        True

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 2.3.
    """
    if delta_context not in get_args(DeltaContext):
        raise TrainingError(one_of("delta_context", delta_context, get_args(DeltaContext)))
    for name, number in (("alpha", alpha), ("lowered", lowered)):
        if not 0 <= number < float("inf"):
            raise TrainingError(f"{name} is {number!r}; give 0 or more, such as 5.0")
    known = as_anchors(anchors)
    knows = _knowing(hm, reinforced)
    pieces = blocks(hm, texts, anchors=known, size=block)
    batch = encode_text(hm, pieces)
    first = {word: first_tokens(hm, word) for word in set(known.values())}
    labels = torch.full_like(batch.labels, IGNORED)
    repeated = 0
    for number, piece in enumerate(tqdm(pieces, desc="relabel", disable=not progress, leave=False)):
        found = known.translate(piece)
        alignment = align(found, *tokens_of(hm, [piece, found.text]))
        says = _logits(hm, found.text), _logits(knows, piece)
        same = _logits(hm, piece) if delta_context == "original" else None
        row = generic_labels(
            *says, alignment, base_original=same, alpha=alpha, first_tokens=first, lowered=lowered
        )
        labels[number, : len(row)] = row
        repeated += alignment.repeated
    return _relabelled(hm, batch, labels, repeated)


def first_tokens(hm: HasTokenizer, word: str) -> tuple[int, ...]:
    """Give the ids a word may begin with, after a space and without one.

    A token of white space alone is left out: every word that is spelt in pieces begins with it.

    Args:
        hm: gives the tokenizer.
        word: a generic expression.
    """
    spellings = [hm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {word}", word)]
    first = {ids[0] for ids in spellings if ids}
    return tuple(sorted(token for token in first if hm.tokenizer.decode([token]).strip()))


def _knowing(hm: HookedModel, reinforced: HookedModel | Edit) -> HookedModel:
    """The model that has read the text once more."""
    knows = reinforced.apply(hm) if isinstance(reinforced, Edit) else reinforced
    if not isinstance(knows, HookedModel):
        raise TrainingError(
            f"reinforced is {reinforced!r}; give the edit that mu.whp.reinforce(hm, texts) returns, or a "
            "HookedModel that was trained further on the text"
        )
    return knows


def _logits(hm: HookedModel, text: str) -> Float[Tensor, "row d_vocab"]:
    """What a model says after every token of a block but the last."""
    return forward(hm, encode_text(hm, [text]))[0]


def _relabelled(
    hm: HasTokenizer, batch: Batch, labels: Int[Tensor, "batch pos"], repeated: int
) -> Relabelled:
    """Put labels into a batch, without blocks that have none."""
    some = (labels != IGNORED).any(1)
    if not bool(some.any()):
        raise FactError("no token of the text keeps a label; give longer passages, or fewer anchors")
    names = {
        int(token): hm.tokenizer.decode([int(token)], clean_up_tokenization_spaces=False)
        for token in torch.unique(labels[labels != IGNORED])
    }
    kept = replace(batch, labels=labels).rows(some).trimmed()
    return Relabelled(kept, batch.rows(some).trimmed().labels, names, repeated)
