"""Configurations to compile for GPUs that need not be there: named cases with every tile.

`configurations(target)` has all: for each case of a family, every tile with which the family can
run it on that target. `dealt(target)` has one for each choice that a planner has there: kernel,
kind of product and tile. Which one that is moves on by one from choice to choice and from target to
target. Choices that change little of the code (64-bit offsets, steps across taps, boxes in a loop),
and those of large windows, are built on one of the targets each.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ...ops.plan import choose
from ...ops.plan.tuned import tuned_for
from ..workloads import ALL_OPS
from .cases import CASES, EXACT, PRODUCTS, Case
from .configuration import MODULES, TARGETS, Configuration, Target, variants_of
from .helper_kernels import helper_configurations
from .planned import PlannedCall

#: Families whose input gradients are forward calls that read the weight in another way.
FORWARD_TOO = ("patch", "resident", "reuse", "planes", "spread", "strip")
#: Families whose products are of the kinds above.
PRODUCTS_OF = (
    *(name for name in MODULES if name not in (*choose.DIRECT, "backward")),
    "frame",
)


def configurations(target: Target) -> list[Configuration]:
    """All configurations of a target; of two tiles with one name, the second has a suffix."""
    return [*_untuned(target).values(), *_tuned(target)]


@functools.cache
def _untuned(target: Target) -> dict[str, Configuration]:
    found: dict[str, Configuration] = {}
    for made in itertools.chain(_of_cases(target), helper_configurations()):
        if made.family == "helper":
            found[made.name] = made
            continue
        tile = made.plan.tile
        if made.name in found and tile != found[made.name].plan.tile:
            launch = f"-w{tile.num_warps}-s{tile.num_stages}"
            made = replace(made, case=made.case + launch, recorded=False)
        found.setdefault(made.name, made)
    return found


def dealt(target: Target) -> list[Configuration]:
    """One configuration for each choice of the planner on a target, see the module."""
    choices: dict[Any, list[Configuration]] = {}
    for made in _untuned(target).values():
        choices.setdefault(made.choice, []).append(made)
    found = list(_tuned(target))
    for place, (choice, able) in enumerate(_choices().items()):
        members = choices.get(choice, [])
        if members and (not members[0].is_rare or able[place % len(able)] == target.name):
            found.append(members[(place + able.index(target.name)) % len(members)])
    return found


@functools.cache
def _choices() -> dict[Any, list[str]]:
    """Every choice that a planner has on some target, with the targets that have it."""
    found: dict[Any, list[str]] = {}
    for target in TARGETS.values():
        for choice in dict.fromkeys(made.choice for made in _untuned(target).values()):
            found.setdefault(choice, []).append(target.name)
    return found


def _of_cases(target: Target) -> Iterator[Configuration]:
    """Every case with every tile of its family, for each operator, one dtype after the other."""
    for family, cases in CASES.items():
        kinds = PRODUCTS if family in PRODUCTS_OF else {"": EXACT}
        for op, kind in itertools.product((*ALL_OPS, "dgrad_frame"), kinds):
            if kind == "tf32x3" and target.is_amd:
                continue  # it has none
            for dtype, (name, case) in itertools.product(kinds[kind], cases.items()):
                few = case.workload.geometry.group_C <= 3 and op in ("fprop", "wgrad")
                if op in case.workload.ops and (few or not dtype.startswith("uint8")):
                    yield from _of_case(family, name, case, op, kind, dtype, target)


def _of_case(
    family: str, name: str, case: Case, op: str, product: str, dtype: str, target: Target
) -> Iterator[Configuration]:
    """A case with every tile of its family."""
    every, g = case.recorded[:2] == ("*", dtype), case.workload.geometry
    for place, variants in enumerate(variants_of(family, case, op, dtype, target)):
        for variant, planned in variants.items():
            wanted = {dtype, f"{op}:{dtype}"} & set(case.recorded)
            whole = [name for name in variants if not name.endswith("-split")]
            first = bool(wanted) and place == 0 and variant == whole[-1]
            kind = "" if planned.plan.family == "stencil" else product
            recorded = (every or first) and variant in whole and "-copied" not in variant
            recorded &= "-in_place" not in variant
            if op == "wgrad":  # of tiles that share dy among taps, those that share it most
                recorded &= getattr(planned.plan.tile, "BLOCK_S", 3) in (3, g.S)
            made = Configuration(family, name + variant, planned.kernel, planned, kind, recorded)
            if family in FORWARD_TOO or not planned.plan.turned:
                yield made


def _tuned(target: Target) -> Iterator[Configuration]:
    """The tiles of the device's tuned file, each in a case of its family and format."""
    for key, found in tuned_for(target.device.name).items():
        tile = choose.tile_of(found.tile)
        dtype = key.dtype if key.precision == "ieee" else key.precision
        form = "channels_last" if key.channels_last else "NCHW"
        cases = CASES[tile.family]
        name = next((n for n, case in cases.items() if case.format == form), next(iter(cases)))
        case = cases[name]
        planned = PlannedCall(case.workload, key.op, dtype, case.format)
        problem = planned.problem(target.device)
        plan = choose.plan_with_tile(problem, tile, tile.splits(problem))
        planned = replace(planned, plan=plan)
        product = problem.product if tile.family in PRODUCTS_OF else ""
        launch = f"-tuned-w{tile.num_warps}-s{tile.num_stages}"
        yield Configuration(tile.family, name + launch, planned.kernel, planned, product)
