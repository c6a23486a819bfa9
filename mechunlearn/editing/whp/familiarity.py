"""How familiar a model is with a text: prompts, verdicts and scores as values.

1. A :class:`Prompt` has words that only somebody who read the text would go on with (``specific``) and
   words that anybody might (``generic``).
2. A judge puts a completion into one of four classes: ``"unique"`` (names or details of the text),
   ``"themed"`` (typical of it, without a hint in the prompt), ``"lucky"`` (could be a guess, as when the
   prompt has the word already), ``"none"``. Any function of prompt and completion is a judge.
3. By completion, a prompt scores 5 for ``"unique"``, 1 for ``"themed"`` and 0 otherwise; by probability, the
   mass the model puts on the specific words. A model's familiarity is the mean over prompts.
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
    """The beginning of a sentence, with ways to go on.

    Args:
        text: the beginning, which ends where the next word would begin.
        specific: continuations that only the text gives.
        generic: continuations that anybody might give.

    Raises:
        FactError: a continuation is empty, given twice, both specific and generic, or the beginning of
            another one, which would be counted with it.
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
        # Neighbours are enough: what begins with a word follows it directly in the order of the alphabet.
        for short, long in pairwise(sorted(words)):
            if long.startswith(short):
                raise FactError(
                    f"the prompt {self.text!r} has the continuations {short!r} and {long!r}: whatever goes "
                    f"on with the second begins with the first, and would count twice; give {short!r} alone, "
                    "or only what is longer"
                )


@dataclass(frozen=True)
class StringJudge:
    """Judge by strings: whole words, in any case.

    Args:
        unique: names and details of the text, such as the keys of the anchor dictionary.
        themed: words typical of it that others use as well.

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
        """The class of a completion: the strongest for which it has a word that the prompt lacks."""
        hinted = False
        classes: tuple[tuple[Verdict, tuple[str, ...]], ...] = (
            ("unique", self.unique),
            ("themed", self.themed),
        )
        for verdict, words in classes:
            said = [word for word in words if _has(completion, word)]
            if any(not _has(prompt, word) for word in said):
                return verdict
            hinted = hinted or bool(said)
        return "lucky" if hinted else "none"


@dataclass(frozen=True)
class Familiar:
    """What a model made of one prompt.

    Args:
        prompt: the beginning.
        value: what the prompt scores.
        completion: what the model wrote; empty by probability.
        verdict: the judge's class; None by probability.
        generic: probability mass on the generic words; None by completion.
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
        form: how it was measured; the two cannot be compared.
        rows: one per prompt.

    Example:
        >>> rows = [Familiar("a", 5.0), Familiar("b", 0.0), Familiar("c", 1.0)]
        >>> Familiarity("completion", tuple(rows)).score
        2.0
    """

    form: Literal["completion", "probability"]
    rows: tuple[Familiar, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """What each prompt scores."""
        return tuple(row.value for row in self.rows)

    @property
    def score(self) -> float:
        """The mean over prompts: at most 5 by completion, 1 by probability."""
        return sum(self.values) / len(self.rows)

    def interval(self, *, seed: int = 0, level: float = 0.95) -> Interval:
        """The score with its bootstrap interval over prompts.

        Args:
            seed: of the resampling.
            level: share of the resampled scores inside.
        """
        return bootstrap_interval(self.values, seed=seed, level=level)

    def minus(self, other: Familiarity, *, seed: int = 0, level: float = 0.95) -> Interval:
        """The difference to another model's, prompt by prompt, with its interval.

        Args:
            other: measured in the same form on the same prompts.
            seed: of the resampling.
            level: share of the resampled differences inside.

        Raises:
            ScoresError: the two were measured otherwise.
        """
        same = [row.prompt for row in self.rows] == [row.prompt for row in other.rows]
        if self.form != other.form or not same:
            raise ScoresError(
                f"familiarity by {self.form} on {len(self.rows)} prompts cannot be compared with that by "
                f"{other.form} on {len(other.rows)}; measure both in one form on the same prompts"
            )
        return paired_difference(self.values, other.values, seed=seed, level=level)

    def to_frame(self) -> pd.DataFrame:
        """One line per prompt, as a pandas table."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def __repr__(self) -> str:
        return f"Familiarity by {self.form}: {self.interval()} over {len(self.rows)} prompts"


def judged(prompt: str, completion: str, verdict: str) -> Familiar:
    """Score one completion by its verdict.

    Args:
        prompt: the beginning.
        completion: what the model wrote.
        verdict: what the judge said of it.

    Raises:
        ScoresError: there is no such class.
    """
    for known in get_args(Verdict):
        if verdict == known:
            return Familiar(prompt, WEIGHTS[known], completion, known)
    raise ScoresError(one_of("the judge's verdict", verdict, get_args(Verdict)))


def require_prompts(prompts: Sequence[Prompt | str]) -> None:
    """Refuse an empty list, and a string in the place of one.

    Args:
        prompts: what a model is to go on from.

    Raises:
        FactError: there are none.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise FactError(f"the prompts are {prompts!r}; give a list with at least one")


def _has(text: str, word: str) -> bool:
    """Whether a word stands in a text, in any case, not as a part of another."""
    return re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE) is not None
