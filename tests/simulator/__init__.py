"""A simulator of the PTX that Triton writes, in NumPy: one program (CTA) at a time, on the CPU.

`simulated` in driver.py runs the package's kernels on CPU tensors; `Kernel.launch` runs one kernel
on memory of its own. A `Fault` names the kernel, the program, the PTX line and the Python line.

Rooms, in the order of an instruction's way:

- ptx.py, control_flow.py: text to instructions, basic blocks, where branches meet again.
- translation.py, writer.py, translate_*.py: each block to a Python function.
- kernel.py: the programs of a launch, one after the other.
- arithmetic.py, matrices.py: what instructions compute; mma.sync and wgmma.
- global_memory.py, shared_memory.py, copies.py, tensor_maps.py: memory, and what moves by itself.
- compiler.py, tensors.py, driver.py: kernels of the compiler in the interpreter's process,
  PyTorch's tensors as memory, and the driver that Triton launches with.
- calls.py, mutants.py: the calls that every run simulates, and faults to plant in kernels.

Modelled, and a Fault where it goes wrong:

- Global memory: every access is inside one allocation, aligned, of bytes that hold something; a
  store goes to a result; no two programs store to one byte. Allocations are 2**40 bytes apart.
- Shared memory, byte by byte: never written, valid, on its way, of a barrier. Two warps that touch
  a word, one of them writing, with no bar.sync between them are a race.
- cp.async, TMA loads and stores land as late as the program allows: when it waits for them. A wait
  for what never comes is a Fault, where a GPU would hang.
- The rules of tensor maps; swizzles; descriptors of wgmma; fence.proxy.async between generic writes
  and what the asynchronous proxy reads; operands of a wgmma overwritten before it is waited for.
- Branches that threads do not agree on: both sides, one after the other, to where they meet;
  barriers by all threads, warp-wide instructions by whole warps.

Idealised: products of the matrix units are exact, summed in float64 and rounded once to the
accumulator's type; a unit cuts off more. ex2, rcp and div.full are exact. TF32 operands are cut to
their upper 19 bits, as the units do. A program runs alone and to its end.

Not modelled: ptxas and its registers (the ahead-of-time builds look at those); accumulators that
are read before wgmma.wait_group; races within a warp and, but for double stores, between programs;
time; clusters, functions, atomics, tcgen05. An instruction that is not known raises `Unsupported`
with its text.
"""

from .faults import Fault, Unsupported
from .global_memory import Memory
from .kernel import Kernel
from .tensor_maps import TensorMap

__all__ = ["Fault", "Kernel", "Memory", "TensorMap", "Unsupported"]
