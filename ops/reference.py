"""The three operators in NumPy, in float64: the reference for all tests.

Written from the definition, one tap (r, s) of the window at a time: slow, and meant to be read.

    y [n,k,p,q] = bias[k] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s]
    dx[n,c,h,w] = sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * stride_h - pad_top + r * dilation_h        w likewise        (*)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .geometry import Geometry

#: Names that np.pad has for padding modes.
NUMPY_MODES: dict[str, Literal["reflect", "edge", "wrap"]] = {
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


def fprop(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None, geometry: Geometry
) -> NDArray[np.float64]:
    """y (N, K, P, Q). Padding zeros are multiplied too: times an infinite weight they give nan.

    Args:
        x: (N, C, H, W).
        weight: (K, C/groups, R, S) or (N, K, C/groups, R, S).
        bias: (K,) or None.
        geometry: of these shapes.
    """
    g = geometry
    x, weight = _grouped_x(x, g), _grouped_weight(weight, g)
    y = np.zeros((g.N, g.groups, g.group_K, g.P, g.Q))
    for r, h, h_inside in _window(g, 0):
        for s, w, w_inside in _window(g, 1):
            seen = _read_or_zero(x, h, h_inside, w, w_inside)
            y += _einsum("ngcpq,ngkc->ngkpq", seen, weight[..., r, s])
    y = y.reshape(g.y_shape)
    return y if bias is None else y + np.asarray(bias, np.float64)[:, None, None]


def dgrad(
    dy: ArrayLike, weight: ArrayLike, geometry: Geometry, bias: ArrayLike | None = None
) -> NDArray[np.float64]:
    """dx (N, C, H, W). Sums only outputs that read the pixel; padding zeros have no gradient.

    Args:
        dy: (N, K, P, Q).
        weight: as for fprop.
        geometry: of the forward call.
        bias: (C,) or None.
    """
    g = geometry
    dy, weight = _grouped_y(dy, g), _grouped_weight(weight, g)
    dx = np.zeros((g.N, g.groups, g.group_C, g.H, g.W))
    for r, h, h_inside in _window(g, 0):
        for s, w, w_inside in _window(g, 1):
            came_from = dy[..., h_inside, :][..., w_inside]
            product = _einsum("ngkpq,ngkc->ngcpq", came_from, weight[..., r, s])
            places = (..., h[h_inside][:, None], w[w_inside])
            if g.padding_mode == "zeros":
                dx[places] += product
            else:  # padding may copy a pixel several times
                # NumPy annotates places as one array, but takes a tuple.
                np.add.at(dx, places, product)  # type: ignore[arg-type]
    offset = 0.0 if bias is None else np.asarray(bias, np.float64)[:, None, None]
    return dx.reshape(g.x_shape) + offset


def wgrad(x: ArrayLike, dy: ArrayLike, geometry: Geometry) -> NDArray[np.float64]:
    """dw, shaped as the weight. Padding zeros are multiplied too, as in fprop.

    Args:
        x: (N, C, H, W).
        dy: (N, K, P, Q).
        geometry: of the forward call.
    """
    g = geometry
    x, dy = _grouped_x(x, g), _grouped_y(dy, g)
    dw = np.zeros((g.N, g.groups, g.group_K, g.group_C, g.R, g.S))
    for r, h, h_inside in _window(g, 0):
        for s, w, w_inside in _window(g, 1):
            seen = _read_or_zero(x, h, h_inside, w, w_inside)
            dw[..., r, s] = _einsum("ngkpq,ngcpq->ngkc", dy, seen)
    if g.flip:
        dw = dw[..., ::-1, ::-1].copy()
    if not g.per_sample:
        dw = dw.sum(axis=0)
    return dw.reshape(g.weight_shape)


def bias_grad(dy: ArrayLike) -> NDArray[np.float64]:
    """dbias (K,) = sum_{n,p,q} dy[n,k,p,q]."""
    return np.asarray(dy, np.float64).sum(axis=(0, 2, 3))


def _window(g: Geometry, axis: int) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.bool_]]]:
    """For each tap of one axis: every output's input coordinate, and whether it is in the image."""
    taps, outputs, extent = ((g.R, g.P, g.H), (g.S, g.Q, g.W))[axis]
    (before, after), stride, dilation = g.padding[axis], g.stride[axis], g.dilation[axis]
    for tap in range(taps):
        coordinate = np.arange(outputs) * stride - before + tap * dilation  # (*)
        if g.padding_mode != "zeros":
            padded = np.pad(np.arange(extent), (before, after), mode=NUMPY_MODES[g.padding_mode])
            coordinate = padded[coordinate + before]
        yield tap, coordinate, (coordinate >= 0) & (coordinate < extent)


def _read_or_zero(
    x: NDArray[np.float64],
    h: NDArray[np.int64],
    h_inside: NDArray[np.bool_],
    w: NDArray[np.int64],
    w_inside: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """x[..., h, w] where that exists, zero elsewhere: (..., P, Q)."""
    seen = x[..., np.where(h_inside, h, 0)[:, None], np.where(w_inside, w, 0)]
    return np.where(h_inside[:, None] & w_inside, seen, 0.0)


def _einsum(subscripts: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # inf - inf and 0 * inf are nan, here as on a GPU
        return np.einsum(subscripts, a, b)


def _grouped_x(x: ArrayLike, g: Geometry) -> NDArray[np.float64]:
    return np.asarray(x, np.float64).reshape(g.N, g.groups, g.group_C, g.H, g.W)


def _grouped_y(y: ArrayLike, g: Geometry) -> NDArray[np.float64]:
    return np.asarray(y, np.float64).reshape(g.N, g.groups, g.group_K, g.P, g.Q)


def _grouped_weight(weight: ArrayLike, g: Geometry) -> NDArray[np.float64]:
    """The cross-correlation window that each sample sees: (N, groups, K/groups, C/groups, R, S)."""
    weight = np.asarray(weight, np.float64)
    if g.flip:
        weight = weight[..., ::-1, ::-1]
    bank = (g.groups, g.group_K, g.group_C, g.R, g.S)
    if g.per_sample:
        return weight.reshape(g.N, *bank)
    return np.broadcast_to(weight.reshape(bank), (g.N, *bank))
