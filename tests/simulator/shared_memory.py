"""Shared memory of one CTA, with the state of each byte and the accesses since the last barrier.

A byte is NEVER written, VALID, COMING (an asynchronous copy to it has not completed) or part of an
mbarrier. For each word of four bytes, this module keeps the warps that wrote and read it last and
the number of bar.sync before that (a write and an access by another warp with no bar.sync between
them are a race), whether it was written through the generic proxy since the last
fence.proxy.async, and how many wgmma in flight read it.
"""

import numpy as np

from .dtypes import ONES, UINT_OF_BYTES, Array, Mask, i4, i8, u1, u2, u4
from .faults import Fault, Unsupported
from .threads import active, merged, whole_warps

NEVER, VALID, COMING, BARRIER = 0, 1, 2, 3
_WORDS = {NEVER: "never written", COMING: "on its way", BARRIER: "of a barrier"}
#: Start of a CTA's shared memory: on sm_90 the system uses the first kilobyte.
SHARED_BASE = 1024


class SharedMemory:
    """`size` bytes of shared memory of a CTA of `threads`. `races`: whether to check for races."""

    def __init__(self, threads: int, size: int, races: bool = True) -> None:
        self.threads, self.size, self.races = threads, size, races
        self.bytes = np.full(-(-size // 16) * 16 + 16, 0xCD, u1)
        self.state = np.zeros(self.bytes.size, u1)
        self.views = {n: self.bytes.view(d) for n, d in UINT_OF_BYTES.items()}
        self.states = {n: self.state.view(d) for n, d in UINT_OF_BYTES.items()}
        words = self.bytes.size // 4
        self.epoch = 1  # counts bar.sync
        self.write_epoch = np.zeros(words, i4)
        self.write_warp = np.zeros(words, i4)
        self.read_epoch = np.zeros(words, i4)
        self.read_warp = np.zeros(words, i4)  # -1 for several
        self.generic = np.zeros(words, bool)
        self.reading = np.zeros(words, i4)
        self.warp = np.arange(threads, dtype=i4) // 32

    # Checks.

    def offsets(self, address: Array, size: int, access: str) -> Array:
        """Offsets of addresses, which must be aligned and inside the CTA's memory."""
        low, high = int(address.min()), int(address.max())
        if low < SHARED_BASE or high + size > SHARED_BASE + self.size:
            raise Fault(
                f"shared {access} of {size} bytes at {low - SHARED_BASE}..{high - SHARED_BASE} "
                f"of {self.size}"
            )
        if int(np.bitwise_or.reduce(address, axis=None)) & (size - 1):
            raise Fault(f"misaligned shared {access} of {size} bytes")
        return address.astype(i8) - SHARED_BASE

    def check_valid(self, offsets: Array, size: int, access: str) -> None:
        """Raises a Fault where an element of `size` bytes is not VALID."""
        wrong = self.states[size][offsets // size] != ONES[size]
        if wrong.any():
            at = int(offsets.ravel()[wrong.ravel().argmax()])
            kinds = {int(kind) for kind in self.state[at : at + size]}
            names = ", ".join(_WORDS[kind] for kind in sorted(kinds) if kind in _WORDS)
            raise Fault(f"shared {access} of {size} bytes at {at}: {names}")

    def check_reads(self, words: Array, warps: Array) -> None:
        """Records reads by warps; a Fault where another warp wrote since the last barrier."""
        if not self.races:
            return
        racing = (self.write_epoch[words] == self.epoch) & (self.write_warp[words] != warps)
        if racing.any():
            at = racing.argmax()
            raise Fault(
                f"race: warp {warps[at]} reads shared word {words[at]} that warp "
                f"{self.write_warp[words[at]]} wrote since the last bar.sync"
            )
        fresh = self.read_epoch[words] != self.epoch
        several = ~fresh & (self.read_warp[words] != warps)
        self.read_epoch[words] = self.epoch
        self.read_warp[words[fresh]] = warps[fresh]
        # If several warps read a word in one instruction, only the last is kept: compare again.
        several |= self.read_warp[words] != warps
        self.read_warp[words[several]] = -1

    def check_writes(self, words: Array, warps: Array) -> None:
        """Records writes by warps; a Fault where another warp had access since the last barrier."""
        if not self.races:
            return
        for epochs, by, verb in (
            (self.read_epoch, self.read_warp, "read"),
            (self.write_epoch, self.write_warp, "wrote"),
        ):
            racing = (epochs[words] == self.epoch) & (by[words] != warps)
            if racing.any():
                at = racing.argmax()
                raise Fault(
                    f"race: warp {warps[at]} writes shared word {words[at]} that another warp "
                    f"{verb} since the last bar.sync"
                )
        self.write_epoch[words] = self.epoch
        self.write_warp[words] = warps

    def check_free(self, words: Array, access: str) -> None:
        """Raises a Fault at barriers, incomplete copies, and operands of a wgmma in flight."""
        if (self.states[4][words] & u4(COMING) != 0).any():
            raise Fault(f"{access} over a barrier or what is on its way")
        if self.reading[words].any():
            raise Fault(f"{access} over what a wgmma in flight reads")

    # Instructions.

    def bar_sync(self, mask: Mask) -> None:
        """bar.sync 0, which needs all threads; they then see each other's writes."""
        if mask is not None and not mask.all():
            raise Fault("bar.sync by some of the threads only")
        self.epoch += 1

    def fence_async(self) -> None:
        """fence.proxy.async: the asynchronous proxy sees the threads' earlier writes."""
        self.generic[:] = False

    def load(
        self, address: Array, mask: Mask, size: int, count: int, old: list[Array] | None
    ) -> list[Array]:
        """ld.shared of `count` elements of `size` bytes; `old` where a thread does not load."""
        index, address = active(address, mask)
        if address.size == 0:
            assert old is not None
            return old
        offset = self.offsets(address, size * count, "load")
        warps = self.warp if index is None else self.warp[index]
        out = []
        for i in range(count):
            place = offset + i * size
            self.check_valid(place, size, "load")
            for half in range(0, size, 4):
                self.check_reads((place + half) // 4, warps)
            value = self.views[size][place // size]
            if size == 1:
                value = value.astype(u2)
            out.append(value if old is None else merged(old[i], value, index))
        return out

    def store(self, address: Array, mask: Mask, size: int, values: list[Array]) -> None:
        """st.shared of one element of `size` bytes for each of `values`."""
        index, address = active(address, mask)
        if address.size == 0:
            return
        offset = self.offsets(address, size * len(values), "store")
        warps = self.warp if index is None else self.warp[index]
        # Each word once: several warps may store the same values in one instruction.
        for start in range(0, size * len(values), 4):
            self.check_writes((offset + start) // 4, warps)
        for i, value in enumerate(values):
            chosen = value if index is None else value[index]
            self.write(offset + i * size, size, chosen.astype(UINT_OF_BYTES[size]))

    def write(self, place: Array, size: int, value: Array) -> None:
        """Writes elements at offsets."""
        words = place // 4
        self.check_free(words, "shared store")
        for half in range(0, size, 4):
            self.generic[words + half // 4] = True
        self.views[size][place // size] = value
        if (self.views[size][place // size] != value).any():
            raise Fault("threads store different values to one place of shared memory")
        self.states[size][place // size] = ONES[size]

    # 8x8 matrices of 16-bit elements.

    def ldmatrix(self, address: Array, number: int, transposed: bool, mask: Mask) -> list[Array]:
        """ldmatrix of `number` matrices: a register for each."""
        place, warps = self._rows(address, number, mask, "ldmatrix")
        self.check_valid(place, 4, "ldmatrix")
        self.check_reads(place.ravel() // 4, warps)
        words = _turned(self.views[4][place // 4], transposed)
        return [np.ascontiguousarray(words[:, i]).reshape(-1) for i in range(number)]

    def stmatrix(self, address: Array, values: list[Array], transposed: bool, mask: Mask) -> None:
        """stmatrix of one matrix for each register."""
        place, warps = self._rows(address, len(values), mask, "stmatrix")
        words = np.stack([v.reshape(-1, 8, 4) for v in values], 1)  # [warp, matrix, row, word]
        self.check_writes(place.ravel() // 4, warps)
        self.write(place.ravel(), 4, _turned(words, transposed).ravel())

    def _rows(self, address: Array, number: int, mask: Mask, access: str) -> tuple[Array, Array]:
        """(offsets [warp, matrix, row, word], the warp of each, flat)."""
        whole_warps(mask, access)
        if mask is not None and not mask.all():
            raise Unsupported(f"{access} by some warps")
        rows = address.reshape(-1, 32)[:, : 8 * number].reshape(-1, number, 8)
        place = self.offsets(rows, 16, access)[..., None] + np.arange(0, 16, 4)
        warps = np.arange(len(rows), dtype=i4)[:, None, None, None]
        return place, np.broadcast_to(warps, place.shape).ravel()


def _turned(words: Array, transposed: bool) -> Array:
    """8x8 matrices of 16 bits, as words [..., 8, 4], transposed or not."""
    words = np.ascontiguousarray(words)
    if not transposed:
        return words
    return np.ascontiguousarray(words.view(u2).swapaxes(-1, -2)).view(u4)
