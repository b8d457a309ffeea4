"""One kernel launch: everything that Triton is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .. import backend
from .interpreter import one_launch


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
    #: Launches that come first: they make what this one reads, or another part of its result.
    before: tuple[Call, ...] = ()
    #: Memory that this launch and another one share: the earlier of the two fills it.
    scratch: tuple[torch.Tensor, ...] = ()

    @property
    def options(self) -> dict[str, int]:
        """Compiler options."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.maxnreg is None or torch.version.hip:
            return options
        return options | {"maxnreg": self.maxnreg}

    def run(self, device: torch.device) -> None:
        """Launches the kernel on `device`, which holds the tensors among the arguments."""
        with on_device(device) or nullcontext():
            for call in self.launches():
                call.kernel[(call.grid,)](**call.arguments, **call.options)

    def launches(self) -> Iterator[Call]:
        """This launch and all before it, in their order."""
        for call in self.before:
            yield from call.launches()
        yield self


def on_device(device: torch.device) -> AbstractContextManager[Any] | None:
    """A context in which Triton, which launches on the current device, launches on `device`.

    None where nothing has to be done: entering a context that does nothing takes the host longer.
    """
    if backend.interprets():
        return one_launch()
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        return torch.cuda.device(device)
    return None
