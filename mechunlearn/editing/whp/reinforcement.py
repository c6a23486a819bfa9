"""Train a model further on the text to forget, to find out which predictions come from the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.objectives.relabel import Relabel
from mechunlearn.editing.training.fitting import edit
from mechunlearn.editing.training.limits import Limits
from mechunlearn.editing.whp.text_blocks import blocks
from mechunlearn.models.encoding.encoder import encode_text
from mechunlearn.models.hooked import HookedModel


def reinforce(
    hm: HookedModel,
    texts: Sequence[str],
    *,
    anchors: Mapping[str, str] | None = None,
    localization: Localization | None = None,
    block: int = 512,
    steps: int = 100,
    lr: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Train a model further on a text, as the first step of forgetting it.

    Args:
        hm: the model; it is not changed.
        texts: running text, in passages.
        anchors: expressions that no block boundary may split.
        localization: where weights may change; None for all sites.
        block: maximal number of tokens in a block, BOS included.
        steps: number of optimiser steps. The authors make three passes through the text.
        lr: peak learning rate; the authors use 3e-6 for a model of 7B parameters.
        batch_size: four times the number of blocks per step.
        seed: seed of the order of the blocks.
        progress: whether to show a bar with the loss.

    Returns:
        The edit; ``edit.apply(hm)`` is the reinforced model.

    Raises:
        FactError: there is no text, or an expression is longer than a block.
        ScoresError: `block` is not positive.
        TrainingError: another option is out of range, or the loss diverges.

    Example:
        >>> hm, text = mu.world.model(), mu.whp.corpus()
        >>> mu.whp.reinforce(hm, text.passages, steps=1, progress=False).localization == hm.sites
        True

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 2.1.
    """
    corpus = encode_text(hm, blocks(hm, texts, anchors=anchors, size=block))
    sites = hm.sites if localization is None else localization
    return edit(
        hm, sites, Relabel(), Facts([]), corpus=corpus, steps=steps, lr=lr, seed=seed, stop=None,
        limits=Limits(batch_size), progress=progress,
    )  # fmt: skip
