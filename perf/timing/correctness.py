"""Whether a result is right, before its time is taken: elements recomputed in float64.

The very workload is checked, however large: elements drawn at random (all of them where there are
few, and many at the border) are computed from their definition, without any library's convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F

from ..providers import Operands, Result

Coordinates: TypeAlias = tuple[torch.Tensor, ...]

#: Most elements drawn.
DRAWS = 4096
#: Most products computed in float64 for one check, by device.
BUDGET = {"cuda": 2**25, "cpu": 2**21}
#: Most elements of a weight gradient, each a sum over all pixels, and most products for them.
WGRAD_DRAWS = 48
WGRAD_BUDGET = {"cuda": 2**29, "cpu": 2**23}


#: As `corr2d` names them, in the tensor's own precision.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Truth:
    """Elements of a result.

    Attributes:
        at: their coordinates, one tensor an axis.
        values: in float64.
        terms: products that one element sums.
        shape: of the whole result.
        roundings: to the result's dtype, that a library may do on the way.
        dw: of "backward", the truth of its second result; the rest is that of dx.
    """

    at: Coordinates
    values: torch.Tensor
    terms: int
    shape: tuple[int, ...]
    roundings: int = 1
    dw: Truth | None = None

    def bound(self, dtype: torch.dtype, precision: str) -> float:
        """The largest `error` that rounding explains.

        A rounding of the result (two where an activation follows, which most libraries apply to a
        rounded sum), the loss of TF32's short operands, and float32 sums whose errors
        add up as a random walk, with a factor 8 for the worst of many elements. A single missing
        tap is far above it: about one over the root of the taps.
        """
        summed_in = torch.float64 if dtype == torch.float64 else torch.float32
        sums = torch.finfo(summed_in).eps * math.sqrt(self.terms)
        rounding = self.roundings * torch.finfo(dtype).eps
        return 8 * (rounding + sums + 2.0**-10 * (precision == "tf32"))

    def error(self, result: Result, precision: str = "ieee") -> float:
        """Largest deviation over the root mean square of the truth; inf for NaN or a bad shape.

        Of (dx, dw) that of dx, and inf where dw is above its own bound.
        """
        if isinstance(result, tuple):
            result, dw = result
            if self.dw is None or not self.dw.error(dw) <= self.dw.bound(dw.dtype, precision):
                return math.inf
        if tuple(result.shape) != self.shape:
            return math.inf
        if not all(bool(part.isfinite().all()) for part in result):
            return math.inf
        return self._scaled((result[self.at].double() - self.values).abs().max())

    def rms_error(self, result: Result) -> float:
        """Root mean square of the deviation over that of the truth, of a result of its shape.

        Two libraries are compared by this one: their largest deviations are draws from a tail. Of
        (dx, dw) it is that of dx.
        """
        result = first_of(result)
        return self._scaled((result[self.at].double() - self.values).square().mean().sqrt())

    def _scaled(self, deviation: torch.Tensor) -> float:
        scale = self.values.square().mean().sqrt()
        return float(deviation / scale) if float(scale) > 0 else float(deviation)


def first_of(result: Result) -> torch.Tensor:
    """The result; dx of both gradients."""
    return result[0] if isinstance(result, tuple) else result


def truth_of(problem: Operands) -> Truth:
    """Elements of the problem's result, computed in float64."""
    g, device = problem.geometry, problem.x.device
    random = torch.Generator(device).manual_seed(1)
    if problem.op == "fprop":
        terms = g.group_C * g.R * g.S
        at = _draw(g.y_shape, terms, random)
        roundings = 1 + (problem.workload.activation != "none")
        terms += problem.bias is not None
        return Truth(at, _fprop_at(problem, at), terms, g.y_shape, roundings)
    if g.padding_mode != "zeros":
        raise NotImplementedError("gradients are checked under zero padding only")
    if problem.op == "backward":
        dx, dw = (truth_of(replace(problem, op=op)) for op in ("dgrad", "wgrad"))
        return replace(dx, dw=dw)
    if problem.op == "dgrad":
        terms = g.group_K * g.R * g.S
        at = _draw(g.x_shape, terms, random)
        return Truth(at, _dgrad_at(problem, at), terms, g.x_shape)
    terms = g.P * g.Q * (1 if g.per_sample else g.N)
    most = min(WGRAD_DRAWS, max(4, WGRAD_BUDGET[device.type] // max(1, terms)))
    at = _random_coordinates(g.weight_shape, most, random)
    return Truth(at, _wgrad_at(problem, at), terms, g.weight_shape)


def _draw(shape: tuple[int, ...], terms: int, random: torch.Generator) -> Coordinates:
    """Coordinates in (N, channels, rows, columns), half of them in border rows or columns."""
    most = min(DRAWS, max(64, BUDGET[random.device.type] // terms))
    if math.prod(shape) <= most:
        return torch.unravel_index(torch.arange(math.prod(shape), device=random.device), shape)
    n, channel, row, column = _random_coordinates(shape, most, random)
    quarter = most // 4
    row[:quarter] = torch.where(row[:quarter] % 2 == 0, 0, shape[2] - 1)
    column[quarter : 2 * quarter] = torch.where(
        column[quarter : 2 * quarter] % 2 == 0, 0, shape[3] - 1
    )
    return n, channel, row, column


def _random_coordinates(
    shape: tuple[int, ...], most: int, random: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Up to `most` coordinates, the first and the last element among them."""
    numel = math.prod(shape)
    if numel <= most:
        flat = torch.arange(numel, device=random.device)
    else:
        flat = torch.randint(numel, (most,), generator=random, device=random.device)
        flat[-2], flat[-1] = 0, numel - 1
    return torch.unravel_index(flat, shape)


def _fprop_at(problem: Operands, at: Coordinates) -> torch.Tensor:
    g, x = problem.geometry, problem.x
    n, k, p, q = at
    h, row_is = _taps(p, g.stride[0], g.padding[0][0], g.dilation[0], g.R, g.H, g.padding_mode)
    w, column_is = _taps(q, g.stride[1], g.padding[1][0], g.dilation[1], g.S, g.W, g.padding_mode)
    c = (k // g.group_K * g.group_C)[:, None] + torch.arange(g.group_C, device=x.device)
    patch = _grid(x, n, c, h, w).double()  # (draws, C/groups, R, S)
    patch *= row_is[:, None, :, None] & column_is[:, None, None, :]
    weight = problem.weight[n, k] if g.per_sample else problem.weight[k]
    y = (patch * weight.double()).sum((1, 2, 3))
    if problem.bias is not None:
        y = y + problem.bias[k].double()
    if problem.residual is not None:
        y = y + problem.residual[at].double()
    return ACTIVATIONS[problem.workload.activation](y)


def _dgrad_at(problem: Operands, at: Coordinates) -> torch.Tensor:
    g, dy = problem.geometry, problem.dy
    n, c, h, w = at
    p, row_is = _sources(h, g.stride[0], g.padding[0][0], g.dilation[0], g.R, g.P)
    q, column_is = _sources(w, g.stride[1], g.padding[1][0], g.dilation[1], g.S, g.Q)
    k = (c // g.group_C * g.group_K)[:, None] + torch.arange(g.group_K, device=dy.device)
    patch = _grid(dy, n, k, p, q).double()  # (draws, K/groups, R, S)
    patch *= row_is[:, None, :, None] & column_is[:, None, None, :]
    inner = (c % g.group_C)[:, None]
    bank = problem.weight
    weight = bank[n[:, None], k, inner] if g.per_sample else bank[k, inner]
    return (patch * weight.double()).sum((1, 2, 3))


def _wgrad_at(problem: Operands, at: Coordinates) -> torch.Tensor:
    g, x, dy = problem.geometry, problem.x, problem.dy
    p, q = (torch.arange(extent, device=x.device) for extent in (g.P, g.Q))
    found = []
    for entry in zip(*(axis.tolist() for axis in at), strict=True):
        k, c, r, s = entry[-4:]
        h = p * g.stride[0] - g.padding[0][0] + r * g.dilation[0]
        w = q * g.stride[1] - g.padding[1][0] + s * g.dilation[1]
        rows, columns = (h >= 0) & (h < g.H), (w >= 0) & (w < g.W)
        samples = slice(entry[0], entry[0] + 1) if g.per_sample else slice(None)
        plane = x[samples, k // g.group_K * g.group_C + c][:, h[rows]][:, :, w[columns]]
        gradient = dy[samples, k][:, rows][:, :, columns]
        found.append((plane.double() * gradient.double()).sum())
    return torch.stack(found)


def _taps(
    out: torch.Tensor, stride: int, pad: int, dilation: int, window: int, extent: int, mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(draws, window): the input coordinate that every tap shows, and whether it shows one."""
    at = (out * stride - pad)[:, None] + torch.arange(window, device=out.device) * dilation
    inside = (at >= 0) & (at < extent)
    if mode == "reflect":
        at = (extent - 1) - ((extent - 1) - at.abs()).abs()
    elif mode == "circular":
        at = at % extent
    return at.clamp(0, extent - 1), inside | (mode != "zeros")


def _sources(
    coordinate: torch.Tensor, stride: int, pad: int, dilation: int, window: int, extent: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(draws, window): the output that sees this input under every tap, and whether one does."""
    start = (coordinate + pad)[:, None] - torch.arange(window, device=coordinate.device) * dilation
    at = start.div(stride, rounding_mode="floor")
    return at.clamp(0, extent - 1), (start % stride == 0) & (at >= 0) & (at < extent)


def _grid(
    tensor: torch.Tensor,
    n: torch.Tensor,
    channels: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
) -> torch.Tensor:
    """tensor[n, channels, rows, columns] for every combination of the last three, by draw."""
    return tensor[
        n[:, None, None, None],
        channels[:, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
