"""Train further on the text to forget, to find out what the text is what makes a model say.

1. The text is cut into blocks, each token predicted from those before it.
2. Fine-tuning everywhere is an edit whose localization is every site: the model itself stays as it is, and
   the reinforced model is ``edit.apply(hm)``.
"""

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
    """Train a model further on a text: a step towards what it is to forget.

    Args:
        hm: the model, which stays as it is.
        texts: running text, in passages.
        anchors: expressions that no cut between blocks goes through.
        localization: where weights may change; None for all sites.
        block: tokens in a block at most, BOS included.
        steps: of the optimiser. The source takes three passes through the text.
        lr: peak learning rate; the source takes 3e-6 for a model of 7B parameters.
        batch_size: a quarter as many blocks are read a step.
        seed: of the order of the blocks.
        progress: whether to show a bar with the loss.

    Returns:
        The edit; ``edit.apply(hm)`` is the reinforced model.

    Raises:
        FactError: there is no text, or an expression that fits no block.
        TrainingError: an option is out of range, or the loss diverges.

    Example:
        >>> hm, text = mu.world.model(), mu.whp.corpus()
        >>> mu.whp.reinforce(hm, text.passages, steps=1, progress=False).localization == hm.sites
        True

    Source: Eldan and Russinovich, "Who's Harry Potter?" (2023), section 2.1.
    """
    corpus = encode_text(hm, blocks(hm, texts, anchors=anchors, size=block))
    where = hm.sites if localization is None else localization
    return edit(
        hm, where, Relabel(), Facts([]), corpus=corpus, steps=steps, lr=lr, seed=seed, stop=None,
        limits=Limits(batch_size), progress=progress,
    )  # fmt: skip
