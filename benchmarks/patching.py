"""Benchmark of the patching engine: this library beside the tools it replaces.

    python benchmarks/patching.py --json patching.json

See docs/benchmarks.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# Before TransformerLens is imported: its sweeps draw a bar each.
os.environ.setdefault("TQDM_DISABLE", "1")
# So that the folder can be imported from when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.memory import memory_rows
from benchmarks.models import SHAPES, PatchTask, setting
from benchmarks.table import machine, table, written
from benchmarks.timing import Row, race
from benchmarks.work import Missing
from benchmarks.works import WORKS

MEMORY = "memory"
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark, print its table, and give the rows.

    Args:
        arguments: of the command line; None for the process's own.
    """
    chosen = _parser().parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    here = setting(chosen.shape, device=chosen.device, dtype=DTYPES[chosen.dtype], quick=chosen.quick)
    print(machine(here))
    rows: list[Row] = []
    for name in chosen.only or [*WORKS, MEMORY]:
        print(f"{name} ...", file=sys.stderr)
        rows += _rows(name, here, chosen)
        # After every work, so that what was measured is there whatever happens to the next.
        if chosen.json:
            Path(chosen.json).write_text(written(rows), encoding="utf-8")
    print(table(rows))
    return rows


def _rows(name: str, here: PatchTask, chosen: argparse.Namespace) -> list[Row]:
    if name == MEMORY:
        return memory_rows(chosen.shape, chosen.device, chosen.dtype, quick=chosen.quick)
    try:
        work = WORKS[name](here)
    except Missing as reason:
        return [Row(name, "", threads=torch.get_num_threads(), note=str(reason))]
    return race(
        work,
        rounds=chosen.rounds,
        seed=chosen.seed,
        device=here.hm.device,
        judge=chosen.dtype != "bfloat16",
        warm=not chosen.quick,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The patching engine beside its peers.")
    parser.add_argument("--json", help="write one object per row of the table to this file")
    parser.add_argument(
        "--only", action="append", choices=[*WORKS, MEMORY], metavar="ID", help="one work; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds per work (3)")
    parser.add_argument("--threads", type=int, default=1, help="threads; 0 for as many as torch takes (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the sites at which peers are sampled (0)")
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2-small", help="of the random model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--quick", action="store_true", help="a tiny model of that family, to try it out")
    return parser


if __name__ == "__main__":
    # Peers warn about their own future; nothing of it changes a result.
    warnings.simplefilter("ignore")
    main()
