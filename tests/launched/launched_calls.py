"""Named calls of the public API for the tests of launches, each with new operands.

They cover every option, dtype, format and alignment, on small images.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

import tricorr

#: (name, function, function that makes its operands)
Named: TypeAlias = tuple[str, Callable[..., Any], Callable[[], list[Any]]]

HALF, BRAIN, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = {
    "half": HALF,
    "bf16": BRAIN,
    "fp32": FLOAT,
    "tf32": FLOAT,
    "tf32x3": FLOAT,
    "fp64": DOUBLE,
}
_PRECISIONS = {"fp32": "ieee", "tf32": "tf32", "tf32x3": "tf32x3"}
FORMATS = ("NCHW", "channels_last")
#: (C, K, groups)
_BANKS = {"one": (1, 1, 1), "few": (3, 16, 1), "many": (16, 32, 1), "depthwise": (8, 8, 8)}


@dataclass(frozen=True)
class LaunchedCall:
    """A function, and one that makes its operands."""

    call: Callable[..., Any]
    operands: Callable[[], list[Any]]
    #: False if there is nothing to compute.
    launches: bool = True


def image(
    shape: tuple[int, ...], dtype: torch.dtype, memory: str = "NCHW", offset: int = 0, gap: int = 0
) -> torch.Tensor:
    """(N, C, H, W), `offset` elements into its storage, with gaps of `gap` elements after rows."""
    _, C, H, W = shape
    if memory == "channels_last":
        row = W * C + gap
        strides = (row * H, 1, row, C)
    elif memory == "transposed":
        strides = (C * H * W, H * W, 1, H)
    else:
        row = W + gap
        strides = (C * H * row, H * row, row, 1)
    size = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1 + offset
    return torch.zeros(size, dtype=dtype).as_strided(shape, strides, offset)


def wanting(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors; floating-point ones require gradients."""
    return [t.requires_grad_(t.is_floating_point()) for t in tensors]


def layer(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    dtype: torch.dtype = FLOAT,
    *where: Any,
    bias: bool = False,
    residual: tuple[int, ...] = (),
) -> Callable[[], list[Any]]:
    """Makes x, weight, bias and residual, all wanting gradients; `where` lays x out, see image."""

    def operands() -> list[Any]:
        other = FLOAT if dtype == torch.uint8 else dtype
        made = [image(x, dtype, *where), torch.zeros(weight, dtype=other)]
        made += [torch.zeros(weight[0], dtype=other)] if bias else []
        return wanting(*made, *([image(residual, other)] if residual else []))

    return operands


def zeros(*shapes: tuple[int, ...]) -> Callable[[], list[Any]]:
    """Makes float32 tensors that want no gradient."""
    return lambda: [torch.zeros(shape) for shape in shapes]


def trained(function: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The function and all gradients of its result."""

    def call(*operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = function(*operands)
        wanted = [t for t in operands if t.requires_grad]
        return (y, *torch.autograd.grad(y, wanted, torch.zeros_like(y)))

    return call


def correlated(**options: Any) -> Callable[..., torch.Tensor]:
    """corr2d of (x, weight, bias, residual) with the options."""

    def call(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return tricorr.corr2d(x, weight, bias, residual=residual, **options)

    return call


def trains(kind: str = "half", **options: Any) -> Callable[..., tuple[torch.Tensor, ...]]:
    """corr2d and all gradients, in the precision of a kind of DTYPES."""
    return trained(correlated(precision=_PRECISIONS.get(kind), **options))


def _options() -> Iterator[Named]:
    """Every option of the public functions."""
    for (kind, dtype), (bank, (C, K, groups)), memory in itertools.product(
        DTYPES.items(), _BANKS.items(), FORMATS
    ):
        operands = layer((2, C, 16, 16), (K, C // groups, 3, 3), dtype, memory, bias=True)
        yield f"plain {kind} {bank} {memory}", trains(kind, padding=1, groups=groups), operands
    for mode, (bank, (C, K, groups)) in itertools.product(
        ("reflect", "replicate", "circular"), _BANKS.items()
    ):
        call = trains(padding=(1, 2), padding_mode=mode, groups=groups)
        operands = layer((2, C, 16, 24), (K, C // groups, 3, 5))
        yield f"padding mode {mode} {bank}", call, operands
    for activation, C in itertools.product(("relu", "relu6", "gelu", "silu"), (1, 16)):
        operands = layer((2, C, 16, 16), (16, C, 3, 3), bias=True, residual=(2, 16, 14, 14))
        yield f"activation {activation} {C}", trains(activation=activation), operands
    for C in (1, 3, 16):
        operands = layer((3, C, 16, 16), (3, C, C, 3, 3))
        yield f"bank per sample {C}", trains(padding=1), operands
    for memory in FORMATS:
        shape = (1, 512, 8, 8)
        operands = layer(shape, (512, 512, 3, 3), HALF, memory, bias=True, residual=shape)
        yield f"parts {memory}", trains(padding=1, activation="gelu"), operands
    steps: dict[str, dict[str, Any]] = {
        "stride 2": {"stride": 2, "padding": 1},
        "uneven": {"stride": (2, 1), "dilation": (1, 2), "padding": ((0, 1), (2, 1))},
        "stride 3": {"stride": 3, "dilation": 2, "padding": "valid"},
        "same": {"padding": "same"},
    }
    for (name, options), C in itertools.product(steps.items(), (1, 16)):
        yield f"{name} {C}", trains(**options), layer((2, C, 17, 19), (C, C, 3, 3))
    forms = {
        "plane": ((9, 11), (2, 3)),
        "stack of planes": ((2, 3, 9, 11), (2, 3)),
        "no batch": ((3, 9, 11), (4, 3, 2, 3)),
    }
    for (name, shapes), function in itertools.product(
        forms.items(), (tricorr.corr2d, tricorr.convolve2d)
    ):
        yield f"{function.__name__} {name}", function, zeros(*shapes)
    for s, (C, K, groups) in itertools.product((1, 2), _BANKS.values()):
        function = correlated_transposed(stride=s, output_padding=s - 1, groups=groups)
        yield (
            f"transposed {C} {K} stride {s}",
            trained(function),
            lambda C=C, K=K, groups=groups: wanting(
                torch.zeros(2, K, 8, 9), torch.zeros(K, C // groups, 3, 3), torch.zeros(C)
            ),
        )
    yield (
        "corr2d_input_grad",
        lambda weight, dy: tricorr.corr2d_input_grad((2, 16, 9, 9), weight, dy),
        zeros((16, 16, 3, 3), (2, 16, 7, 7)),
    )
    yield (
        "corr2d_weight_grad",
        lambda x, dy: tricorr.corr2d_weight_grad(x, (16, 16, 3, 3), dy),
        zeros((2, 16, 9, 9), (2, 16, 7, 7)),
    )
    for K in (8, 32):
        yield f"uint8 {K}", trains(), layer((2, 3, 16, 16), (K, 3, 3, 3), torch.uint8)


def correlated_transposed(**options: Any) -> Callable[..., torch.Tensor]:
    return lambda x, weight, bias: tricorr.corr_transpose2d(x, weight, bias, **options)


def _alignments() -> Iterator[Named]:
    """Tensors that do not start at 16 bytes or have gaps; expanded and transposed tensors."""
    images = [
        *(("NCHW", offset, gap) for offset, gap in ((1, 0), (4, 0), (0, 1), (0, 8))),
        *(("channels_last", offset, gap) for offset, gap in ((1, 0), (4, 0), (0, 8), (0, 1))),
        ("transposed", 0, 0),
    ]
    for kind, (C, K, groups), where in itertools.product(
        ("bf16", "tf32", "fp32"), ((1, 1, 1), (64, 64, 1), (8, 8, 8)), images
    ):
        memory, offset, gap = where
        yield (
            f"image {kind} {C} {memory} from {offset} gap {gap}",
            trains(kind, padding=1, groups=groups),
            layer((2, C, 16, 24), (K, C // groups, 3, 3), DTYPES[kind], *where),
        )
    shape, bank = (2, 64, 16, 24), (64, 64, 3, 3)
    weights = {
        "from 1": lambda: torch.zeros(64 * 64 * 9 + 1)[1:].view(bank),
        "channels_last": lambda: torch.zeros(bank).to(memory_format=torch.channels_last),
        "transposed": lambda: torch.zeros(bank).transpose(0, 1),
        "expanded": lambda: torch.zeros(1, 64, 3, 3).expand(bank),
    }
    for (name, weight), precision, memory in itertools.product(
        weights.items(), ("ieee", "tf32"), FORMATS
    ):
        yield (
            f"weight {name} {precision} {memory}",
            correlated(padding=1, precision=precision),
            lambda weight=weight, memory=memory: [image(shape, FLOAT, memory), weight()],
        )
    others: dict[str, Callable[[], list[Any]]] = {
        "bias expanded": lambda: [torch.zeros(1).expand(64), None],
        "bias strided": lambda: [torch.zeros(129)[1::2], None],
        "residual from 1": lambda: [None, image(shape, FLOAT, offset=1)],
        "residual expanded": lambda: [None, torch.zeros(1, 64, 1, 1).expand(shape)],
    }
    for name, other in others.items():
        yield (
            name,
            correlated(padding=1),
            lambda other=other: [image(shape, FLOAT), torch.zeros(bank), *other()],
        )
    for kind, where in itertools.product(
        ("bf16", "tf32"),
        (("NCHW", 0, 0), ("NCHW", 1, 0), ("NCHW", 0, 8), ("channels_last", 8, 0)),
    ):
        memory, offset, gap = where
        yield (
            f"1x1 {kind} {memory} from {offset} gap {gap}",
            trains(kind),
            layer((4, 64, 14, 14), (128, 64, 1, 1), DTYPES[kind], *where),
        )
    for g, op in itertools.product((1, 64), ("input", "weight")):
        yield (
            f"gradient of a sum, {op}, {g} groups",
            _of_expanded(op, g),
            lambda g=g: [
                torch.zeros(64, 64 // g, 3, 3), torch.zeros(1).expand(shape), torch.zeros(shape)
            ],
        )  # fmt: skip


def _of_expanded(op: str, groups: int) -> Callable[..., torch.Tensor]:
    def call(weight: torch.Tensor, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if op == "input":
            return tricorr.corr2d_input_grad(x.shape, weight, dy, padding=1, groups=groups)
        return tricorr.corr2d_weight_grad(x, weight.shape, dy, padding=1, groups=groups)

    return call


def _wide() -> Iterator[Named]:
    """Offsets beyond 2**31, in memory that is reserved but not used."""
    for kind, memory in itertools.product(("bf16", "fp32"), FORMATS):
        inner = (16 * 24, 24, 1) if memory == "NCHW" else (1, 24 * 16, 16)
        dtype = DTYPES[kind]

        def operands(dtype: torch.dtype = dtype, inner: tuple[int, ...] = inner) -> list[Any]:
            storage = torch.empty(2**31 + 2**20, dtype=dtype)
            x = storage.as_strided((2, 16, 16, 24), (2**31, *inner))
            return [x, torch.zeros(16, 16, 3, 3, dtype=dtype)]

        yield f"wide {kind} {memory}", correlated(padding=1), operands


def _transforms() -> Iterator[Named]:
    """Modules, autocast, compilers and the transforms of torch.func."""
    from torch.func import grad, jvp, vmap

    modules = {
        "Conv2D": lambda: tricorr.Conv2D(3, 8, 3, padding=1),
        "Conv2D reflect": lambda: tricorr.Conv2D(3, 8, 3, padding=1, padding_mode="reflect"),
        "Conv2D depthwise": lambda: tricorr.Conv2D(3, 3, 3, groups=3),
        "LazyConv2D": lambda: tricorr.LazyConv2D(4, 3),
        "ConvTranspose2D": lambda: tricorr.ConvTranspose2D(3, 8, 4, stride=2, padding=1),
        "converted": _converted,
    }
    for (name, make), autocast in itertools.product(modules.items(), (False, True)):
        yield (
            f"module {name}{' autocast' if autocast else ''}",
            _training_step(autocast),
            lambda make=make: [torch.randn(2, 3, 16, 16), make()],
        )
    yield "torch.compile", _compiled_step, lambda: [torch.randn(2, 3, 16, 16), _converted()]
    w = torch.randn(4, 3, 3, 3)
    yield (
        "vmap",
        lambda a, b: vmap(tricorr.corr2d)(a, b),
        lambda: [torch.randn(5, 2, 3, 8, 8), torch.randn(5, 4, 3, 3, 3)],
    )
    yield (
        "jvp",
        lambda a, b: jvp(lambda u: tricorr.corr2d(u, w), (a,), (b,))[1],
        lambda: [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)],
    )
    yield (
        "gradients per sample",
        lambda a: vmap(grad(lambda u: tricorr.corr2d(u, w).square().sum()))(a),
        lambda: [torch.randn(5, 3, 8, 8)],
    )
    for C in (3, 16):
        yield f"double backward {C}", _twice, layer((2, C, 8, 8), (16, C, 3, 3))
    for dtype in (FLOAT, torch.uint8):
        for name in ("sobel", "gaussian_blur", "box_blur", "spatial_gradient"):
            yield (
                f"filter {name} {dtype}",
                _filtered(name),
                lambda dtype=dtype: [torch.zeros(2, 3, 40, 48, dtype=dtype)],
            )


def _converted() -> torch.nn.Module:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 3, padding=1, groups=16),
        torch.nn.Conv2d(16, 32, 1),
    )
    tricorr.convert(net)
    return net


def _filtered(name: str) -> Callable[[torch.Tensor], Any]:
    options = {"gaussian_blur": (1.5,), "box_blur": (5,)}.get(name, ())
    return lambda x: (getattr(tricorr.filters, name)(x, *options),)  # may not be a kernel's output


def _training_step(autocast: bool) -> Callable[..., torch.Tensor]:
    def step(x: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = module(x)
        y.float().square().sum().backward()
        return y

    return step


_COMPILED: dict[int, Any] = {}


def _compiled_step(x: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """Forward and backward of the module, compiled once."""
    if id(module) not in _COMPILED:
        torch._dynamo.reset()
        _COMPILED[id(module)] = torch.compile(module, backend="aot_eager")
    y = _COMPILED[id(module)](x)
    y.mean().backward()
    return y


def _twice(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = tricorr.corr2d(x, weight)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return torch.autograd.grad(dx.square().sum(), (x, weight))


def drawn(count: int, seed: int) -> Iterator[Named]:
    """Random geometries, dtypes, formats and offsets."""
    from tricorr.ops import geometry_of
    from tricorr.ops.errors import ArgumentError
    from tricorr.ops.launch import entry as direct

    rng = random.Random(seed)
    done = 0
    while done < count:
        kind, op = rng.choice(list(DTYPES)), rng.choice(["fprop", "dgrad", "wgrad"])
        groups = rng.choice([1, 1, 1, 2, 4])
        C, K = (rng.choice([1, 2, 3, 4, 8, 16, 20, 24, 32, 64]) * groups for _ in range(2))
        R, S = (rng.choice([1, 1, 2, 3, 3, 5, 7]) for _ in range(2))
        H, W = (rng.choice([7, 8, 14, 16, 28, 33, 56]) for _ in range(2))
        stride = rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 2])
        dilation = rng.choice([1, 1, 2]), rng.choice([1, 1, 2])
        padding = tuple(tuple(rng.choice([0, 0, 1, 2, -1]) for _ in "ab") for _ in "hw")
        mode = rng.choice(["zeros"] * 4 + ["replicate", "reflect", "circular"])
        shapes = (rng.choice([1, 2, 3, 8]), C, H, W), (K, C // groups, R, S)
        try:
            steps = (stride, padding, dilation, groups, rng.random() < 0.3, mode)
            geometry = geometry_of(*shapes, *steps)
        except ArgumentError:
            continue
        if geometry.y_numel == 0:
            continue
        memory, where = rng.choice(FORMATS), rng.choice([0, 0, 0, 1, 4, 8])
        layout = memory, where, rng.choice([0, 0, 0, 8, 1])
        precision = _PRECISIONS.get(kind, "ieee")

        def operands(
            geometry: Any = geometry,
            dtype: torch.dtype = DTYPES[kind],
            layout: Any = layout,
            op: str = op,
        ) -> list[Any]:
            x, dy = image(geometry.x_shape, dtype, *layout), image(geometry.y_shape, dtype)
            weight = torch.zeros(geometry.weight_shape, dtype=dtype)
            return {"fprop": [x, weight], "dgrad": [dy, weight], "wgrad": [x, dy]}[op]

        def call(
            a: torch.Tensor,
            b: torch.Tensor,
            op: str = op,
            geometry: Any = geometry,
            precision: str = precision,
        ) -> torch.Tensor:
            if op == "fprop":
                return direct.fprop(a, b, None, geometry, precision)
            return getattr(direct, op)(a, b, geometry, precision)

        done += 1
        yield f"random {done} {op} {kind} {memory}", call, operands


def _large() -> Iterator[Named]:
    """Images that are read through tensor maps, and windows that become bands."""
    steps: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
        "dense": ((64, 64, 64), 3, {"padding": 1}),
        "1x1": ((64, 28, 28), 1, {}),
        "stride 2": ((64, 56, 56), 3, {"padding": 1, "stride": 2}),
        "odd height, stride 2": ((64, 57, 57), 3, {"stride": 2}),
        "groups": ((128, 28, 28), 3, {"groups": 2, "padding": 1}),
    }
    for kind, (name, (shape, R, options)), memory in itertools.product(
        ("bf16", "tf32"), steps.items(), FORMATS
    ):
        groups = options.get("groups", 1)

        def operands(
            shape: tuple[int, ...] = shape,
            R: int = R,
            groups: int = groups,
            dtype: torch.dtype = DTYPES[kind],
            memory: str = memory,
        ) -> list[Any]:
            weight = torch.zeros(shape[0], shape[0] // groups, R, R, dtype=dtype)
            if memory == "channels_last":
                weight = weight.to(memory_format=torch.channels_last)
            return wanting(image((16, *shape), dtype, memory), weight)

        yield f"large {name} {kind} {memory}", trains(kind, **options), operands
    for name, x, weight, memory, options in (
        ("few channels", (8, 16, 128, 128), (3, 16, 3, 3), "channels_last", {"padding": 1}),
        ("few filters", (8, 64, 128, 128), (3, 64, 3, 3), "NCHW", {"padding": 1}),
        ("planes", (8, 64, 128, 128), (80, 64, 3, 3), "NCHW", {"padding": 1}),
        ("narrow", (32, 64, 56, 56), (16, 64, 5, 5), "channels_last", {"padding": 2}),
    ):
        yield f"{name} bf16", trains(**options), layer(x, weight, BRAIN, memory)
    operands = layer((8, 64, 32, 64), (80, 64, 3, 3))
    yield "planes tf32", trains("tf32", padding=1), operands
    for memory in FORMATS:
        operands = layer((16, 3, 224, 224), (768, 3, 16, 16), BRAIN, memory)
        yield f"patches bf16 {memory}", trains(stride=16), operands
    for mode in ("zeros", "reflect"):
        call = trains(padding=1, padding_mode=mode, groups=64)
        yield f"large depthwise {mode}", call, layer((16, 64, 56, 56), (64, 1, 3, 3), BRAIN)
    yield (
        "large depthwise input gradient",
        lambda weight, dy: tricorr.corr2d_input_grad(
            (16, 64, 56, 56), weight, dy, stride=2, padding=1, groups=64
        ),
        zeros((64, 1, 3, 3), (16, 64, 28, 28)),
    )
    for kind in ("half", "tf32", "tf32x3", "fp64"):
        operands = layer((4, 1, 512, 512), (1, 1, 31, 31), DTYPES[kind])
        yield f"large window {kind}", trains(kind, padding=15), operands
    yield (
        "large window, input gradient of channels_last",
        lambda weight, dy: tricorr.corr2d_input_grad(
            (32, 128, 56, 56), weight, dy, stride=2, padding=15, groups=128
        ),
        lambda: [
            torch.zeros(128, 1, 31, 31, dtype=BRAIN),
            image((32, 128, 28, 28), BRAIN, "channels_last"),
        ],
    )


def _others() -> Iterator[Named]:
    from tricorr.ops.lag_sums import lag_sums

    yield "lag sums", lambda a, b: lag_sums(a, b, (5, 5)), zeros((1, 1, 60, 60), (1, 1, 64, 64))
    yield (
        "separable window",
        lambda x: (tricorr.filters.gaussian_blur(x, 2.0, kernel_size=15),),
        zeros((512, 512)),
    )
    yield "empty batch", correlated(), zeros((0, 3, 9, 9), (4, 3, 3, 3))


CALLS = {
    name: LaunchedCall(call, operands, launches=name != "empty batch")
    for name, call, operands in itertools.chain(
        _options(), _alignments(), _large(), _wide(), _transforms(), drawn(100, 0), _others()
    )
}
