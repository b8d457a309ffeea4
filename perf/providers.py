"""Providers: our operators and their peers, behind one interface.

A provider says whether it is installed and whether it can solve a problem, and prepares a call that
computes exactly one operator once: dgrad alone or wgrad alone, both only as "backward". Tensors and
weights already are in the memory format of the row. Further work of a peer (copying the padding,
turning bytes into floats) is work of its user too, and is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from ..autograd import functional
from ..ops import Geometry, backward
from .workloads import Workload

#: The result, or of "backward" (dx, dw).
Result: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
Call: TypeAlias = Callable[[], Result]

OURS = "tricorr"
#: PyTorch's own convolution, called as it is.
PYTORCH = "pytorch"
#: Dtypes of rows, as dtypes of the image and of the filters.
TENSOR_DTYPES = {
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "float32": (torch.float32, torch.float32),
    "tf32": (torch.float32, torch.float32),
    "uint8": (torch.uint8, torch.float32),
    "tf32x3": (torch.float32, torch.float32),
    "uint8-tf32": (torch.uint8, torch.float32),
    "float64": (torch.float64, torch.float64),
}


@dataclass(frozen=True)
class Operands:
    """One operator of one workload, with its tensors; dy is a stand-in where it is not read."""

    workload: Workload
    op: str
    dtype: str
    format: str
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    dy: torch.Tensor
    residual: torch.Tensor | None = None

    @property
    def geometry(self) -> Geometry:
        return self.workload.geometry

    @property
    def precision(self) -> str:
        """How float32 is multiplied."""
        return self.dtype.removeprefix("uint8-") if "tf32" in self.dtype else "ieee"


def make_operands(
    workload: Workload, op: str, dtype: str, format: str, device: str, seed: int = 0
) -> Operands:
    """Random tensors, the same for every format: zeros would hide errors and run faster.

    On "meta" there are shapes and strides only, and no memory is taken.
    """
    g = workload.geometry
    random = None if device == "meta" else torch.Generator(device).manual_seed(seed)
    image, other = TENSOR_DTYPES[dtype]
    layout = torch.channels_last if format == "channels_last" else torch.contiguous_format

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        if random is None:
            memory_format = layout if len(shape) == 4 else torch.contiguous_format
            return torch.empty(shape, device=device, dtype=other, memory_format=memory_format)
        tensor = torch.randn(shape, generator=random, device=device, dtype=other)
        return tensor.contiguous(memory_format=layout) if len(shape) == 4 else tensor

    if image == torch.uint8 and random is None:
        x = torch.empty(g.x_shape, device=device, dtype=image, memory_format=layout)
    elif image == torch.uint8:
        x = torch.randint(256, g.x_shape, generator=random, device=device, dtype=image)
        x = x.contiguous(memory_format=layout)
    else:
        x = normal(g.x_shape)
    if workload.shared:
        weight = normal((1, 1, g.R, g.S)).expand(g.weight_shape)
    else:
        weight = normal(g.weight_shape)
    # As large as the sums, so that a result without it is wrong at once.
    bias = normal((g.K,)).mul_((g.group_C * g.R * g.S) ** 0.5) if workload.bias else None
    # fprop does not read dy: it need not take memory.
    dy = torch.empty((), device=device, dtype=other) if op == "fprop" else normal(g.y_shape)
    residual = normal(g.y_shape) if workload.residual else None
    return Operands(workload, op, dtype, format, x, weight, bias, dy, residual)


@dataclass(frozen=True)
class Provider:
    """One implementation.

    Attributes:
        name: in rows.
        group: jobs of a run are made per group, so that slow compilers do not hold up the rest;
            ours takes part in every group.
        build: the call for a problem.
        available: why it cannot be used on this machine, or None.
        supports: why it cannot do a workload's operator in a dtype on a device, or None.
        formats: memory formats to try it in.
    """

    name: str
    group: str
    build: Callable[[Operands], Call]
    available: Callable[[], str | None] = lambda: None
    supports: Callable[[Workload, str, str, str], str | None] = lambda *_: None
    formats: tuple[str, ...] = ("NCHW", "channels_last")

    def prepare(self, problem: Operands) -> Call:
        """A call that computes the problem's operator once and returns the result."""
        return self.build(problem)


def configure(dtype: str, device: str) -> None:
    """PyTorch's settings for the peers of a job: cuDNN's search on, TF32 as the row says."""
    if "torch._dynamo" in sys.modules:
        # A job has one shape: what was compiled for others must not count towards Dynamo's limit.
        # Once per job: its formats share what is compiled.
        torch._dynamo.reset()
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = dtype == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"


def _ours(problem: Operands) -> Call:
    g, op = problem.geometry, problem.op
    x, weight, bias, dy = problem.x, problem.weight, problem.bias, problem.dy
    steps = (g.given_stride, g.padding, g.given_dilation, g.groups)
    precision: Any = problem.precision
    if op == "fprop" and problem.workload.shared:
        plane = weight[0, 0]
        return lambda: functional.corr2d(x, plane, None, *steps[:3], precision=precision)
    if op == "fprop":
        options: dict[str, Any] = {
            "padding_mode": g.padding_mode,
            "activation": problem.workload.activation,
            "residual": problem.residual,
            "precision": precision,
        }
        return lambda: functional.corr2d(x, weight, bias, *steps, **options)
    if op == "backward":
        return _one_launch(problem) if x.is_cuda else lambda: backward(x, dy, weight, g, precision)
    if op == "wgrad":
        shape = g.weight_shape
        return lambda: functional.corr2d_weight_grad(x, shape, dy, *steps, precision=precision)
    if "transposed" in problem.workload.tags:
        stride, padding, dilation, groups = steps
        extra = _output_padding(g)
        return lambda: functional.corr_transpose2d(
            dy, weight, None, stride, padding, extra, groups, dilation, precision=precision
        )
    shape = g.x_shape
    return lambda: functional.corr2d_input_grad(shape, weight, dy, *steps, precision=precision)


def _one_launch(problem: Operands) -> Call:
    """Both gradients by one launch, also where the planner takes two: those are rows as well."""
    from ..ops.launch.entry import backward as launched
    from ..ops.launch.formats import empty_in_format
    from ..ops.launch.layout import device_of, layout_of
    from ..ops.plan import choose
    from ..ops.plan.problem import Problem as Planned

    o, g, dtype = problem, problem.geometry, problem.weight.dtype
    dw = empty_in_format(g.weight_shape, dtype, like=o.x, device="meta")
    layout = layout_of(g, o.x, dw, o.dy)
    plan = choose.plan(Planned("backward", g, dtype, o.precision, layout, device_of(o.x)))
    return lambda: launched(o.x, o.dy, o.weight, g, o.precision, plan)


#: PyTorch's names of padding modes, and its activations, in place where there is such a one.
_TORCH_MODES = {"zeros": "constant"} | {m: m for m in ("reflect", "replicate", "circular")}
_TORCH_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "none": None,
    "relu": torch.relu_,
    "gelu": F.gelu,
    "silu": partial(F.silu, inplace=True),
}


def _torch_function(problem: Operands) -> tuple[Callable[..., Result], tuple[Any, ...]]:
    """PyTorch's way to do it, as a function and its tensors."""
    g = problem.geometry
    (top, bottom), (left, right) = g.padding
    # PyTorch's convolution pads evenly with zeros; all else is a padded copy.
    copied = top != bottom or left != right or g.padding_mode != "zeros"
    padding = (0, 0) if copied else (top, left)
    stride, dilation, groups = g.given_stride, g.given_dilation, g.groups
    if problem.op == "fprop":
        dtype = problem.weight.dtype
        weight = problem.weight.contiguous() if problem.workload.shared else problem.weight
        if g.per_sample:
            weight, groups = weight.flatten(0, 1), groups * g.N
        per_sample, shape, mode = g.per_sample, g.y_shape, _TORCH_MODES[g.padding_mode]
        activate = _TORCH_ACTIVATIONS[problem.workload.activation]

        def fprop(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            x = x.to(dtype)
            if copied:
                x = F.pad(x, (left, right, top, bottom), mode)
            if per_sample:
                x = x.reshape(1, -1, *x.shape[2:])
            y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
            y = y.view(shape) if per_sample else y
            return y if activate is None else activate(y)

        return fprop, (problem.x, weight, problem.bias)
    if "transposed" in problem.workload.tags:
        extra = _output_padding(g)

        def transposed(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return F.conv_transpose2d(dy, weight, None, stride, padding, extra, groups, dilation)

        return transposed, (problem.dy, problem.weight)
    mask = [problem.op != "wgrad", problem.op != "dgrad", False]

    def gradient(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> Result:
        gradients = torch.ops.aten.convolution_backward(
            dy, x, weight, None, stride, padding, dilation, False, (0, 0), groups, mask
        )
        return tuple(gradients[:2]) if all(mask[:2]) else gradients[mask.index(True)]

    return gradient, (problem.dy, problem.x, problem.weight)


def _output_padding(g: Geometry) -> tuple[int, int]:
    """Rows and columns that a stride leaves over, as conv_transpose2d's output_padding."""
    (top, bottom), (left, right) = g.padding
    rows = (g.H + top + bottom - g.given_dilation[0] * (g.R - 1) - 1) % g.given_stride[0]
    columns = (g.W + left + right - g.given_dilation[1] * (g.S - 1) - 1) % g.given_stride[1]
    return rows, columns


def _pytorch(problem: Operands) -> Call:
    function, tensors = _torch_function(problem)
    return lambda: function(*tensors)


def _plainly_padded(g: Geometry) -> bool:
    """Zeros, as many before as after."""
    return g.padding_mode == "zeros" and all(before == after for before, after in g.padding)


def _torch_supports(workload: Workload, op: str, dtype: str, device: str) -> str | None:
    g = workload.geometry
    if op != "fprop" and (g.per_sample or not _plainly_padded(g)):
        return "one call of PyTorch cannot: a filter per sample or uneven padding in a gradient"
    if op in ("wgrad", "backward") and dtype == "uint8":
        return "gradients are of floats"
    return None


def _compiled(mode: str) -> Callable[[Operands], Call]:
    def build(problem: Operands) -> Call:
        function, tensors = _torch_function(problem)
        compiled = torch.compile(function, mode=mode, dynamic=False, fullgraph=True)
        return lambda: compiled(*tensors)

    return build


def _compile_supports(workload: Workload, op: str, dtype: str, device: str) -> str | None:
    if op != "fprop" and "transposed" not in workload.tags:
        return "Inductor leaves the gradients of a convolution to cuDNN"
    return _torch_supports(workload, op, dtype, device)


def _no_compiler() -> str | None:
    if not torch.cuda.is_available():
        return "compared on GPUs only"
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def _missing(module: str) -> Callable[[], str | None]:
    def available() -> str | None:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError) as error:
            return f"{module} cannot be imported: {error}"
        return None if found else f"{module} is not installed"

    return available


def _flaggems_missing() -> str | None:
    return _missing("flag_gems")() or (None if torch.cuda.is_available() else "needs a GPU")


def _flaggems(problem: Operands) -> Call:
    flag_gems = importlib.import_module("flag_gems")  # optional, and not typed

    g = problem.geometry
    x, weight, bias = problem.x, problem.weight, problem.bias
    padding = (g.padding[0][0], g.padding[1][0])
    return lambda: flag_gems.conv2d(
        x,
        weight,
        bias=bias,
        stride=g.given_stride,
        padding=padding,
        dilation=g.given_dilation,
        groups=g.groups,
    )


def _flaggems_supports(workload: Workload, op: str, dtype: str, device: str) -> str | None:
    g = workload.geometry
    if op != "fprop":
        return "its backward computes both gradients in one call"
    if dtype == "uint8" or g.per_sample or not _plainly_padded(g):
        return "no bytes, no filter per sample, no padding but zeros on both sides"
    if workload.activation != "none":
        return "no activation"
    return None


def _kornia(problem: Operands) -> Call:
    from kornia.filters import filter2d

    x, dtype = problem.x, problem.weight.dtype
    kernel, border = problem.weight[0], _TORCH_MODES[problem.geometry.padding_mode]
    return lambda: filter2d(x.to(dtype), kernel, border_type=border, padding="same")


def _one_filter(workload: Workload, op: str, dtype: str, device: str) -> str | None:
    """One filter on every plane, as an image filter is, at the size of the image."""
    g = workload.geometry
    single = g.C == g.K == 1 or workload.shared
    plain = g.given_stride == g.given_dilation == (1, 1) and not g.per_sample
    same = sum(map(sum, g.padding)) == g.R + g.S - 2
    return None if op == "fprop" and single and plain and same else "one filter of an image only"


#: All of them, ours first. A peer's reason to be unavailable becomes a row.
PROVIDERS: tuple[Provider, ...] = (
    Provider(OURS, "core", _ours),
    Provider(PYTORCH, "core", _pytorch, supports=_torch_supports),
    Provider("kornia", "core", _kornia, _missing("kornia"), _one_filter, ("NCHW",)),
    Provider("flaggems", "core", _flaggems, _flaggems_missing, _flaggems_supports, ("NCHW",)),
    Provider("torch.compile", "compile", _compiled("default"), _no_compiler, _compile_supports),
    # Without its own CUDA graphs: replaying one is measured for every provider alike.
    Provider(
        "torch.compile-max-autotune",
        "max-autotune",
        _compiled("max-autotune-no-cudagraphs"),
        _no_compiler,
        _compile_supports,
    ),
)
