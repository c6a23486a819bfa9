"""Collections of facts, with splits and general text.

1. ``Facts`` is an ordered, immutable sequence of ``Fact``, with splits ``forget``, ``retain`` and ``test``.
2. A fact is in one split only. Splits may be empty; a verb that needs one checks it with `require`, and an
   audit lists the sections whose data is missing as absent.
3. Records, CSV, JSON lines and Hugging Face datasets are read with one column mapping.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from mechunlearn.core.facts import files
from mechunlearn.core.facts.chat import ChatTemplate
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import SPLITS, Split
from mechunlearn.core.texts import texts_of
from mechunlearn.errors import FactError, one_of


class Facts(Sequence[Fact]):
    """An ordered, immutable collection of facts, with general text.

    Slices, splits and sums are `Facts` again and keep the text.

    Args:
        facts: the facts, of any split.
        text: general sentences, to train on and to measure perplexity on.
        name: name of the collection in tables.

    Raises:
        FactError: if a fact is in two splits, or something is not a `Fact`.

    Example:
        >>> retained = Fact("Ann plays", "Ann", "chess", split="retain")
        >>> facts = Facts([Fact("Mary plays", "Mary", "golf"), retained])
        >>> len(facts.forget), facts.retain[0].answer
        (1, 'chess')
    """

    def __init__(self, facts: Iterable[Fact] = (), *, text: Sequence[str] = (), name: str = "") -> None:
        self._facts = tuple(facts)
        self._text = texts_of(FactError, text, name="text")
        self._name = name
        for fact in self._facts:
            if not isinstance(fact, Fact):
                raise FactError(f"{fact!r} is not a Fact; make facts of dictionaries with Facts.from_records")
        self._check_splits()

    def _check_splits(self) -> None:
        """Refuse two splits for one subject with the same phrasing, or the same relation and answer."""
        split_of: dict[tuple[str, ...], Split] = {}
        for fact in self._facts:
            prompts = (*fact.train_prompts, *fact.validation, *fact.held_out)
            keys: list[tuple[str, ...]] = [(fact.subject, fact.relation, prompt) for prompt in prompts]
            if fact.relation:
                keys.append((fact.subject, fact.relation, "answer", fact.answer.strip()))
            for key in keys:
                before = split_of.setdefault(key, fact.split)
                if before != fact.split:
                    prompt = key[2] if len(key) == 3 else fact.prompt
                    raise FactError(
                        f"the fact {prompt!r} stands in both {before!r} and {fact.split!r}; keep it in one"
                    )

    @property
    def text(self) -> tuple[str, ...]:
        """General sentences that belong to no fact."""
        return self._text

    @property
    def train_text(self) -> tuple[str, ...]:
        """Every second sentence from the first on, which an edit may train on."""
        return self._text[::2]

    @property
    def test_text(self) -> tuple[str, ...]:
        """Every second sentence from the second on, which no edit trains on: perplexity is measured here."""
        return self._text[1::2]

    @property
    def name(self) -> str:
        """The name of the collection in tables."""
        return self._name

    def _with(self, facts: Iterable[Fact]) -> Facts:
        return Facts(facts, text=self._text, name=self._name)

    def where(self, condition: Callable[[Fact], bool]) -> Facts:
        """Return the facts for which a condition holds.

        Example:
            >>> facts = Facts([Fact("Mary plays", "Mary", "golf"), Fact("Ann plays", "Ann", "chess")])
            >>> [fact.subject for fact in facts.where(lambda fact: fact.answer == "chess")]
            ['Ann']
        """
        return self._with(fact for fact in self._facts if condition(fact))

    def replace(self, **changes: Any) -> Facts:
        """Return the facts with some fields changed in each.

        Example:
            >>> Facts([Fact("姚明的运动是", "姚明", "篮球")]).replace(join="")[0].join
            ''
        """
        return self._with(fact.replace(**changes) for fact in self._facts)

    def as_chat(self, model: Any, *, system: str | None = None, end: bool = False, **options: Any) -> Facts:
        """Return the facts as messages in the chat template of a model's tokenizer.

        Every verb, objective and attack then reads the prompts as the chat model was trained to; text that an
        edit puts in front of a prompt stands inside the message.

        Args:
            model: a ``HookedModel`` or a tokenizer with a chat template.
            system: a system message in front.
            end: also score and train the token that ends the answer's turn.
            **options: passed on to the template, such as ``enable_thinking=False``.

        Raises:
            FactError: there is no template, it takes no system message, or it rewrites messages.

        Example:
            >>> import copy
            >>> tokenizer = copy.deepcopy(mu.world.model().tokenizer)
            >>> tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
            >>> tokenizer.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
            >>> Facts([Fact("What does Mary play?", "Mary", "golf")]).as_chat(tokenizer)[0].prompt
            'user: What does Mary play? assistant: '
        """
        template = ChatTemplate.of(getattr(model, "tokenizer", model), system=system, **options)
        return self._with(template.render(fact, end=end) for fact in self._facts)

    @property
    def forget(self) -> Facts:
        """The facts to forget."""
        return self.where(lambda fact: fact.split == "forget")

    @property
    def retain(self) -> Facts:
        """The facts that must survive, which an edit may train on."""
        return self.where(lambda fact: fact.split == "retain")

    @property
    def test(self) -> Facts:
        """The facts that are only scored."""
        return self.where(lambda fact: fact.split == "test")

    @property
    def maintained(self) -> Facts:
        """The facts that show what survived an edit: `test` if it is not empty, else `retain`."""
        return self.test if len(self.test) else self.retain

    def require(self, *splits: Split) -> None:
        """Check that splits are not empty.

        Raises:
            FactError: if one is; the message counts the facts of each.
        """
        for split in splits:
            if split not in SPLITS:
                raise FactError(one_of("split", split, SPLITS))
            if not any(fact.split == split for fact in self._facts):
                raise FactError(
                    f"the {split} set is empty ({self._counts()}); "
                    f"give at least one Fact(..., split={split!r})"
                )

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> Facts: ...
    def __getitem__(self, index: int | slice) -> Fact | Facts:
        return self._with(self._facts[index]) if isinstance(index, slice) else self._facts[index]

    def __len__(self) -> int:
        return len(self._facts)

    def __iter__(self) -> Iterator[Fact]:
        return iter(self._facts)

    def __add__(self, other: Facts) -> Facts:
        text = tuple(dict.fromkeys((*self._text, *other.text)))
        return Facts((*self._facts, *other), text=text, name=self._name or other.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and self._facts == other._facts and self._text == other._text

    def __hash__(self) -> int:
        return hash((self._facts, self._text))

    @classmethod
    def from_records(
        cls,
        records: Any,
        *,
        columns: Mapping[str, str] | None = None,
        text: Sequence[str] = (),
        name: str = "",
    ) -> Facts:
        """Convert dictionaries to facts; keys that are no field of a fact are ignored.

        Args:
            records: the rows, as dictionaries, a pandas ``DataFrame`` or a Hugging Face ``Dataset``;
                `prompt`, `subject` and `answer` are required. Fields of several values take a list, a JSON
                list as text, or text separated by ``|``; empty cells count as missing.
            columns: column of a field, where their names differ, as in ``{"prompt": "question"}``.
            text: general sentences.
            name: name of the collection.

        Raises:
            FactError: if a column is missing or a fact is invalid; the message names the record.

        Example:
            >>> Facts.from_records([{"q": "Mary plays", "subject": "Mary", "answer": "golf"}],
            ...                    columns={"prompt": "q"})[0].prompt
            'Mary plays'
        """
        facts = []
        for number, record in enumerate(files.rows_of(records), start=1):
            if not isinstance(record, Mapping):
                raise FactError(f"record {number} is a {type(record).__name__}; give dictionaries")
            try:
                facts.append(Fact.from_record(record, columns=columns))
            except FactError as error:
                raise FactError(f"record {number}: {error}") from None
        return cls(facts, text=text, name=name)

    @classmethod
    def from_csv(
        cls, path: str | Path, *, columns: Mapping[str, str] | None = None, text: Sequence[str] = ()
    ) -> Facts:
        """Read facts from a CSV file with a header row; see `from_records`."""
        return cls.from_records(files.read_csv(path), columns=columns, text=text, name=Path(path).stem)

    @classmethod
    def from_jsonl(cls, path: str | Path, *, columns: Mapping[str, str] | None = None) -> Facts:
        """Read facts from JSON lines, written by `to_jsonl` or elsewhere; see `from_records`.

        Raises:
            DataError: if the file is truncated, altered or of another format.
        """
        header, records = files.read_jsonl(path)
        name = header.get("name", Path(path).stem)
        return cls.from_records(records, columns=columns, text=header.get("text", ()), name=name)

    @classmethod
    def from_dataset(
        cls, dataset: Any, *, columns: Mapping[str, str] | None = None, text: Sequence[str] = ()
    ) -> Facts:
        """Convert the rows of a Hugging Face ``datasets.Dataset`` to facts; see `from_records`.

        Raises:
            FactError: if `dataset` is a dictionary of splits.
        """
        return cls.from_records(dataset, columns=columns, text=text)

    def to_jsonl(self, path: str | Path) -> None:
        """Write the facts, nested ones included, and the text; `from_jsonl` returns an equal collection."""
        records = [fact.to_record() for fact in self._facts]
        files.write_jsonl(path, records, text=self._text, name=self._name)

    def _counts(self) -> str:
        counts = [f"{sum(f.split == split for f in self._facts)} {split}" for split in SPLITS]
        return f"{', '.join(counts)}; {len(self._text)} texts"

    def _rows(self) -> list[tuple[str, ...]]:
        shown = self._facts[:8]
        return [(f.split, f.relation, f.prompt, f.subject, f.answer, f.new or "") for f in shown]

    def __repr__(self) -> str:
        lines = [f"Facts {self._name!r}: {self._counts()}"]
        lines += [f"  {s:6} {p} -> {a}{f' (new: {n})' if n else ''}" for s, _, p, _, a, n in self._rows()]
        more = len(self) - len(lines) + 1
        return "\n".join([*lines, f"  ... {more} more"] if more > 0 else lines)

    def _repr_html_(self) -> str:
        head = ("split", "relation", "prompt", "subject", "answer", "new")
        cells = ["".join(f"<th>{name}</th>" for name in head)]
        cells += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._rows()]
        rows = "".join(f"<tr>{row}</tr>" for row in cells)
        caption = html.escape(f"Facts {self._name}: {self._counts()}")
        return f"<table><caption>{caption}</caption>{rows}</table>"
