"""How familiar a model is with a text: prompts, verdicts and scores.

1. A :class:`Prompt` has continuations that only a reader of the text would give (``specific``) and
   continuations that anybody might give (``generic``).
2. A judge puts a completion into one of four classes: ``"unique"`` (names or details of the text),
   ``"themed"`` (typical of it, without a hint in the prompt), ``"lucky"`` (could be a guess, for example if
   the prompt already contains the word), ``"none"``. Any function of prompt and completion is a judge.
3. By completion, a prompt scores 5 for ``"unique"``, 1 for ``"themed"`` and 0 otherwise; by probability, it
   scores the total probability of the specific words. A model's familiarity is the mean over prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

from mechunlearn.core.statistics import Interval, bootstrap_interval, paired_difference
from mechunlearn.errors import FactError, ScoresError, one_of

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["unique", "themed", "lucky", "none"]
Judge = Callable[[str, str], Verdict]
WEIGHTS = {"unique": 5.0, "themed": 1.0, "lucky": 0.0, "none": 0.0}


@dataclass(frozen=True)
class Prompt:
    """The beginning of a sentence, with possible continuations.

    Args:
        text: the beginning, which ends where the next word would begin.
        specific: continuations that only the text gives.
        generic: continuations that anybody might give.

    Raises:
        FactError: a continuation is empty, given twice, both specific and generic, or a prefix of another
            one, whose probability would then be counted twice.
    """

    text: str
    specific: tuple[str, ...] = ()
    generic: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("specific", "generic"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        words = [word.strip() for word in (*self.specific, *self.generic)]
        if not self.text.strip() or not all(words):
            raise FactError(f"the prompt {self.text!r} or one of its continuations is empty; give words")
        if len(set(words)) < len(words):
            raise FactError(f"the prompt {self.text!r} has a continuation twice, in {words}; give each once")
        # Neighbours are enough: in sorted order, strings that begin with a word directly follow it.
        for short, long in pairwise(sorted(words)):
            if long.startswith(short):
                raise FactError(
                    f"the prompt {self.text!r} has the continuations {short!r} and {long!r}: whatever goes "
                    f"on with the second begins with the first, and would count twice; give {short!r} alone, "
                    "or only what is longer"
                )


@dataclass(frozen=True)
class StringJudge:
    """A judge that looks for strings in the completion: whole words, in any case.

    Args:
        unique: names and details of the text, such as the keys of the anchor dictionary.
        themed: words typical of the text that occur elsewhere as well.

    Example:
        >>> judge = StringJudge(unique=("Hogwarts", "Ron"), themed=("wizard",))
        >>> judge("Harry went back to", " Hogwarts."), judge("He was a", " wizard!")
        ('unique', 'themed')
        >>> judge("At Hogwarts", " in Hogwarts"), judge("He was a", " wizardly cook")
        ('lucky', 'none')
    """

    unique: tuple[str, ...]
    themed: tuple[str, ...] = ()

    def __call__(self, prompt: str, completion: str) -> Verdict:
        """The strongest class of which the completion has a word that the prompt lacks, or lucky or none."""
        hinted = False
        classes: tuple[tuple[Verdict, tuple[str, ...]], ...] = (
            ("unique", self.unique),
            ("themed", self.themed),
        )
        for verdict, words in classes:
            matches = [word for word in words if _has(completion, word)]
            if any(not _has(prompt, word) for word in matches):
                return verdict
            hinted = hinted or bool(matches)
        return "lucky" if hinted else "none"


@dataclass(frozen=True)
class Familiar:
    """The result of one prompt: its score, and what the score was computed from.

    ``completion`` is empty and ``verdict`` None in a measurement by probability; ``generic``, the total
    probability of the generic words, is None in one by completion.
    """

    prompt: str
    value: float
    completion: str = ""
    verdict: Verdict | None = None
    generic: float | None = None


@dataclass(frozen=True)
class Familiarity:
    """How familiar a model is with a text, prompt by prompt.

    Args:
        form: how it was measured; results of different forms cannot be compared.
        rows: one result per prompt.

    Example:
        >>> rows = [Familiar("a", 5.0), Familiar("b", 0.0), Familiar("c", 1.0)]
        >>> Familiarity("completion", tuple(rows)).score
        2.0
    """

    form: Literal["completion", "probability"]
    rows: tuple[Familiar, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """The score of each prompt."""
        return tuple(row.value for row in self.rows)

    @property
    def score(self) -> float:
        """The mean over prompts: at most 5 by completion, 1 by probability."""
        return sum(self.values) / len(self.rows)

    def interval(self, *, seed: int = 0, level: float = 0.95) -> Interval:
        """The score with its bootstrap interval over prompts.

        Args:
            seed: seed of the resampling.
            level: share of the resampled scores inside the interval.
        """
        return bootstrap_interval(self.values, seed=seed, level=level)

    def minus(self, other: Familiarity, *, seed: int = 0, level: float = 0.95) -> Interval:
        """The mean difference from another model's familiarity, paired by prompt, with its interval.

        Args:
            other: familiarity measured in the same form on the same prompts.
            seed: seed of the resampling.
            level: share of the resampled differences inside the interval.

        Raises:
            ScoresError: form or prompts differ.
        """
        same = [row.prompt for row in self.rows] == [row.prompt for row in other.rows]
        if self.form != other.form or not same:
            raise ScoresError(
                f"familiarity by {self.form} on {len(self.rows)} prompts cannot be compared with that by "
                f"{other.form} on {len(other.rows)}; measure both in one form on the same prompts"
            )
        return paired_difference(self.values, other.values, seed=seed, level=level)

    def to_frame(self) -> pd.DataFrame:
        """A pandas table with one row per prompt."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def __repr__(self) -> str:
        return f"Familiarity by {self.form}: {self.interval()} over {len(self.rows)} prompts"


def judged(prompt: str, completion: str, verdict: str) -> Familiar:
    """The result of a completion by its verdict; ScoresError if there is no such class."""
    for literal in get_args(Verdict):  # not the argument itself, whose type is str
        if verdict == literal:
            return Familiar(prompt, WEIGHTS[literal], completion, literal)
    raise ScoresError(one_of("the judge's verdict", verdict, get_args(Verdict)))


def require_prompts(prompts: Sequence[Prompt | str]) -> None:
    """Raise FactError for an empty list of prompts, and for a string in place of a list."""
    if isinstance(prompts, str) or not len(prompts):
        raise FactError(f"the prompts are {prompts!r}; give a list with at least one")


def _has(text: str, word: str) -> bool:
    """Whether a word occurs in a text, in any case, and not as a part of another word."""
    return re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE) is not None
