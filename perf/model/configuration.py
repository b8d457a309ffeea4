"""A kernel with everything that decides its code: a case, an operator, a dtype and a tile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...ops.errors import ArgumentError
from ...ops.launch.call import Call
from ...ops.plan import backward, choose
from ...ops.plan.device import DEVICES, Device
from ...ops.plan.problem import Plan, Problem
from ..providers import TENSOR_DTYPES
from .cases import Case
from .planned import PlannedCall, tiles_of

#: Parts of an image's reduction: the code is the same for any number of them.
SOME_SPLITS = 5
#: Bytes per thread that ptxas may move to memory outside of the loop, to stay at a number of
#: registers with which one more program fits: see Target.parked.
PARKED = 16
#: The file of each family by the name that its tiles have.
MODULES = {f.__name__.rpartition(".")[2]: f for f in (*choose.FAMILIES, backward)}


@dataclass(frozen=True)
class Target:
    """A GPU to compile for.

    Attributes:
        name: as compilers call it.
        gpu: backend, architecture and warp size, as triton's GPUTarget takes them.
        device: the one that is planned for.
        float64_mma: whether Triton (3.6, 3.7) multiplies float64 on the matrix units.
        parked: bytes per thread that may be spilled outside of the loop. None on sm_90, for which
            tiles are chosen; Triton 3.6, with which they were not chosen, may everywhere.
    """

    name: str
    gpu: tuple[str, int | str, int]
    device: Device
    float64_mma: bool = True
    parked: int = PARKED

    @property
    def is_amd(self) -> bool:
        """Whether the backend is HIP."""
        return self.gpu[0] == "hip"


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", ("cuda", 80, 32), DEVICES["a100"]),
        Target("sm_90", ("cuda", 90, 32), DEVICES["h200"], parked=0),
        Target("sm_100", ("cuda", 100, 32), DEVICES["b200"], float64_mma=False),
        Target("gfx942", ("hip", "gfx942", 64), DEVICES["mi300x"]),
    )
}


@dataclass(frozen=True)
class Configuration:
    """A kernel with everything that decides its code.

    Attributes:
        family: of the case, a key of CASES, or "helper" for kernels that prepare or add up.
        case: its name there.
        kernel: the kernel that is compiled.
        planned: the call that launches it.
        product: the kind of product of a matrix unit, "" of kernels without.
        recorded: whether the table of machine code has it, on sm_90.
    """

    family: str
    case: str
    kernel: str
    planned: PlannedCall
    product: str
    recorded: bool = False

    @property
    def plan(self) -> Plan:
        """The plan of the call."""
        return self.planned.plan

    @property
    def dtype(self) -> str:
        """Name of torch's dtype of x."""
        return str(TENSOR_DTYPES[self.planned.dtype][0]).removeprefix("torch.")

    @property
    def name(self) -> str:
        """Kernel, product, extents of the tile, dtype and case."""
        blocks = "" if self.family == "helper" else _blocks(self.plan)
        return "-".join(filter(None, (self.kernel, self.product, blocks, self.dtype, self.case)))

    @property
    def choice(self) -> tuple[Any, ...]:
        """The planner's decisions that change the code; for kernels with one tile, the case."""
        if self.family in ("helper", "frame"):
            return self.kernel, self.case
        plan, tile = self.plan, self.plan.tile
        if self.family in ("rows", "backward", "columns"):  # the tile follows from the geometry
            return self.kernel, self.planned.workload.geometry.weight_shape[-2:]
        if self.family in ("reuse", "spread", "planes", "strip"):
            # Other fields are numbers in the same code, or the axis of the store.
            kinds = plan.op, getattr(tile, "BLOCK_R", 0), self.case.endswith("-split")
            return self.kernel, self.product, *tile.step(plan.op)[:2], tile.num_warps, *kinds
        if self.family == "resident":  # so are its lines, pieces and slots
            return self.kernel, self.product, getattr(tile, "STACK", 1), plan.op
        size = tile.step(plan.op), tile.num_warps, tile.num_stages
        if self.case.endswith("-split"):
            in_place = getattr(tile, "in_place", False)
            return self.kernel, self.product, "split", tile.step(plan.op), in_place
        reads = tuple(getattr(tile, name, 0) > 0 for name in ("persistent", "copied", "in_place"))
        reads += (getattr(tile, "unfolded", ""),)
        return self.kernel, self.product, *size, plan.one_tap, plan.int64, *reads

    @property
    def is_rare(self) -> bool:
        """Whether a choice is built on one target only, see the module."""
        if self.family in ("helper", "frame", "rows", "backward", "columns"):
            return False
        across_taps = self.kernel in ("fprop_gemm", "dgrad_gemm") and not self.plan.one_tap
        in_turn = self.case.endswith(("-loop", "-split", "-in_place"))
        return self.family in ("banded", "patch") or self.plan.int64 or across_taps or in_turn

    def wants_mma(self, target: Target) -> bool:
        """Whether the matrix units should do the arithmetic."""
        if self.product == "float64":
            return target.float64_mma
        return self.product not in ("", "ieee")

    def problem(self, target: Target) -> Problem:
        """The planned problem, with the size of an element of x."""
        problem = self.planned.problem(target.device)
        return replace(problem, x_bytes=TENSOR_DTYPES[self.planned.dtype][0].itemsize)

    def call(self) -> Call:
        """The launch, of meta tensors: however large, they take no memory."""
        launches = self.planned.launches(DEVICES["h200"])
        return next(call for call in launches if call.kernel.__name__ == self.kernel)


def _blocks(plan: Plan) -> str:
    return "x".join(str(v) for k, v in vars(plan.tile).items() if k.startswith("BLOCK"))


def variants_of(
    family: str, case: Case, op: str, dtype: str, target: Target
) -> Iterator[dict[str, PlannedCall]]:
    """The calls of each tile that a launch can have, by suffix of the case's name."""
    g = case.workload.geometry
    if op == "dgrad":
        g = replace(g, C=g.K, K=g.C)
    call = PlannedCall(replace(case.workload, geometry=g), op, dtype, case.format)
    problem = call.problem(target.device)
    tiles = tiles_of(MODULES[family], problem) if family in MODULES else choose.candidates(problem)
    if family == "backward":  # of many tiles, the one that is planned
        tiles = [choose.plan(problem).tile] if tiles else []
    if family == "patch":  # the last, largest patch of each shape
        tiles = list({(tile.step(op), tile.num_warps): tile for tile in tiles}.values())
    if family in ("spread", "strip"):  # the rest are counts in the same code
        tiles = list({(tile.step(op)[:2], tile.num_warps): tile for tile in tiles}.values())
    for tile in tiles:
        copied = "-copied" if getattr(tile, "copied", False) else ""
        copied += "-in_place" if getattr(tile, "in_place", False) else ""
        copied += f"-unfolded_{unfolded}" if (unfolded := getattr(tile, "unfolded", "")) else ""
        copied += f"-shifted_{shifts}" if (shifts := getattr(tile, "shifts", "")) else ""
        variants: dict[str, Any] = {copied: tile}
        if getattr(tile, "persistent", 0):  # a loop over boxes is other code than one box
            boxes: Any = tile
            variants = {copied: replace(boxes, persistent=0), f"{copied}-loop": tile}
        plans = {}
        for variant, chosen in variants.items():
            with contextlib.suppress(ArgumentError):  # more programs than a launch can have
                plans[variant] = choose.plan_with_tile(problem, chosen, chosen.splits(problem))
                if variant != "-copied" and choose.splits_images(problem, chosen):
                    split = choose.plan_with_tile(problem, chosen, SOME_SPLITS)
                    plans |= {f"{variant}-split": split} if split.splits > 1 else {}
                if plans[variant].interior == "some":  # the code of the inside alone
                    plans["-interior"] = replace(plans[variant], interior="all")
        yield {variant: replace(call, plan=plan) for variant, plan in plans.items()}
