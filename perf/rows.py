"""One measurement, one line of JSON: the schema, and reading, writing and checking it.

A row is one provider's time for one operator of one workload; docs/benchmarks.md describes its
fields. A file only grows: each line is flushed to the disk before the next measurement begins, so a
run that is cut off loses nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

#: The name of the file in a directory of results.
FILE = "rows.jsonl"

CHOICES = {
    "op": (
        "fprop",
        "dgrad",
        "wgrad",
        "backward",
        "learn",
        "startup",
        "host",
        "call",
        "train",
        "filter",
    ),
    "dtype": ("bfloat16", "float16", "float32", "tf32", "uint8", "float64"),
    "format": ("NCHW", "channels_last"),
    "cache": ("cold", "warm", "graph"),
    "status": ("ok", "wrong", "failed", "unavailable"),
    "kind": ("gpu", "cpu"),
}

Key: TypeAlias = tuple[str, ...]


class RowError(ValueError):
    """A row does not follow the schema; the message names the field."""


@dataclass(frozen=True)
class Row:
    """One measurement; docs/benchmarks.md describes the fields.

    A number that was not or cannot be measured is None.
    """

    workload: str
    suite: str
    op: str
    dtype: str
    format: str
    provider: str
    cache: str
    status: str
    note: str
    kind: str
    device: str
    time: str
    revision: str
    torch: str
    tricorr: str
    triton: str | None = None
    cudnn: str | None = None
    driver: str | None = None
    precision: str = "ieee"
    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None
    samples: int | None = None
    ratio_to: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    tflops: float | None = None
    gbps: float | None = None
    roofline_fraction: float | None = None
    copy_gbps: float | None = None
    matmul_tflops: float | None = None
    host_us: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    error_bound: float | None = None
    error_to: float | None = None
    steps: int | None = None
    plan: str | None = None
    sm_clock: int | None = None
    throttle: str | None = None

    @property
    def key(self) -> Key:
        """Identity of the measurement: a resumed run does not take it again.

        Of a revision only the hash of the sources counts, where it has one; of tuned tiles, which
        that leaves out, the plan.
        """
        return (
            self.workload,
            self.op,
            self.dtype,
            self.format,
            self.provider,
            self.cache,
            self.device,
            self.revision.rpartition("+")[2],
            self.plan or "",
        )


_FIELDS = {field.name: field for field in dataclasses.fields(Row)}
_TYPES = typing.get_type_hints(Row)


def validate(row: Row) -> Row:
    """The row itself, if it follows the schema.

    Raises:
        RowError: it does not; the message names the field.
    """
    for name in _FIELDS:
        value = getattr(row, name)
        _check_type(name, value)
        if name in CHOICES and value not in CHOICES[name]:
            raise RowError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(f"{name} must be finite, got {value}")
        if isinstance(value, int | float) and value < 0:
            raise RowError(f"{name} must not be negative, got {value}")
    for name in ("workload", "suite", "provider", "device", "revision", "time"):
        if not getattr(row, name):
            raise RowError(f"{name} must not be empty")
    if row.status == "ok" and not row.ms:
        raise RowError(f"ms must be positive for a row that is ok, got {row.ms}")
    if row.status != "ok" and row.ms is not None:
        raise RowError(f"ms must be None for a row that is {row.status}, got {row.ms}")
    if row.status != "ok" and not row.note:
        raise RowError(f"note must say why a row is {row.status}")
    for low, middle, high in (("ms_low", "ms", "ms_high"), ("ratio_low", "ratio_to", "ratio_high")):
        values = [getattr(row, name) for name in (low, middle, high)]
        if None not in values and values != sorted(values):
            raise RowError(f"{low} <= {middle} <= {high} must hold, got {values}")
    return row


def _check_type(name: str, value: Any) -> None:
    hint = _TYPES[name]
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed:
        allowed = (*allowed, int)
    if not isinstance(value, allowed) or isinstance(value, bool):
        expected = " or ".join("None" if t is type(None) else t.__name__ for t in allowed)
        raise RowError(f"{name} must be {expected}, got {value!r}")


def to_json(row: Row) -> str:
    """The row as one line, without the fields that are None."""
    values = {k: v for k, v in dataclasses.asdict(validate(row)).items() if v is not None}
    return json.dumps(values)


def from_json(line: str) -> Row:
    """The row of one line.

    Raises:
        RowError: the line does not follow the schema; the message names the field.
    """
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise RowError(f"not a line of JSON: {error}") from error
    if not isinstance(values, dict):
        raise RowError("a row must be a JSON object")
    unknown = sorted(set(values) - set(_FIELDS))
    if unknown:
        raise RowError(f"unknown field {', '.join(unknown)}")
    missing = [
        name
        for name, field in _FIELDS.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise RowError(f"missing field {', '.join(missing)}")
    return validate(Row(**values))


def paths(source: Path) -> list[Path]:
    """The files of rows in a directory (and below it), or the file itself."""
    return sorted(source.rglob("*.jsonl")) if source.is_dir() else [source]


def read(source: Path) -> list[Row]:
    """All rows of a file, or of the files in a directory. A last line cut off is left out.

    Raises:
        RowError: a line does not follow the schema; the message names file, line and field.
    """
    rows = []
    for path in paths(source):
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            if not line.endswith("\n") or not line.strip():
                continue
            try:
                rows.append(from_json(line))
            except RowError as error:
                raise RowError(f"{path}:{number}: {error}") from error
    return rows


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of every key: a measurement taken again replaces the first."""
    return list({row.key: row for row in rows}.values())


class Writer:
    """Appends rows to a file, each on the disk before the call returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(path)
        self.file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Appends one row."""
        self.file.write(to_json(row) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drop_cut_line(path: Path) -> None:
    """A run that was killed may leave half a line: the next row must not be glued to it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
