"""Rows kernels whose lanes load and store several columns as a vector."""

from dataclasses import replace

import pytest
import torch
from cases import DTYPES, SAME, tensors, whole_numbers
from closeness import check, check_exact, exact, operands
from plans import H200, launched

from tricorr.ops import geometry_of
from tricorr.ops.launch import layout
from tricorr.ops.plan import choose, rows
from tricorr.ops.plan.integers import power_of_two
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.rows import RowsTile, vector_of, vector_tile
from tricorr.ops.plan.rows_walk import extents, pieces_beside

#: Rows of whole vectors; each case could make a lane read or write the wrong column.
GEOMETRIES = {
    "image": geometry_of((1, 1, 9, 24), (1, 1, 3, 3), padding=SAME),
    "valid": geometry_of((2, 1, 6, 24), (1, 1, 2, 3)),
    "even_window": geometry_of((1, 1, 7, 16), (1, 1, 2, 4), padding=((0, 1), (1, 2))),
    "seven": geometry_of((1, 1, 5, 16), (1, 1, 7, 7), padding=((3, 3), (3, 3))),
    "one_row": geometry_of((1, 2, 1, 24), (2, 1, 1, 3), padding=((0, 0), (1, 1)), groups=2),
    "one_vector": geometry_of((3, 2, 5, 8), (2, 1, 3, 3), padding=SAME, groups=2),
    "window_exceeds_image": geometry_of(
        (1, 2, 2, 8), (2, 1, 5, 7), padding=((2, 3), (3, 2)), groups=2
    ),
    "result_exceeds_image": geometry_of(
        (1, 2, 4, 8), (2, 1, 3, 3), padding=((4, 3), (6, 4)), groups=2
    ),
    "cropped": geometry_of((1, 2, 6, 24), (2, 1, 2, 3), padding=((-1, 0), (-2, -4)), groups=2),
    "prime_planes": geometry_of((1, 5, 7, 24), (5, 1, 3, 3), padding=SAME, groups=5),
    "dilated": geometry_of(
        (1, 2, 11, 24), (2, 1, 3, 2), padding=((2, 1), (0, 3)), dilation=(2, 3), groups=2
    ),
    "flipped": geometry_of((1, 2, 7, 24), (2, 1, 3, 2), groups=2, flip=True),
    "per_sample": geometry_of((3, 2, 6, 8), (3, 2, 1, 3, 2), padding=((1, 0), (0, 1)), groups=2),
    "strided": geometry_of((1, 2, 13, 32), (2, 1, 3, 3), (2, 2), SAME, groups=2),
    "strides_differ": geometry_of((1, 2, 11, 32), (2, 1, 3, 2), (3, 4), ((2, 0), (0, 1)), groups=2),
    "multiplier": geometry_of((2, 2, 7, 16), (6, 1, 3, 2), padding=((1, 1), (0, 1)), groups=2),
    "colours_to_gray": geometry_of((2, 3, 6, 16), (1, 3, 3, 3), padding=SAME),
    "few_to_few": geometry_of((1, 4, 5, 16), (6, 2, 2, 3), padding=((1, 0), (1, 1)), groups=2),
    "reflected": geometry_of(
        (1, 2, 5, 16), (2, 1, 3, 5), padding=((2, 1), (2, 2)), groups=2, padding_mode="reflect"
    ),
    "replicated": geometry_of(
        (1, 1, 3, 16), (1, 1, 5, 3), padding=((4, 4), (0, 2)), padding_mode="replicate"
    ),
    "circular": geometry_of(
        (3, 2, 5, 16), (2, 1, 3, 4), padding=((1, 2), (2, 1)), groups=2, padding_mode="circular"
    ),
    "circular_strided": geometry_of(
        (1, 2, 7, 16), (2, 1, 3, 3), (2, 2), SAME, groups=2, padding_mode="circular"
    ),
}
TILES = {
    "planes_share_lanes": RowsTile(4, 0, 3, STEP_P=2),
    "rows_of_tiles": RowsTile(3, 8, 1),
    "whole_plane": RowsTile(14, 0, 1, STEP_P=2),
}


def _result(op, geometry, args):
    """A meta tensor like the image that an operator fills; dy, for a weight gradient."""
    shape = geometry.x_shape if op == "dgrad" else geometry.y_shape
    return torch.empty(shape, dtype=args[0].dtype, device="meta")


def planned(op, geometry, args, result, lane_q, tile, splits=1, **changes):
    """A plan with a tile whose lanes have LANE_Q outputs; None if the rows have no vectors."""
    x, y = (result, args[0]) if op == "dgrad" else (args[0], result)
    weight = args[1]
    if op == "wgrad":  # its lanes are powers of two along both axes
        weight = torch.empty(geometry.weight_shape, dtype=x.dtype, device="meta")
        columns = power_of_two(tile.BLOCK_Q or geometry.Q)
        tile = replace(tile, BLOCK_Q=max(lane_q, columns), BLOCK_C=power_of_two(tile.BLOCK_C))
    own = args[0].itemsize if args[0].dtype != args[1].dtype else 0
    problem = Problem(
        op, geometry, args[1].dtype, layout=layout.layout_of(geometry, x, weight, y),
        device=H200, x_bytes=own,
    )  # fmt: skip
    x_align, y_align = vector_of(problem, lane_q)
    if x_align == 1:
        return None
    columns = tile.BLOCK_Q or -(-extents(problem).columns // lane_q) * lane_q
    filters = problem.correlated.group_K
    tile = replace(
        tile,
        BLOCK_Q=columns,
        BLOCK_K=next(k for k in (3, 2, 1) if filters % k == 0),
        LANE_Q=lane_q, X_ALIGN=x_align, Y_ALIGN=y_align, num_warps=1,
    )  # fmt: skip
    return replace(choose.plan_with_tile(problem, tile, splits), **changes)


def forced(op, geometry, lane_q, tile, device, dtype, make=torch.randn, **changes):
    """The operator with a vector tile: (operands, result)."""
    args = operands(op, *tensors(geometry, dtype, device, make))
    like = _result(op, geometry, args)
    plan = planned(op.removesuffix("_bias"), geometry, args, like, lane_q, tile, **changes)
    assert plan is not None, "rows have no vectors"
    return args, launched(op, args, geometry, plan)


def _cases():
    """All cases with vectors; one dtype and length of each runs by default, the others are slow."""
    turn = 0
    for name, geometry in GEOMETRIES.items():
        for op in ("fprop_bias", "dgrad", "wgrad"):
            found = []
            for dtype, lane_q in ((torch.float16, 4), (torch.float32, 4), (torch.float16, 2)):
                args = operands(op, *tensors(geometry, dtype, "meta"))
                like = _result(op, geometry, args)
                kind = op.removesuffix("_bias")
                if planned(kind, geometry, args, like, lane_q, TILES["rows_of_tiles"]):
                    found.append((dtype, lane_q))
            turn += 1
            for i, (dtype, lane_q) in enumerate(found):
                tile = list(TILES)[(turn + i) % 3]
                interior = ("none", "some")[(turn + i) // 3 % 2]
                label = f"{op}-{name}-{str(dtype).removeprefix('torch.')}-{lane_q}-{tile}"
                seldom = pytest.mark.slow if i != turn // 2 % len(found) else ()
                yield pytest.param(op, name, dtype, lane_q, tile, interior, id=label, marks=seldom)


@pytest.mark.parametrize(("op", "name", "dtype", "lane_q", "tile", "interior"), list(_cases()))
def test_every_window_and_step(kernel_backend, op, name, dtype, lane_q, tile, interior):
    geometry, device = GEOMETRIES[name], kernel_backend.device
    changes = {"interior": interior, "int64": interior == "some"}
    args, actual = forced(op, geometry, lane_q, TILES[tile], device, dtype, **changes)
    check(op, args, geometry, actual=actual)


#: Weight gradients whose strips lie inside of the image, at its borders and beyond it.
STRIPS = {
    "three": geometry_of((2, 1, 9, 40), (1, 1, 3, 3), padding=SAME),
    "seven": geometry_of((1, 1, 12, 48), (1, 1, 7, 7), padding=((3, 3), (3, 3))),
    "valid_windows_of_two_filters": geometry_of((1, 1, 11, 36), (2, 1, 2, 5)),
    "channels": geometry_of((1, 3, 7, 32), (2, 3, 3, 5), padding=((1, 1), (2, 2))),
    "planes": geometry_of((2, 3, 6, 24), (3, 1, 5, 3), padding=((2, 2), (1, 1)), groups=3),
    "cropped": geometry_of((1, 1, 10, 48), (1, 1, 3, 5), padding=((-1, 0), (-3, -1))),
    "one_row": geometry_of((1, 1, 1, 40), (1, 1, 1, 7), padding=((0, 0), (3, 3))),
    "reflected": geometry_of(
        (1, 1, 9, 32), (1, 1, 5, 5), padding=((2, 2), (2, 2)), padding_mode="reflect"
    ),
    "window_exceeds_image": geometry_of((2, 1, 2, 8), (1, 1, 7, 7), padding=((3, 3), (3, 3))),
}


@pytest.mark.parametrize("name", STRIPS)
def test_weight_gradients_of_several_strips(kernel_backend, name):
    geometry, turn = STRIPS[name], list(STRIPS).index(name)
    dtype, lane_q = ((torch.float32, 4), (torch.float16, 8), (torch.float16, 4))[turn % 3]
    tile = RowsTile(3, 16, 2 if name == "planes" else 1, STEP_P=1 + turn % 2)
    args, actual = forced(
        "wgrad", geometry, lane_q, tile, kernel_backend.device, dtype, splits=2, interior="some"
    )
    check("wgrad", args, geometry, actual=actual)


@pytest.mark.parametrize("interior", ["none", "some"])
@pytest.mark.parametrize("S", [5, 7])
@pytest.mark.parametrize(("dtype", "lane_q"), [(torch.float32, 4), (torch.float16, 8)], ids=str)
def test_pieces_of_several_words(kernel_backend, dtype, lane_q, S, interior):
    """Beside a lane's own vector, 7 columns of float32 are two loads of 4, two of them not read."""
    geometry = geometry_of((1, 1, 6, 48), (1, 1, 2, S), padding=((1, 0), (S // 2, S // 2)))
    problem = Problem("fprop", geometry, dtype)
    columns = {(4, 5): 2, (4, 7): 4, (8, 5): 2, (8, 7): 4}[lane_q, S]
    assert pieces_beside(problem, lane_q) == (2, columns)
    tile = RowsTile(4, 16, 1, STEP_P=2)
    args, actual = forced(
        "fprop_bias", geometry, lane_q, tile, kernel_backend.device, dtype, interior=interior
    )
    check("fprop_bias", args, geometry, actual=actual)


@pytest.mark.parametrize("S", [3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weight_gradients_of_images_load_16_kb_ahead(dtype, S):
    """Bytes of x and dy, over all programs on a multiprocessor; none waits for a second wave."""
    geometry = geometry_of((1, 1, 8192, 8192), (1, 1, S, S), padding=2 * ((S // 2, S // 2),))
    x = torch.empty(geometry.x_shape, dtype=dtype, device="meta")
    found = layout.layout_of(geometry, x, x[:1, :1, :S, :S], x)
    problem = Problem("wgrad", geometry, dtype, layout=found, device=H200)
    tile = rows.tile_for(problem)
    threads = tile.resident(problem) * 32 * tile.num_warps
    assert threads * tile.STEP_P * tile.LANE_Q * 2 * dtype.itemsize >= 2**14
    waves = tile.splits(problem) / (tile.resident(problem) * H200.multiprocessors)
    assert 0.7 < waves <= 1 or waves > 1.9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
def test_every_dtype(kernel_backend, op, dtype):
    lane_q = 2 if dtype == torch.float64 else 4
    tile, device = TILES["rows_of_tiles"], kernel_backend.device
    args, actual = forced(op, GEOMETRIES["even_window"], lane_q, tile, device, dtype)
    check(op, args, GEOMETRIES["even_window"], actual=actual)


@pytest.mark.parametrize(("padding_mode", "lane_q"), [("zeros", 8), ("reflect", 4)])
def test_uint8_pixels_are_converted(kernel_backend, padding_mode, lane_q):
    geometry = geometry_of((1, 1, 4, 16), (1, 1, 2, 3), padding=SAME, padding_mode=padding_mode)
    if padding_mode == "reflect":  # reads pixels right of the last vector
        geometry = replace(geometry, padding=((1, 1), (1, 1)))
    x = torch.arange(256).reshape(4, 1, 4, 16)[3 * (lane_q == 4) :][:1].to(torch.uint8)
    x = x.to(kernel_backend.device)
    weight = whole_numbers(geometry.weight_shape).to(kernel_backend.device, torch.float32)
    y = torch.empty(geometry.y_shape, device="meta")
    plan = planned("fprop", geometry, (x, weight, None), y, lane_q, TILES["rows_of_tiles"])
    assert plan.tile.X_ALIGN == lane_q
    args = x, weight, None
    check_exact("fprop", args, geometry, launched("fprop", args, geometry, plan))


def test_code_without_masks_gives_the_same_bits(kernel_backend):
    geometry, device, tile = GEOMETRIES["image"], kernel_backend.device, TILES["rows_of_tiles"]
    for interior in ("none", "some"):
        args, actual = forced(
            "fprop_bias", geometry, 4, tile, device, torch.float16, whole_numbers,
            interior=interior,
        )  # fmt: skip
        check_exact("fprop_bias", args, geometry, actual)


def test_the_epilogue_is_applied(kernel_backend):
    geometry = GEOMETRIES["prime_planes"]
    x, weight, bias, residual = tensors(
        geometry, torch.float16, kernel_backend.device, whole_numbers
    )
    y = torch.empty(geometry.y_shape, dtype=torch.float16, device="meta")
    tile = TILES["planes_share_lanes"]
    plan = planned("fprop", geometry, (x, weight, bias), y, 4, tile)
    args = x, weight, bias
    actual = launched("fprop", args, geometry, plan, activation="relu", residual=residual)
    expected = (exact("fprop_bias", args, geometry) + residual.cpu().double()).relu()
    assert torch.equal(actual.cpu().double(), expected)


@pytest.mark.parametrize(
    ("first", "together"), [(0, 8), (8, 8), (4, 4), (2, 2), (1, 1)], ids=lambda n: str(n)
)
def test_unaligned_rows_take_shorter_vectors(kernel_backend, first, together):
    geometry = geometry_of((1, 1, 5, 16), (1, 1, 3, 3), padding=SAME)
    whole = torch.randn(1, 1, 5, 32).to(kernel_backend.device, torch.float16)
    x = whole[..., first : first + 16]
    weight = torch.randn(1, 1, 3, 3).to(x)
    y = torch.empty(geometry.y_shape, dtype=x.dtype, device="meta")
    found = layout.layout_of(geometry, x, weight, y)
    assert (found.x_align, found.y_align) == (together, 8)
    problem = Problem("fprop", geometry, x.dtype, layout=found, device=H200)
    tile = rows.tile_for(problem)
    assert tile is not None
    assert tile.X_ALIGN == together
    plan = choose.plan_with_tile(problem, tile)
    args = x, weight, None
    check("fprop", args, geometry, actual=launched("fprop", args, geometry, plan))


def test_rows_of_odd_length_have_no_vectors():
    for width, together in ((56, 8), (28, 4), (14, 2), (7, 1), (57, 1)):
        x = torch.empty(2, 3, 9, width, dtype=torch.bfloat16)
        assert layout.columns_together(x) == together
        assert layout.columns_together(x.to(memory_format=torch.channels_last)) == 1
    assert layout.columns_together(torch.empty(1, 1, 4, 12, dtype=torch.uint8)) == 4
    assert layout.columns_together(torch.empty(1, 1, 4, 12, dtype=torch.float64)) == 2


def test_replicated_padding_takes_no_vectors():
    pads = ((1, 1), (2, 2))
    for mode, x_align in (("zeros", 4), ("replicate", 1)):
        geometry = geometry_of((1, 1, 8, 16), (1, 1, 3, 1), padding=pads, padding_mode=mode)
        problem = Problem("fprop", geometry, layout=Layout(x_align=4, y_align=4))
        assert vector_of(problem, 4)[0] == x_align


@pytest.mark.parametrize("width", [56, 28, 14])
def test_tiles_fill_lanes_and_multiprocessors(width):
    geometry = geometry_of((64, 144, width, width), (144, 1, 3, 3), padding=SAME, groups=144)
    x = torch.empty(geometry.x_shape, dtype=torch.bfloat16, device="meta")
    found = layout.layout_of(geometry, x, x[:144, :1], x)
    problem = Problem("fprop", geometry, torch.bfloat16, layout=found, device=H200)
    tile = vector_tile(problem)
    assert width // tile.LANE_Q * tile.BLOCK_C > 0.95 * tile.lanes()
    assert tile.lanes() == 32 * tile.num_warps
    programs = tile.programs(problem)
    per_processor = -(-programs // H200.multiprocessors)
    assert programs > 0.8 * per_processor * H200.multiprocessors
    assert tile.resident(problem) * 32 * tile.num_warps >= 512
