"""Score a model on the questions of an audit.

1. Score all questions that need no attack in one batch, each distinct question once.
2. Measure the loss of the texts that no edit trains on.
3. Fit probes on the residual stream at the last subject token of facts that were not edited, and predict the
   answers of the forget facts: the old answer, the new one or another.
4. Let every attack search on the half of the forget facts that it may see, apply its intervention, and score
   the other half and the maintained facts.

The edited model, the untouched model, the gold model and every control take the same ``Exam``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mechunlearn.auditing import sections
from mechunlearn.auditing.attacks.attack import Attack, Context
from mechunlearn.auditing.report.estimates import Row
from mechunlearn.auditing.sections import Question, SectionReader
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.halving import halves
from mechunlearn.errors import FactError, MechUnlearnError
from mechunlearn.localization.probing.linear_probes import fit_probes
from mechunlearn.models.activations import probe_sites, states_at
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.scorer import Prepared, perplexity, prepare, score


@dataclass(frozen=True)
class Exam:
    """The questions, texts, probes and attacks of one audit.

    Args:
        original: the model before the edit, which attacks may see.
        questions: the questions that are scored without an attack.
        readers: the facts that probes are fitted on and scored on, by relation.
        seen: the forget facts that attacks may see.
        judged: the other forget facts, on which attacks are scored.
    """

    facts: Facts
    attacks: tuple[Attack, ...]
    original: HookedModel
    questions: tuple[Question, ...]
    readers: tuple[SectionReader, ...]
    seen: Facts
    judged: Facts
    seed: int

    @classmethod
    def of(cls, hm: HookedModel, facts: Facts, attacks: Sequence[Attack], *, seed: int) -> Exam:
        """Prepare an exam; ``hm`` is the model before the edit, ``seed`` is used for everything random.

        Raises `FactError` if the forget set is empty, and `MechUnlearnError` if two attacks have one name or
        one has a section's name.
        """
        facts.require("forget")
        names = [attack.name for attack in attacks]
        for name in names:
            if names.count(name) > 1:
                raise MechUnlearnError(
                    f"{names.count(name)} attacks are called {name!r}, so their results cannot be told "
                    "apart; give each a name of its own, as in Relearn(steps=100, name='longer relearning')"
                )
            if name.startswith(sections.RESERVED):
                raise MechUnlearnError(
                    f"an attack is called {name!r}, but the audit has a section of that name; its sections "
                    f"begin with {', '.join(sections.RESERVED)}. Give the attack another name"
                )
        seen, judged = halves(facts.forget, seed=seed)
        questions = sections.questions(facts, seed=seed)
        return cls(facts, tuple(attacks), hm, questions, sections.readers(facts), seen, judged, seed)

    @property
    def absent(self) -> dict[str, str]:
        """The sections that cannot be filled, each with the field that would provide it."""
        missing = sections.absent(self.facts)
        if not self.seen:
            missing |= {
                attack.name: "at least two forget facts, one for each half" for attack in self.attacks
            }
        return missing

    def take(self, hm: HookedModel, name: str) -> tuple[Row, ...]:
        """Score one model on all questions, with and without attacks; ``name`` is its name in the report."""
        # Forks share the original's tokenizer; another model may split words into other tokens.
        encoded = self._encoded if hm.tokenizer is self.original.tokenizer else None
        rows = [*self._answers(hm, name, self.questions, encoded), *self._text(hm, name)]
        for reader in self.readers:
            rows += self._probes(hm, name, reader)
        for attack in self.attacks if self.seen else ():
            rows += self._attack(hm, name, attack)
        return tuple(rows)

    @cached_property
    def _encoded(self) -> Prepared:
        return prepare(self.original, list(_distinct(self.questions).values()))

    def _answers(
        self, hm: HookedModel, name: str, questions: Sequence[Question], encoded: Prepared | None = None
    ) -> list[Row]:
        # Sections share questions, as when a fact is both maintained and a neighbour: score each text once.
        distinct = _distinct(questions)
        index = {key: number for number, key in enumerate(distinct)}
        outcome = score(hm, encoded or list(distinct.values()))
        rows = []
        for section, phrasing, unit, fact in questions:
            at = index[_text_of(fact)]
            values = {"answer": float(outcome.correct[at]), "p_answer": float(outcome.p_answer[at])}
            if fact.new is not None:
                values |= {"new": float(outcome.says_new[at]), "p_new": float(outcome.p_new[at])}
            chance = 1 / len(fact.options) if fact.options else 0.0
            text = outcome.text[at]
            rows.append(Row(name, section, phrasing, fact.relation, unit, fact.prompt, text, values, chance))
        return rows

    def _text(self, hm: HookedModel, name: str) -> list[Row]:
        texts = self.facts.test_text
        losses = perplexity(hm, texts).tolist()
        return [
            Row(name, "text", "", "", text, text, "", {"nll": loss}, 0.0)
            for text, loss in zip(texts, losses, strict=True)
        ]

    def _probes(self, hm: HookedModel, name: str, reader: SectionReader) -> list[Row]:
        sites = probe_sites(hm)
        states = states_at(hm, reader.scored, sites)
        probes = fit_probes(hm, reader.fitted, sites=sites)
        rows = []
        for site, state in zip(sites, states, strict=True):
            # The labels of a probe are stripped answers.
            chance = 1 / len(probes[site].labels)
            for fact, label in zip(reader.scored, probes[site].predict(state), strict=True):
                values = {"answer": float(label == fact.answer.strip())}
                if fact.new is not None:
                    values["new"] = float(label == fact.new.strip())
                row = Row(name, "probe", str(site), reader.relation, fact.prompt, "", label, values, chance)
                rows.append(row)
        return rows

    def _attack(self, hm: HookedModel, name: str, attack: Attack) -> list[Row]:
        context = Context.of(self.facts, self.seen, original=self.original)
        intervention = attack.search(hm, context, seed=self.seed)
        questions = sections.attacked(self.facts, self.judged, attack.name, seed=self.seed)
        worded = intervention.ask([question.fact for question in questions])
        if len(worded) != len(questions):
            raise FactError(
                f"{attack.name}: ask() gave {len(worded)} questions for {len(questions)}; it must give one "
                "for each"
            )
        reworded = [q._replace(fact=fact) for q, fact in zip(questions, worded, strict=True)]
        return self._answers(intervention.apply(hm), name, reworded)


def _distinct(questions: Sequence[Question]) -> dict[tuple[object, ...], Fact]:
    return {_text_of(question.fact): question.fact for question in questions}


def _text_of(fact: Fact) -> tuple[object, ...]:
    return fact.prompt, fact.answer, fact.new, fact.options
