"""Memory accesses: none outside a kernel's tensors, and the right ones beyond 32-bit offsets.

The interpreter reads any address, so a missing mask can pass every numeric test. Here tensors end,
or start, at pages without access, and a child process dies if it touches them.
"""

import ctypes
import faulthandler
import mmap
import os
import resource
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from closeness import operands, run
from plans import with_tile

from tricorr.ops import geometry_of
from tricorr.ops.plan import banded, columns, gemm, rows, stencil
from tricorr.ops.plan.banded import BandedGradTile, BandedTile
from tricorr.ops.plan.choose import plan_with_tile
from tricorr.ops.plan.gemm import GEMM_TILES
from tricorr.ops.plan.problem import Problem
from tricorr.ops.plan.rows import RowsTile
from tricorr.ops.plan.stencil import STENCIL_TILES
from tricorr.ops.plan.tma import TmaTile

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and mprotect")

PAGE = mmap.PAGESIZE
# Neighbouring allocations must not hide a stray access: two pages on either side.
GUARD = 2 * PAGE
NO_ACCESS = 0


def guarded(tensor, at_end):
    """A copy of `tensor` that ends (or starts) at a page without access."""
    size = tensor.numel() * tensor.element_size()
    room = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * GUARD)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for address in (start, start + GUARD + room):
        arguments = ctypes.c_void_p(address), ctypes.c_size_t(GUARD), NO_ACCESS
        assert protect(*arguments) == 0, os.strerror(ctypes.get_errno())
    offset = GUARD + (room - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return flat.view(tensor.shape).copy_(tensor)


def signal_of_child(work: Callable[[], object]) -> int:
    """The signal that kills a forked child doing `work`, or 0; its exceptions fail the test."""
    with warnings.catch_warnings():
        # The child needs none of the locks that other threads may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, "the child raised an exception"
    return 0


@pytest.fixture
def interpreter(kernel_backend):
    if kernel_backend.name == "cuda":
        pytest.skip("guard pages and reserved address space exist only on the CPU")


@pytest.fixture
def guard_pages(interpreter, kernel_backend):
    if kernel_backend.name == "simulated":
        pytest.skip("the simulator checks every access itself, without pages")


@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
def test_a_read_past_a_guarded_tensor_kills_the_process(at_end):
    tensor = guarded(torch.zeros(100), at_end)
    past = tensor.data_ptr() + (400 if at_end else -1)
    assert signal_of_child(lambda: ctypes.string_at(past, 1)) in (signal.SIGSEGV, signal.SIGBUS)
    assert signal_of_child(lambda: tensor.sum()) == 0


# Every extent leaves part of a tile over, padding and stride lead outside the image on all sides.
LEFTOVER = {
    "gemm": geometry_of((2, 17, 5, 6), (19, 17, 3, 2), (2, 1), ((2, 1), (1, 1))),
    "stencil": geometry_of((2, 6, 5, 6), (9, 2, 3, 2), (1, 2), ((1, 2), (1, 1)), groups=3),
    "rows": geometry_of((1, 3, 8, 18), (3, 1, 3, 2), padding=((1, 1), (1, 2)), groups=3),
    "strided_rows": geometry_of((1, 2, 6, 9), (2, 1, 3, 2), (2, 3), ((1, 1), (1, 2)), groups=2),
    "banded": geometry_of((2, 3, 5, 19), (3, 1, 4, 6), padding=((1, 2), (3, 1)), groups=3),
    "per_sample": geometry_of((2, 3, 5, 6), (2, 5, 3, 2, 2), padding=((1, 1), (0, 1)), flip=True),
    "reflected_gemm": geometry_of((2, 17, 5, 6), (18, 17, 3, 2), (2, 1), ((2, 1), (1, 1)),
                                  padding_mode="reflect"),
    "replicated_stencil": geometry_of((2, 6, 5, 6), (9, 2, 3, 2), (1, 2), ((1, 2), (3, 1)),
                                      groups=3, padding_mode="replicate"),
    "circular_rows": geometry_of((1, 3, 6, 9), (3, 1, 3, 2), padding=((1, 1), (1, 2)), groups=3,
                                 padding_mode="circular"),
}  # fmt: skip
TILES = {
    "gemm": GEMM_TILES["ieee"][-1],
    "stencil": STENCIL_TILES[2],
    "rows": RowsTile(3, 8, 2),
    "strided_rows": RowsTile(2, 4, 4, LANE_Q=2),
    "banded": BandedTile(8, 4, 8, 64, 4, 1),
    "per_sample": STENCIL_TILES[2],
    "reflected_gemm": GEMM_TILES["ieee"][-1],
    "replicated_stencil": STENCIL_TILES[2],
    "circular_rows": RowsTile(3, 8, 2),
}


@pytest.mark.slow  # the simulator checks every access, in faster tests
@pytest.mark.usefixtures("guard_pages")
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
@pytest.mark.parametrize("name", LEFTOVER)
def test_no_kernel_reads_or_writes_outside_its_tensors(op, name, at_end, monkeypatch):
    from tricorr.ops.launch import entry as launch

    geometry, tile = LEFTOVER[name], TILES[name]
    if (name, op) == ("banded", "wgrad"):
        tile = BandedGradTile(8, 16, 4, 2, 4, 1)
    shapes = (geometry.x_shape, geometry.weight_shape, (geometry.K,), geometry.y_shape)
    args = operands(op, *(guarded(torch.randn(shape), at_end) for shape in shapes))
    more = {}
    if op == "fprop_bias":
        more["residual"] = guarded(torch.randn(geometry.y_shape), at_end)
    plans = [
        with_tile(op.removesuffix("_bias"), geometry, tile, **choice)
        for choice in ([{"splits": 1}, {"splits": 2}] if op == "wgrad" else one_tap(tile))
    ]

    if tile.family == "rows":  # with its code without masks
        plans.append(replace(plans[0], interior="some"))

    def empty_guarded(shape, dtype, like):
        return guarded(torch.zeros(shape, dtype=dtype), at_end)

    monkeypatch.setattr(launch, "empty_in_format", empty_guarded)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda self, shape, **options: (
            guarded(torch.zeros(shape, dtype=options.get("dtype", self.dtype)), at_end)
            if np.prod(shape)
            else new_empty(self, shape, **options)
        ),
    )

    def work():
        for plan in plans:
            result = run(op, args, geometry, launch, plan=plan, **more)
            assert result.isfinite().all()

    assert signal_of_child(work) == 0


@pytest.mark.slow  # the simulator looks at every access of every call
@pytest.mark.usefixtures("guard_pages")
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
def test_no_descriptor_reads_outside_its_tensor(op, at_end, monkeypatch):
    from tricorr.ops.launch import entry as launch

    geometry = geometry_of((3, 16, 6, 9), (24, 16, 3, 2), (2, 1), ((2, 1), (1, 0)))
    tile = TmaTile(*((2, 1, 1) if op == "wgrad" else (2, 4, 8)), 32, 16, 4, 2)

    def guarded_last(shape):
        n, c, h, w = shape
        return guarded(torch.randn(n, h, w, c).half(), at_end).permute(0, 3, 1, 2)

    x, weight, y = map(guarded_last, (geometry.x_shape, geometry.weight_shape, geometry.y_shape))
    args = operands(op, x, weight, guarded(torch.randn(geometry.K).half(), at_end), y)
    more = {"residual": guarded_last(geometry.y_shape)} if op == "fprop_bias" else {}
    plan = with_tile(op.removesuffix("_bias"), geometry, tile)
    monkeypatch.setattr(
        launch, "empty_in_format", lambda shape, dtype, like: guarded_last(shape).zero_()
    )

    def work():
        assert run(op, args, geometry, launch, plan=plan, **more).isfinite().all()

    assert signal_of_child(work) == 0


def one_tap(tile):
    return [{"one_tap": False}, {"one_tap": True}] if tile.family == "gemm" else [{}]


def far_apart(tensor):
    """The same values 2**30 elements apart: offsets beyond 2**31, pages only where touched."""
    assert tensor.numel() == 9
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, 2 * (2**31 + 64), flags=flags)
    storage = torch.frombuffer(memory, dtype=torch.float16)
    return storage.as_strided(tensor.shape, (1, 1, 2**30, 1)).copy_(tensor)


FAMILIES = {"gemm": gemm, "rows": rows, "stencil": stencil, "banded": banded, "columns": columns}


# The channel counts, the window and its gaps suit the family.
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_past_32_bits(op, family):
    from tricorr.ops.launch import entry as launch

    wide_channels = 16 if family == "gemm" else 1
    more = (
        2 if family in ("stencil", "banded", "columns") else 0
    )  # taps on each side, too many for rows
    gap = 2 if family == "stencil" else 1
    C, K = (wide_channels, 1) if op == "dgrad" else (1, wide_channels)
    before, after = (1, 2) if op == "wgrad" else (2, 2)
    geometry = geometry_of(
        (1, C, 3, 3),
        (K, C, *(before + after + 1 + 2 * more,) * 2),
        padding=(((before + more) * gap, (after + more) * gap),) * 2,
        dilation=(gap, gap),
    )
    shapes = (geometry.x_shape, geometry.weight_shape, (geometry.K,), geometry.y_shape)
    tensors = [torch.randn(shape).half() for shape in shapes]
    near = operands(op, *tensors)
    far = (far_apart(near[0]), *near[1:])
    layout = launch.layout_of(geometry, *far[:2], tensors[3])
    assert layout.int64
    name = op.removesuffix("_bias")
    problem = Problem(name, geometry, torch.float16, "ieee", layout, launch.device_of(far[0]))
    tile = FAMILIES[family].tiles(problem)[0]
    results = [
        run(op, given, geometry, launch, plan=plan_with_tile(where, tile))
        for given, where in (
            (far, problem),
            (near, replace(problem, layout=replace(layout, int64=False))),
        )
    ]
    assert torch.equal(*results)
