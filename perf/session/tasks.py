"""The order in which rows are taken, the most informative first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..benchmarks import learning
from ..providers import OURS, PROVIDERS
from ..timing.measure import Job, contenders_of
from ..workloads import WORKLOADS, Workload, regime

#: Rank added for a group of providers: compilers take long. Beside KernelBench, whose published
#: times are a compiler's, the plain one comes right after the first rows of all regimes.
LATER = {"core": 0.0, "compile": 3.0, "max-autotune": 6.0}
BESIDE_KERNELBENCH = 0.6
#: Rank added for each further dtype: less for images, where another dtype has another bound.
DTYPE, IMAGE_DTYPE = 1.5, 0.5
#: Ranks of host cost, of the first size of learning, and of the start-up.
HOST, LEARNING, STARTUP = 0.8, 0.9, 2.4


@dataclass(frozen=True)
class Task:
    """A line of the plan: a job of the table, a size of learning, host cost, or the start-up.

    Attributes:
        name: of the workload.
        op, dtype: as in a row.
        group: of providers, or the operator where there is no job.
        job: None of learning, host cost and the start-up.
        rank: the lowest is measured first.
    """

    name: str
    op: str
    dtype: str
    group: str
    job: Job | None
    rank: float

    def __str__(self) -> str:
        return " ".join([self.name, self.op, self.dtype, *([self.group] * (self.job is not None))])


def tasks_of(
    kind: str,
    *,
    names: Sequence[str] = (),
    suites: Sequence[str] = (),
    ops: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    peers: Sequence[str] | None = None,
) -> list[Task]:
    """All tasks of a machine, the most informative first; empty filters let all through.

    One workload of each regime comes in all passes and its first dtype before a second of any.
    """
    found = []
    count: Counter[str] = Counter()
    for workload in sorted(WORKLOADS, key=lambda w: w.priority):
        position, count[regime(workload)] = count[regime(workload)], count[regime(workload)] + 1
        if (not names or workload.name in names) and (not suites or workload.suite in suites):
            found += [
                task
                for task in _tasks(workload, position, kind, peers)
                if (not ops or task.op in ops) and (not dtypes or task.dtype in dtypes)
            ]
    sizes = enumerate(learning.names(kind))
    others = [
        *(Task(name, "learn", "float32", "learn", None, LEARNING + i) for i, name in sizes),
        Task("host", "host", "float32", "host", None, HOST),
        Task("startup", "startup", "float32", "startup", None, STARTUP),
    ]
    if not names:
        found += [
            task
            for task in others
            if (not ops or task.op in ops) and (not suites or task.op in suites)
            if not dtypes or task.dtype in dtypes
        ]
    return sorted(found, key=lambda task: task.rank)


def _tasks(
    workload: Workload, position: int, kind: str, peers: Sequence[str] | None
) -> Iterator[Task]:
    """The tasks of the workload that is number `position` of its regime."""
    item = workload if kind == "gpu" else workload.scaled()
    # A CPU has neither TF32 nor a reason to measure 16 bits, and is no place for compilers.
    dtypes = workload.dtypes if kind == "gpu" else ("float32",)
    further = IMAGE_DTYPE if "image" in workload.tags else DTYPE
    chosen = [p for p in PROVIDERS if peers is None or p.name in (OURS, *peers)]
    for i, dtype in enumerate(dtypes):
        for op in workload.ops:
            for group, later in LATER.items():
                if (op != "fprop" and dtype == "uint8") or (
                    group != "core" and (i > 0 or kind == "cpu")
                ):
                    continue
                if workload.suite == "kernelbench" and group == "compile":
                    later = BESIDE_KERNELBENCH
                job = Job(item, op, dtype, group)
                if contenders_of(job, chosen, "cuda" if kind == "gpu" else "cpu"):
                    rank = position + i * further + later
                    yield Task(item.name, op, dtype, group, job, rank)
