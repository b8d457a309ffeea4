"""A simulator of the PTX that Triton writes, in NumPy: one program (CTA) at a time, on the CPU.

`simulated` in driver.py runs the package's kernels on CPU tensors; `Kernel.launch` runs one kernel
on memory of its own. A `Fault` names the kernel, the program, the PTX line and the Python line.

Files, in the order in which an instruction passes through them:

- ptx.py, control_flow.py: instructions, basic blocks and the places where branches meet again.
- translation.py, writer.py, translate_*.py: translate each block to a Python function.
- kernel.py: runs the programs of a launch, one after the other.
- arithmetic.py, matrices.py: compute instructions; mma.sync and wgmma.
- global_memory.py, shared_memory.py, copies.py, tensor_maps.py: memory and asynchronous copies.
- compiler.py, tensors.py, driver.py: compile kernels in the interpreter's process, use PyTorch's
  tensors as memory, and serve Triton as the driver of the simulated device.
- calls.py, mutants.py: the calls that every run simulates, and faults to plant in kernels.

The simulator checks these rules, and raises a Fault where a kernel breaks one:

- Global memory: every access is inside one allocation, aligned, and reads written bytes only;
  stores go to results; no two programs store to one byte. Allocations are 2**40 bytes apart.
- Shared memory: each byte is never written, valid, awaiting a copy, or part of a barrier. It is a
  race if two warps access a word, one of them writes it, and no bar.sync is between the accesses.
- cp.async, TMA loads and TMA stores complete as late as the program allows, when it waits for them.
  A wait for a copy that was never issued is a Fault; a GPU would hang.
- The rules of tensor maps; swizzles; descriptors of wgmma; fence.proxy.async between generic writes
  and reads by the asynchronous proxy; no writes to the operands of a wgmma that is in flight.
- Where threads take different branches, both sides run one after the other up to the place where
  they meet. Barriers need all threads, warp-wide instructions whole warps.

More exact than a GPU: products of the matrix units are exact, summed in float64 and rounded once to
the accumulator's type, while a GPU's units truncate more. ex2, rcp and div.full are exact. TF32
operands are truncated to their upper 19 bits, as on a GPU. A program runs alone and to its end.

Not modelled: ptxas and its registers (ahead-of-time builds check these); reads of accumulators
before wgmma.wait_group; races within a warp, and races between programs except double stores; time;
clusters, functions, atomics, tcgen05. An unknown instruction raises `Unsupported` with its text.
"""

from .faults import Fault, Unsupported
from .global_memory import Memory
from .kernel import Kernel
from .tensor_maps import TensorMap

__all__ = ["Fault", "Kernel", "Memory", "TensorMap", "Unsupported"]
