"""The plan of a problem: the tuned one, else the cheapest of what the kernel families offer.

Planning is pure: a Problem goes in, a printable Plan comes out, and nothing is read from the
machine or the environment. There is no tuning at run time: what was tuned before is data of the
package (tuned.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import ModuleType

from ..errors import ArgumentError
from . import (
    backward,
    banded,
    columns,
    flat,
    gemm,
    patch,
    planes,
    planes_gradient,
    resident,
    reuse,
    rows,
    shifted,
    spread,
    stencil,
    strip,
    tma,
)
from .cost import gradient_splits, image_splits
from .exchange.offered import exchanges
from .exchange.way import Exchange
from .integers import cdiv
from .problem import Plan, Problem, Tile
from .times import cheapest, exchange_seconds, seconds_of
from .tuned import tuned

#: Families whose kernels of images sum parts of a reduction too, and whose numbers of parts are
#: compared.
SPLIT = (gemm, tma, patch, spread, flat)
#: Families that multiply without matrix units.
DIRECT = ("rows", "stencil", "columns")
FAMILIES = (
    rows, banded, resident, stencil, columns, gemm, tma, patch, reuse, planes, spread, flat,
    shifted, planes_gradient, strip,
)  # fmt: skip
_FAMILY_OF = {kind: family for family in (*FAMILIES, backward) for kind in family.KINDS}
#: A plan on copies of images is taken if its predicted time is below this share of the best other
#: one's: the sum of two predictions is less certain.
EXCHANGE_MARGIN = 0.85
#: How many times faster one launch for both gradients must be predicted than two.
GAIN_OF_BOTH = 1.1
#: The largest grid that CUDA and HIP launch along the first axis.
MAX_GRID = 2**31 - 1


@functools.lru_cache(maxsize=4096)
def plan(problem: Problem) -> Plan:
    """The plan of a problem, on the images as they lie or on copies of them.

    Raises:
        ArgumentError: every plan has more programs than a launch can have.
    """
    best = direct_plan(problem)
    if ways := exchanges(problem):
        least = EXCHANGE_MARGIN * seconds_of(best, problem)
        for way in ways:
            if exchange_seconds(*way.launches(problem), problem.device) >= least:
                continue  # its copies alone take longer
            for on_copies in _exchanged(way, problem):
                if (seconds := seconds_of(on_copies, problem)) < least:
                    best, least = on_copies, seconds
    return best


def plans_on_copies(problem: Problem) -> list[Plan]:
    """The best plan of each Exchange that is compared, by predicted time."""
    found = [best for one in exchanges(problem) for best in _exchanged(one, problem)]
    return sorted(found, key=lambda one: seconds_of(one, problem))


def _exchanged(exchange: Exchange, problem: Problem) -> list[Plan]:
    """The best plan with these copies, none where each has more programs than a launch can have."""
    seen = exchange.seen(problem)
    try:
        if exchange.is_mixed(problem.op):
            tiles = gemm.mixed_tiles(seen)
            plans = [plan for tile in tiles for plan in plans_with_tile(seen, tile)]
            if not plans:
                return []
            best = cheapest(plans, seen)
        else:
            best = direct_plan(seen)
    except ArgumentError:
        return []
    return [dataclasses.replace(best, exchange=exchange)]


def direct_plan(problem: Problem) -> Plan:
    """The best plan on the images as they lie, but for copies that a tile makes itself."""
    found, distance = tuned(problem)
    if found is not None and (tile := tile_of(found.tile)).suits(problem):
        plans = plans_with_tile(problem, tile)
        exact = plan_with_tile(problem, tile, found.splits)
        best = cheapest(plans, problem) if distance else exact
        if found.registers is not None:
            best = dataclasses.replace(best, max_registers=found.registers or None)
        return _without_copies(problem, best) or best
    plans, refused = [], None
    for tile in candidates(problem):
        try:
            plans += plans_with_tile(problem, tile)
        except ArgumentError as error:  # other tiles may have fewer programs
            refused = error
    if refused is not None and not plans:
        raise refused
    return cheapest(plans, problem, DIRECT)


def _without_copies(problem: Problem, tuned_plan: Plan) -> Plan | None:
    """The plan that reads planes as they lie, if it is much faster than a tuned one on copies.

    Tiles were tuned before there was such a family: predictions are compared, as with an Exchange.
    """
    if not getattr(tuned_plan.tile, "copied", False) or problem.op == "wgrad":
        return None
    plans = [plan for tile in planes.tiles(problem) for plan in plans_with_tile(problem, tile)]
    if not plans:
        return None
    best = cheapest(plans, problem)
    limit = EXCHANGE_MARGIN * seconds_of(tuned_plan, problem)
    return best if seconds_of(best, problem) < limit else None


def candidates(problem: Problem) -> list[Tile]:
    """The tiles to compare."""
    return [tile for family in families(problem) for tile in family.tiles(problem)]


def families(problem: Problem) -> tuple[ModuleType, ...]:
    """The families that can solve a problem: one computes both gradients."""
    return (backward,) if problem.op == "backward" else FAMILIES


def family_of(tile: Tile) -> ModuleType:
    """The module of a tile's family."""
    return _FAMILY_OF[type(tile)]


def tile_of(fields: Mapping[str, int]) -> Tile:
    """The tile with these fields, whose names identify the family; others have their defaults."""
    given = set(fields)
    for kind in _FAMILY_OF:
        every = dataclasses.fields(kind)
        needed = {field.name for field in every if field.default is dataclasses.MISSING}
        if needed <= given <= {field.name for field in every}:
            return kind(**fields)
    raise ValueError(f"no family has a tile with the fields {', '.join(sorted(given))}")


def plans_with_tile(problem: Problem, tile: Tile) -> list[Plan]:
    """The plans with `tile` that are compared, the one that splits the least first.

    Raises:
        ArgumentError: a grid is larger than a launch can have.
    """
    if problem.op == "backward":
        numbers = family_of(tile).splits(tile, problem)
    elif problem.op == "wgrad":
        compared = family_of(tile) in (*SPLIT, reuse, shifted, planes_gradient)
        numbers = gradient_splits(tile, problem) if compared else [tile.splits(problem)]
    else:
        numbers = image_splits(tile, problem) if splits_images(problem, tile) else [1]
    return _in_parts(problem, tile, numbers)


def splits_images(problem: Problem, tile: Tile) -> bool:
    """Whether the kernel can sum parts of the reduction to an image."""
    return problem.op in ("fprop", "dgrad") and family_of(tile) in SPLIT


def plan_with_tile(problem: Problem, tile: Tile, splits: int = 1) -> Plan:
    """The plan that solves a problem with `tile`, whichever tile the planner would choose.

    Args:
        problem: to solve.
        tile: its family names the kernel.
        splits: about how many parts the reduction is cut into: parts are whole strips of the tile,
            so there may be fewer. Images that are not splits_images have one.

    Raises:
        ArgumentError: the grid is larger than a launch can have.
    """
    return _in_parts(problem, tile, [splits])[0]


def _in_parts(problem: Problem, tile: Tile, numbers: Sequence[int]) -> list[Plan]:
    """The plans with `tile` whose reductions are cut into these numbers of parts."""
    programs, found = tile.programs(problem), []
    is_gradient = problem.op in ("wgrad", "backward")
    may_split = is_gradient or (max(numbers) > 1 and splits_images(problem, tile))
    registers, flags = tile.max_registers(problem), tile.flags(problem)
    strips = tile.strips(problem) if may_split else 0
    for splits in numbers:
        grid, split_strips = programs, 0
        if is_gradient or (splits > 1 and may_split):
            split_strips = cdiv(max(1, strips), max(1, splits))
            splits = max(1, cdiv(strips, split_strips))
            grid *= splits
        else:
            splits = 1
        if grid > MAX_GRID:
            raise ArgumentError(
                f"the call needs {grid} programs, more than the {MAX_GRID} of a launch"
            )
        found.append(
            Plan(
                problem.op,
                tile,
                grid,
                problem.layout.int64,
                splits=splits,
                split_strips=split_strips,
                max_registers=registers,
                **flags,
            )
        )
    return found


@functools.lru_cache(maxsize=4096)
def plan_both(dgrad: Problem, wgrad: Problem) -> Plan | None:
    """The plan of both gradients in one launch; None where two launches are nearly as fast.

    Args:
        dgrad: the problem of the input gradient alone.
        wgrad: that of the weight gradient.
    """
    problem = backward.both(dgrad, wgrad)
    if dgrad.layout.channels_last != wgrad.layout.channels_last or not candidates(problem):
        return None
    found = plan(problem)
    if GAIN_OF_BOTH * seconds_of(found, problem) > seconds_of_two(dgrad, wgrad):
        return None
    return found


def seconds_of_two(dgrad: Problem, wgrad: Problem) -> float:
    """The predicted time of the input gradient, then the weight gradient.

    The second reads dy from L2 where that still has it.
    """
    g, device, itemsize = dgrad.geometry, dgrad.device, dgrad.dtype.itemsize
    seconds = sum(seconds_of(plan(problem), problem) for problem in (dgrad, wgrad))
    if (g.x_numel + g.y_numel) * itemsize <= device.rates.l2_bytes / 2:
        seconds -= g.y_numel * itemsize / device.copy_rate
    return seconds
