"""Global memory: allocations with invented addresses, and the checks of every access.

An access must lie inside one allocation, be aligned to its size, read only bytes that were written,
and write only bytes of a result. Two programs of one launch must not store to one byte, nor may two
threads, unless they store the same value.
"""

from collections.abc import Iterable

import numpy as np

from .dtypes import ONES, UINT, UINT_OF_BYTES, Array, Mask, i4, i8, u1, u2, u8
from .faults import Fault
from .threads import active, merged

#: (offset from the base, bytes, mask of written bytes, mask of writable bytes); None: no byte.
Window = tuple[int, Array, Array | None, Array | None]


class Allocation:
    """Bytes at an invented address.

    Attributes:
        init: 1 for each byte that was written.
        writable: True for each byte that a kernel may write.
        owner: for each byte, 1 + the program that wrote it in this launch; 0 for none.
    """

    def __init__(
        self, name: str, base: int, data: Array, readable: Array | None, writable: Array | None
    ) -> None:
        self.name, self.base, self.data = name, base, data
        self.size, self.end = data.size, base + data.size
        self.views = {
            size: data[: data.size // size * size].view(dtype)
            for size, dtype in UINT_OF_BYTES.items()
        }
        self.init = np.zeros(data.size, u1) if readable is None else readable.astype(u1)
        self.writable = np.zeros(data.size, bool) if writable is None else writable.astype(bool)
        self.owner = np.zeros(data.size, i4)
        self.all_init = bool(self.init.all())

    def init_view(self, size: int) -> Array:
        """`init` as integers of `size` bytes."""
        return self.init[: self.size // size * size].view(UINT_OF_BYTES[size])

    def check_init(self, index: Array, size: int, access: str) -> None:
        """Raises a Fault where an element of `size` bytes at `index` was never written."""
        if self.all_init:
            return
        wrong = self.init_view(size)[index] != ONES[size]
        if wrong.any():
            where = int(index.ravel()[wrong.ravel().argmax()]) * size
            raise Fault(f"{access} of {self.name}+{where}, which holds nothing")


class Memory:
    """Allocations, 2**40 bytes apart, so that an address outside of one is in no other."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self.regions: list[list[Allocation]] = []

    def add(
        self, name: str, data: Array, readable: Array | None = None, writable: Array | None = None
    ) -> int:
        """Registers bytes (uint8) and returns their address. Masks are per byte, None for none."""
        return self.add_windows(name, [(0, data, readable, writable)])

    def add_windows(self, name: str, windows: Iterable[Window]) -> int:
        """Registers pieces of a storage too large to shadow; returns the address of offset 0."""
        base = ((len(self.regions) + 1) << 40) + 0x10000
        region = []
        for offset, data, readable, writable in sorted(windows, key=lambda w: w[0]):
            assert data.dtype == u1
            assert data.ndim == 1
            region.append(Allocation(name, base + offset, data, readable, writable))
        self.regions.append(region)
        self.allocations += region
        return base

    def start_launch(self) -> None:
        """Forgets which program wrote which byte."""
        for allocation in self.allocations:
            allocation.owner[:] = 0

    def find(self, address: int) -> Allocation | None:
        """The allocation that holds an address, or the nearest one of its region."""
        index = (address >> 40) - 1
        if not 0 <= index < len(self.regions):
            return None
        region = self.regions[index]
        return next((a for a in region if address < a.end), region[-1])

    def explain(self, address: int) -> str:
        """An address in words."""
        allocation = self.find(address)
        if allocation is None:
            return f"{address:#x}, which is in no allocation"
        return f"{allocation.name}{address - allocation.base:+d} bytes (of {allocation.size})"

    def resolve(self, address: Array, size: int, access: str) -> tuple[Allocation, Array]:
        """The one allocation of all addresses, and the offsets in it."""
        low, high = int(address.min()), int(address.max())
        allocation = self.find(low)
        if allocation is None or low < allocation.base or high + size > allocation.end:
            bad = high if allocation is not None and low >= allocation.base else low
            raise Fault(f"{access} of {size} bytes at {self.explain(bad)}")
        if int(np.bitwise_or.reduce(address, axis=None)) & (size - 1):
            raise Fault(f"misaligned {access} of {size} bytes in {allocation.name}")
        return allocation, (address - u8(allocation.base)).astype(i8)

    def load(
        self, address: Array, mask: Mask, size: int, count: int, old: list[Array] | None
    ) -> list[Array]:
        """ld.global of `count` elements of `size` bytes; `old` where a thread does not load."""
        threads = address.size
        index, address = active(address, mask)
        if address.size == 0:
            assert old is not None
            return old
        low, high = self.find(int(address.min())), self.find(int(address.max()))
        if low is not high and low is not None and high is not None:  # one piece after the other
            near = address < u8(low.end)
            index = np.arange(threads) if index is None else index
            place = np.zeros(threads, u8)
            place[index] = address
            for part in (near, ~near):
                some = np.zeros(threads, bool)
                some[index[part]] = True
                if old is None:
                    old = [np.zeros(threads, UINT[max(16, 8 * size)])] * count
                old = self.load(place, some, size, count, old)
            assert old is not None
            return old
        allocation, offset = self.resolve(address, size * count, "load")
        offset //= size
        out = []
        for i in range(count):
            allocation.check_init(offset + i, size, "load")
            value = allocation.views[size][offset + i]
            if size == 1:
                value = value.astype(u2)
            out.append(value if old is None else merged(old[i], value, index))
        return out

    def store(
        self, program: int, address: Array, mask: Mask, size: int, values: list[Array]
    ) -> None:
        """st.global of one element of `size` bytes for each of `values`."""
        index, address = active(address, mask)
        if address.size == 0:
            return
        allocation, offset = self.resolve(address, size * len(values), "store")
        for i, value in enumerate(values):
            chosen = value if index is None else value[index]
            chosen = chosen.astype(u1) if size == 1 else chosen
            self.write(program, allocation, offset + i * size, size, chosen)

    def write(
        self, program: int, allocation: Allocation, byte: Array, size: int, value: Array
    ) -> None:
        """Writes elements of a result at offsets that no other program wrote."""
        name = allocation.name
        if not allocation.writable[byte].all():
            where = int(byte[(~allocation.writable[byte]).argmax()])
            raise Fault(f"store to {name}+{where}, which is no element of a result")
        owner = allocation.owner[byte]
        taken = (owner != 0) & (owner != program + 1)
        if taken.any():
            where = int(taken.argmax())
            raise Fault(
                f"store to {name}+{int(byte[where])}, which program {owner[where] - 1} stored"
            )
        allocation.owner[byte] = program + 1
        place, view = byte // size, allocation.views[size]
        view[place] = value
        if (view[place] != value).any():
            raise Fault(f"threads store different values to one place of {name}")
        allocation.init_view(size)[place] = ONES[size]
