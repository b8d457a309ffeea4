"""Copies an image to patches, as large as a window that moves by its own size, or patches back.

    z[n, (g,c,r,s), p, q] = x[n, g*C + c, p*R + r, q*S + s]

in the memory order (n, p, q, channel), where channels are in the order (g,c,r,s) or (g,r,s,c). A
product of z with filters is then one with a 1x1 window. BACK writes x: what no window meets of it
is bias[c], or 0. A tile of BLOCK_C channels, BLOCK_R rows and BLOCK_S columns of BLOCK_Q patches is
loaded along the rows of the one and stored along the channels of the other; the compiler exchanges
the axes in shared memory.
"""

import triton
import triton.language as tl

from .hints import round_down
from .schedule import next_digit, widen


@triton.jit
def copy_patches(
    x_ptr, z_ptr, bias_ptr, sizes, patches, x_strides, z_strides, bias_stride, LAYOUT: tl.constexpr
):  # fmt: skip
    """`sizes` is (groups, C of one, rows and columns of x), `patches` (rows and columns of z).

    Strides are those of (n, g, c, h, w) and of (n, g, p, q).
    """
    GROUPS, C, H, W = sizes
    P, Q = patches
    R: tl.constexpr = LAYOUT.R
    S: tl.constexpr = LAYOUT.S
    BLOCK_C: tl.constexpr = LAYOUT.BLOCK_C
    BLOCK_R: tl.constexpr = LAYOUT.BLOCK_R
    BLOCK_Q: tl.constexpr = LAYOUT.BLOCK_Q
    BLOCK_S: tl.constexpr = LAYOUT.BLOCK_S
    x_n, x_g, x_c, x_h, x_w = x_strides
    x_n, x_g = round_down(x_n, LAYOUT.X_ALIGN), round_down(x_g, LAYOUT.X_ALIGN)
    x_c, x_h = round_down(x_c, LAYOUT.X_ALIGN), round_down(x_h, LAYOUT.X_ALIGN)
    z_n, z_g, z_p, z_q = z_strides
    z_n, z_g = round_down(z_n, LAYOUT.Z_ALIGN), round_down(z_g, LAYOUT.Z_ALIGN)
    z_p, z_q = round_down(z_p, LAYOUT.Z_ALIGN), round_down(z_q, LAYOUT.Z_ALIGN)

    rows, columns = P * R, Q * S
    if LAYOUT.BACK:  # all of x, not those of patches alone
        rows, columns = H, W
    tile_s, program = next_digit(tl.program_id(0), tl.cdiv(S, BLOCK_S))
    tile_q, program = next_digit(program, tl.cdiv(columns, BLOCK_Q * S))
    tile_r, program = next_digit(program, tl.cdiv(R, BLOCK_R))
    tile_c, program = next_digit(program, tl.cdiv(C, BLOCK_C))
    p, program = next_digit(program, tl.cdiv(rows, R))
    group, n = next_digit(program, GROUPS)
    n, group = widen(n, LAYOUT.INT64), widen(group, LAYOUT.INT64)
    x_ptr += n * x_n + group * x_g
    z_ptr += n * z_n + group * z_g + widen(p, LAYOUT.INT64) * z_p

    # The tile in x: [(c, r), (q, s)].
    row = tl.arange(0, BLOCK_C * BLOCK_R)[:, None]
    c, r = tile_c * BLOCK_C + row // BLOCK_R, tile_r * BLOCK_R + row % BLOCK_R
    h = p * R + r
    column = tl.arange(0, BLOCK_Q * BLOCK_S)[None, :]
    if BLOCK_S == S:
        w = tile_q * (BLOCK_Q * S) + column
        in_x = w < round_down(columns, LAYOUT.X_ALIGN)
    else:
        s = tile_s * BLOCK_S + column % BLOCK_S
        w = (tile_q * BLOCK_Q + column // BLOCK_S) * S + s
        in_x = (s < S) & (w < columns)
    in_x &= (c < C) & (r < R) & (h < rows)
    pixels = (
        x_ptr
        + widen(c, LAYOUT.INT64) * x_c
        + widen(h, LAYOUT.INT64) * x_h
        + widen(w, LAYOUT.INT64) * x_w
    )

    # The same in z: [q, (c, r, s)], or [(q, r, s), c].
    if LAYOUT.CHANNELS_LAST:
        place = tl.arange(0, BLOCK_Q * BLOCK_R * BLOCK_S)[:, None]
        q = tile_q * BLOCK_Q + place // (BLOCK_R * BLOCK_S)
        r = tile_r * BLOCK_R + place // BLOCK_S % BLOCK_R
        s = tile_s * BLOCK_S + place % BLOCK_S
        c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        channels = round_down(C, LAYOUT.Z_ALIGN)
        element = (r * S + s) * channels + c
        in_z = (q < Q) & (r < R) & (s < S) & (c < channels)
    else:
        q = tile_q * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
        element = tl.arange(0, BLOCK_C * BLOCK_R * BLOCK_S)[None, :]
        if BLOCK_R == R and BLOCK_S == S:
            element += tile_c * (BLOCK_C * R * S)
            in_z = (q < Q) & (element < round_down(C * (R * S), LAYOUT.Z_ALIGN))
        else:
            c = tile_c * BLOCK_C + element // (BLOCK_R * BLOCK_S)
            r = tile_r * BLOCK_R + element // BLOCK_S % BLOCK_R
            s = tile_s * BLOCK_S + element % BLOCK_S
            element = (c * R + r) * S + s
            in_z = (q < Q) & (c < C) & (r < R) & (s < S)
    channels = z_ptr + widen(q, LAYOUT.INT64) * z_q + widen(element, LAYOUT.INT64)

    if LAYOUT.BACK:
        values = tl.load(channels, mask=in_z & (p < P), other=0.0)
        if LAYOUT.CHANNELS_LAST:
            values = tl.reshape(values, [BLOCK_Q, BLOCK_R, BLOCK_S, BLOCK_C])
            values = tl.permute(values, [3, 1, 0, 2])
        else:
            values = tl.reshape(values, [BLOCK_Q, BLOCK_C, BLOCK_R, BLOCK_S])
            values = tl.permute(values, [1, 2, 0, 3])
        values = tl.reshape(values, [BLOCK_C * BLOCK_R, BLOCK_Q * BLOCK_S])
        if bias_ptr is not None:
            c = tile_c * BLOCK_C + row // BLOCK_R
            bias = tl.load(bias_ptr + (group * C + c) * bias_stride, mask=c < C, other=0.0)
            values = tl.where((p < P) & (w < Q * S), values, bias.to(values.dtype))
        tl.store(pixels, values, mask=in_x)
    else:
        values = tl.load(pixels, mask=in_x, other=0.0)
        values = tl.reshape(values, [BLOCK_C, BLOCK_R, BLOCK_Q, BLOCK_S])
        if LAYOUT.CHANNELS_LAST:
            values = tl.permute(values, [2, 1, 3, 0])
            values = tl.reshape(values, [BLOCK_Q * BLOCK_R * BLOCK_S, BLOCK_C])
        else:
            values = tl.permute(values, [2, 0, 1, 3])
            values = tl.reshape(values, [BLOCK_Q, BLOCK_C * BLOCK_R * BLOCK_S])
        tl.store(channels, values, mask=in_z)
