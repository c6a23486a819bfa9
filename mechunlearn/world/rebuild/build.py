"""Rebuild the two checkpoints that ship with the package: what ``mechunlearn world train`` runs.

Each model is trained in its own process on one thread: on two cores the two do not slow each other down, and
each gives the same bytes every time.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from mechunlearn.world import tables
from mechunlearn.world.rebuild.training import Plan, save, train, withheld_names

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

NAMES = ("original", "gold")


def build(folder: Path, *, which: Sequence[str] = NAMES, plan: Plan | None = None) -> None:
    """Train and save the models in parallel, each in a folder of its name inside ``folder``."""
    plan = plan or Plan()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=len(which), mp_context=spawn) as pool:
        jobs = [pool.submit(build_one, name, folder, plan, line) for line, name in enumerate(which)]
        for job in jobs:
            job.result()


def build_one(name: str, folder: Path, plan: Plan, line: int = 0) -> None:
    """Train and save one model, with a progress bar on the terminal's line number ``line``."""
    from tqdm.auto import tqdm

    people = tables.people()
    withheld = withheld_names(people) if name == "gold" else frozenset()
    with tqdm(total=plan.steps, desc=name, position=line) as bar:

        def on_step(step: int, loss: float, model: LlamaForCausalLM) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

        model, tokenizer = train(people, tables.countries(), plan=plan, withheld=withheld, on_step=on_step)
    save(model, tokenizer, folder / name)


def report(folder: Path, *, gold: bool) -> str:
    """Return the accuracy table of the checkpoint in a folder; ``gold`` says that it is the gold model."""
    import torch

    from mechunlearn.models.hooked import HookedModel
    from mechunlearn.world.rebuild.check import accuracies

    hm = HookedModel.from_pretrained(folder, dtype=torch.float32, prepend_bos=True)
    lines = [str(accuracy) for accuracy in accuracies(hm, gold=gold)]
    return "\n".join([f"{folder.name}: share right [95 % interval]", *lines])
