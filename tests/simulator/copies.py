"""Asynchronous copies, and the barriers that they report to.

Copies complete as late as the program allows, when it waits for them. A cp.async belongs to a
group, a TMA load to an mbarrier. A wait that can never end is a Fault; a GPU would hang.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .dtypes import ONES, UINT, Array, Mask, i4, i8, u4, u8
from .faults import Fault, Unsupported
from .global_memory import Memory
from .shared_memory import BARRIER, COMING, NEVER, SHARED_BASE, SharedMemory
from .tensor_maps import TensorMap, swizzle
from .threads import active, indices


@dataclass
class Barrier:
    """An mbarrier. A phase ends when all arrivals and all expected bytes have come."""

    count: int
    pending: int
    tx: int = 0
    phase: int = 0
    #: (words, data) of TMA loads that have not completed.
    copies: list[tuple[Array, Array]] = field(default_factory=list)

    def settle(self) -> None:
        """Ends the phase if nothing is missing."""
        if self.pending == 0 and self.tx == 0:
            self.phase ^= 1
            self.pending = self.count

    def arrive(self, expected: int) -> None:
        """One arrival, which announces `expected` bytes."""
        if self.pending <= 0:
            raise Fault("mbarrier: more arrivals than it counts in a phase")
        self.tx += expected
        self.pending -= 1
        self.settle()


#: cp.async of one instruction: (offsets, bytes of an element, data, warps).
Copy = tuple[Array, int, Array, Array]


class Copies:
    """The asynchronous copies to and from the shared memory of one CTA."""

    def __init__(
        self, shared: SharedMemory, memory: Memory, maps: dict[int, TensorMap], program: int
    ) -> None:
        self.shared, self.memory, self.maps, self.program = shared, memory, maps, program
        self.barriers: dict[int, Barrier] = {}
        self.group: list[Copy] = []  # open
        self.groups: list[list[Copy]] = []  # committed
        self.stores: list[tuple[TensorMap, list[int], Array]] = []  # open: map, corner, words
        self.store_groups: list[list[tuple[TensorMap, list[int], Array]]] = []

    # cp.async

    def cp_async(
        self, target: Array, source: Array, mask: Mask, size: int, source_size: Array
    ) -> None:
        """cp.async of `size` bytes, of which `source_size` (all or none) come from `source`."""
        index, target = active(target, mask)
        if target.size == 0:
            return
        if index is not None:
            source, source_size = source[index], source_size[index]
        if (source_size > size).any():
            raise Fault("cp.async: src-size larger than cp-size")
        if not ((source_size == 0) | (source_size == size)).all():
            raise Unsupported("cp.async of a part")
        shared = self.shared
        offset = shared.offsets(target, size, "cp.async")
        warps = shared.warp if index is None else shared.warp[index]
        word = min(size, 8)
        data = self._fetched(source, source_size, size, word)
        for i in range(size // word):
            at = offset + i * word
            for half in range(0, word, 4):
                words = (at + half) // 4
                shared.check_free(words, "cp.async")
                shared.check_writes(words, warps)
            shared.states[word][at // word] = UINT[word * 8](int(ONES[word]) * COMING)
        self.group.append((offset, word, data, warps))

    def _fetched(self, source: Array, source_size: Array, size: int, word: int) -> Array:
        """[threads, size // word], read by cp.async; zeros where it reads nothing."""
        data = np.zeros((source.size, size // word), UINT[word * 8])
        live = (source_size != 0).nonzero()[0]
        while live.size:
            found = self.memory.find(int(source[live].min()))
            near = np.ones(live.size, bool) if found is None else source[live] < u8(found.end)
            near = near if near.any() else ~near
            some, live = live[near], live[~near]
            allocation, place = self.memory.resolve(source[some], size, "cp.async")
            place //= word
            for i in range(size // word):
                allocation.check_init(place + i, word, "cp.async")
                data[some, i] = allocation.views[word][place + i]
        return data

    def commit(self) -> None:
        """cp.async.commit_group"""
        self.groups.append(self.group)
        self.group = []

    def wait_group(self, n: int) -> None:
        """cp.async.wait_group: all but the last `n` groups complete."""
        shared = self.shared
        while len(self.groups) > n:
            for offset, word, data, warps in self.groups.pop(0):
                for i in range(data.shape[1]):
                    at = offset + i * word
                    shared.views[word][at // word] = data[:, i]
                    shared.states[word][at // word] = ONES[word]
                    for half in range(0, word, 4):
                        words = (at + half) // 4
                        shared.write_epoch[words] = shared.epoch
                        shared.write_warp[words] = warps
                        shared.generic[words] = True

    # mbarriers

    def _barrier(self, address: int, access: str) -> Barrier:
        barrier = self.barriers.get(address)
        if barrier is None:
            raise Fault(f"{access} on {address - SHARED_BASE}, which is no mbarrier")
        return barrier

    def mbarrier_init(self, address: Array, mask: Mask, count: int) -> None:
        """mbarrier.init"""
        for thread in indices(mask, self.shared.threads):
            at = int(address[thread])
            offset = int(self.shared.offsets(np.array([at], u4), 8, "mbarrier.init")[0])
            if at in self.barriers:
                raise Fault("mbarrier.init of a live mbarrier")
            if (self.shared.state[offset : offset + 8] == COMING).any():
                raise Fault("mbarrier.init over what is on its way")
            self.shared.state[offset : offset + 8] = BARRIER
            self.barriers[at] = Barrier(count, count)

    def mbarrier_inval(self, address: Array, mask: Mask) -> None:
        """mbarrier.inval"""
        for thread in indices(mask, self.shared.threads):
            at = int(address[thread])
            if self._barrier(at, "mbarrier.inval").copies:
                raise Fault("mbarrier.inval with copies on their way")
            del self.barriers[at]
            self.shared.state[at - SHARED_BASE : at - SHARED_BASE + 8] = NEVER

    def mbarrier_arrive(self, address: Array, mask: Mask, expected: int | Array) -> None:
        """mbarrier.arrive by threads that announce `expected` bytes."""
        for thread in indices(mask, self.shared.threads):
            more = expected if isinstance(expected, int) else int(expected[thread])
            self._barrier(int(address[thread]), "mbarrier.arrive").arrive(more)

    def mbarrier_try_wait(self, address: Array, parity: Array, mask: Mask) -> Array:
        """mbarrier.try_wait. It is True for all threads; a wait that could never end is a Fault."""
        threads = indices(mask, self.shared.threads)
        pairs = zip(address[threads], parity[threads], strict=True)
        for at, wanted in {(int(a), int(p) & 1) for a, p in pairs}:
            barrier = self._barrier(at, "mbarrier.try_wait")
            if barrier.phase == wanted:
                self._land(barrier)
            if barrier.phase == wanted:
                raise Fault(
                    f"mbarrier at {at - SHARED_BASE} never completes: {barrier.pending} arrivals "
                    f"and {barrier.tx} bytes are missing"
                )
        return np.ones(self.shared.threads, bool)

    def _land(self, barrier: Barrier) -> None:
        """Completes the copies that report to a barrier, up to the end of its phase."""
        phase, shared = barrier.phase, self.shared
        while barrier.copies and barrier.phase == phase:
            words, data = barrier.copies.pop(0)
            shared.views[4][words] = data
            shared.states[4][words] = ONES[4]
            shared.generic[words] = False
            barrier.tx -= data.size * 4
            barrier.settle()

    # TMA

    def _box(
        self, descriptor: int, address: int, rank: int, access: str
    ) -> tuple[TensorMap, Array]:
        """(the tensor map, the words of shared memory of its box)."""
        tensor = self.maps.get(descriptor)
        if tensor is None:
            raise Fault(f"{access} through {descriptor:#x}, which is no tensor map")
        if address % 128:
            raise Fault(f"{access} at {address - SHARED_BASE}: not 128-byte aligned")
        if address < SHARED_BASE or address + tensor.bytes > SHARED_BASE + self.shared.size:
            raise Fault(f"{access} outside of shared memory")
        linear = address + np.arange(0, tensor.bytes, 16, dtype=i8)
        pieces = swizzle(linear, tensor.span) - SHARED_BASE
        return tensor, (pieces[:, None] // 4 + np.arange(4)).ravel()

    def tma_load(
        self,
        target: Array,
        mask: Mask,
        descriptor: Array,
        coordinates: Sequence[Array],
        barrier: Array,
    ) -> None:
        """cp.async.bulk.tensor from global to shared memory."""
        shared = self.shared
        for thread in indices(mask, shared.threads):
            corner = [int(c.view(i4)[thread]) for c in coordinates]
            address = int(target[thread])
            tensor, words = self._box(int(descriptor[thread]), address, len(corner), "TMA load")
            data = tensor.read(self.memory, corner)
            shared.check_free(words, "TMA load")
            if shared.races:
                # Earlier reads must be ordered by a barrier or by a wait for wgmma.
                for epochs, by, verb in (
                    (shared.read_epoch, shared.read_warp, "read"),
                    (shared.write_epoch, shared.write_warp, "written"),
                ):
                    touched = (epochs[words] == shared.epoch) & (by[words] != thread // 32)
                    if touched.any():
                        raise Fault(
                            f"race: TMA load over shared memory {verb} since the last bar.sync"
                        )
            if shared.generic[words].any():
                raise Fault("TMA load over generic writes without fence.proxy.async")
            shared.states[4][words] = u4(0x01010101 * COMING)
            at = int(barrier[thread])
            self._barrier(at, "TMA load").copies.append((words, data.view(u4)))

    def tma_store(
        self, descriptor: Array, coordinates: Sequence[Array], source: Array, mask: Mask
    ) -> None:
        """cp.async.bulk.tensor from shared to global memory. It reads when it is waited for."""
        shared = self.shared
        for thread in indices(mask, shared.threads):
            corner = [int(c.view(i4)[thread]) for c in coordinates]
            address = int(source[thread])
            tensor, words = self._box(int(descriptor[thread]), address, len(corner), "TMA store")
            shared.check_valid(words * 4, 4, "TMA store")
            if shared.generic[words].any():
                raise Fault("TMA store of generic writes without fence.proxy.async")
            warp = np.full(words.size, thread // 32, i4)
            shared.check_reads(words, warp)
            shared.reading[words] += 1
            self.stores.append((tensor, corner, words))

    def commit_stores(self, mask: Mask) -> None:
        """cp.async.bulk.commit_group by the threads that stored."""
        if self.stores:
            self.store_groups.append(self.stores)
            self.stores = []

    def wait_stores(self, n: int) -> None:
        """cp.async.bulk.wait_group: all but the last `n` groups of stores complete."""
        while len(self.store_groups) > n:
            for tensor, corner, words in self.store_groups.pop(0):
                tensor.write(self.memory, self.program, corner, self.shared.views[4][words])
                self.shared.reading[words] -= 1

    # The end of the program.

    def finish(self) -> None:
        """Raises a Fault where copies are still on their way."""
        if any(barrier.copies for barrier in self.barriers.values()):
            raise Fault("ends with TMA loads on their way")
        if self.stores or self.store_groups:
            raise Fault("ends with TMA stores that are not waited for")
