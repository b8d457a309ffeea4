"""A kernel in Gluon, for which there is no interpreter: TMA loads, wgmma, and a TMA store."""
# mypy: ignore-errors

import re

import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from simulator import Fault
from simulator.driver import simulated

BLOCK_M, BLOCK_N, BLOCK_K = 64, 32, 64


@gluon.jit
def products_of_rows(a_desc, b_desc, c_desc, K, STAGES: gl.constexpr, num_warps: gl.constexpr):
    """c = a @ b.T of a block; the boxes of `STAGES` steps are loaded in advance."""
    dtype: gl.constexpr = a_desc.dtype
    BLOCK_M: gl.constexpr = a_desc.block_type.shape[0]
    BLOCK_N: gl.constexpr = b_desc.block_type.shape[0]
    BLOCK_K: gl.constexpr = a_desc.block_type.shape[1]
    a = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_M, BLOCK_K], a_desc.layout)
    b = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, BLOCK_K], b_desc.layout)
    c = gl.allocate_shared_memory(c_desc.dtype, [BLOCK_M, BLOCK_N], c_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
    fence_async_shared()
    m, n = gl.program_id(0) * BLOCK_M, 0
    for i in gl.static_range(STAGES - 1):
        mbarrier.expect(ready.index(i), a_desc.block_type.nbytes + b_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(a_desc, [m, i * BLOCK_K], ready.index(i), a.index(i))
        tma.async_copy_global_to_shared(b_desc, [n, i * BLOCK_K], ready.index(i), b.index(i))
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_N, 16])
    acc = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, LAYOUT)
    for step in range(gl.cdiv(K, BLOCK_K)):
        stage = step % STAGES
        mbarrier.wait(ready.index(stage), step // STAGES & 1)
        acc = warpgroup_mma(a.index(stage), b.index(stage).permute([1, 0]), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        ahead = step + STAGES - 1
        if ahead < gl.cdiv(K, BLOCK_K):
            slot = ahead % STAGES
            bar, k = ready.index(slot), ahead * BLOCK_K
            mbarrier.expect(bar, a_desc.block_type.nbytes + b_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(a_desc, [m, k], bar, a.index(slot))
            tma.async_copy_global_to_shared(b_desc, [n, k], bar, b.index(slot))
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(ready.index(i))
    c.store(acc.to(c_desc.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(c_desc, [m, n], c)
    tma.store_wait(0)


def described(tensor, rows, columns, swizzle=128):
    layout = gl.NVMMASharedLayout(
        swizzle_byte_width=swizzle, element_bitwidth=8 * tensor.itemsize, rank=2
    )
    return TensorDescriptor.from_tensor(tensor, [rows, columns], layout)


def multiply(device, stages=3):
    """(the result, the truth) of whole numbers; no size is a multiple of the block's."""
    M, N, K = 100, 24, 5 * BLOCK_K - 8
    a, b = (torch.randint(-4, 5, (rows, K)).to(torch.float16) for rows in (M, N))
    c = torch.empty(M, N, dtype=torch.float16)
    products_of_rows[(2,)](
        described(a, BLOCK_M, BLOCK_K),
        described(b, BLOCK_N, BLOCK_K),
        described(c, BLOCK_M, BLOCK_N, 64),
        K,
        STAGES=stages,
        num_warps=4,
    )
    (launch,) = device.launches[-1:]
    assert (launch.kernel, launch.unit) == ("products_of_rows", "wgmma")
    return c.float(), a.float() @ b.float().T


@pytest.mark.parametrize("stages", [2, 3])
def test_a_gluon_kernel_is_simulated(stages):
    with simulated(90) as device:
        c, expected = multiply(device, stages)
    assert torch.equal(c, expected)


@pytest.mark.parametrize(
    ("pattern", "noticed"),
    [
        (r"fence\.proxy\.async\S*;(?=[^;]*;\s*(?:[^;]*;\s*){0,8}?[^;]*bulk_group)", "TMA store"),
        (r"wgmma\.wait_group\.sync\.aligned 0;", "wgmma in flight"),
        (r"cp\.async\.bulk\.wait_group\S*\s+0;", "not waited for"),
    ],
    ids=["fence", "wait_for_products", "wait_for_the_store"],
)
def test_damage_to_it_is_noticed(pattern, noticed):
    with simulated(90) as device:
        device.change = lambda ptx: re.sub(pattern, "", ptx)
        with pytest.raises(Fault, match=noticed):
            multiply(device)
