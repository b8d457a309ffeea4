"""Small kernels with every kind of instruction, compiled for both architectures and simulated."""
# mypy: ignore-errors

import numpy as np
import pytest
import triton
import triton.language as tl

from simulator import Fault, Kernel, Memory, TensorMap
from simulator.compiler import build, mended
from tricorr.kernels.versions import BEFORE_3_7

ARCHS = pytest.mark.parametrize("arch", [80, 90])


def run(ptx, shared, grid, arguments, **options):
    """Launches a kernel.

    Args:
        ptx: the kernel's text.
        shared: bytes of shared memory.
        grid: number of programs.
        arguments: integers, tensor maps, and pairs (array, whether it is a result).
        options: of Kernel.launch.
    """
    memory, given = Memory(), []
    for i, argument in enumerate(arguments):
        if isinstance(argument, tuple):
            array, is_result = argument
            data = array.reshape(-1).view(np.uint8)
            every = np.ones(data.size, bool)
            masks = (None, every) if is_result else (every, None)
            given.append(memory.add(f"argument {i}", data, *masks))
        else:
            given.append(argument)
    Kernel(ptx, shared).launch(memory, grid, [*given, 0, 0], **options)


def launch(compiled, *rest):
    """Launches a kernel that Triton compiled."""
    ptx = compiled.asm["ptx"]
    run(mended(ptx) if BEFORE_3_7 else ptx, compiled.metadata.shared, *rest)


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


ADD = {"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32"}


@ARCHS
@pytest.mark.parametrize("divisible", [(), ("x", "y", "out")], ids=["single", "vectors"])
def test_loads_and_stores_are_exact(arch, divisible):
    compiled = build(add, arch, ADD, {"BLOCK": 256}, divisible)
    x, y = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    out = np.full(1000, np.nan, np.float32)
    launch(compiled, 4, [(x, False), (y, False), (out, True), 1000])
    assert np.array_equal(out, x + y)


@pytest.fixture(scope="module")
def sum_of_two():
    return build(add, 80, ADD, {"BLOCK": 256})


def test_a_load_past_the_end_is_a_fault(sum_of_two):
    x, y, out = np.zeros((3, 1000), np.float32)
    with pytest.raises(Fault, match=r"load of 4 bytes at argument 0\+4000 bytes") as fault:
        launch(sum_of_two, 4, [(x, False), (y, False), (out, True), 1001])
    assert str(fault.value).startswith("add, program 3 of 4: ")
    line = add.fn.__code__.co_firstlineno + 3
    assert f"from test_instructions.py:{line}" in str(fault.value)
    assert "ld.global.b32" in str(fault.value)


def test_a_load_of_unwritten_memory_is_a_fault(sum_of_two):
    x, y, out = np.zeros((3, 256), np.float32)
    with pytest.raises(Fault, match="which holds nothing"):
        launch(sum_of_two, 1, [(x, True), (y, False), (out, True), 256])


def test_a_store_to_an_operand_is_a_fault(sum_of_two):
    x, y, out = np.zeros((3, 256), np.float32)
    with pytest.raises(Fault, match="which is no element of a result"):
        launch(sum_of_two, 1, [(x, False), (y, False), (out, False), 256])


def test_misalignment_is_a_fault():
    compiled = build(add, 80, ADD, {"BLOCK": 512}, ("x", "y", "out", "n"))
    kernel, memory, every = Kernel(compiled.asm["ptx"], 0), Memory(), np.ones(4096, bool)
    x, y, out = (np.zeros(4096, np.uint8) for _ in range(3))
    a, b, c = (
        memory.add("x", x, every),
        memory.add("y", y, every),
        memory.add("o", out, None, every),
    )
    kernel.launch(memory, 1, [a, b, c, 512, 0, 0])
    with pytest.raises(Fault, match="misaligned load of 16 bytes in x"):
        kernel.launch(memory, 1, [a + 4, b, c, 512, 0, 0])


@triton.jit
def everyone_stores(out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), tl.program_id(0))


def test_two_programs_that_store_to_one_element_are_a_fault():
    compiled = build(everyone_stores, 80, {"out": "*i32"}, {"BLOCK": 128})
    with pytest.raises(Fault, match=r"program 1 of 2: store to argument 0\+0, which program 0"):
        launch(compiled, 2, [(np.zeros(128, np.int32), True)])


def test_pairs_of_short_integers_do_not_carry():
    pointers = dict.fromkeys(("x", "y", "out"), "*i16") | {"n": "i32"}
    compiled = build(add, 90, pointers, {"BLOCK": 256}, ("x", "y", "out", "n"))
    assert "add.s16x2" in compiled.asm["ptx"]
    x = np.full(256, -1, np.int16)
    y, out = np.arange(256, dtype=np.int16), np.zeros(256, np.int16)
    launch(compiled, 1, [(x, False), (y, False), (out, True), 256])
    assert np.array_equal(out, x + y)


@triton.jit
def integers(a, b, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, y = tl.load(a + i), tl.load(b + i)
    tl.store(out + i, x // y)
    tl.store(out + BLOCK + i, x % y)
    tl.store(out + 2 * BLOCK + i, tl.minimum(x, y) * 3 + (x ^ y))
    tl.store(out + 3 * BLOCK + i, (x >> 3) + (x << 2) // 7)
    tl.store(out + 4 * BLOCK + i, x // 12345)


@pytest.mark.parametrize("bits", [32, 64])
def test_integers_are_numpys(bits):
    kind = {32: np.int32, 64: np.int64}[bits]
    pointers = dict.fromkeys(("a", "b", "out"), f"*i{bits}")
    compiled = build(integers, 80, pointers, {"BLOCK": 256})
    rng, top = np.random.default_rng(0), 2 ** (bits - 3)
    a = rng.integers(-top, top, 256).astype(kind)
    a[:100] //= 2 ** (bits // 2)
    b = rng.integers(1, 50, 256).astype(kind)
    b[::3] = rng.integers(1, top, 86)
    b[1::5] *= -1
    out = np.zeros(5 * 256, kind)
    launch(compiled, 1, [(a, False), (b, False), (out, True)])
    quotient = (np.sign(a).astype(kind) * np.sign(b)) * (np.abs(a) // np.abs(b))
    with np.errstate(over="ignore"):
        s = a << kind(2)
        expected = [
            quotient,
            a - quotient * b,
            np.minimum(a, b) * kind(3) + (a ^ b),
            (a >> kind(3)) + np.sign(s) * (np.abs(s) // kind(7)),
            np.sign(a) * (np.abs(a) // kind(12345)),
        ]
    assert np.array_equal(out.reshape(5, 256), np.stack(expected).astype(kind))


@triton.jit
def functions(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.store(out + i, tl.erf(v))
    tl.store(out + BLOCK + i, v / (1.0 + tl.exp(-v)))
    tl.store(out + 2 * BLOCK + i, tl.sum(v, 0))
    tl.store(out + 3 * BLOCK + i, tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL))


@ARCHS
@pytest.mark.parametrize("kind", ["fp32", "fp64"])
def test_functions_are_close_to_float64(arch, kind):
    erf = pytest.importorskip("scipy.special").erf
    dtype = {"fp32": np.float32, "fp64": np.float64}[kind]
    compiled = build(functions, arch, {"x": f"*{kind}", "out": f"*{kind}"}, {"BLOCK": 512})
    x = np.linspace(-6, 6, 512).astype(dtype)
    out = np.zeros(4 * 512, dtype)
    launch(compiled, 1, [(x, False), (out, True)])
    x64 = x.astype(np.float64)
    expected = [erf(x64), x64 / (1 + np.exp(-x64)), np.full(512, x64.sum()), np.maximum(x64, 0)]
    # A sum has 512 terms of at most 6; erf's polynomial has about twenty terms.
    eps = np.finfo(dtype).eps
    assert np.allclose(out.reshape(4, 512), expected, rtol=20 * eps, atol=512 * 6 * eps)


@triton.jit
def matmul(
    a, b, c, K, TA: tl.constexpr, TB: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BLOCK_K)
    kind: tl.constexpr = tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([M, N], kind)
    for i in range(0, K, BLOCK_K):
        if TA:
            left = tl.load(a + (i + k)[:, None] * M + m[None, :]).trans()
        else:
            left = tl.load(a + m[:, None] * K + (i + k)[None, :])
        if TB:
            right = tl.load(b + n[:, None] * K + (i + k)[None, :]).trans()
        else:
            right = tl.load(b + (i + k)[:, None] * N + n[None, :])
        acc = tl.dot(left, right, acc, input_precision=PRECISION, out_dtype=kind)
    tl.store(c + m[:, None] * N + n[None, :], acc)


NUMPY = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}


def stored(x, kind):
    """Whole numbers as an array of this kind; bf16 as its bits."""
    x = np.ascontiguousarray(x)
    if kind == "bf16":
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(NUMPY[kind])


SIZES = [
    pytest.param(64, 64, 32, 4, id="64x64x32"),
    pytest.param(128, 64, 64, 8, marks=pytest.mark.slow, id="two_warpgroups"),
    pytest.param(64, 32, 32, 4, marks=pytest.mark.slow, id="64x32x32"),
]
TURNS = [
    pytest.param(False, True, id="rows_rows"),
    pytest.param(True, False, id="columns_columns"),
    pytest.param(False, False, marks=pytest.mark.slow, id="rows_columns"),
    pytest.param(True, True, marks=pytest.mark.slow, id="columns_rows"),
]


@ARCHS
@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp32", "fp64"])
@pytest.mark.parametrize(("ta", "tb"), TURNS)
@pytest.mark.parametrize(("m", "n", "k", "warps"), SIZES)
def test_products_are_exact(arch, kind, ta, tb, m, n, k, warps):
    """mma.sync and wgmma; operands come by cp.async, transposed in shared memory or not."""
    out = "fp64" if kind == "fp64" else "fp32"
    precision = "tf32" if kind == "fp32" else "ieee"
    sizes = {"M": m, "N": n, "BLOCK_K": k}
    compiled = build(
        matmul, arch, {"a": f"*{kind}", "b": f"*{kind}", "c": f"*{out}", "K": "i32"},
        {"TA": ta, "TB": tb, "PRECISION": precision, **sizes}, ("a", "b", "c", "K"),
        num_warps=warps, num_stages=3,
    )  # fmt: skip
    unit = Kernel(compiled.asm["ptx"], compiled.metadata.shared).unit
    assert unit == ("wgmma" if arch == 90 and kind != "fp64" else "mma.sync")
    rng, K = np.random.default_rng(0), 4 * k
    a, b = rng.integers(-8, 9, (m, K)).astype(float), rng.integers(-8, 9, (K, n)).astype(float)
    c = np.zeros((m, n), NUMPY[out])
    left, right = stored(a.T if ta else a, kind), stored(b.T if tb else b, kind)
    launch(compiled, 1, [(left, False), (right, False), (c, True), K])
    assert np.array_equal(c, a @ b)


@triton.jit
def through_boxes(a_desc, b_desc, c, K, N: tl.constexpr, M: tl.constexpr, BLOCK_K: tl.constexpr):
    acc = tl.zeros([M, N], tl.float32)
    for i in range(0, K, BLOCK_K):
        acc = tl.dot(a_desc.load([0, i]), b_desc.load([0, i]).T, acc)
    m, n = tl.arange(0, M), tl.arange(0, N)
    tl.store(c + m[:, None] * N + n[None, :], acc)


def build_through_boxes(kind, m, n, block_k):
    descriptors = {
        "a_desc": f"tensordesc<{kind}[{m},{block_k}]>",
        "b_desc": f"tensordesc<{kind}[{n},{block_k}]>",
    }
    sizes = {"M": m, "N": n, "BLOCK_K": block_k}
    signature = {**descriptors, "c": "*fp32", "K": "i32"}
    return build(through_boxes, 90, signature, sizes, ("c",), num_warps=4, num_stages=3)


def run_through_boxes(compiled, a, b, shape, elected=0, ptx=None):
    """c of this shape: a @ b.T inside a and b, zero outside."""
    kernel = Kernel(ptx or compiled.asm["ptx"], compiled.metadata.shared)
    memory, given, K = Memory(), [], a.shape[1]
    for name, array, how in zip("ab", (a, b), compiled.metadata.tensordesc_meta, strict=True):
        data = array.reshape(-1).view(np.uint8)
        base = memory.add(name, data, np.ones(data.size, bool))
        box = how["elem_size"], array.shape, [K, 1], how["block_size"], how["swizzle"]
        given += [TensorMap(base, *box), *array.shape, K, 1]
    c = np.zeros(shape, np.float32)
    data = c.reshape(-1).view(np.uint8)
    given += [memory.add("c", data, None, np.ones(data.size, bool)), K, 0, 0]
    kernel.launch(memory, 1, given, elected=elected)
    return c


@pytest.mark.parametrize("elected", [0, 31])
@pytest.mark.parametrize(("kind", "block_k"), [("fp16", 64), ("fp16", 32), ("fp32", 32)])
def test_loads_of_boxes_are_exact(kind, block_k, elected):
    """Loads by TMA, issued by any thread; no size is a multiple of the box's."""
    m, n, K = 128, 64, 3 * block_k - 8
    rng = np.random.default_rng(0)
    a = rng.integers(-8, 9, (m - 5, K)).astype(NUMPY[kind])
    b = rng.integers(-8, 9, (n - 3, K)).astype(NUMPY[kind])
    c = run_through_boxes(build_through_boxes(kind, m, n, block_k), a, b, (m, n), elected)
    expected = np.zeros((m, n))
    expected[: m - 5, : n - 3] = a.astype(float) @ b.astype(float).T
    assert np.array_equal(c, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": 8}, "not 16-byte aligned"),
        ({"strides": [60, 1]}, "strides"),
        ({"strides": [64, 2]}, "innermost stride"),
        ({"box": [8, 512]}, "box"),
        ({"box": [8, 128]}, "inner box of 256 bytes"),
        ({"sizes": [0, 64]}, "extents"),
        ({"sizes": [8, 64, 64]}, "rank 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_illegal_tensor_maps_are_faults(changes, message):
    legal = {
        "address": 1 << 40, "elem_size": 2, "sizes": [64, 64], "strides": [64, 1],
        "box": [8, 64], "swizzle": 3,
    }  # fmt: skip
    TensorMap(**legal)
    with pytest.raises(Fault, match=message):
        TensorMap(**(legal | changes))
