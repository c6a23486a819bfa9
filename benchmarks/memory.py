"""Peak memory, each measured in a process of its own.

1. A sweep over 1, 4 and 16 times the sites: random sets of positions in the residual stream before the last
   two blocks, so many that the smallest sweep fills the engine's token budget already. The peak must not
   grow.
2. The capture of 1,000 prompts for probes, and TransformerLens's cache of the same names.
3. A process's peak is the largest memory it ever held, model and libraries included; on a GPU it is the
   largest that tensors took there. ``model`` is the peak of a process that only builds the model and runs
   one batch.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import PatchTask, setting
from benchmarks.timing import Row
from benchmarks.works import probes
from benchmarks.works.reading import Difference
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.cached_run import cached_run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Patches, writes_of
from mechunlearn.models.activations import activations
from mechunlearn.models.encoding.batch import Batch

PLACES = 48
SWEEPS = {"model": 0, "1x": PLACES, "4x": 4 * PLACES, "16x": 16 * PLACES}


def memory_rows(shape: str, device: str, dtype: str, *, quick: bool) -> list[Row]:
    """Measure all peaks."""
    threads = torch.get_num_threads()

    def peaks(*cases: str) -> dict[str, float]:
        options = (shape, device, dtype, threads, quick)
        return {case: elsewhere("benchmarks.memory", [case, *options]) for case in cases}

    sweep, probe = peaks(*SWEEPS), peaks("model", "capture", "run_with_cache")
    note = f"peak MiB of a sweep: {_said(sweep)}; 1x is {2 * PLACES} sites in every prompt"
    probe_note = f"peak MiB of probe_capture: {_said(probe)}"
    return [
        Row("memory_sites", "", threads=threads, peak_memory_mb=sweep, note=note),
        Row("memory_probes", "", threads=threads, peak_memory_mb=probe, note=probe_note),
    ]


def _said(peaks: dict[str, float]) -> str:
    return ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items())


def elsewhere(module: str, arguments: Sequence[Any]) -> float:
    """Run a module in a process of its own, and give the number that it prints last.

    Args:
        module: takes its arguments as one JSON array.
        arguments: such as JSON can hold.
    """
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, json.dumps(list(arguments))],
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        # Large tensors are given back at once, so that a peak is what was held and not what lay in holes.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)},
    )
    return float(found.stdout.splitlines()[-1])


def peak(case: str, shape: str, device: str, dtype: str, threads: int, *, quick: bool) -> float:
    """Do one case in this process, and give its peak in MiB."""
    torch.set_num_threads(threads)
    here = setting(shape, device=device, dtype=getattr(torch, dtype), quick=quick)
    if case in SWEEPS:
        _sweep(here, SWEEPS[case])
    elif case == "capture":
        probes.ours(here, *probes.drawn(here))
    else:
        prompts, size = probes.drawn(here)
        probes.cached(here, prompts, size, range(len(prompts.clean) // size))
    return most_held(device)


def most_held(device: str) -> float:
    """The largest memory this process ever held, in MiB; on a GPU, that tensors took there.

    Args:
        device: where the tensors are.
    """
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage gives on Linux begins with the peak of the process that started this one.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def held(device: str) -> float:
    """What this process holds now, in MiB; where the system does not tell, the largest it ever held.

    Args:
        device: where the tensors are.
    """
    if device != "cpu":
        return torch.cuda.memory_allocated() / 2**20
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return most_held(device)
    return int(pages.read_text(encoding="utf-8").split()[1]) * resource.getpagesize() / 2**20


def _sweep(here: PatchTask, places: int) -> None:
    prompts, hm = here.prompts(), here.hm
    writes = [writes_of(hm, [Site("resid_pre", layer)]) for layer in (here.layers - 2, here.layers - 1)]
    generator = torch.Generator().manual_seed(0)
    where = torch.rand(max(1, places), here.rows, here.length, generator=generator) < 0.5
    where[:, :, 0] = True
    patches = Patches.grid(writes, where.to(hm.device))
    names = [write.name for some in writes for write in some]
    run = cached_run(hm, Batch.of_tokens(prompts.corrupt), names)
    source = activations(hm, Batch.of_tokens(prompts.clean), names)
    if places:
        Engine.of(hm).sweep(run, source, patches, Difference(prompts))


if __name__ == "__main__":
    case, shape, device, dtype, threads, quick = json.loads(sys.argv[1])
    print(peak(case, shape, device, dtype, threads, quick=quick))
