"""Rows as cases: an operator of a workload, ours beside its peers.

A case is one operator of one workload in one dtype and memory format. Its ratio is the time of the
best peer over ours: above 1 ours is faster. The best peer is the fastest in either memory format:
in our format it is compared by the ratio of the turns (A B A B), in the other by medians. Rows of a
GPU and rows of a CPU never meet.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from .providers import OURS
from .rows import Row, latest
from .workloads import ALL_OPS, Workload, known

#: Cases compare in the first of these cache states that was measured.
CACHES = ("cold", "graph", "warm")


@dataclass(frozen=True)
class Case:
    """Our row of one operator of one workload in a dtype and format, and the peers' ok rows."""

    ours: Row
    peers: tuple[Row, ...]

    def ratio_to(self, peer: Row) -> float:
        """The peer's time over ours."""
        if peer.format == self.ours.format and peer.ratio_to is not None:
            return peer.ratio_to
        return (peer.ms or math.nan) / (self.ours.ms or math.nan)

    @property
    def best(self) -> Row | None:
        """The fastest peer, in either memory format."""
        return min(self.peers, key=self.ratio_to, default=None)

    @property
    def ratio(self) -> float | None:
        """The best peer's time over ours: above 1 ours is faster."""
        return None if self.best is None else self.ratio_to(self.best)

    def ratio_in(self, memory_format: str) -> float | None:
        """The same among the peers in one memory format."""
        ratios = [self.ratio_to(p) for p in self.peers if p.format == memory_format]
        return min(ratios, default=None)

    @property
    def workload(self) -> Workload | None:
        """From the table; None if the row's is not in it any more."""
        return known(self.ours.workload)


@dataclass(frozen=True)
class Processor:
    """The rows of one processor."""

    kind: str
    device: str
    rows: tuple[Row, ...]

    @property
    def cache(self) -> str:
        """The cache state that is compared."""
        measured = {row.cache for row in self.rows if row.status == "ok" and row.op in ALL_OPS}
        return next((cache for cache in CACHES if cache in measured), CACHES[0])

    def cases(self) -> list[Case]:
        """Every operator that ours ran: losses first, then wins, then what has no peer."""
        ok = [
            r for r in self.rows if r.status == "ok" and r.cache == self.cache and r.op in ALL_OPS
        ]
        peers = defaultdict(list)
        for row in ok:
            if row.provider.partition("@")[0] != OURS:
                peers[row.workload, row.op, row.dtype].append(row)
        found = [
            Case(row, tuple(peers[row.workload, row.op, row.dtype]))
            for row in ok
            if row.provider == OURS
        ]
        return sorted(found, key=lambda case: case.ratio or math.inf)


def processors(rows: Iterable[Row]) -> list[Processor]:
    """Rows by processor, GPUs first; of each measurement the last, whatever revision it is of."""
    groups: dict[tuple[str, str], dict[tuple[str, ...], Row]] = defaultdict(dict)
    for row in sorted(latest(rows), key=lambda row: row.time):
        key = (row.workload, row.op, row.dtype, row.format, row.provider, row.cache)
        groups[row.kind, row.device][key] = row
    return [
        Processor(kind, device, tuple(found.values()))
        for (kind, device), found in sorted(groups.items(), key=lambda g: (g[0][0] != "gpu", g[0]))
    ]


def geomean(values: Iterable[float | None]) -> float | None:
    """The geometric mean of the values that are not None; None without any."""
    logs = [math.log(value) for value in values if value]
    return math.exp(statistics.fmean(logs)) if logs else None


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of the values that are not None; None without any."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None
