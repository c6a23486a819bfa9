"""Who's Harry Potter: forget a text by learning what a model that never read it might predict.

1. :func:`reinforce` trains a model further on the text, which shows which predictions come from the text.
2. :class:`Anchors`, given or proposed by :func:`propose_anchors`, translate its names into generic ones.
3. :func:`relabel` gives every token of the text a generic label, and ``mu.edit(..., corpus=labels.batch)``
   trains on these labels, at all sites or in a localization.
4. :func:`completion_familiarity` and :func:`probability_familiarity` measure what the model still knows.
"""

from mechunlearn.editing.whp.alignment import Alignment as Alignment
from mechunlearn.editing.whp.alignment import Tokens as Tokens
from mechunlearn.editing.whp.alignment import align as align
from mechunlearn.editing.whp.anchor_proposal import propose_anchors as propose_anchors
from mechunlearn.editing.whp.anchors import Anchors as Anchors
from mechunlearn.editing.whp.anchors import Translation as Translation
from mechunlearn.editing.whp.familiarity import Familiarity as Familiarity
from mechunlearn.editing.whp.familiarity import Prompt as Prompt
from mechunlearn.editing.whp.familiarity import StringJudge as StringJudge
from mechunlearn.editing.whp.labels import generic_labels as generic_labels
from mechunlearn.editing.whp.lantern_isles import Corpus as Corpus
from mechunlearn.editing.whp.lantern_isles import corpus as corpus
from mechunlearn.editing.whp.measuring import completion_familiarity as completion_familiarity
from mechunlearn.editing.whp.measuring import probability_familiarity as probability_familiarity
from mechunlearn.editing.whp.reinforcement import reinforce as reinforce
from mechunlearn.editing.whp.relabeled_text import Relabelled as Relabelled
from mechunlearn.editing.whp.relabeled_text import relabel as relabel
from mechunlearn.editing.whp.text_blocks import blocks as blocks

__all__ = [
    "Alignment",
    "Anchors",
    "Corpus",
    "Familiarity",
    "Prompt",
    "Relabelled",
    "StringJudge",
    "Tokens",
    "Translation",
    "align",
    "blocks",
    "completion_familiarity",
    "corpus",
    "generic_labels",
    "probability_familiarity",
    "propose_anchors",
    "reinforce",
    "relabel",
]
