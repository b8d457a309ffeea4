"""Copies of images to patches, and back, made by kernels/copy_patches.py."""

from __future__ import annotations

import math

import torch

from ... import kernels
from ...kernels.structs import PatchCopyLayout, constant
from ..geometry import Geometry
from ..plan.exchange.image_patches import WARPS, PatchCopy
from ..plan.integers import cdiv
from .call import Call
from .layout import NARROW_LIMIT, last_offset


def patches_like(image: torch.Tensor, geometry: Geometry, dense: bool = False) -> torch.Tensor:
    """Memory for patches (N, C * R * S, P, Q) in channels_last.

    Unless they are `dense`, patches are whole pieces of 16 bytes apart, as descriptors need them.
    """
    N, channels, P, Q = geometry.of_patches().x_shape
    piece = 1 if dense else 16 // image.itemsize
    memory = image.new_empty(N, P, Q, cdiv(channels, piece) * piece)
    return memory[..., :channels].permute(0, 3, 1, 2)


def patches_call(
    x: torch.Tensor,
    patches: torch.Tensor,
    geometry: Geometry,
    order: str,
    back: bool = False,
    bias: torch.Tensor | None = None,
) -> Call:
    """The launch that copies x to `patches`, or back.

    Args:
        x: (N, C, H, W) of any strides.
        patches: of patches_like.
        geometry: that is_patches.
        order: of channels, see Layout.order.
        back: `patches` are copied to x.
        bias: what pixels of x get then that no window meets, for each channel; 0 if there is none.
    """
    copy = PatchCopy(geometry, order, back)
    g, last, channels = geometry, order == "rsc", copy.channels
    elements, piece = channels * g.R * g.S, 16 // x.itemsize
    n, c, h, w = x.stride()
    x_strides = (n, channels * c, c, h, w)
    whole = w == 1 and x.data_ptr() % 16 == 0
    block_c, block_r, block_q, block_s = copy.blocks
    layout = PatchCopyLayout(
        R=g.R,
        S=g.S,
        CHANNELS_LAST=last,
        BACK=back,
        X_ALIGN=math.gcd(piece, copy.area[1], *x_strides[:-1]) if whole else 1,
        # A patch is whole pieces, or as many elements as it has, from the next one.
        Z_ALIGN=math.gcd(piece, channels if last else elements),
        INT64=max(map(last_offset, (x, patches))) > NARROW_LIMIT,
        BLOCK_C=block_c,
        BLOCK_R=block_r,
        BLOCK_Q=block_q,
        BLOCK_S=block_s,
    )
    arguments = {
        "x_ptr": x,
        "z_ptr": patches,
        "bias_ptr": bias,
        "sizes": (copy.groups, channels, g.H, g.W),
        "patches": (g.P, g.Q),
        "x_strides": x_strides,
        "z_strides": (patches.stride(0), elements, patches.stride(2), patches.stride(3)),
        "bias_stride": 0 if bias is None else bias.stride(0),
        "LAYOUT": constant(layout),
    }
    return Call(
        kernels.copy_patches,
        copy.programs,
        arguments,
        num_warps=WARPS,
        num_stages=1,
        scratch=(patches,),
    )
