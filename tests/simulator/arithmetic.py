"""Arithmetic that takes more than one NumPy expression.

float32 fma is computed in float64, where the product is exact (in rare cases the sum is rounded
twice), and float64 fma in long double. Approximate functions (ex2, rcp, div.full) are exact.
"""

import numpy as np

from .dtypes import Array, Mask, f2, f4, f8, i8, u1, u2, u4, u8
from .faults import Unsupported
from .threads import whole_warps


def div_signed(a: Array, b: Array) -> Array:
    """C's division of signed integers; -1 where the divisor is 0."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, b.dtype.type(-1), (a - np.fmod(a, safe)) // safe)


def rem_signed(a: Array, b: Array) -> Array:
    """C's remainder of signed integers."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, a, np.fmod(a, safe))


def div_unsigned(a: Array, b: Array) -> Array:
    """The quotient; all ones where the divisor is 0."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, ~b.dtype.type(0), a // safe)


def rem_unsigned(a: Array, b: Array) -> Array:
    """The remainder."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, a, a % safe)


def mulhi_u64(a: Array, b: Array) -> Array:
    """The upper 64 bits of a product of 64-bit numbers."""
    low, s = u8(0xFFFFFFFF), u8(32)
    a0, a1, b0, b1 = a & low, a >> s, b & low, b >> s
    middle = a1 * b0 + ((a0 * b0) >> s)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> s) + (other >> s)


def mulhi_s64(a: Array, b: Array) -> Array:
    """The upper 64 bits of a product of signed 64-bit numbers."""
    high = mulhi_u64(a.view(u8), b.view(u8)).view(i8)
    return high - np.where(a < 0, b, i8(0)) - np.where(b < 0, a, i8(0))


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32."""
    return (a.astype(f8) * b.astype(f8) + c.astype(f8)).astype(f4)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float64."""
    long = np.longdouble
    return (a.astype(long) * b.astype(long) + c.astype(long)).astype(f8)


def flush(x: Array) -> Array:
    """ftz: a subnormal float32 becomes zero with its sign."""
    return np.where(np.abs(x) < f4(2.0**-126), np.copysign(f4(0), x), x)


def bf16_of(x: Array) -> Array:
    """float32 to the bits of bfloat16, to nearest even."""
    bits = x.view(u4)
    rounded = (bits + u4(0x7FFF) + ((bits >> u4(16)) & u4(1))) >> u4(16)
    return np.where(np.isnan(x), u4(0x7FFF), rounded).astype(u2)


def bf16_to(bits: Array) -> Array:
    """The bits of bfloat16 to float32."""
    return (bits.astype(u4) << u4(16)).view(f4)


def f16_of(x: Array) -> Array:
    """float32 or float64 to the bits of float16, to nearest even."""
    return x.astype(f2).view(u2)


def tf32_rna(x: Array) -> Array:
    """float32 to the bits of TF32, to nearest, ties away from zero."""
    bits = x.view(u4)
    return np.where(np.isfinite(x), (bits + u4(0x1000)) & u4(0xFFFFE000), bits)


def prmt(a: Array, b: Array, selector: Array) -> Array:
    """prmt.b32: four bytes selected from the eight bytes of a and b."""
    threads = a.size
    both = np.concatenate([a.view(u1).reshape(threads, 4), b.view(u1).reshape(threads, 4)], 1)
    out = np.empty((threads, 4), u1)
    for i in range(4):
        nibble = (selector >> u4(4 * i)) & u4(0xF)
        byte = both[np.arange(threads), (nibble & u4(7)).astype(i8)]
        sign = np.where(byte & u1(0x80), u1(0xFF), u1(0))
        out[:, i] = np.where(nibble & u4(8), sign, byte)
    return out.view(u4).ravel()


def shuffle(x: Array, mode: str, b: Array, c: Array, mask: Mask) -> tuple[Array, Array]:
    """shfl.sync of 32-bit values by whole warps: (value, whether its source was in range)."""
    whole_warps(mask, "shfl.sync")
    warps = x.size // 32
    lane = np.broadcast_to(np.arange(32), (warps, 32))
    b, c = b.reshape(warps, 32).astype(i8) & 31, c.reshape(warps, 32).astype(i8)
    segment, clamp = (c >> 8) & 31, c & 31
    most = (lane & segment) | (clamp & ~segment)
    if mode == "bfly":
        source = lane ^ b
    elif mode == "idx":
        source = (lane & segment) | (b & ~segment)
    elif mode == "up":
        source = lane - b
    elif mode == "down":
        source = lane + b
    else:
        raise Unsupported(f"shfl.{mode}")
    valid = source >= most if mode == "up" else source <= most
    value = np.take_along_axis(x.reshape(warps, 32), np.where(valid, source, lane), 1)
    return value.ravel(), valid.ravel()
