"""Put a model through an audit's questions.

1. All questions that concern the model as it is are scored in one go, each different one once.
2. The text's loss is measured on texts that no edit trains on.
3. Probes are fitted on the model's own residual stream at the last subject token, on facts that were kept,
   and read out on the forget facts: what they name, the old answer, the new one or another.
4. Every attack searches on the half of the forget facts that it may see; what it found is applied, and the
   other half is scored beside the maintained facts.

The same ``Exam`` is taken by the edited model, the untouched one, the gold model and every control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mechunlearn.auditing import sections
from mechunlearn.auditing.attacks.attack import Attack, Context, halves
from mechunlearn.auditing.report.estimates import Row
from mechunlearn.auditing.sections import Question, SectionReader
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError, MechUnlearnError
from mechunlearn.localization.probing.linear_probes import fit_probes
from mechunlearn.models.activations import probe_sites, states_at
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.scorer import Prepared, perplexity, prepare, score


@dataclass(frozen=True)
class Exam:
    """The questions, texts, probes and attacks of one audit.

    Args:
        facts: what is asked.
        attacks: what is tried.
        original: the model before the edit, for attacks that require it.
        questions: those put to a model as it is.
        readers: what probes are fitted on and read out on.
        seen: the forget facts that attacks may see.
        judged: those they are judged on.
        seed: of everything random.
    """

    facts: Facts
    attacks: tuple[Attack, ...]
    original: HookedModel
    questions: tuple[Question, ...]
    readers: tuple[SectionReader, ...]
    seen: tuple[Fact, ...]
    judged: tuple[Fact, ...]
    seed: int

    @classmethod
    def of(cls, hm: HookedModel, facts: Facts, attacks: Sequence[Attack], *, seed: int) -> Exam:
        """Prepare an exam.

        Args:
            hm: the model before the edit.
            facts: with a forget set.
            attacks: what is tried; their names differ.
            seed: of everything random.

        Raises:
            FactError: the forget set is empty.
            MechUnlearnError: two attacks have one name, or one has a section's.
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
        asked = sections.questions(facts, seed=seed)
        return cls(facts, tuple(attacks), hm, asked, sections.readers(facts), seen, judged, seed)

    @property
    def absent(self) -> dict[str, str]:
        """The sections that cannot be filled, with what would provide them."""
        missing = sections.absent(self.facts)
        if not self.seen:
            missing |= {
                attack.name: "at least two forget facts, one for each half" for attack in self.attacks
            }
        return missing

    def take(self, hm: HookedModel, name: str) -> tuple[Row, ...]:
        """Examine one model.

        Args:
            hm: the model, which stays as it is.
            name: what the report calls it.
        """
        # Forks share the original's tokenizer; another model may cut words into other tokens.
        known = self._sheet if hm.tokenizer is self.original.tokenizer else None
        rows = [*self._answers(hm, name, self.questions, known), *self._text(hm, name)]
        for reader in self.readers:
            rows += self._probes(hm, name, reader)
        for attack in self.attacks if self.seen else ():
            rows += self._attack(hm, name, attack)
        return tuple(rows)

    @cached_property
    def _sheet(self) -> Prepared:
        """The questions to a model as it is, encoded once."""
        return prepare(self.original, list(_distinct(self.questions).values()))

    def _answers(
        self, hm: HookedModel, name: str, asked: Sequence[Question], known: Prepared | None = None
    ) -> list[Row]:
        distinct = _distinct(asked)
        place = {key: number for number, key in enumerate(distinct)}
        outcome = score(hm, known or list(distinct.values()))
        rows = []
        for section, phrasing, unit, fact in asked:
            at = place[_text_of(fact)]
            values = {"answer": float(outcome.correct[at]), "p_answer": float(outcome.p_answer[at])}
            if fact.new is not None:
                values |= {"new": float(outcome.says_new[at]), "p_new": float(outcome.p_new[at])}
            chance = 1 / len(fact.options) if fact.options else 0.0
            said = outcome.text[at]
            rows.append(Row(name, section, phrasing, fact.relation, unit, fact.prompt, said, values, chance))
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
        fitted = fit_probes(hm, reader.fitted, sites=sites)
        rows = []
        for site, state in zip(sites, states, strict=True):
            probe = fitted[site]
            for fact, said in zip(reader.scored, probe.predict(state), strict=True):
                values = {"answer": float(said == fact.answer.strip())}
                if fact.new is not None:
                    values["new"] = float(said == fact.new.strip())
                chance = 1 / len(probe.labels)
                row = Row(name, "probe", str(site), reader.relation, fact.prompt, "", said, values, chance)
                rows.append(row)
        return rows

    def _attack(self, hm: HookedModel, name: str, attack: Attack) -> list[Row]:
        context = Context.of(self.facts, self.seen, declared=attack.requires, original=self.original)
        found = attack.search(hm, context, seed=self.seed)
        asked = sections.attacked(self.facts, self.judged, attack.name, seed=self.seed)
        put = found.ask([question.fact for question in asked])
        if len(put) != len(asked):
            raise FactError(
                f"{attack.name}: ask() gave {len(put)} questions for {len(asked)}; it must give one for each"
            )
        as_put = [q._replace(fact=fact) for q, fact in zip(asked, put, strict=True)]
        return self._answers(found.apply(hm), name, as_put)


def _distinct(asked: Sequence[Question]) -> dict[tuple[object, ...], Fact]:
    return {_text_of(question.fact): question.fact for question in asked}


def _text_of(fact: Fact) -> tuple[object, ...]:
    return fact.prompt, fact.answer, fact.new, fact.options
