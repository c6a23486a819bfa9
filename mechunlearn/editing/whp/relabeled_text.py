"""Run both models to get the generic labels of a text.

1. The text is cut into blocks, and each block is translated and aligned on its own: the first mention of an
   anchor is counted anew in every block.
2. The reinforced model reads the block, the base model its translation (and, with
   ``delta_context="original"``, the block too), and `generic_labels` computes labels from their logits.
3. Blocks and labels are an encoded batch, to train on like any other text:
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
    """One token of the text and its label (None if it has none)."""

    block: int
    text: str
    label: str | None


@dataclass(frozen=True)
class Relabelled:
    """A text with generic labels.

    Args:
        batch: the blocks that have a label; ``labels[b, t]`` is the target of ``logits[b, t]``.
        own: the text's own next tokens at the same positions, -100 after the end of a block.
        names: every label as text, by id.
        repeated: number of rows without a label because they predict an anchor mentioned before.
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
        mask = self.batch.labels != IGNORED
        return float((self.batch.labels != self.own)[mask].float().mean())

    def rows(self) -> Iterator[Row]:
        """Every token of the text with its label, for inspection."""
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
    """Label a text with the tokens that a model which never read it might predict.

    Args:
        hm: the model that is to forget the text.
        reinforced: the same model after further training on the text; see :func:`reinforce`.
        texts: running text, in passages.
        anchors: generic expressions by specific ones; see :func:`propose_anchors`.
        alpha: factor by which logits that reinforcing raised are lowered; 0 uses the translation alone.
        block: maximal number of tokens in a block, BOS included.
        delta_context: what the base model reads when the reinforced one is compared with it: the
            ``"translated"`` text, as published, or the ``"original"``, which the reinforced one reads.
        lowered: how many logits the first tokens of translations are lowered by once these have appeared.
        progress: whether to show a bar.

    Raises:
        FactError: there is no text, no token has a label, the anchors are not a mapping, or an expression is
            longer than a block.
        ScoresError: `block` is not positive.
        TrainingError: another option is out of range, or `reinforced` is neither a model nor an edit.
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
    dictionary = as_anchors(anchors)
    reinforced_hm = _reinforced(hm, reinforced)
    pieces = blocks(hm, texts, anchors=dictionary, size=block)
    batch = encode_text(hm, pieces)
    first = {word: first_tokens(hm, word) for word in set(dictionary.values())}
    labels = torch.full_like(batch.labels, IGNORED)
    repeated = 0
    for number, piece in enumerate(tqdm(pieces, desc="relabel", disable=not progress, leave=False)):
        translation = dictionary.translate(piece)
        alignment = align(translation, *tokens_of(hm, [piece, translation.text]))
        row = generic_labels(
            _logits(hm, translation.text), _logits(reinforced_hm, piece), alignment,
            base_original=_logits(hm, piece) if delta_context == "original" else None,
            alpha=alpha, first_tokens=first, lowered=lowered,
        )  # fmt: skip
        labels[number, : len(row)] = row
        repeated += alignment.repeated
    return _relabelled(hm, batch, labels, repeated)


def first_tokens(hm: HasTokenizer, word: str) -> tuple[int, ...]:
    """The ids that a word may begin with, after a space and without one.

    A token of white space alone is left out: every word that the tokenizer splits after its space starts with
    it.
    """
    spellings = [hm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {word}", word)]
    first = {ids[0] for ids in spellings if ids}
    return tuple(sorted(token for token in first if hm.tokenizer.decode([token]).strip()))


def _reinforced(hm: HookedModel, reinforced: HookedModel | Edit) -> HookedModel:
    model = reinforced.apply(hm) if isinstance(reinforced, Edit) else reinforced
    if not isinstance(model, HookedModel):
        raise TrainingError(
            f"reinforced is {reinforced!r}; give the edit that mu.whp.reinforce(hm, texts) returns, or a "
            "HookedModel that was trained further on the text"
        )
    return model


def _logits(hm: HookedModel, text: str) -> Float[Tensor, "row d_vocab"]:
    """The logits after every token of a block but the last."""
    return forward(hm, encode_text(hm, [text]))[0]


def _relabelled(
    hm: HasTokenizer, batch: Batch, labels: Int[Tensor, "batch pos"], repeated: int
) -> Relabelled:
    """Put labels into the batch, without the blocks that have none."""
    labelled = (labels != IGNORED).any(1)
    if not bool(labelled.any()):
        raise FactError("no token of the text keeps a label; give longer passages, or fewer anchors")
    names = {
        int(token): hm.tokenizer.decode([int(token)], clean_up_tokenization_spaces=False)
        for token in torch.unique(labels[labels != IGNORED])
    }
    relabelled = replace(batch, labels=labels).rows(labelled).trimmed()
    return Relabelled(relabelled, batch.rows(labelled).trimmed().labels, names, repeated)
