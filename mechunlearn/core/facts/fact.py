"""One fact as a value: a prompt, its subject and answer, and the data that edits and audits need.

1. A ``Fact`` is one question in one phrasing, with further phrasings, options and related facts.
2. It is validated when it is constructed.
3. Its other forms (`asking`, `phrasings`, `multiple_choice`) are facts again, scored by the same code.
4. `to_record` and `from_record` convert it to a dictionary that JSON can hold, and back.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from mechunlearn.core.facts import files
from mechunlearn.core.facts.consistency import LETTER, letters_of, require_consistent
from mechunlearn.core.facts.joining import AUTO, joined
from mechunlearn.core.facts.kinds import Phrasing, Split
from mechunlearn.errors import FactError, one_of


@dataclass(frozen=True)
class Fact:
    """One fact: a prompt that names a subject, and the answer that completes it.

    Lists are accepted where tuples are declared; treat `neighbours` as read-only.

    Args:
        prompt: the question or the start of a statement, without the answer; always a training phrasing.
        subject: the subject, exactly as written in the prompt.
        answer: the completion of the prompt.
        foil: a wrong answer to compare with.
        new: the answer that an edit should teach instead.
        relation: the relation of subject and answer, such as ``"sport"``.
        split: ``"forget"``: to be forgotten; ``"retain"``: must survive and may be trained on; ``"test"``:
            only scored, never trained on by an edit or an attack.
        validation: phrasings (full prompts) for choosing steps and learning rates, never trained on.
        held_out: phrasings only for the final audit.
        train: further phrasings that may be trained on, beside `prompt`.
        options: all candidate answers, scored whole; `answer` and `new` are among them.
        choice: a multiple-choice prompt with fields ``{A} {B} ...`` that ends before the letter.
        entailed: facts that follow from this one; their `new` is what follows from this fact's `new`.
        others: other facts of the same subject, which must survive.
        neighbours: similar facts that must survive, by their likeness, such as ``"same first name"``.
        aliases: other spellings of the answer (``"NYC"``), any of which counts as the answer.
        new_aliases: other spellings of the new answer.
        join: what stands between prompt and answer: ``"auto"`` for what running text has there, or ``" "``
            or ``""``; for options, foils and new answers, too.
        end: text that closes every answer and is scored and trained with it, such as the tokenizer's
            ``eos_token``; empty for none.
        opening: what a chat template writes before the message, BOS included; every prompt begins with it,
            and text that an edit puts in front stands after it (see ``Facts.as_chat``).
        closing: what the template writes after the message; a subject is not looked for there.

    Raises:
        FactError: if fields contradict each other; the message says how to correct them.

    Example:
        >>> fact = Fact("Mary Lee plays the sport of", "Mary Lee", "golf", new="tennis")
        >>> fact.subject_span
        (0, 8)
    """

    prompt: str
    subject: str
    answer: str
    foil: str | None = None
    new: str | None = None
    relation: str = ""
    split: Split = "forget"
    validation: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    choice: str | None = None
    entailed: tuple[Fact, ...] = ()
    others: tuple[Fact, ...] = ()
    neighbours: Mapping[str, tuple[Fact, ...]] = field(default_factory=dict, hash=False)
    aliases: tuple[str, ...] = ()
    new_aliases: tuple[str, ...] = ()
    join: str = AUTO
    end: str = ""
    opening: str = ""
    closing: str = ""

    def __post_init__(self) -> None:
        for name in (*_TEXTS, *_FACTS):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        neighbours = {kind: tuple(facts) for kind, facts in self.neighbours.items()}
        object.__setattr__(self, "neighbours", neighbours)
        require_consistent(self)

    @property
    def subject_spans(self) -> tuple[tuple[int, int], ...]:
        """Start and end of every mention of the subject in the prompt, in characters.

        A mention is a separate word (``"Ann"`` does not match in ``"Anna"``), if there is one.
        """
        name, text = re.escape(self.subject), self.prompt.removesuffix(self.closing)
        words = list(re.finditer(rf"(?<!\w){name}(?!\w)", text))
        return tuple(match.span() for match in words or re.finditer(name, text))

    @property
    def rendered(self) -> bool:
        """Whether a chat template wrote the prompts, BOS token included if it wants one."""
        return bool(self.opening or self.closing)

    @property
    def subject_span(self) -> tuple[int, int]:
        """Start and end of the last mention: a prompt that opens with examples puts the question last."""
        return self.subject_spans[-1]

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)

    @property
    def new_answers(self) -> tuple[str, ...]:
        """The new answer and its aliases; empty without one."""
        return () if self.new is None else (self.new, *self.new_aliases)

    @property
    def train_prompts(self) -> tuple[str, ...]:
        """The prompts an edit may train on: `prompt` and `train`."""
        return (self.prompt, *self.train)

    def replace(self, **changes: Any) -> Fact:
        """Return a validated copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def asking(self, prompt: str) -> Fact:
        """Return the same fact with another prompt and no further phrasings."""
        return self.replace(prompt=prompt, train=(), validation=(), held_out=())

    def after(self, text: str) -> Fact:
        """Return the same fact with a text in front of its prompt, but after a chat template's opening.

        Example:
            >>> Fact("Mary plays", "Mary", "golf").after("It rains.").prompt
            'It rains. Mary plays'
        """
        message = self.prompt.removeprefix(self.opening)
        return self.asking(self.opening + joined(text, message))

    def phrasings(self, which: Phrasing) -> tuple[Fact, ...]:
        """Return a copy of the fact for every phrasing of one kind.

        Args:
            which: ``"train"`` (with `prompt` first), ``"validation"`` or ``"held_out"``.

        Raises:
            FactError: if there is no such kind.

        Example:
            >>> fact = Fact("Mary plays", "Mary", "golf", train=("The sport of Mary is",))
            >>> [f.prompt for f in fact.phrasings("train")]
            ['Mary plays', 'The sport of Mary is']
        """
        if which not in get_args(Phrasing):
            raise FactError(one_of("which", which, get_args(Phrasing)))
        prompts = self.train_prompts if which == "train" else getattr(self, which)
        return tuple(self.asking(prompt) for prompt in prompts)

    def multiple_choice(self, seed: int) -> Fact:
        """Return the fact as a multiple-choice question, answered by a letter.

        Answer, new answer and foil are among the options shown, and the remaining ones are drawn at random.
        The order depends on the seed and on the fact.

        Raises:
            FactError: if the fact has no `choice`.

        Example:
            >>> fact = Fact("Mary plays", "Mary", "golf", options=("golf", "tennis"),
            ...             choice="Q: What does Mary play? A {A} B {B} Answer:")
            >>> fact.multiple_choice(0).options
            ('A', 'B')
        """
        if self.choice is None:
            raise FactError(f"the fact {self.prompt!r} has no multiple-choice prompt; give it `choice=`")
        # With the prompt in the seed, the answers of different facts do not all get the same letter.
        rng = random.Random(f"{seed} {self.choice}")
        letters = letters_of(self.choice)
        rest = rng.sample(self.options, len(self.options))
        required = [word for word in (self.answer, self.new, self.foil) if word in self.options]
        shown = list(dict.fromkeys([*required, *rest]))[: len(letters)]
        rng.shuffle(shown)
        letter_of = {word: letter for letter, word in zip(letters, shown, strict=True)}
        word_of = dict(zip(letters, shown, strict=True))
        return self.replace(
            prompt=LETTER.sub(lambda match: word_of[match[1]].strip(), self.choice),
            subject=self.subject,
            answer=letter_of[self.answer],
            new=None if self.new is None else letter_of[self.new],
            foil=None if self.foil is None else letter_of.get(self.foil),
            options=letters,
            choice=None,
            **{name: () for name in (*_TEXTS, *_FACTS) if name != "options"},
            neighbours={},
        )

    def to_record(self) -> dict[str, Any]:
        """Return the fields that are set, in a form that JSON can hold."""
        record = {name: getattr(self, name) for name in FIELDS}
        for name in _FACTS:
            record[name] = [fact.to_record() for fact in record[name]]
        record["neighbours"] = {k: [f.to_record() for f in facts] for k, facts in self.neighbours.items()}
        # An empty text is "none" in every field but `join`, where it means that nothing stands between.
        join = record.pop("join")
        present = {name: value for name, value in record.items() if value not in (None, (), [], {}, "")}
        return present if join == AUTO else {**present, "join": join}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], *, columns: Mapping[str, str] | None = None) -> Fact:
        """Convert a dictionary to a fact; see `Facts.from_records`."""
        values = files.renamed(record, columns, fields=FIELDS)
        for name, cell in values.items():
            if name in _TEXTS:
                values[name] = tuple(str(text) for text in files.several(cell))
            elif name in _FACTS:
                values[name] = _nested(files.several(cell))
            elif name == "neighbours":
                values[name] = _neighbours(files.parsed(cell) if isinstance(cell, str) else cell)
            else:
                values[name] = str(cell)
        return cls(**values)


_TEXTS = ("validation", "held_out", "train", "options", "aliases", "new_aliases")
_FACTS = ("entailed", "others")
FIELDS = tuple(f.name for f in dataclasses.fields(Fact))


def _nested(facts: Iterable[object]) -> tuple[Fact, ...]:
    return tuple(fact if isinstance(fact, Fact) else Fact.from_record(_mapping(fact)) for fact in facts)


def _neighbours(kinds: object) -> dict[str, tuple[Fact, ...]]:
    likenesses = _mapping(kinds, '{"same sport": [...]}')
    return {kind: _nested(files.several(facts)) for kind, facts in likenesses.items()}


def _mapping(
    cell: object, expected: str = '{"prompt": ..., "subject": ..., "answer": ...}'
) -> Mapping[str, Any]:
    if not isinstance(cell, Mapping):
        raise FactError(f"{cell!r} stands where facts are nested; write them as {expected}")
    return cell
