"""Matrix units: the registers of mma.sync, the descriptors of wgmma, and their products.

Products are exact and summed in float64; the sum is rounded once to the accumulator's type. The low
13 bits of a TF32 operand are ignored, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .dtypes import ONES, Array, Mask, f2, f4, f8, i4, i8, u2, u4, u8
from .faults import Fault, Unsupported
from .shared_memory import SHARED_BASE, SharedMemory
from .tensor_maps import swizzle

#: Words by matrix descriptor and shape. They are kept because a kernel repeats its descriptors.
Places = dict[tuple[int, int, int, int, bool], tuple[Array, Array]]


def to_double(bits: Array, kind: str) -> Array:
    """The values of operands of a kind, as float64."""
    if kind == "bf16":
        return (bits.astype(u4) << u4(16)).view(f4).astype(f8)
    if kind == "f16":
        return bits.view(f2).astype(f8)
    if kind == "tf32":
        return (bits & u4(0xFFFFE000)).view(f4).astype(f8)
    if kind == "f64":
        return bits.view(f8)
    raise Unsupported(f"matrix operand {kind}")


def a_fragment(registers: list[Array], kind: str) -> Array:
    """A [warps, rows, k] from its registers."""
    W = registers[0].size // 32
    r = [x.reshape(W, 32) for x in registers]
    if kind in ("f16", "bf16"):  # m16n8k16: a0 (g, 2q), a1 (g + 8, 2q), a2 (g, 2q + 8), a3
        out = np.empty((W, 16, 8 * (len(r) // 2)), u2)
        for i, x in enumerate(r):
            row, column = (i % 2) * 8, (i // 2) * 8
            halves = np.ascontiguousarray(x).view(u2).reshape(W, 8, 8)
            out[:, row : row + 8, column : column + 8] = halves
        return to_double(out, kind)
    if len(r) == 1:
        return to_double(r[0], kind).reshape(W, 8, 4)
    out = np.empty((W, 16, 4 * (len(r) // 2)), u4 if kind == "tf32" else u8)
    for i, x in enumerate(r):
        row, column = (i % 2) * 8, (i // 2) * 4
        out[:, row : row + 8, column : column + 4] = x.reshape(W, 8, 4)
    return to_double(out, kind)


def b_fragment(registers: list[Array], kind: str) -> Array:
    """B [warps, 8 columns, k] from its registers."""
    W = registers[0].size // 32
    r = [x.reshape(W, 32) for x in registers]
    if kind in ("f16", "bf16"):
        out = np.empty((W, 8, 8 * len(r)), u2)
        for i, x in enumerate(r):
            out[:, :, 8 * i : 8 * i + 8] = np.ascontiguousarray(x).view(u2).reshape(W, 8, 8)
    else:
        out = np.empty((W, 8, 4 * len(r)), u4 if kind == "tf32" else u8)
        for i, x in enumerate(r):
            out[:, :, 4 * i : 4 * i + 4] = x.reshape(W, 8, 4)
    return to_double(out, kind)


def mma(kind: str, accumulator: str, a: list[Array], b: list[Array], c: list[Array]) -> list[Array]:
    """mma.sync: the registers of A @ B + C."""
    product = a_fragment(a, kind) @ b_fragment(b, kind).swapaxes(-1, -2)  # [warps, rows, 8]
    product = product.reshape(len(product), product.shape[1] // 8, 8, 4, 2)
    out = []
    for i, old in enumerate(c):
        part = np.ascontiguousarray(product[:, i // 2, :, :, i % 2]).reshape(-1)
        if accumulator == "f32":
            out.append((part + old.view(f4)).astype(f4).view(u4))
        else:
            out.append((part + old.view(f8)).view(u8))
    return out


def matrix_offsets(descriptor: int, rows: int, columns: int, elem: int, k_innermost: bool) -> Array:
    """Offsets in shared memory of elements [rows (m or n), columns (k)] by a matrix descriptor.

    PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout".
    """
    start = (descriptor & 0x3FFF) << 4
    lead = ((descriptor >> 16) & 0x3FFF) << 4
    step = ((descriptor >> 32) & 0x3FFF) << 4
    span = {0: 0, 1: 128, 2: 64, 3: 32}[descriptor >> 62]
    if (descriptor >> 49) & 7:
        raise Unsupported("wgmma: base offset")
    per = 16 // elem  # elements of 16 bytes
    m, k = np.arange(rows, dtype=i8)[:, None], np.arange(columns, dtype=i8)[None, :]
    if k_innermost and span:
        linear = (m // 8) * step + (m % 8) * span + k * elem
    elif k_innermost:
        linear = (m // 8) * step + (m % 8) * 16 + (k // per) * lead + (k % per) * elem
    elif span:
        wide = span // elem
        linear = (m % wide) * elem + (m // wide) * lead + (k % 8) * span + (k // 8) * step
    else:
        linear = (m % per) * elem + (m // per) * step + (k % 8) * 16 + (k // 8) * lead
    return swizzle(start + linear, span) - SHARED_BASE


class Wgmma:
    """wgmma of one CTA. Its operands are in flight until a wait for them.

    Accumulators are computed at once, so a program that reads them before the wait has no Fault.
    """

    def __init__(self, shared: SharedMemory, places: Places) -> None:
        self.shared, self.places = shared, places
        self.group: list[Array] = []  # words that are read: open, and committed
        self.groups: list[list[Array]] = []
        self.left: list[str] = []  # registers of left operands: open, and committed
        self.lefts: list[list[str]] = []

    def check_free(self, register: str) -> None:
        """Raises a Fault where a register is written that a product in flight may still read."""
        if any(register in registers for registers in (self.left, *self.lefts)):
            raise Fault(f"{register} is written, which a wgmma in flight reads")

    def _operand(
        self, descriptors: Array, rows: int, columns: int, kind: str, k_innermost: bool
    ) -> Array:
        """[rows, columns] of an operand in shared memory."""
        if (descriptors != descriptors[0]).any():
            raise Fault("wgmma: descriptor differs in a warpgroup")
        elem = 4 if kind == "tf32" else 2
        shared, descriptor = self.shared, int(descriptors[0])
        key = descriptor, rows, columns, elem, k_innermost
        if key not in self.places:
            place = matrix_offsets(descriptor, rows, columns, elem, k_innermost)
            if place.min() < 0 or place.max() + elem > shared.size:
                raise Fault(
                    f"wgmma reads shared bytes {place.min()}..{place.max() + elem} of {shared.size}"
                )
            if len(self.places) > 2000:
                self.places.clear()
            self.places[key] = place // elem, np.unique(place // 4)
        index, words = self.places[key]
        if (shared.states[4][words] != ONES[4]).any():
            shared.check_valid(words * 4, 4, "wgmma operand")
        if shared.generic[words].any():
            raise Fault("wgmma reads generic writes without fence.proxy.async")
        self.group.append(words)
        shared.reading[words] += 1
        shared.check_reads(words, np.full(words.size, -1, i4))
        return to_double(shared.views[elem][index], kind)

    def multiply(
        self,
        n: int,
        k: int,
        kind: str,
        accumulators: list[Array],
        a: Array | list[Array],
        b: Array,
        scale_d: Array | bool,
        immediates: tuple[int, int, int, int],
        mask: Mask,
        registers: Sequence[str] = (),
    ) -> list[Array]:
        """wgmma.mma_async.m64n{n}k{k}: the accumulators after it.

        Args:
            n: columns.
            k: depth.
            kind: of the operands.
            accumulators: float32, as registers.
            a: a descriptor, or registers.
            b: a descriptor.
            scale_d: whether the accumulators are added to.
            immediates: scale of a, scale of b, whether a is transposed, whether b is.
            mask: must be all threads.
            registers: names of the registers of a.
        """
        self.left += registers
        if mask is not None and not mask.all():
            raise Fault("wgmma by some of the threads")
        scale_a, scale_b, a_transposed, b_transposed = immediates
        if scale_a not in (1, -1) or scale_b not in (1, -1):
            raise Unsupported("wgmma scales")
        groups, count = self.shared.threads // 128, n // 2
        old = np.stack(accumulators, -1).view(f4).reshape(groups, 4, 32, count)
        new = np.empty_like(old)
        for g in range(groups):
            lanes = slice(128 * g, 128 * g + 128)
            right = self._operand(b[lanes], n, k, kind, not b_transposed)  # [n, k]
            if isinstance(a, list):
                left = a_fragment([r[lanes] for r in a], kind).reshape(64, k)
            else:
                left = self._operand(a[lanes], 64, k, kind, not a_transposed)
            product = (left * scale_a) @ (right * scale_b).T  # [64, n]
            adds = np.full(1, scale_d) if isinstance(scale_d, bool) else scale_d[lanes]
            if adds.any() != adds.all():
                raise Fault("wgmma: scale-d differs in a warpgroup")
            # [warp, half, row, block, quad, pair] -> [warp, row, quad, block, half, pair]
            product = product.reshape(4, 2, 8, n // 8, 4, 2).transpose(0, 2, 4, 3, 1, 5)
            product = product.reshape(4, 32, count)
            new[g] = (product + old[g] if adds.all() else product).astype(f4)
        flat = new.reshape(self.shared.threads, count)
        return [np.ascontiguousarray(flat[:, i]).view(u4) for i in range(count)]

    def commit(self) -> None:
        """wgmma.commit_group"""
        self.groups.append(self.group)
        self.lefts.append(self.left)
        self.group, self.left = [], []

    def wait(self, n: int) -> None:
        """wgmma.wait_group: all but the last `n` groups have read their operands."""
        while len(self.groups) > n:
            del self.lefts[0]
            for words in self.groups.pop(0):
                self.shared.reading[words] -= 1
