"""Plans whose kernels run on copies of the images: any family, every operator, exact copies."""

from dataclasses import replace

import pytest
import torch
from cases import tensors, whole_numbers
from closeness import check, operands, run, truth
from plans import H200, PLAIN
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose
from tricorr.ops.plan.exchange import Exchange, exchanges
from tricorr.ops.plan.gemm import GemmTile
from tricorr.ops.plan.problem import Problem
from tricorr.ops.plan.tma import TmaTile

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
PRECISION = {HALF: "ieee", BRAIN: "ieee", FLOAT: "tf32"}
_SAME = ((1, 1), (1, 1))
GEOMETRIES = {
    "three_apart": geometry_of((2, 20, 10, 11), (24, 20, 3, 3), (3, 3), _SAME),
    "patches": geometry_of((2, 16, 8, 12), (24, 16, 4, 4), (4, 4)),
    "odd_channels": geometry_of((1, 19, 7, 9), (21, 19, 2, 3), (2, 1), ((1, 0), (1, 2)), flip=True),
    "groups": geometry_of((2, 32, 9, 8), (48, 16, 2, 2), (2, 2), groups=2),
    "unstrided": geometry_of((2, 18, 5, 7), (17, 18, 3, 2), padding=((1, 1), (0, 1))),
    "points": geometry_of((2, 18, 7, 9), (19, 18, 1, 1), (2, 3)),
    "points_whole": geometry_of((1, 16, 8, 8), (16, 16, 1, 1), (2, 2)),
    "points_one_axis": geometry_of((3, 16, 5, 8), (32, 16, 1, 1), (1, 2)),
    "reflected": geometry_of((1, 16, 8, 7), (16, 16, 3, 3), (2, 2), _SAME, padding_mode="reflect"),
}
KINDS = {
    "fprop_bias": (Exchange(reads=True), Exchange(reads=True, result=True)),
    "dgrad": (Exchange(reads=True), Exchange(reads=True, result=True)),
    "wgrad": (Exchange(reads=True),),
}
SAMPLED = [Exchange(reads, result, True) for reads, result in ((0, 0), (1, 0), (1, 1))]


def _cases():
    for name, geometry in GEOMETRIES.items():
        for op, kinds in KINDS.items():
            for exchange in kinds:
                yield name, op, exchange
            for exchange in SAMPLED if name.startswith("points") else ():
                if op != "wgrad" or not exchange.result:
                    yield name, op, exchange


def plan_of(op, geometry, dtype, exchange, tile=None, splits=1):
    """The plan on copies with a tile, of a GEMM through pointers if no other is given."""
    name = op.removesuffix("_bias")
    tile = tile or GemmTile(32, 16, 16, num_warps=4, num_stages=2)
    seen = exchange.seen(Problem(name, geometry, dtype, PRECISION[dtype], PLAIN, H200))
    return replace(choose.plan_with_tile(seen, tile, splits), exchange=exchange)


def computed(op, args, geometry, dtype, plan):
    from tricorr.ops.launch import arguments as launch

    return run(op, args, geometry, launch, plan=plan, precision=PRECISION[dtype])


@pytest.mark.parametrize(("name", "op", "exchange"), list(_cases()), ids=str)
def test_every_operator(kernel_backend, name, op, exchange):
    """Whole numbers are exact; the same bits again; in halves, or in TF32 and in parts."""
    geometry = GEOMETRIES[name]
    for dtype, splits in ((HALF, 1), (FLOAT, 2)):
        made = tensors(geometry, dtype, kernel_backend.device, make=whole_numbers)
        args = operands(op, *made)
        plan = plan_of(op, geometry, dtype, exchange, splits=splits)
        actual = computed(op, args, geometry, dtype, plan)
        assert torch.equal(actual.cpu().double(), torch.from_numpy(truth(op, args, geometry)))
        assert actual.is_contiguous()
        assert torch.equal(computed(op, args, geometry, dtype, plan), actual)
