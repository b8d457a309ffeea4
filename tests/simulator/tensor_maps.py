"""Tensor maps: their contents, the rules of cuTensorMapEncodeTiled, and copies of boxes."""

from collections.abc import Sequence

import numpy as np

from .dtypes import UINT_OF_BYTES, Array, i8, u1, u4
from .faults import Fault, Unsupported
from .global_memory import Memory

#: Bytes of a row of a swizzle pattern, by Triton's number of the pattern.
SPAN = {0: 0, 1: 32, 2: 64, 3: 128}


class TensorMap:
    """The arguments of cuTensorMapEncodeTiled; dimension 0 is innermost.

    Raises:
        Fault: the driver would refuse the arguments.
    """

    def __init__(
        self,
        address: int,
        elem_size: int,
        sizes: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        swizzle: int,
        nan_fill: bool = False,
        tf32: bool = False,
    ) -> None:
        """`sizes`, `strides` (in elements) and `box` are outermost first, as for a tensor."""
        self.address, self.elem = int(address), elem_size
        self.sizes = [int(s) for s in reversed(sizes)]
        self.strides = [int(s) * elem_size for s in reversed(strides)]
        self.box = [int(b) for b in reversed(box)]
        self.span = SPAN[swizzle]
        self.nan_fill, self.tf32 = nan_fill, tf32
        self.bytes = int(np.prod(self.box)) * elem_size
        self._check()

    def _check(self) -> None:
        rank, inner = len(self.sizes), self.box[0] * self.elem
        rules = {
            f"rank {rank}": 1 <= rank <= 5 and len(self.strides) == rank == len(self.box),
            f"base {self.address:#x} is not 16-byte aligned": self.address % 16 == 0,
            f"innermost stride of {self.strides[0]} bytes": self.strides[0] == self.elem,
            f"extents {self.sizes}": all(1 <= size <= 2**32 for size in self.sizes),
            f"strides of {self.strides[1:]} bytes": all(
                stride % 16 == 0 and 0 <= stride < 2**40 for stride in self.strides[1:]
            ),
            f"box {self.box}": all(1 <= box <= 256 for box in self.box),
            f"inner box of {inner} bytes": inner % 16 == 0,
            f"inner box of {inner} bytes, swizzle span {self.span}": not 0 < self.span < inner,
        }
        for message, holds in rules.items():
            if not holds:
                raise Fault(f"tensor map: {message}")
        if inner < self.span:
            raise Unsupported(f"tensor map: inner box of {inner} bytes, swizzle span {self.span}")

    def _places(self, coordinates: Sequence[int]) -> tuple[Array, Array]:
        """(addresses of the box's elements, whether each is inside the tensor), outermost first."""
        rank = len(self.box)
        if len(coordinates) != rank:
            raise Fault(f"tensor map of rank {rank}: {len(coordinates)} coordinates")
        if coordinates[0] * self.elem % 16:  # an illegal instruction on an H100
            raise Fault(f"box at byte {coordinates[0] * self.elem} of a row, no multiple of 16")
        offset = np.zeros((1,) * rank, i8)
        inside = np.ones((1,) * rank, bool)
        for axis, (start, n, size, stride) in enumerate(
            zip(coordinates, self.box, self.sizes, self.strides, strict=True)
        ):
            index = start + np.arange(n, dtype=i8)
            shape = [1] * rank
            shape[rank - 1 - axis] = n
            offset = offset + (index * stride).reshape(shape)
            inside = inside & ((index >= 0) & (index < size)).reshape(shape)
        return offset.ravel() + self.address, np.broadcast_to(inside, offset.shape).ravel()

    def read(self, memory: Memory, coordinates: Sequence[int]) -> Array:
        """Bytes of the box at `coordinates` (innermost first), with zeros outside the tensor."""
        addresses, inside = self._places(coordinates)
        out = np.zeros(addresses.size, UINT_OF_BYTES[self.elem])
        addresses, places = addresses[inside], inside.nonzero()[0]
        while addresses.size:
            first = int(addresses.min())
            allocation = memory.find(first)
            if allocation is None or first < allocation.base or first + self.elem > allocation.end:
                raise Fault(f"TMA load from {memory.explain(first)}")
            near = addresses < allocation.end
            index = (addresses[near] - allocation.base) // self.elem
            allocation.check_init(index, self.elem, "TMA load")
            out[places[near]] = allocation.views[self.elem][index]
            addresses, places = addresses[~near], places[~near]
        if self.nan_fill:
            raise Unsupported("tensor map: NaN outside of the tensor")
        if self.tf32:
            out = ((out + u4(0x1000)) & u4(0xFFFFE000)).astype(u4)
        return out.view(u1)

    def write(self, memory: Memory, program: int, coordinates: Sequence[int], box: Array) -> None:
        """Stores the part of a box that is inside the tensor."""
        addresses, inside = self._places(coordinates)
        if not inside.any():
            return
        chosen = addresses[inside].astype(np.uint64)
        allocation, offset = memory.resolve(chosen, self.elem, "TMA store")
        values = box.view(UINT_OF_BYTES[self.elem])[inside]
        memory.write(program, allocation, offset, self.elem, values)


def swizzle(address: Array, span: int) -> Array:
    """The address in shared memory of a byte, from its address before swizzling."""
    return address ^ ((address >> 3) & (span - 16)) if span else address
