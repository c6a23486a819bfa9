"""A run that was killed goes on where its last checkpoint was, and ends in the same bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.deep_models import deep_model
from helpers.refusals import refused
from helpers.resumed_runs import EVERY, KILLED, MANY, RUNS, STEPS, Turning, train
from helpers.small_facts import bits, fit, made
from safetensors.torch import load_file, save_file

import mechunlearn as mu
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Optimizer
from mechunlearn.editing.training.checkpoints import FILE
from mechunlearn.editing.training.limits import Limits
from mechunlearn.errors import DataError, TrainingError


@cache
def tiny() -> mu.HookedModel:
    return deep_model()


@cache
def unbroken(name: str) -> Edit:
    """A run that nothing interrupts and that leaves nothing behind."""
    return train(tiny(), name, None)


def same(one: Edit, other: Edit) -> bool:
    """Whether two edits have the same bits, history and step."""
    values = [[bits(d.values) for d in edit.deltas] for edit in (one, other)]
    return values[0] == values[1] and (one.history, one.step) == (other.history, other.step)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of checkpoints of runs that were killed, each in a process of its own."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-m", "helpers.resumed_runs", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == [word for run in RUNS for word in (run, "9")], done.stderr
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_in_the_same_bytes_as_an_unbroken_one(killed: Path, name: str) -> None:
    assert [path.name for path in (killed / name).iterdir()] == [FILE]
    steps: list[int] = []
    resumed = train(tiny(), name, killed / name, callback=lambda step, terms: steps.append(step))
    assert steps == list(range(KILLED - KILLED % EVERY + 1, STEPS + 1))
    assert same(resumed, unbroken(name))
    assert len(resumed.history) == STEPS and not same(resumed, train(tiny(), name, None, steps=KILLED))
    # What is finished is finished.
    assert same(train(tiny(), name, killed / name, callback=never), unbroken(name))


def never(step: int, terms: object) -> None:
    raise AssertionError(f"step {step} was taken again")


def interrupt(at: int) -> Callable[[int, object], None]:
    def callback(step: int, terms: object) -> None:
        if step == at:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("name", RUNS)
def test_a_run_may_be_broken_off_as_often_as_one_likes(tmp_path: Path, name: str) -> None:
    for at in (1, 3, 4, 8):
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), name, tmp_path, callback=interrupt(at))
    assert same(train(tiny(), name, tmp_path), unbroken(name))


def test_a_checkpoint_costs_the_run_nothing(tmp_path: Path) -> None:
    for name in RUNS:
        assert same(train(tiny(), name, tmp_path / name, every=1), unbroken(name))


def test_a_resumed_run_keeps_the_same_of_what_did_not_fit(tmp_path: Path) -> None:
    # What is not kept is computed beside other examples, and rounds otherwise.
    for memory in (4000, 9000, 15_000):
        options: dict[str, Any] = {"limits": Limits(memory=memory), "optimizer": Optimizer()}
        options |= {"stop": mu.Stop(1.0, 1.0, every=3), "steps": 8, "lr": 0.05}
        whole = train(tiny(), "state", None, **options)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), "state", tmp_path / str(memory), callback=interrupt(5), **options)
        assert same(train(tiny(), "state", tmp_path / str(memory), **options), whole)


def test_a_run_that_ended_early_is_finished(tmp_path: Path) -> None:
    first = train(tiny(), "sgd", tmp_path, callback=lambda step, terms: step == 3)
    assert len(first.history) == 3
    assert same(train(tiny(), "sgd", tmp_path, callback=never), first)
    reached = mu.Stop(goal=0.0, min_retention=0.0, every=3)
    early = train(tiny(), "sgd", tmp_path / "other", stop=reached)
    assert len(early.history) == 3
    assert same(train(tiny(), "sgd", tmp_path / "other", stop=reached, callback=never), early)


# Nobody can answer both, so the goal is never reached and every step is taken.
TORN = mu.Facts(
    [
        mu.Fact("Bo plays", "Bo", "golf", new="judo"),
        *(mu.Fact("Cy plays", "Cy", word, split="retain") for word in ("golf", "polo")),
    ]
)


def test_the_best_step_is_remembered_over_the_break(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **{"objective": Turning(), "facts": TORN, "stop": mu.Stop(1.0, 1.0, every=2)},
        **{"steps": 20, "lr": 0.05, "optimizer": Optimizer(schedule="constant")},
    }
    whole = train(tiny(), "sgd", None, **options)
    assert whole.step < 16 and len(whole.history) == 20 and whole.history[-1]["success"] == 0.0
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), "sgd", tmp_path, callback=interrupt(17), **options)
    assert same(train(tiny(), "sgd", tmp_path, **options), whole)
    stored = load_file(tmp_path / FILE)
    best = [stored[f"best.{i}"] for i in range(len(whole.deltas))]
    assert [bits(t) for t in best] == [bits(d.values) for d in whole.deltas]


def test_masks_are_resumed_as_masks(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "objective": mu.objectives.WeightMask(patience=2),
        "stop": mu.Stop(1.0, 1.0, every=1),
    }
    whole = train(tiny(), "sgd", None, **options)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), "sgd", tmp_path, callback=interrupt(6), **options)
    assert same(train(tiny(), "sgd", tmp_path, **options), whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_resumed_too(tmp_path: Path, dtype: torch.dtype) -> None:
    hm = tiny().to(dtype)
    with pytest.raises(KeyboardInterrupt):
        train(hm, "adam", tmp_path, callback=interrupt(6))
    assert same(train(hm, "adam", tmp_path), train(hm, "adam", None))


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(), "sgd", tmp_path, steps=2)
    before = (tmp_path / FILE).read_bytes()

    def full(*args: Any, **options: Any) -> None:
        Path(args[1]).write_bytes(b"half a file")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="no space left"):
            train(tiny(), "sgd", tmp_path / "other", steps=2)
    assert not (tmp_path / "other" / FILE).exists() and not list((tmp_path / "other").iterdir())
    assert (tmp_path / FILE).read_bytes() == before


# -- what is refused ------------------------------------------------------------------------------------


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def scrambled(path: Path) -> None:
    path.write_bytes(b"\x00" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [damaged, scrambled, empty])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    train(tiny(), "sgd", tmp_path, steps=2)
    spoil(tmp_path / FILE)
    said = f"{tmp_path / FILE} is no whole checkpoint (", "; delete it to begin anew"
    with refused(DataError, *said, hm=tiny(), folder=tmp_path):
        train(tiny(), "sgd", tmp_path, steps=2)


def test_another_kind_of_file_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / FILE, metadata={"format": "mechunlearn.edit/1"})
    said = f"{tmp_path / FILE} has format 'mechunlearn.edit/1', not ", "; delete it to begin anew"
    with refused(DataError, *said, hm=tiny(), folder=tmp_path):
        train(tiny(), "sgd", tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"lr": 0.02},
        {"steps": STEPS + 1},
        {"objective": mu.objectives.Inject(text=0.0, retain=0.5)},
        {"optimizer": Optimizer("SGD", clip=1.0)},
        {"stop": mu.Stop()},
        {"optimizer": Optimizer()},
    ],
    ids=lambda options: ", ".join(options),
)
def test_a_checkpoint_of_another_run_is_not_gone_on_with(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), "sgd", tmp_path, callback=interrupt(3))
    said = f"{tmp_path / FILE} is of another run: the model, the place, the recipe or the facts differ; give"
    with refused(DataError, said, "checkpoint= another folder", hm=tiny(), folder=tmp_path):
        train(tiny(), "sgd", tmp_path, **options)


@pytest.mark.parametrize(
    "facts",
    [
        mu.Facts([fact.replace(new="dojo") if fact.new else fact for fact in MANY], text=MANY.text),
        mu.Facts([fact.replace(validation=()) for fact in MANY], text=MANY.text),
        mu.Facts(MANY, text=("it snows", *MANY.text[1:])),
    ],
    ids=["other answers", "other questions to judge by", "other text"],
)
def test_a_checkpoint_of_other_facts_is_not_gone_on_with(tmp_path: Path, facts: mu.Facts) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), "adam", tmp_path, callback=interrupt(3))
    with refused(DataError, "is of another run", "the facts differ", hm=tiny(), folder=tmp_path):
        train(tiny(), "adam", tmp_path, facts=facts)


def test_a_checkpoint_of_another_model_or_place_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), "sgd", tmp_path, callback=interrupt(3))
    other = made(tiny(), "L0.mlp").apply(tiny())
    with refused(DataError, "is of another run", hm=other, folder=tmp_path):
        train(other, "sgd", tmp_path)
    with refused(DataError, "is of another run", hm=tiny(), folder=tmp_path):
        fit(tiny(), "L2.mlp", facts=MANY, checkpoint=tmp_path)


def test_there_is_at_least_one_step_between_checkpoints(tmp_path: Path) -> None:
    with refused(TrainingError, "checkpoint_every is 0; give a whole", hm=tiny(), folder=tmp_path):
        train(tiny(), "sgd", tmp_path, every=0)
