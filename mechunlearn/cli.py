"""The command line: each command is one call, and commands pass results to each other as files.

``mechunlearn demo`` runs the main job on the embedded world, ``mechunlearn methods`` every method.
``localize``, ``edit`` and ``audit`` do the steps of the job for a model folder and a facts file;
``mechunlearn world export`` writes the embedded ones as such. Each command imports what it needs when it
runs, so that ``--help`` is fast.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechunlearn.errors import MechUnlearnError, ScoresError

if TYPE_CHECKING:
    from mechunlearn.core.facts.collection import Facts
    from mechunlearn.core.scores.scores import Scores
    from mechunlearn.models.hooked import HookedModel

app = typer.Typer(
    help="Look where a language model looks facts up, cut exactly there, and doubt the result.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
world = typer.Typer(help="The embedded language model and its facts.", no_args_is_help=True)
app.add_typer(world, name="world")

Model = Annotated[
    Path, typer.Argument(exists=True, help="Folder of a Hugging Face model with its tokenizer.")
]
FactsFile = Annotated[
    Path,
    typer.Argument(exists=True, dir_okay=False, help="Facts as JSON lines, as Facts.to_jsonl writes them."),
]


class Method(StrEnum):
    """The localizers."""

    fact_lookup = "fact_lookup"
    causal_trace = "causal_trace"
    attribution = "attribution"


class Aim(StrEnum):
    """The objectives that need only facts: no layer, no corpus."""

    AltPO = "AltPO"
    CEU = "CEU"
    DPO = "DPO"
    Forget = "Forget"
    GradientAscent = "GradientAscent"
    GradientDifference = "GradientDifference"
    Inject = "Inject"
    NPO = "NPO"
    PDU = "PDU"
    SatImp = "SatImp"
    SimNPO = "SimNPO"
    UNDIAL = "UNDIAL"
    WGA = "WGA"
    WeightMask = "WeightMask"


class Checkpoint(StrEnum):
    """The embedded checkpoints."""

    original = "original"
    gold = "gold"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where to write the report.")] = Path("report.html"),
    draws: Annotated[int, typer.Option(min=1, help="Groups of people to forget, one after another.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="One draw, fewer people and rows.")] = False,
) -> None:
    """Run the main job on the embedded world: look, cut, doubt, and write a report."""
    from mechunlearn.experiments.demo.running import run

    result = run(draws=1 if quick else draws, quick=quick)
    result.to_html(out)
    typer.echo(result)
    typer.echo(out.resolve())


@app.command()
def methods(
    out: Annotated[Path, typer.Option(help="Folder for the cells, the table and the picture.")] = Path(
        "methods"
    ),
    only: Annotated[
        list[str] | None, typer.Option(help="A method to run; repeat for more, all if not given.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="The budget of every trained edit.")] = 60,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of examples, people and random sites."),
    ] = 0,
    page: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Also put the table into this page.")
    ] = None,
) -> None:
    """Run every method on the embedded world: at the lookup, at random, and everywhere.

    Cells that are in the folder already are not made again, so a run that was interrupted goes on.
    """
    from mechunlearn.experiments.method_comparison.catalogue import METHODS
    from mechunlearn.experiments.method_comparison.running import run

    chosen = only or METHODS
    comparison = run(out / "cells", only=chosen, steps=steps, seed=seed, workers=jobs)
    comparison.write(out)
    if page is not None:
        comparison.write_into(page)
    typer.echo(comparison)
    typer.echo(out.resolve())


@app.command()
def localize(
    model: Model,
    facts: FactsFile,
    method: Annotated[Method, typer.Option(help="How to find the sites.")] = Method.fact_lookup,
    top: Annotated[int | None, typer.Option(help="Keep so many sites.")] = None,
    params: Annotated[float | None, typer.Option(help="Keep this share of the parameters.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the sites.")] = Path("localization.json"),
    figure: Annotated[Path | None, typer.Option(help="Also write the heatmap, as HTML.")] = None,
) -> None:
    """Score a model's sites for its forget facts and keep the best; without a size, those above zero."""
    hm, collection = _read(model, facts)
    scores = _scores(hm, collection, method)
    sized = top is not None or params is not None
    localization = scores.top(top, params=params) if sized else scores.above(0.0)
    if not localization:
        raise ScoresError(f"{scores.title}: no site scores above 0; choose a size with --top or --params")
    localization.save(out)
    if figure is not None:
        scores.heatmap().write_html(figure)
    typer.echo(f"{localization}: {hm.fraction(localization):.1%} of the parameters")
    typer.echo(out.resolve())


@app.command()
def edit(
    model: Model,
    facts: FactsFile,
    localization: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Sites, as `localize` writes them.")
    ],
    objective: Annotated[Aim, typer.Option(help="What to minimise, with its defaults.")] = Aim.Inject,
    steps: Annotated[int, typer.Option(min=1)] = 200,
    lr: Annotated[float, typer.Option(min=0.0)] = 1e-3,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for the edit.")] = Path("edit"),
    full: Annotated[Path | None, typer.Option(help="Also write the whole edited model here.")] = None,
) -> None:
    """Fit an edit confined to a localization."""
    import mechunlearn as mu

    hm, collection = _read(model, facts)
    sites = mu.Localization.load(localization)
    aim = getattr(mu.objectives, objective.value)()
    fitted = mu.edit(hm, sites, aim, collection, steps=steps, lr=lr, seed=seed)
    fitted.save_pretrained(out)
    if full is not None:
        fitted.apply(hm).save_pretrained(full)
    typer.echo(fitted)
    typer.echo(out.resolve())


@app.command()
def audit(
    model: Model,
    facts: FactsFile,
    edit: Annotated[Path, typer.Argument(exists=True, help="Folder of an edit, as `edit` writes it.")],
    gold: Annotated[
        Path | None, typer.Option(exists=True, help="A model that never saw the forget facts.")
    ] = None,
    controls: Annotated[int, typer.Option(min=0, help="Refits on random localizations.")] = 3,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Where to write the report.")] = Path("audit.html"),
) -> None:
    """Attack an edit, compare it with its controls, and write a report."""
    import mechunlearn as mu

    hm, collection = _read(model, facts)
    never = mu.HookedModel.from_pretrained(gold) if gold else None
    report = mu.audit(hm, mu.Edit.from_pretrained(edit), collection, gold=never, controls=controls, seed=seed)
    report.to_html(out)
    typer.echo(report)
    typer.echo(out.resolve())


@world.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Where to write the checkpoints.")],
    which: Annotated[list[Checkpoint] | None, typer.Option(help="One of them; both if not given.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 2500,
    seed: int = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each model's process.")] = 1,
) -> None:
    """Rebuild the embedded checkpoints from nothing and print what they know."""
    from mechunlearn.world.rebuild.build import build, report
    from mechunlearn.world.rebuild.training import Plan

    names = [w.value for w in which or list(Checkpoint)]
    build(folder, which=names, plan=Plan(steps=steps, seed=seed, threads=threads))
    for name in names:
        typer.echo(report(folder / name, gold=name == "gold"))


@world.command()
def check() -> None:
    """Print what the embedded checkpoints know, from the files that ship."""
    from importlib.resources import as_file

    from mechunlearn.world import tables
    from mechunlearn.world.rebuild.build import report

    for name in Checkpoint:
        with as_file(tables.data() / name.value) as folder:
            typer.echo(report(folder, gold=name is Checkpoint.gold))


@world.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where to write the models and the facts.")],
    group: Annotated[int, typer.Option(min=0, max=3, help="Which people are to be forgotten.")] = 0,
) -> None:
    """Write the embedded models and one group's facts as files for the other commands."""
    import mechunlearn as mu

    for name in Checkpoint:
        mu.world.model(name.value).save_pretrained(folder / name.value)
    mu.world.facts(group=group).to_jsonl(folder / "facts.jsonl")
    typer.echo(folder.resolve())


def _read(model: Path, facts: Path) -> tuple[HookedModel, Facts]:
    import mechunlearn as mu

    return mu.HookedModel.from_pretrained(model), mu.Facts.from_jsonl(facts)


def _scores(hm: HookedModel, facts: Facts, method: Method) -> Scores:
    """Score the forget facts; the probes of fact lookup are fitted on the same relations of other people."""
    import mechunlearn as mu

    facts.require("forget")
    if method is not Method.fact_lookup:
        scores: Scores = getattr(mu, method.value)(hm, facts.forget)
        return scores
    relations = {fact.relation for fact in facts.forget}
    subjects = {fact.subject for fact in facts.forget}
    others = [
        fact
        for fact in facts
        if fact.split != "forget" and fact.relation in relations and fact.subject not in subjects
    ]
    return mu.fact_lookup(hm, facts.forget, fitted_on=others or None)


def main(*args: Any) -> None:
    """Run the command line; an error of this package or of a file is printed in one line, no traceback."""
    try:
        app(*args)
    except (MechUnlearnError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
