"""One kernel launch: everything that Triton is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .. import backend
from .interpreter import one_launch


@dataclass(frozen=True)
class Packed:
    """A copy of an operand, made by `make` for one call: it must not miss later updates."""

    copy: torch.Tensor
    operand: torch.Tensor
    make: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Call:
    """One kernel launch: everything that Triton is given, so that tests can build it instead."""

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    #: Registers that a thread has at most, on NVIDIA; None for as many as the compiler takes.
    maxnreg: int | None = None
    first: Call | None = None
    #: Memory of this call and the one before or after, which the earlier of them fills.
    scratch: torch.Tensor | None = None
    #: A copy of the weight, in the order in which the kernel reads it.
    packed: Packed | None = None

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.maxnreg is None or torch.version.hip:
            return options
        return options | {"maxnreg": self.maxnreg}

    def run(self, device: torch.device) -> None:
        """Launches the kernel on `device`, which holds the tensors among the arguments.

        What this launch reads may have to be made by another one, `first`.
        """
        if self.first is not None:
            self.first.run(device)
        with on_device(device) or nullcontext():
            self.kernel[(self.grid,)](**self.arguments, **self.options)


def on_device(device: torch.device) -> AbstractContextManager[Any] | None:
    """A context in which Triton, which launches on the current device, launches on `device`.

    None where nothing has to be done: entering a context that does nothing takes the host longer.
    """
    if backend.interprets():
        return one_launch()
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        return torch.cuda.device(device)
    return None
