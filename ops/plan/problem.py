"""Problem and Layout, what is planned; Plan, the result; Tile, the protocol of all families."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from ..geometry import Geometry
from .device import GEMM_MIN, INTERPRETER, Device
from .exchange.way import Exchange

if TYPE_CHECKING:
    from .cost import Work


@dataclass(frozen=True)
class Layout:
    """How the tensors of a call lie in memory, and what is added to its sums.

    Attributes:
        channels_last: neighbouring channels are neighbours in memory.
        int64: some offset or pixel count needs 64 bits.
        x_boxes: the format in which a tensor descriptor can describe x: "NHWC", "NCHW", or "" for
            neither and where x and y differ in dtype. See launch/layout.py, boxes_of.
        y_boxes: the same of y.
        x_row: as x_boxes, of planes as one row of H * W pixels; "" where those have gaps.
        y_row: the same of y.
        x_align: columns of a piece, of 16 bytes at most, that rows of x begin at, and consist of,
            multiples of; 1 where neighbouring columns are no neighbours in memory.
        y_align: the same of y, and of a residual.
        epilogue: issue slots of a residual, gelu or silu for each result, see EPILOGUE_SLOTS in
            cost.py; 0 without one of them.
        gluon: the installed Triton has Gluon as kernels/fprop_reuse.py is written in it.
        merged: x_boxes of x with its columns merged, see Geometry.merged_columns; None where x
            cannot be seen so.
        order: of the elements of a filter in memory, "crs" or "rsc" (channels_last), of a geometry
            that is_patches; "" of others and for neither.
        as_rows: planes are read as one row of H * W pixels, which a 1x1 window allows; x_boxes and
            y_boxes are those of the rows.
        converts: x and y differ in dtype.
        repacks: a matrix product reads a copy of the weight, whose channels are not innermost. Of
            a weight gradient: its taps are innermost.
    """

    channels_last: bool = False
    int64: bool = False
    x_boxes: str = ""
    y_boxes: str = ""
    x_row: str = ""
    y_row: str = ""
    epilogue: int = 0
    as_rows: bool = False
    converts: bool = False
    repacks: bool = False
    x_align: int = 1
    y_align: int = 1
    gluon: bool = False
    merged: str | None = None
    order: str = ""

    @property
    def heavy_epilogue(self) -> bool:
        """Whether the epilogue is register-hungry.

        With 128 x 256 sums, a residual spills up to 640 bytes of a thread and silu 32.
        """
        return self.epilogue > 0

    def boxes(self, op: str) -> str:
        """The format of all images that `op` reads, "" where they differ."""
        if op == "wgrad":
            return self.x_boxes if self.x_boxes == self.y_boxes else ""
        return self.x_boxes if op == "fprop" else self.y_boxes


@dataclass(frozen=True)
class Problem:
    """One operator to plan: all facts that planners, costs and tuners use.

    Attributes:
        op: "fprop", "dgrad", "wgrad", "backward" for the last two in one launch, or "dgrad_frame"
            for what a padding mode adds to dgrad.
        geometry: of the forward call. Of dgrad, the padding mode is "zeros" whatever was given.
        dtype: of the weight and of the images; x may be uint8, see x_bytes.
        precision: how float32 is multiplied: "ieee", "tf32" or "tf32x3". It is "ieee" for other
            dtypes whatever was given, and for tf32x3 on AMD, where Triton has none: no less exact.
        layout: of the tensors in memory.
        device: that runs it.
        x_bytes: of an element of x, where that is not of dtype; else 0.
    """

    op: str
    geometry: Geometry
    dtype: torch.dtype = torch.float32
    precision: str = "ieee"
    layout: Layout = Layout()
    device: Device = INTERPRETER
    x_bytes: int = 0

    def __post_init__(self) -> None:
        if self.op == "dgrad":
            object.__setattr__(self, "geometry", self.geometry.without_padding_mode())
        lacks_tf32x3 = self.precision == "tf32x3" and self.device.arch.startswith("gfx")
        if self.dtype != torch.float32 or lacks_tf32x3:
            object.__setattr__(self, "precision", "ieee")

    @functools.cached_property
    def is_input_gradient(self) -> bool:
        """Whether the result is dx, or its frame."""
        return self.op.startswith("dgrad")

    @functools.cached_property
    def is_turned(self) -> bool:
        """Whether rows, columns and banded kernels compute it as a forward correlation of dy."""
        return self.op == "dgrad" and self.geometry.stride == (1, 1)

    @functools.cached_property
    def correlated(self) -> Geometry:
        """The geometry of the forward correlation that is computed: the adjoint where is_turned."""
        return self.geometry.adjoint() if self.is_turned else self.geometry

    @functools.cached_property
    def boxed(self) -> Geometry:
        """The geometry, with planes as rows if layout.as_rows."""
        return self.geometry.as_rows() if self.layout.as_rows else self.geometry

    @functools.cached_property
    def product(self) -> str:
        """The kind of product: "half", "tf32", "tf32x3", "ieee" or "float64"."""
        if self.dtype == torch.float32:
            return self.precision
        return "float64" if self.dtype == torch.float64 else "half"

    @property
    def products(self) -> int:
        """Products of a matrix unit for each multiply-add."""
        return 3 if self.precision == "tf32x3" else 1

    @functools.cached_property
    def unit(self) -> str:
        """The unit of a device that multiplies matrices of this kind, see device.Rates."""
        return {"ieee": "fma", "tf32x3": "tf32"}.get(self.product, self.product)

    @property
    def words(self) -> int:
        """32-bit registers of one sum."""
        return 2 if self.dtype == torch.float64 else 1

    @property
    def channels(self) -> int:
        """Channels of the result; filters, of a weight gradient."""
        return self.geometry.C if self.is_input_gradient else self.geometry.K

    @functools.cached_property
    def fewest_taps(self) -> tuple[int, int]:
        """(rows, columns) of the taps that read, or reach, one phase: the fewest, but some."""
        g = self.geometry
        (stride_h, stride_w), (dil_h, dil_w) = g.stride, g.dilation
        rows = g.R * math.gcd(stride_h, dil_h) // stride_h
        columns = g.S * math.gcd(stride_w, dil_w) // stride_w
        return max(1, rows), max(1, columns)

    @functools.cached_property
    def result_numel(self) -> int:
        """Elements of the result."""
        g = self.geometry
        if self.op == "wgrad":
            return g.weight_numel
        return g.x_numel if self.is_input_gradient else g.y_numel

    @functools.cached_property
    def group_channels(self) -> int:
        """Channels of the result in one group."""
        return self.channels // self.geometry.groups

    @functools.cached_property
    def reduced(self) -> int:
        """Channels of a group that are summed over; of a weight gradient, those of x."""
        g = self.geometry
        return g.group_K if self.is_input_gradient else g.group_C

    @functools.cached_property
    def has_few_channels(self) -> bool:
        """Whether a matrix unit would mostly multiply zeros."""
        window = self.geometry.R * self.geometry.S
        return min(self.group_channels, self.reduced * window) < GEMM_MIN

    @property
    def in_planes(self) -> bool:
        """Whether columns of both images are neighbours in memory: any single channel's are."""
        return self.geometry.C == self.geometry.K == 1 or not self.layout.channels_last

    @property
    def samples(self) -> int:
        """Samples whose pixels are counted through in one independent problem."""
        return 1 if self.geometry.per_sample else self.geometry.N

    @property
    def banks(self) -> int:
        """Independent problems: a filter bank per sample makes each sample one."""
        return self.geometry.N if self.geometry.per_sample else 1

    @functools.cached_property
    def pixels(self) -> int:
        """Pixels of one independent problem: of the result, or of dy for a weight gradient."""
        g = self.geometry
        if self.op == "dgrad_frame":
            return self.samples * g.frame_pixels
        return self.samples * (g.H * g.W if self.op == "dgrad" else g.P * g.Q)

    @property
    def image_bytes(self) -> int:
        """Bytes of an element of the image that is read: x, or dy for an input gradient."""
        return (
            self.dtype.itemsize if self.is_input_gradient else self.x_bytes or self.dtype.itemsize
        )

    @functools.cached_property
    def read_bytes(self) -> tuple[int, int]:
        """Bytes of the two tensors that are read, the image first: (x or dy, weight or dy)."""
        g, itemsize = self.geometry, self.dtype.itemsize
        if self.is_input_gradient:
            return g.y_numel * itemsize, g.weight_numel * itemsize
        second = g.y_numel if self.op == "wgrad" else g.weight_numel
        return round(g.x_numel * self.image_bytes * self._read_share), second * itemsize

    @property
    def _read_share(self) -> float:
        """Share of x in rows, and in channels_last in pixels, that windows read.

        Windows that are shorter than their stride leave out those between them.
        """
        g = self.geometry
        rows, columns = min(1.0, g.R / g.stride[0]), min(1.0, g.S / g.stride[1])
        return rows * columns if self.layout.channels_last else rows

    @property
    def macs(self) -> int:
        """Multiply-adds of the result, of both where there are two."""
        return self.geometry.macs * (2 if self.op == "backward" else 1)

    @functools.cached_property
    def compulsory_bytes(self) -> int:
        """Bytes that must be moved: each tensor once."""
        g, itemsize = self.geometry, self.dtype.itemsize
        if self.op == "backward":
            return (2 * g.x_numel + g.y_numel + 2 * g.weight_numel) * itemsize
        if self.is_input_gradient:
            return g.compulsory_bytes(itemsize, itemsize, itemsize)
        rest = g.compulsory_bytes(0, itemsize, itemsize)
        return rest + self.read_bytes[0]

    def threads(self, tile: Tile) -> int:
        """Threads of a program with this tile."""
        return self.device.limits.lanes * tile.num_warps


class Tile(Protocol):
    """The outputs of one program of a kernel family, and the quantities that follow from them.

    Fields in upper case are extents that the kernel is given under the same names. A family is a
    module with such a class and two functions: `tiles(problem)`, which the planner may take, none
    where the family cannot or should not, and `neighbours(tile, problem)`, which a tuner tries.
    """

    family: ClassVar[str]

    @property
    def num_warps(self) -> int:
        """Warps of a program."""

    @property
    def num_stages(self) -> int:
        """Stages of the loop's software pipeline."""

    @property
    def partials(self) -> int:
        """Results that one part of a split reduction leaves to sum_partials."""

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""

    def strips(self, problem: Problem) -> int:
        """Steps of the reduction; a part is a whole number of them."""

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: M x N results, sums over K."""

    def splits(self, problem: Problem) -> int:
        """The best number of parts for a weight gradient's reduction."""

    def shared_bytes(self, problem: Problem) -> int:
        """Approximate shared memory of a program: the operands of every pipeline stage."""

    def max_registers(self, problem: Problem) -> int | None:
        """The register limit per thread for the compiler on NVIDIA, None for no limit."""

    def suits(self, problem: Problem) -> bool:
        """Whether this tile, tuned for a problem near this one, may be used for it."""

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """The fields of a Plan that this family sets."""

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""


@dataclass(frozen=True)
class Plan:
    """One operator's kernel and how it is launched.

    Attributes:
        op: as in Problem.
        tile: extents of a program; its family names the kernel.
        grid: number of programs.
        int64: offsets are 64-bit.
        precision: how the kernel multiplies float32: "ieee", "tf32" or "tf32x3".
        one_tap: a reduction step of a GEMM covers channels of a single tap.
        splits: parts that the reduction is cut into.
        split_strips: strips of one part at most, see Tile.strips; 0 of an image that is not split.
        interior: tiles of a rows kernel that run without masks: "none", "some" or "all".
        turned: an input gradient runs as a forward correlation, see Geometry.adjoint.
        as_rows: boxes of a tma kernel are those of Geometry.as_rows.
        max_registers: of a thread, None where that is left to the compiler.
        exchange: copies that the kernel runs on, None where it runs on the images themselves.
    """

    op: str
    tile: Tile
    grid: int
    int64: bool
    precision: str = "ieee"
    one_tap: bool = False
    splits: int = 1
    split_strips: int = 0
    interior: str = "none"
    turned: bool = False
    as_rows: bool = False
    max_registers: int | None = None
    exchange: Exchange | None = None

    @property
    def family(self) -> str:
        """The kernel family: gemm, tma, patch, spread and so on."""
        return self.tile.family

    @property
    def kernel(self) -> str:
        """The name of the kernel, which is also the name of its file in kernels/."""
        return f"{'fprop' if self.turned else self.op}_{self.family}"

    def seen(self, problem: Problem) -> Problem:
        """The problem as the kernel meets it: that of the copies, if it runs on any."""
        return problem if self.exchange is None else self.exchange.seen(problem)

    def work(self, problem: Problem) -> Work:
        """The work of all launches."""
        if self.exchange is None:
            return self.tile.work(self, problem)
        return self.exchange.with_copies(self.tile.work(self, self.seen(problem)), problem)

    @property
    def split_pixels(self) -> int:
        """Pixels of one part of a weight gradient whose strips are runs of pixels."""
        return self.split_strips * self.tile.step(self.op)[2]

    @property
    def partials(self) -> int:
        """Partial results that sum_partials adds up; 1 if there is nothing to add."""
        return self.splits * (self.tile.partials if self.op == "wgrad" else 1)
