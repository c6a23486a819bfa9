"""The table, the file, and a line about the machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.models import PatchTask
from benchmarks.timing import Row

_PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "pyvene")


def machine(here: PatchTask) -> str:
    """Processor, threads, load, versions and model, on a few lines."""
    versions = ", ".join(f"{package} {_version(package)}" for package in _PACKAGES)
    device = here.hm.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), load {load}, "
        f"Python {platform.python_version()}\n{versions}\n{here.hm!r}\n"
        f"{here.rows} prompts of {here.length} tokens\n"
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as plain text."""
    head = (
        "work",
        "against",
        "CPU",
        "wall",
        "all in",
        "aim",
        "ours s",
        "peer s",
        "max diff",
        "effect",
        "sites",
    )
    lines = aligned([head, *(_cells(row) for row in rows)])
    notes = [f"{row.work}: {row.note}" for row in rows if row.note]
    notes += [
        f"{row.work}: other batch shapes change this library's result by up to {row.batch_noise:.1e}"
        for row in rows
        if row.batch_noise is not None
    ]
    legend = [
        "CPU, wall: the peer's time over this library's, medians over rounds; s: CPU seconds for all sites.",
        "all in: CPU ratio with what both sides prepare once (runs that are captured) counted too.",
        "sites 8/288: the peer was timed at 8 random sites per round and scaled; both agree at those sites.",
    ]
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    return "\n".join([*lines, "", *legend, *dict.fromkeys(notes), f"load now {load}"])


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as lines of text, their columns below one another.

    Args:
        cells: equally many on every line.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return [line.rstrip() for line in lines]


def written(rows: Sequence[Row]) -> str:
    """The rows as a JSON array, one object per line."""
    return "[\n" + ",\n".join(json.dumps(row.record()) for row in rows) + "\n]\n"


def _cells(row: Row) -> tuple[str, ...]:
    sites = "" if row.sites is None else str(row.sites)
    if row.sampled_sites is not None:
        sites = f"{row.sampled_sites}/{sites}"
    return (
        row.work,
        row.peer,
        number(row.cpu_ratio, "{:.2f}x"),
        number(row.wall_ratio, "{:.2f}x"),
        number(row.complete_cpu_ratio, "{:.2f}x"),
        number(row.target, "{:g}x"),
        number(row.ours_cpu_s, "{:.2f}"),
        number(row.peer_cpu_s, "{:.2f}"),
        number(row.max_abs_diff, "{:.1e}"),
        number(row.effect_scale, "{:.2g}"),
        sites,
    )


def number(value: float | None, form: str) -> str:
    """A number in some form, a dash where there is none.

    Args:
        value: the number.
        form: such as ``"{:.2f}"``.
    """
    return "-" if value is None else form.format(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name, which only Linux tells without asking a command."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
