"""A stub of CUDA's driver, built from stubcuda.c: Triton launches with it, tests read its records.

All of a launch except the GPU is real: Triton's binder and cache, its compiler, its C launcher, and
the encoding of tensor maps. The stub checks and records the calls of the driver.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("stubcuda.c")
#: The same constants as in stubcuda.c.
MAX_PARAMS, RECORDS = 128, 8192
COUNTERS = ("launches", "encodes", "refusals", "others")
#: The device that the stub reports.
NAME, ARCH, MULTIPROCESSORS = "NVIDIA H100 80GB HBM3", "90", 132


class Record(ctypes.Structure):
    """One launch, as it reached the driver."""

    _fields_ = [
        ("name", ctypes.c_char * 128),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("regs", ctypes.c_int),
        ("stack", ctypes.c_int),
        ("params", ctypes.c_int),
        ("stream", ctypes.c_uint64),
        ("value", ctypes.c_uint64 * MAX_PARAMS),
        ("layout", ctypes.c_uint64 * MAX_PARAMS),
    ]

    @property
    def kernel(self) -> str:
        return self.name.decode()

    @property
    def values(self) -> list[int]:
        """The parameters; for tensor maps, their addresses."""
        return list(self.value[: self.params])

    @property
    def shape(self) -> tuple[Any, ...]:
        """Everything that must not depend on the addresses of tensors."""
        layouts = list(self.layout[: self.params])
        return self.kernel, list(self.grid), list(self.block), self.shared, layouts


def build(folder: Path) -> Path:
    """The library, in a subfolder of `folder`; built if it does not exist.

    Raises:
        RuntimeError: there is no C compiler, or Triton's header is missing.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise RuntimeError("no C compiler")
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise RuntimeError("triton is not installed")
    include = Path(spec.origin).parent / "backends" / "nvidia" / "include"
    if not (include / "cuda.h").is_file():
        raise RuntimeError(f"{include} has no cuda.h")
    digest = hashlib.sha256(SOURCE.read_bytes() + str(include).encode()).hexdigest()[:16]
    library = folder / digest / "libcuda.so.1"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        flags = ["-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{include}"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(unfinished)], check=True)
        unfinished.replace(library)  # another process may build it too
    return library


class StubDriver:
    """Access to the stub of this process, and to its records."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        for name in COUNTERS:
            getattr(self._library, f"stub_{name}").restype = ctypes.c_long
        self._library.stub_reason.restype = ctypes.c_char_p
        self._library.stub_record.restype = ctypes.POINTER(Record)
        self._library.stub_record.argtypes = [ctypes.c_long]
        self._library.stub_function.restype = ctypes.c_void_p

    def __getattr__(self, name: str) -> int:
        """The value of one of COUNTERS."""
        if name in COUNTERS:
            return int(getattr(self._library, f"stub_{name}")())
        raise AttributeError(name)

    @property
    def reason(self) -> str:
        """Why the stub last refused a call."""
        return self._library.stub_reason().decode()

    def records(self, since: int) -> list[Record]:
        """Copies of the records of launches, from number `since` on."""
        assert self.launches - since <= RECORDS
        found = []
        for number in range(since, self.launches):
            copy = Record()
            ctypes.pointer(copy)[0] = self._library.stub_record(number).contents
            found.append(copy)
        return found

    def record(self, on: bool) -> None:
        """Switches the recording of launches, which takes time."""
        self._library.stub_recording(int(on))

    def function(self, name: str, sizes: list[int]) -> int:
        """A handle of a kernel that is not compiled, with parameters of these sizes."""
        array = (ctypes.c_int * len(sizes))(*sizes)
        return int(self._library.stub_function(name.encode(), len(sizes), array))


def pretend(library: Path) -> tuple[StubDriver, Any]:
    """Makes PyTorch and Triton treat CPU tensors as an H100's; returns the stub, Triton's driver.

    Must be called before anything imports triton.
    """
    os.environ["TRITON_LIBCUDA_PATH"] = str(library.parent)
    os.environ.pop("TRITON_INTERPRET", None)
    stub = StubDriver(library)

    import torch

    torch.cuda.current_device = _zero
    torch.cuda.get_device_capability = lambda device=None: divmod(int(ARCH), 10)
    torch.cuda.get_device_properties = lambda device=None: _Properties

    import triton
    from triton.backends.nvidia.driver import CudaDriver

    driver = CudaDriver()
    driver.get_current_stream = _zero
    triton.runtime.driver.set_active(driver)

    from tricorr.ops import backend
    from tricorr.ops.plan.device import Device

    backend.CPU_DEVICE = Device(NAME, ARCH, MULTIPROCESSORS)
    return stub, driver


def _zero(device: Any = None) -> int:
    """Takes the place of torch._C._cuda_getDevice and other functions that return 0."""
    return 0


class _Properties:
    name, multi_processor_count = NAME, MULTIPROCESSORS
    major, minor = divmod(int(ARCH), 10)
    gcnArchName = ""  # noqa: N815 - Inductor asks for it where PyTorch was built without CUDA
