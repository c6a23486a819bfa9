"""What corrupts a run, as values: another subject, noise, other prompts, or an ablation.

1. Two runs are compared: the clean one, and one with another subject (`OtherSubject`), with noise on the
   subject's embeddings (`Noise`), or of other prompts (a list of facts).
2. Or the clean run alone is ablated: zeros, means, or another fact's activations are written into it.
3. The strings ``"subject"``, ``"noise"``, ``"zero"``, ``"mean"`` and ``"resample"`` stand for the values with
   their defaults. A value without a seed takes the verb's; its own seed wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar, get_args

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import Mention
from mechunlearn.errors import ScoresError, one_of


@dataclass(frozen=True)
class Corruption:
    """The base of all corruptions; `name` is what titles call it."""

    name: ClassVar[str]


@dataclass(frozen=True)
class OtherSubject(Corruption):
    """The same prompt about another subject of the same relation, with equally many tokens.

    Args:
        pool: facts whose subjects may be put in; None for the facts that are scored.
        seed: seed of the random choice of subjects; None for the verb's `seed`.
        mention: which mentions of the subject are replaced: ``"all"``, the ``"first"`` or the ``"last"``.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> corrupt = mu.OtherSubject(pool=facts, seed=1)
        >>> scores = mu.attribution(hm, facts[:2], corrupt=corrupt, progress=False)
    """

    name: ClassVar[str] = "subject"
    pool: Sequence[Fact] | None = None
    seed: int | None = None
    mention: Mention = "all"

    def __post_init__(self) -> None:
        _require_mention(self.mention)
        if self.pool is not None:
            object.__setattr__(self, "pool", tuple(self.pool))


@dataclass(frozen=True)
class Noise(Corruption):
    """Gaussian noise on the embeddings of the subject's tokens.

    Args:
        scale: standard deviation of the noise, in standard deviations of all subjects' embeddings; 3 is the
            custom.
        samples: draws of noise per fact, over which scores are averaged.
        seed: seed of the noise; None for the verb's `seed`.
        mention: which mentions of the subject get noise: ``"all"``, the ``"first"`` or the ``"last"``.

    Raises:
        ScoresError: a number is not above zero, or there is no such `mention`.

    Example:
        >>> mu.Noise(scale=2.0, samples=10)
        Noise(scale=2.0, samples=10, seed=None, mention='all')
    """

    name: ClassVar[str] = "noise"
    scale: float | int = 3.0
    samples: int = 3
    seed: int | None = None
    mention: Mention = "all"

    def __post_init__(self) -> None:
        _require_mention(self.mention)
        positive(ScoresError, scale=self.scale, samples=self.samples)


@dataclass(frozen=True)
class OtherPrompts(Corruption):
    """One fact for every fact, whose prompt has as many tokens and is run instead; verbs take the list."""

    name: ClassVar[str] = "given prompts"
    facts: tuple[Fact, ...]


class Ablation(Corruption):
    """The base of what is written into the clean run without a second run of the same facts."""


@dataclass(frozen=True)
class ZeroAblation(Ablation):
    """Zeros in place of activations.

    Example:
        >>> mu.ZeroAblation()
        ZeroAblation()
    """

    name: ClassVar[str] = "zero"


@dataclass(frozen=True)
class MeanAblation(Ablation):
    """The mean activation of all facts at tokens of the same group.

    Before the subject, and where every position is patched by itself, it is the mean at the same position.

    Example:
        >>> mu.MeanAblation()
        MeanAblation()
    """

    name: ClassVar[str] = "mean"


@dataclass(frozen=True)
class Resample(Ablation):
    """The activations of another fact with the same token groups.

    Args:
        seed: seed of the random choice of facts; None for the verb's `seed`.

    Example:
        >>> mu.Resample(seed=1)
        Resample(seed=1)
    """

    name: ClassVar[str] = "resample"
    seed: int | None = None


Corrupt = Literal["subject", "noise", "zero", "mean", "resample"] | Corruption | Sequence[Fact]
"""What `corrupt=` takes: a short form, a value, or a list of facts whose prompts are run instead."""

PAIRED: tuple[type[OtherSubject | Noise | OtherPrompts], ...] = (OtherSubject, Noise, OtherPrompts)
"""The corruptions with a second run of the same facts."""

ANY: tuple[type[Corruption], ...] = (*PAIRED, ZeroAblation, MeanAblation, Resample)

_Kind = TypeVar("_Kind", bound=Corruption)


def corruption_of(corrupt: Corrupt, allowed: tuple[type[_Kind], ...], *, seed: int) -> _Kind:
    """Turn a verb's ``corrupt`` into a value, which takes the verb's ``seed`` if it has none of its own.

    ScoresError is raised for an unknown short form, or a corruption that is not ``allowed``.

    Example:
        >>> corruption_of("noise", (Noise,), seed=4)
        Noise(scale=3.0, samples=3, seed=4, mention='all')
    """
    short = {each.name: each for each in allowed if each is not OtherPrompts}
    value: object = corrupt
    if isinstance(corrupt, str):
        value = short[corrupt]() if corrupt in short else corrupt
    elif not isinstance(corrupt, Corruption) and isinstance(corrupt, Iterable):
        value = OtherPrompts(tuple(corrupt))
    if not isinstance(value, allowed):
        prompts = ", or a list of facts" if OtherPrompts in allowed else ""
        values = ", ".join(f"mu.{each.__name__}(...)" for each in short.values())
        raise ScoresError(one_of("corrupt", corrupt, short) + f"{prompts}; with options: {values}")
    # Ablations by zeros and means have no seed, and nothing to draw.
    return replace(value, **{"seed": seed}) if getattr(value, "seed", seed) is None else value


def _require_mention(mention: str) -> None:
    if mention not in get_args(Mention):
        raise ScoresError(one_of("mention", mention, get_args(Mention)))
