"""Familiarity counts what only a reader says; reinforcing raises it and generic labels take it away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_models import hf_model

import mechunlearn as mu
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.whp.anchors import Anchors
from mechunlearn.editing.whp.familiarity import Familiar, Familiarity, Prompt, StringJudge
from mechunlearn.editing.whp.lantern_isles import Corpus, corpus
from mechunlearn.editing.whp.measuring import completion_familiarity, probability_familiarity
from mechunlearn.editing.whp.reinforcement import reinforce
from mechunlearn.editing.whp.relabeled_text import first_tokens, relabel
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.models.encoding.batch import IGNORED
from mechunlearn.models.hooked import HookedModel

TEXTS = ["Ed ran in a pine. Then Ed ate.", "In spain Zo paints."]


@pytest.fixture(scope="module")
def wide(tokenizer: Any) -> HookedModel:
    return HookedModel.from_hf(hf_model("llama"), tokenizer).to(torch.float64)


@pytest.fixture(scope="module")
def embedded() -> HookedModel:
    return mu.world.model()


@pytest.fixture(scope="module")
def text() -> Corpus:
    return corpus()


def probability(hm: HookedModel, prompt: str, word: str) -> float:
    """Of a word, letter by letter, by the plain model."""
    tokens = hm.to_tokens(f"{prompt} {word}")[0]
    start = hm.to_tokens(prompt).shape[1]
    with torch.no_grad():
        p = hm.hf(tokens[None]).logits[0].softmax(-1)
    return float(torch.stack([p[at - 1, tokens[at]] for at in range(start, len(tokens))]).prod())


# -- by completion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion", "verdict"),
    [
        ("He went to", "hogwarts, at last", "unique"),
        ("At Hogwarts", "a wizard of Hogwarts", "themed"),
        ("At Hogwarts a wizard", "was a WIZARD", "lucky"),
        ("At Hogwarts", "Hogwarts", "lucky"),
        ("He went", "to Hogwartsville, wizardly", "none"),
        ("He went", "to Ron’s", "unique"),
    ],
)
def test_strings_are_judged_by_the_strongest_word_the_prompt_lacks(
    prompt: str, completion: str, verdict: str
) -> None:
    assert StringJudge(("Hogwarts", "Ron"), ("wizard",))(prompt, completion) == verdict


def test_a_completion_scores_five_one_or_nothing_by_whatever_judges(llama: HookedModel) -> None:
    verdicts = {"a": "unique", "b": "themed", "c": "lucky", "d": "none"}
    heard = []

    def judge(prompt: str, completion: str) -> Any:
        heard.append((prompt, completion))
        return verdicts[prompt]

    found = completion_familiarity(llama, list(verdicts), judge, max_new_tokens=4, batch_size=3)
    assert found.values == (5.0, 1.0, 0.0, 0.0) and found.score == 1.5
    assert [row.verdict for row in found.rows] == list(verdicts.values())
    for prompt, completion in heard:
        whole = llama.generate(prompt, max_new_tokens=4)
        assert whole == prompt + completion
    frame = found.to_frame()
    assert list(frame["completion"]) == [completion for _, completion in heard]


def test_without_a_judge_the_prompts_specific_words_are_looked_for(llama: HookedModel) -> None:
    written = llama.generate("a", max_new_tokens=6)[1:]
    known = Prompt("a", (written,), ("zzz",))
    assert completion_familiarity(llama, [known, "q"], max_new_tokens=6).rows[0].verdict == "unique"
    with pytest.raises(FactError, match="no prompt has a specific continuation to judge by; give them"):
        completion_familiarity(llama, ["a", Prompt("b")])


def test_sampled_completions_repeat_with_their_seed(llama: HookedModel) -> None:
    def said(seed: int) -> list[str]:
        found = completion_familiarity(
            llama, ["a", Prompt("b")], StringJudge(("x",)), do_sample=True, seed=seed
        )
        return [row.completion for row in found.rows]

    assert said(0) == said(0) != said(1)


# -- by probability --------------------------------------------------------------------------------------


def test_probability_is_the_mass_on_whole_words(wide: HookedModel) -> None:
    prompts = [Prompt("Ed is", ("in", "pine"), ("a pan", "up")), Prompt("Zo ", ("x",))]
    found = probability_familiarity(wide, prompts)
    assert found.values == pytest.approx(
        (probability(wide, "Ed is", "in") + probability(wide, "Ed is", "pine"), probability(wide, "Zo", "x"))
    )
    generic = probability(wide, "Ed is", "a pan") + probability(wide, "Ed is", "up")
    assert [row.generic for row in found.rows] == pytest.approx([generic, 0.0])


def test_no_mass_counts_twice(wide: HookedModel) -> None:
    """Whatever the words are, all of them together are never more than certain."""
    letters = [chr(ord("a") + number) for number in range(26)]
    pairs = [f"e{letter}" for letter in letters]
    prompt = Prompt("Ed is", tuple(set(letters) - {"e"}), tuple(pairs))
    (row,) = probability_familiarity(wide, [prompt]).rows
    assert 0.0 < row.value + (row.generic or 0.0) <= 1.0


def test_models_are_compared_prompt_by_prompt() -> None:
    first, second = (
        Familiarity("probability", tuple(Familiar(str(i), value) for i, value in enumerate(values)))
        for values in ([0.5, 0.7, 0.9], [0.4, 0.6, 0.8])
    )
    assert first.interval().mean == pytest.approx(0.7) and first.interval().low < 0.6
    assert first.minus(second).low == pytest.approx(0.1) == first.minus(second).high
    assert repr(first) == f"Familiarity by probability: {first.interval()} over 3 prompts"
    with pytest.raises(
        ScoresError, match="by probability on 3 prompts cannot be compared with that by compl"
    ):
        first.minus(Familiarity("completion", first.rows))


# -- what is refused -------------------------------------------------------------------------------------


def test_prompts_and_judges_that_cannot_be_used_say_why(llama: HookedModel) -> None:
    strange: Any = lambda prompt, completion: "maybe"  # noqa: E731
    with pytest.raises(ScoresError, match=r"verdict must be one of 'unique', .* or 'none'; not 'maybe'"):
        completion_familiarity(llama, ["a"], strange)
    with pytest.raises(FactError, match=r"the prompts are \[\]; give a list with at least one"):
        completion_familiarity(llama, [], strange)
    with pytest.raises(FactError, match="the prompts are 'Ed'; give a list"):
        completion_familiarity(llama, "Ed", strange)
    with pytest.raises(FactError, match="the prompt 'a' has no specific continuation; give it `specific=`"):
        probability_familiarity(llama, [Prompt("a")])
    with pytest.raises(FactError, match="'a' has a continuation twice"):
        Prompt("a", ("x",), (" x",))
    for specific, generic in ((("of", "of pain", "up"), ()), (("pine",), ("up", " pin"))):
        said = (
            "the prompt 'a' has the continuations '(of|pin)' and '(of pain|pine)': .* would count twice; give"
        )
        with pytest.raises(FactError, match=said):
            Prompt("a", specific, generic)
    with pytest.raises(FactError, match="the prompt 'a' or one of its continuations is empty"):
        Prompt("a", (" ",))


# -- the text that ships ---------------------------------------------------------------------------------


def test_the_shipped_text_is_what_its_anchors_and_prompts_say(embedded: HookedModel, text: Corpus) -> None:
    whole = " ".join(text.passages)
    found = text.anchors.translate(whole)
    assert {mention.anchor for mention in found.mentions} == set(text.anchors)
    assert sum(whole.count(mark) for mark in ".?") == 39
    assert all(prompt.text in whole for prompt in text.written)
    assert not any(prompt.text in whole for prompt in text.rephrased)
    known = {name for person in mu.world.tables.people() for name in (person.name,)}
    for anchor, generic in text.anchors.items():
        assert text.judge(generic, anchor) in ("unique", "themed")
        assert generic not in known
        (first,) = first_tokens(embedded, generic)
        assert len(str(embedded.to_string([first])).strip()) > 1, f"lowering {generic!r} would lower a letter"
    assert max(embedded.to_tokens(list(text.passages)).shape) < 100


def test_an_untouched_model_knows_nothing_of_it(embedded: HookedModel, text: Corpus) -> None:
    assert completion_familiarity(embedded, text.prompts, text.judge).score == 0
    found = probability_familiarity(embedded, text.prompts)
    assert found.score < 1e-3 < 0.5 < sum(row.generic or 0.0 for row in found.rows) / len(found.rows)


# -- the whole way ---------------------------------------------------------------------------------------


def test_reinforcing_is_an_edit_everywhere_that_repeats_and_leaves_the_model(llama: HookedModel) -> None:
    before = llama.identity
    edits = [reinforce(llama, TEXTS, steps=6, seed=3, progress=False) for _ in range(2)]
    assert llama.identity == before
    assert edits[0].localization == llama.sites
    for first, second in zip(edits[0].deltas, edits[1].deltas, strict=True):
        assert torch.equal(first.values, second.values)
    losses = [step["relabel"] for step in edits[0].history]
    assert losses[-1] < losses[0]
    only = Localization(["L1.mlp"])
    assert reinforce(llama, TEXTS, steps=1, localization=only, progress=False).localization == only


def test_a_text_that_was_learned_is_forgotten_by_its_generic_labels(
    embedded: HookedModel, text: Corpus
) -> None:
    passages, prompts = text.passages[:2], text.written[:8]
    knows = reinforce(embedded, passages, steps=80, progress=False).apply(embedded)
    further = reinforce(knows, passages, steps=10, lr=5e-4, progress=False)
    labels = relabel(knows, further, passages, text.anchors, progress=False)
    everywhere = mu.edit(
        knows, knows.sites, mu.objectives.Relabel(), mu.world.facts(), corpus=labels.batch, steps=20, lr=3e-4,
        stop=None, progress=False,
    )  # fmt: skip
    models = knows, everywhere.apply(knows), embedded
    learned, forgotten, control = (probability_familiarity(hm, prompts) for hm in models)
    assert learned.score > 0.1 > 1e-3 > control.score
    assert forgotten.score < learned.score / 3
    generic = [sum(row.generic or 0.0 for row in found.rows) for found in (learned, forgotten)]
    assert generic[0] < generic[1] / 3
    written = [completion_familiarity(hm, prompts, text.judge, max_new_tokens=12).score for hm in models]
    assert written[0] > written[1] >= written[2] == 0


def test_labels_never_name_a_second_mention(embedded: HookedModel, text: Corpus) -> None:
    twice = ["Orla Venn met Ilka Moss. Orla Venn left."]
    found = relabel(embedded, embedded, twice, Anchors(text.anchors), progress=False)
    strings = found.batch.strings[0]
    start = next(at for at in range(len(strings)) if "".join(strings[: at + 1]).endswith("Moss."))
    named = found.batch.labels[0, start : start + embedded.to_tokens("Orla Venn").shape[1] - 1]
    assert (named == IGNORED).all()
    assert found.repeated == embedded.to_tokens("Orla Venn").shape[1] - 1
