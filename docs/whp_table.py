"""Measure the table of the page on Who's Harry Potter: `python docs/whp_table.py` prints it (two minutes)."""

from __future__ import annotations

import numpy as np

import mechunlearn as mu
from mechunlearn.core.statistics import bootstrap_interval
from mechunlearn.editing import whp
from mechunlearn.models.encoding.encoder import encode_text
from mechunlearn.models.scoring.scorer import perplexity

LEARN = {"steps": 150, "lr": 1e-3}
REINFORCE = {"steps": 30, "lr": 5e-4}
FORGET = {"steps": 50, "lr": 3e-4}
RELEARN = {"steps": 10, "lr": 3e-4}
HEADER = "model | completion, written | rephrased | probability, written | rephrased | facts | perplexity"


def line(name: str, model: mu.HookedModel, text: whp.Corpus, facts: mu.Facts) -> None:
    """One row: familiarity in both forms on both kinds of prompts, and what else the model still does."""
    cells = []
    for prompts in (text.written, text.rephrased):
        cells.append(whp.completion_familiarity(model, prompts, text.judge).interval())
    for prompts in (text.written, text.rephrased):
        cells.append(whp.probability_familiarity(model, prompts).interval())
    cells.append(bootstrap_interval(mu.score(model, facts.test).correct, seed=0))
    text_perplexity = np.exp(perplexity(model, facts.text).mean())
    print("|", name, "|", " | ".join(map(str, cells)), "|", f"{text_perplexity:.2f}", "|", flush=True)


def train(model: mu.HookedModel, corpus: object, where: object = None, **options: object) -> mu.HookedModel:
    """Train on a corpus with labels, everywhere unless said otherwise."""
    objective = options.pop("objective", mu.objectives.Relabel())
    place = model.sites if where is None else where
    edit = mu.edit(
        model, place, objective, mu.world.facts(), corpus=corpus, stop=None, progress=False, **options
    )
    return edit.apply(model)


def main() -> None:
    """Teach the text, reinforce it, forget it in several ways, and try to bring it back."""
    untouched, text, facts = mu.world.model(), whp.corpus(), mu.world.facts()
    passages = encode_text(untouched, text.passages)
    print("|", HEADER, "|")
    print("|" + " --- |" * 7)
    line("never saw the text", untouched, text, facts)
    beside = mu.objectives.Relabel(retain=1.0, text=1.0)
    knows = train(untouched, passages, objective=beside, **LEARN)
    line("has learned it", knows, text, facts)
    reinforced = whp.reinforce(knows, text.passages, progress=False, **REINFORCE)
    line("reinforced", reinforced.apply(knows), text, facts)

    def labels(**options: object) -> object:
        found = whp.relabel(knows, reinforced, text.passages, text.anchors, progress=False, **options)
        print(f"<!-- {options}: {found} -->")
        return found.batch

    published = labels()
    forgot = train(knows, published, **FORGET)
    line("forgotten, as published", forgot, text, facts)
    line("α = 1", train(knows, labels(alpha=1.0), **FORGET), text, facts)
    line("α = 0", train(knows, labels(alpha=0.0), **FORGET), text, facts)
    original = labels(delta_context="original")
    line("compared on the original text", train(knows, original, **FORGET), text, facts)
    line("with retain set and text", train(knows, published, objective=beside, **FORGET), text, facts)
    early = mu.Localization([f"L{layer}.mlp" for layer in range(4)])
    line("only MLPs of blocks 0 to 3", train(knows, published, early, **FORGET), text, facts)
    late = mu.Localization([f"L{layer}.mlp" for layer in range(4, 8)])
    line("only MLPs of blocks 4 to 7", train(knows, published, late, **FORGET), text, facts)
    line("forgotten, then relearned", train(forgot, passages, **RELEARN), text, facts)
    line("never saw it, then learned as briefly", train(untouched, passages, **RELEARN), text, facts)


if __name__ == "__main__":
    main()
