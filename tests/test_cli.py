"""The command line: four commands that pass nothing but files, and errors in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mechunlearn as mu
from mechunlearn.cli import Aim, app, main

RUN = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def run(*words: object) -> str:
    """Run a command that should succeed, and give what it printed."""
    done = RUN.invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `world export` writes, with few facts beside the full file."""
    folder = tmp_path_factory.mktemp("world")
    assert run("world", "export", folder, "--group", 1).strip() == str(folder)
    facts = mu.Facts.from_jsonl(folder / "facts.jsonl")
    some = facts.forget[:4] + facts.retain[:10] + facts.test[:2]
    few = [fact.replace(entailed=(), neighbours={}, choice=None) for fact in some]
    mu.Facts(few, text=facts.text[:4]).to_jsonl(folder / "few.jsonl")
    return folder


def test_export_writes_both_models_and_the_facts_of_a_group(world: Path) -> None:
    assert mu.HookedModel.from_pretrained(world / "original").identity == mu.world.model().identity
    assert mu.HookedModel.from_pretrained(world / "gold").identity == mu.world.model("gold").identity
    assert mu.Facts.from_jsonl(world / "facts.jsonl") == mu.world.facts(group=1)


def test_the_commands_chain_through_files(world: Path, tmp_path: Path) -> None:
    hm, few = world / "original", world / "few.jsonl"
    before = {path: path.read_bytes() for path in world.rglob("*") if path.is_file()}

    sites, picture = tmp_path / "sites.json", tmp_path / "sites.html"
    ask = ("localize", hm, few, "--method", "attribution", "--top", 2)
    printed = run(*ask, "--out", sites, "--figure", picture)
    assert "% of the parameters" in printed and printed.strip().endswith(str(sites))
    found = mu.Localization.load(sites)
    assert len(found) == 2 and found.source.startswith("Attribution patching")
    assert "plotly" in picture.read_text(encoding="utf-8")

    folder, full = tmp_path / "edit", tmp_path / "full"
    printed = run("edit", hm, few, sites, "--steps", 4, "--lr", 2e-3, "--out", folder, "--full", full)
    assert "Inject" in printed and printed.strip().endswith(str(folder))
    edit = mu.Edit.from_pretrained(folder)
    assert edit.localization == found and edit.recipe is not None
    assert (edit.recipe.steps, edit.recipe.lr) == (4, 2e-3)
    edited = edit.apply(mu.HookedModel.from_pretrained(hm))
    assert mu.HookedModel.from_pretrained(full).identity == edited.identity != edit.made_on

    page = tmp_path / "audit.html"
    printed = run("audit", hm, few, folder, "--controls", 0, "--out", page)
    assert "no control" in printed and "relearning" in printed and printed.strip().endswith(str(page))
    assert "<table" in page.read_text(encoding="utf-8")
    assert {path: path.read_bytes() for path in world.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("method", ["causal_trace", "attribution"])
def test_every_localizer_can_be_asked_for_with_a_budget(world: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "sites.json"
    run(
        "localize", world / "original", world / "few.jsonl", "--method", method, "--params", 0.2, "--out", out
    )
    assert 0.0 < mu.world.model().fraction(mu.Localization.load(out)) <= 0.2


def test_fact_lookup_scores_the_forget_facts_with_probes_fitted_on_other_people(
    world: Path, tmp_path: Path
) -> None:
    facts = mu.Facts.from_jsonl(world / "facts.jsonl")
    others = [fact for fact in [*facts.retain, *facts.test] if fact.relation == "sport"]
    scores = mu.fact_lookup(mu.world.model(), facts.forget, fitted_on=others, progress=False)
    run("localize", world / "original", world / "facts.jsonl", "--out", tmp_path / "sites.json")
    found = mu.Localization.load(tmp_path / "sites.json")
    assert found == scores.above(0.0) and found.source == scores.above(0.0).source


# -- errors ---------------------------------------------------------------------------------------------


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that should fail with exit code 2, and give the one line it wrote to stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    told = capsys.readouterr()
    line = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert len(line) == 1 and told.err.endswith(line[0] + "\n")
    assert "Traceback" not in told.err and told.out == ""
    return line[0]


def test_an_error_of_ours_is_one_line_with_the_remedy(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hm, few, sites = world / "original", world / "few.jsonl", tmp_path / "sites.json"
    mu.Localization(["L99.mlp"]).save(sites)
    assert "is a folder without config.json. Give a folder" in fails(capsys, "localize", tmp_path, few)
    assert "params is a share in (0.0, 1.0]" in fails(capsys, "localize", hm, few, "--params", 2)
    few_facts = fails(capsys, "localize", hm, few, "--top", 2)
    assert "which scores 0" in few_facts and "an accident of 4 facts); give more facts" in few_facts
    assert "L99.mlp is not a site of this model: its layers are L0 to L7" in fails(
        capsys, "edit", hm, few, sites, "--out", tmp_path / "edit"
    )
    assert "few.jsonl is not a whole localization" in fails(capsys, "edit", hm, few, few)
    assert "line 1 is not JSON" in fails(capsys, "localize", hm, hm / "config.json")
    assert "no edit in" in fails(capsys, "audit", hm, few, tmp_path)
    assert list(tmp_path.iterdir()) == [sites]


def test_a_localizer_that_credits_nothing_writes_no_empty_localization(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = list(mu.world.model().sites.mlps())
    monkeypatch.setattr(mu, "attribution", lambda hm, facts: mu.Scores.of(np.zeros(len(sites)), sites))
    words = ("--method", "attribution", "--out", tmp_path / "sites.json")
    told = fails(capsys, "localize", world / "original", world / "few.jsonl", *words)
    assert told.endswith("no site scores above 0; choose a size with --top or --params")
    assert list(tmp_path.iterdir()) == []


def test_facts_without_a_forget_set_are_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mu.world.facts().retain.to_jsonl(tmp_path / "kept.jsonl")
    told = fails(capsys, "localize", world / "original", tmp_path / "kept.jsonl", "--out", tmp_path / "sites")
    assert "the forget set is empty" in told and "give at least one Fact(..., split='forget')" in told
    assert not (tmp_path / "sites").exists()


def test_a_place_that_cannot_be_written_is_one_line_too(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nowhere" / "sites.json"
    words = ("--method", "attribution", "--top", 1, "--out", out)
    assert str(out) in fails(capsys, "localize", world / "original", world / "few.jsonl", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("localize", "{world}/missing", "{world}/few.jsonl"), "does not exist"),
        (("localize", "{world}/original", "{world}/missing.jsonl"), "does not exist"),
        (("edit", "{world}/original", "{world}/few.jsonl", "{world}/missing.json"), "does not exist"),
        (("audit", "{world}/original", "{world}/few.jsonl", "{world}/missing"), "does not exist"),
        (("localize", "{world}/original", "{world}/few.jsonl", "--method", "guess"), "'fact_lookup'"),
        (("edit", "{world}/original", "{world}/few.jsonl", "{world}/few.jsonl", "--steps", "0"), "'--steps'"),
        (("world", "export", "{world}/new", "--group", "4"), "'--group'"),
        (("demo", "--draws", "0"), "'--draws'"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_loaded(
    world: Path, words: tuple[str, ...], said: str
) -> None:
    done = RUN.invoke(app, [word.format(world=world) for word in words])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_every_command_says_what_it_does() -> None:
    every = {"demo": "report", "localize": "sites", "edit": "localization", "audit": "controls"}
    whole = run("--help")
    for name, about in every.items():
        assert name in whole
        assert about in run(name, "--help")
    for name in ("train", "export"):
        assert name in run("world", "--help")
        assert "Where to write" in run("world", name, "--help")


def test_every_objective_that_needs_no_more_than_facts_is_offered() -> None:
    def made_of_nothing(name: str) -> bool:
        try:
            return isinstance(getattr(mu.objectives, name)(), mu.objectives.Objective)
        except TypeError:  # a layer, or layers, must be given
            return False

    usable = {name for name in mu.objectives.__all__ if made_of_nothing(name)} - {"Relabel"}
    assert {aim.value for aim in Aim} == usable
