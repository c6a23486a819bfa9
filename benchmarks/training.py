"""Benchmark of the trainer: its step beside a plain model's, and beside full fine-tuning.

    python benchmarks/training.py --json training.json

See docs/benchmarks.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# So that the folder can be imported from when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.models import SHAPES, PatchTask
from benchmarks.step_memory import STEP_MEMORY, step_memory_rows
from benchmarks.step_table import put_in, table
from benchmarks.steps import StepRow, step_rows
from benchmarks.table import machine, written
from benchmarks.works.training import CUTS, Trial, model_of

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS, QUICK_STEPS = 9, 3


def main(arguments: Sequence[str] | None = None) -> list[StepRow]:
    """Run the benchmark, print its table, and give the rows.

    Args:
        arguments: of the command line; None for the process's own.
    """
    chosen = _parser().parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    here = model_of(chosen.shape, device=chosen.device, dtype=DTYPES[chosen.dtype], quick=chosen.quick)
    print(machine(here))
    rows: list[StepRow] = []
    for name in chosen.only or [*CUTS, STEP_MEMORY]:
        print(f"{name} ...", file=sys.stderr)
        rows += _rows(name, here, chosen)
        # After every work, so that what was measured is there whatever happens to the next.
        if chosen.json:
            Path(chosen.json).write_text(written(rows), encoding="utf-8")
    print(table(rows))
    if chosen.docs:
        page = Path(chosen.docs)
        page.write_text(put_in(page.read_text(encoding="utf-8"), rows, machine(here)), encoding="utf-8")
    return rows


def _rows(name: str, here: PatchTask, chosen: argparse.Namespace) -> list[StepRow]:
    if name == STEP_MEMORY:
        return step_memory_rows(chosen.shape, chosen.device, chosen.dtype, quick=chosen.quick)
    steps = chosen.steps or (QUICK_STEPS if chosen.quick else STEPS)
    return step_rows(Trial.of(here, CUTS[name]), steps=steps, judge=chosen.dtype != "bfloat16")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The trainer's step beside a plain model's.")
    parser.add_argument("--json", help="write one object per row of the table to this file")
    parser.add_argument("--docs", help="put the tables into this page, such as docs/benchmarks.md")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*CUTS, STEP_MEMORY],
        metavar="ID",
        help="one work; may be repeated",
    )
    parser.add_argument(
        "--steps", type=int, help=f"steps that are timed per work ({STEPS}; --quick {QUICK_STEPS})"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads; 0 for as many as torch takes (1)")
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2-small", help="of the random model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--quick", action="store_true", help="a tiny model of that family, to try it out")
    return parser


if __name__ == "__main__":
    # Libraries warn about their own future; nothing of it changes a result.
    warnings.simplefilter("ignore")
    main()
