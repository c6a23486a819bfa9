"""Measure two sides in turn, and hold them to the same result.

1. In a round a peer prepares, does half of its sites; this library does the complete work; the peer does
   the other half. So both meet the same load of the machine. A peer that does all of its sites goes first
   in every other round.
2. A peer that is sampled draws new sites in every round. Its time at them is scaled to all sites. What
   either side prepares once, however many sites there are, is timed apart: ratios are given without and
   with it.
3. At exactly those sites both must give the same values, to 1e-4 of the largest effect in float32. In half
   precision the difference is reported and not judged: there the result depends on the shape of the batch,
   and how much is reported beside it.
4. Times are CPU seconds of the process, over all threads, and wall-clock seconds. Ratios are ratios of
   medians over rounds. Short rounds are preceded by one that does not count.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.work import Peer, Work

TOLERANCE = 1e-4
"""Of the largest effect, in float32."""
SHORT = 5.0
"""Seconds under which a first round is only a warm-up."""


@dataclass(frozen=True)
class Time:
    """CPU and wall-clock seconds."""

    cpu: float = 0.0
    wall: float = 0.0

    def __add__(self, other: Time) -> Time:
        return Time(self.cpu + other.cpu, self.wall + other.wall)

    def __mul__(self, factor: float) -> Time:
        return Time(self.cpu * factor, self.wall * factor)


@dataclass(frozen=True)
class Row:
    """One line of the table; ratios are peer's time over ours, None where the peer could not run.

    Both are without what is prepared once; ``complete`` ratios count that too.
    """

    work: str
    peer: str
    cpu_ratio: float | None = None
    wall_ratio: float | None = None
    max_abs_diff: float | None = None
    threads: int = 1
    target: float | None = None
    effect_scale: float | None = None
    batch_noise: float | None = None
    complete_cpu_ratio: float | None = None
    complete_wall_ratio: float | None = None
    ours_cpu_s: float | None = None
    ours_wall_s: float | None = None
    peer_cpu_s: float | None = None
    peer_wall_s: float | None = None
    ours_preparation_cpu_s: float | None = None
    peer_preparation_cpu_s: float | None = None
    sites: int | None = None
    sampled_sites: int | None = None
    rounds: int | None = None
    load: float | None = None
    peak_memory_mb: dict[str, float] | None = None
    note: str = ""

    def record(self) -> dict[str, Any]:
        """The row as it is written to a file."""
        return asdict(self)


@dataclass(frozen=True)
class _Spent:
    """Time of all sites, and of what was prepared for them."""

    sites: Time
    before: Time

    @property
    def all(self) -> Time:
        """CleanCorruptRuns."""
        return self.sites + self.before


@dataclass(frozen=True)
class _Round:
    ours: _Spent
    peer: _Spent
    apart: float
    scale: float
    sampled: int
    spent: float


def race(
    work: Work, *, rounds: int, seed: int, device: torch.device, judge: bool = True, warm: bool = True
) -> list[Row]:
    """Measure a work beside each of its peers.

    Args:
        work: what to do.
        rounds: how often.
        seed: of the sites at which peers are sampled.
        device: is waited for before a clock is read.
        judge: whether a difference beyond the tolerance ends the run.
        warm: whether a short first round is repeated, and not counted.

    Raises:
        AssertionError: two sides do not agree.
    """
    threads = torch.get_num_threads()
    peers = [peer for peer in work.peers if not peer.missing]
    generator = torch.Generator().manual_seed(seed)
    found: list[list[_Round]] = []
    while peers and len(found) < rounds:
        one = _round(work, peers, generator, device, first=len(found) % 2 == 0)
        for peer, there in zip(peers, one, strict=True):
            if judge:
                _agree(work, peer, there)
        if warm and not found and sum((r.spent for r in one), one[0].ours.all.wall) < SHORT:
            one = _round(work, peers, generator, device, first=False)
        found.append(one)
    noise = None if judge else _noise(work)
    rows = [_row(work, peer, [one[i] for one in found], threads, noise) for i, peer in enumerate(peers)]
    absent = [peer for peer in work.peers if peer.missing]
    return rows + [Row(work.id, peer.name, threads=threads, note=peer.missing) for peer in absent]


def _noise(work: Work) -> float | None:
    """How far this library is from itself when its batches have another shape."""
    if work.again is None:
        return None
    state = work.prepare()
    return float((_wide(work.ours(state)) - _wide(work.again(state))).abs().max())


def _row(work: Work, peer: Peer, found: Sequence[_Round], threads: int, noise: float | None) -> Row:
    ours, theirs = [one.ours for one in found], [one.peer for one in found]
    mine, other = _median(t.sites for t in ours), _median(t.sites for t in theirs)
    mine_all, other_all = _median(t.all for t in ours), _median(t.all for t in theirs)
    sampled = found[0].sampled
    return Row(
        work.id,
        peer.name,
        _ratio(other.cpu, mine.cpu),
        _ratio(other.wall, mine.wall),
        max(one.apart for one in found),
        threads,
        target=work.target,
        effect_scale=max(one.scale for one in found),
        batch_noise=noise,
        complete_cpu_ratio=_ratio(other_all.cpu, mine_all.cpu),
        complete_wall_ratio=_ratio(other_all.wall, mine_all.wall),
        ours_cpu_s=mine.cpu,
        ours_wall_s=mine.wall,
        peer_cpu_s=other.cpu,
        peer_wall_s=other.wall,
        ours_preparation_cpu_s=_median(t.before for t in ours).cpu,
        peer_preparation_cpu_s=_median(t.before for t in theirs).cpu,
        sites=work.sites,
        sampled_sites=sampled if sampled < work.sites else None,
        rounds=len(found),
        load=os.getloadavg()[0],
        note=work.note,
    )


def _median(times: Iterable[Time]) -> Time:
    listed = list(times)
    return Time(median(t.cpu for t in listed), median(t.wall for t in listed))


def _ratio(theirs: float, ours: float) -> float:
    # A clock of CPU time may stand still while a tiny work is done.
    return theirs / max(ours, 1e-9)


def _agree(work: Work, peer: Peer, found: _Round) -> None:
    if not found.apart <= TOLERANCE * found.scale:
        raise AssertionError(
            f"{work.id}: {peer.name} and this library differ by {found.apart:.2e}, and the largest effect is "
            f"{found.scale:.2e}; at most {TOLERANCE:g} of it was expected"
        )


class _Side:
    """A peer's part in one round: some sites before this library's turn, the others after it."""

    def __init__(
        self, work: Work, peer: Peer, generator: torch.Generator, device: torch.device, *, first: bool
    ) -> None:
        self._peer, self._device, self._all = peer, device, work.sites
        count = work.sites if peer.sample is None else min(peer.sample, work.sites)
        self.sites = torch.randperm(work.sites, generator=generator)[:count].tolist()
        if count == work.sites:
            self.sites.sort()
            self._cut = count if first else 0
        else:
            self._cut = count // 2
        self._state, self._before = timed(peer.prepare, device)
        self._run = Time()
        self.values: list[Tensor] = []

    def turn(self, *, first: bool) -> None:
        """Do one part of the sites."""
        part = self.sites[: self._cut] if first else self.sites[self._cut :]
        if part:
            result, spent = timed(lambda: self._peer.run(self._state, part), self._device)
            self._run += spent
            self.values.append(_wide(self._peer.values(result)))

    def result(self, ours: _Spent, mine: Tensor, scale: float) -> _Round:
        """The peer's time at all sites, and how far it is from this library at those it did."""
        apart = float((mine[self.sites] - torch.cat(self.values)).abs().max())
        spent = _Spent(self._run * (self._all / len(self.sites)), self._before)
        return _Round(ours, spent, apart, scale, len(self.sites), (self._before + self._run).wall)


def _round(
    work: Work, peers: Sequence[Peer], generator: torch.Generator, device: torch.device, *, first: bool
) -> list[_Round]:
    """One round: all peers, this library, all peers."""
    gc.collect()
    sides = [_Side(work, peer, generator, device, first=first) for peer in peers]
    for side in sides:
        side.turn(first=True)
    state, before = timed(work.prepare, device)
    result, sites = timed(lambda: work.ours(state), device)
    for side in sides:
        side.turn(first=False)
    mine, baseline = _wide(result), work.baseline()
    effects = mine - (_wide(baseline) if isinstance(baseline, Tensor) else baseline)
    scale = float(effects.abs().max())
    return [side.result(_Spent(sites, before), mine, scale) for side in sides]


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, Time]:
    """Call something and take its time."""
    _wait(device)
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    _wait(device)
    return result, Time(time.process_time() - cpu, time.perf_counter() - wall)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _wide(values: Tensor) -> Tensor:
    return values.detach().cpu().double()
