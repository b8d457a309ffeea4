"""The table of workloads: convolutions that people run.

Each is tagged and carries a priority: a run that has no time for all takes the low numbers first.
The KernelBench problems are those of ScalingIntelligence/KernelBench, KernelBench/level1, as of
revision 423217d (March 2026); a transposed one is the input gradient that it computes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..ops import Geometry

OPS = ("fprop", "dgrad", "wgrad")
#: And both gradients by one call, as autograd asks for them.
ALL_OPS = (*OPS, "backward")
FORMATS = ("NCHW", "channels_last")

_DENSE = ("bfloat16", "tf32", "float16")
_DEPTHWISE = ("bfloat16", "float32")
_IMAGES = ("float32", "bfloat16", "uint8")


@dataclass(frozen=True)
class Workload:
    """One convolution, and the operators and dtypes that are measured.

    Attributes:
        name: unique.
        suite: where it comes from.
        geometry: its shape.
        dtypes: as in a row, the most interesting first.
        ops: the operators to measure, each alone, of ALL_OPS.
        bias: whether fprop adds one.
        activation: what fprop applies after it, as `corr2d` names it.
        residual: whether fprop adds a tensor shaped as its result before the activation.
        shared: all planes share one filter: the weight is (1, 1, R, S), expanded over groups.
        tags: "dense", "depthwise", "grouped", "pointwise", "image", "transposed", "per_sample",
            "padding_mode", "epilogue", "scaled".
        priority: 0 is measured first.
    """

    name: str
    suite: str
    geometry: Geometry
    dtypes: tuple[str, ...]
    ops: tuple[str, ...] = OPS
    bias: bool = False
    activation: str = "none"
    residual: bool = False
    shared: bool = False
    tags: tuple[str, ...] = ()
    priority: int = 1

    @property
    def formats(self) -> tuple[str, ...]:
        """The memory formats that differ for it."""
        g = self.geometry
        return FORMATS if max(g.C, g.K) > 1 and "image" not in self.tags else FORMATS[:1]

    def scaled(self, limit: int = 2_000_000) -> Workload:
        """The same structure with fewer samples, channels and pixels: at most `limit` MACs.

        Window, stride, padding, dilation and the kind of grouping stay. Where even the smallest
        such convolution needs more, it is that one.
        """
        g = self.geometry
        while g.macs > limit:
            smaller = _halved(g)
            if smaller == g:
                break
            g = smaller
        tags = (*self.tags, "scaled")
        return replace(self, name=f"{self.name}-small", geometry=g, tags=tags)


def _halved(g: Geometry) -> Geometry:
    """Half of one extent: the batch first, then channels while many, then the larger side."""
    if g.N > 2:
        return replace(g, N=g.N // 2)
    if g.groups > 4 and g.groups % 2 == 0:
        groups = g.groups // 2
        return replace(g, groups=groups, C=groups * g.group_C, K=groups * g.group_K)
    if max(g.group_C, g.group_K) > 16:
        group_C = max(1, g.group_C // 2) if g.group_C > 8 else g.group_C
        group_K = max(1, g.group_K // 2) if g.group_K > 8 else g.group_K
        return replace(g, C=group_C * g.groups, K=group_K * g.groups)
    # An odd extent stays odd, so that what a stride leaves over is left over.
    H, W = g.H // 2 | g.H % 2, g.W // 2 | g.W % 2
    can_h, can_w = H >= _least(g, 0), W >= _least(g, 1)
    if can_h and (g.H >= g.W or not can_w):
        return replace(g, H=H)
    if can_w:
        return replace(g, W=W)
    return replace(g, N=1) if g.N == 2 else g


def _least(g: Geometry, axis: int) -> int:
    """The least extent that a side is halved to: four pixels, two outputs."""
    window = (g.R, g.S)[axis]
    reach = g.given_dilation[axis] * (window - 1) + 1
    return max(4, reach + g.given_stride[axis] - sum(g.padding[axis]))


def _conv(
    suite: str, shape: tuple[int, ...], dtypes: tuple[str, ...], priority: int, *, dilation: int = 1
) -> Workload:
    """From (N, C, H, W, K, R, S, stride, pad, groups)."""
    N, C, H, W, K, R, S, stride, pad, groups = shape
    sides = ((pad, pad), (pad, pad))
    g = Geometry(N, C, H, W, K, R, S, (stride, stride), sides, (dilation, dilation), groups)
    name = f"{suite}-{C}x{H}x{W}-{K}-{R}x{S}"
    name += f"-s{stride}" * (stride > 1) + f"-d{dilation}" * (dilation > 1)
    return Workload(name, suite, g, dtypes, tags=(_kind(g),), priority=priority)


def _kind(g: Geometry) -> str:
    if g.groups > 1:
        return "depthwise" if g.group_C == 1 else "grouped"
    return "pointwise" if (g.R, g.S) == (1, 1) else "dense"


def _image(
    name: str,
    geometry: Geometry,
    priority: int,
    *,
    dtypes: tuple[str, ...] = _IMAGES,
    ops: tuple[str, ...] = ("fprop",),
    shared: bool = False,
) -> Workload:
    tags = ["image"]
    tags += ["per_sample"] * geometry.per_sample
    tags += ["padding_mode"] * (geometry.padding_mode != "zeros")
    name, labels = f"images-{name}", tuple(tags)
    return Workload(
        name, "images", geometry, dtypes, ops, shared=shared, tags=labels, priority=priority
    )


def _kernelbench(
    number: str,
    x: tuple[int, int, int, int],
    filters: int,
    window: tuple[int, int],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    depthwise: bool = False,
    bias: bool = False,
) -> Workload:
    N, C, H, W = x
    sides = ((padding[0],) * 2, (padding[1],) * 2)
    groups = C if depthwise else 1
    g = Geometry(N, C, H, W, filters, *window, (stride, stride), sides, dilation, groups)
    name = f"kernelbench-{number}"
    tags = (_kind(g),)
    return Workload(name, "kernelbench", g, ("tf32",), ("fprop",), bias, tags=tags, priority=0)


def _transposed(
    number: int,
    x: tuple[int, int, int, int],
    filters: int,
    window: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Workload:
    """A transposed convolution: its input is our gradient of the output, its output our dx."""
    N, K, P, Q = x
    H, W = (
        (out - 1) * s - 2 * pad + d * (taps - 1) + 1
        for out, s, pad, d, taps in zip((P, Q), stride, padding, dilation, window, strict=True)
    )
    pads = ((padding[0],) * 2, (padding[1],) * 2)
    g = Geometry(N, filters, H, W, K, *window, stride, pads, dilation, groups)
    name = f"kernelbench-{number}-transposed"
    return Workload(
        name, "kernelbench", g, ("tf32",), ("dgrad",), tags=("transposed", _kind(g)), priority=1
    )


def _epilogue(shape: tuple[int, ...], activation: str, priority: int) -> Workload:
    """A layer's forward pass with its bias and activation, shape as for `_conv`."""
    layer = _conv("epilogue", shape, _DENSE, priority)
    return replace(
        layer,
        name=f"{layer.name}-{activation}",
        dtypes=("bfloat16", "float16"),
        ops=("fprop",),
        bias=True,
        activation=activation,
        tags=(*layer.tags, "epilogue"),
    )


def _filter(size: int, R: int, S: int, padding_mode: str = "zeros") -> Geometry:
    """One image under a window that keeps its size; an even window has its odd zero at the end."""
    pads = ((R - 1) // 2, R // 2), ((S - 1) // 2, S // 2)
    return Geometry(1, 1, size, size, 1, R, S, padding=pads, padding_mode=padding_mode)


_SAME = ((1, 1), (1, 1))

WORKLOADS: tuple[Workload, ...] = (
    # resnet50: the stem, the 3x3 of every stage, two pointwise ones.
    _conv("resnet50", (32, 64, 56, 56, 64, 3, 3, 1, 1, 1), _DENSE, 0),
    _conv("resnet50", (32, 256, 14, 14, 256, 3, 3, 1, 1, 1), _DENSE, 0),
    _conv("resnet50", (32, 3, 224, 224, 64, 7, 7, 2, 3, 1), _DENSE, 0),
    _conv("resnet50", (32, 64, 56, 56, 256, 1, 1, 1, 0, 1), _DENSE, 0),
    _conv("resnet50", (32, 128, 56, 56, 128, 3, 3, 2, 1, 1), _DENSE, 1),
    _conv("resnet50", (32, 128, 28, 28, 128, 3, 3, 1, 1, 1), _DENSE, 1),
    _conv("resnet50", (32, 512, 7, 7, 512, 3, 3, 1, 1, 1), _DENSE, 1),
    _conv("resnet50", (32, 256, 56, 56, 512, 1, 1, 2, 0, 1), _DENSE, 1),
    _conv("convnext-t", (64, 96, 56, 56, 96, 7, 7, 1, 3, 96), _DEPTHWISE, 0),
    _conv("convnext-t", (64, 768, 7, 7, 768, 7, 7, 1, 3, 768), _DEPTHWISE, 0),
    _conv("convnext-t", (64, 192, 28, 28, 192, 7, 7, 1, 3, 192), _DEPTHWISE, 1),
    _conv("convnext-t", (64, 384, 14, 14, 384, 7, 7, 1, 3, 384), _DEPTHWISE, 1),
    _conv("convnext-t", (64, 3, 224, 224, 96, 4, 4, 4, 0, 1), _DENSE, 1),
    _conv("convnext-t", (64, 96, 56, 56, 192, 2, 2, 2, 0, 1), _DENSE, 1),
    _conv("mobilenet-v2", (64, 144, 56, 56, 144, 3, 3, 1, 1, 144), _DEPTHWISE, 0),
    _conv("mobilenet-v2", (64, 96, 112, 112, 96, 3, 3, 2, 1, 96), _DEPTHWISE, 0),
    _conv("mobilenet-v2", (64, 32, 112, 112, 32, 3, 3, 1, 1, 32), _DEPTHWISE, 1),
    _conv("mobilenet-v2", (64, 384, 14, 14, 384, 3, 3, 1, 1, 384), _DEPTHWISE, 1),
    _conv("mobilenet-v2", (64, 960, 7, 7, 960, 3, 3, 1, 1, 960), _DEPTHWISE, 1),
    _conv("sd-unet", (2, 320, 64, 64, 320, 3, 3, 1, 1, 1), _DENSE, 0),
    _conv("sd-unet", (2, 640, 32, 32, 640, 3, 3, 1, 1, 1), _DENSE, 1),
    _conv("sd-unet", (2, 1280, 16, 16, 1280, 3, 3, 1, 1, 1), _DENSE, 1),
    _conv("sd-unet", (2, 4, 64, 64, 320, 3, 3, 1, 1, 1), _DENSE, 1),
    _conv("sd-unet", (2, 320, 64, 64, 320, 3, 3, 2, 1, 1), _DENSE, 1),
    _conv("replknet", (32, 128, 56, 56, 128, 31, 31, 1, 15, 128), ("bfloat16", "tf32"), 1),
    _conv("replknet", (32, 1024, 7, 7, 1024, 13, 13, 1, 6, 1024), ("bfloat16", "tf32"), 1),
    _conv("replknet", (32, 256, 28, 28, 256, 29, 29, 1, 14, 256), ("bfloat16", "tf32"), 2),
    _conv("replknet", (32, 512, 14, 14, 512, 27, 27, 1, 13, 512), ("bfloat16", "tf32"), 2),
    # Images: filters, and what learning a kernel from an image needs.
    _image("4096-3x3", _filter(4096, 3, 3), 0, ops=OPS),
    _image("4096-7x7", _filter(4096, 7, 7), 0),
    _image("4096-31x31", _filter(4096, 31, 31), 0),
    _image("8192-7x7", _filter(8192, 7, 7), 0, dtypes=("float32", "bfloat16"), ops=("wgrad",)),
    _image("4096-1x2", _filter(4096, 1, 2), 1),
    _image("4096-2x1", _filter(4096, 2, 1), 1),
    _image("4096-5x5", _filter(4096, 5, 5), 1),
    _image("4096-9x9", _filter(4096, 9, 9), 1),
    _image("4096-15x15", _filter(4096, 15, 15), 1),
    _image("64x1024-3x3", Geometry(64, 1, 1024, 1024, 1, 3, 3, padding=_SAME), 1, ops=OPS),
    _image(
        "4k-5x5-shared",
        Geometry(1, 3, 2160, 3840, 3, 5, 5, padding=((2, 2), (2, 2)), groups=3),
        1,
        shared=True,
    ),
    # Padding modes, beside the same with zeros above.
    _image("4096-3x3-reflect", _filter(4096, 3, 3, "reflect"), 0, dtypes=_IMAGES[:2]),
    _image("4096-7x7-reflect", _filter(4096, 7, 7, "reflect"), 0, dtypes=_IMAGES[:2]),
    _image("4096-3x3-replicate", _filter(4096, 3, 3, "replicate"), 1, dtypes=_IMAGES[:2]),
    _image("4096-3x3-circular", _filter(4096, 3, 3, "circular"), 1, dtypes=_IMAGES[:2]),
    _image("1024-3x3-two", Geometry(1, 1, 1024, 1024, 2, 3, 3, padding=_SAME), 1),
    _image(
        "64x3x512-5x5-per-sample",
        Geometry(64, 3, 512, 512, 3, 5, 5, padding=((2, 2), (2, 2)), groups=3, per_sample=True),
        0,
        dtypes=("float32", "bfloat16"),
    ),
    _image("6x8-1x2", Geometry(1, 1, 6, 8, 1, 1, 2), 0, dtypes=("float32",), ops=OPS),
    # Layers whole: what a library without an epilogue writes and reads once more.
    _epilogue((32, 64, 56, 56, 64, 3, 3, 1, 1, 1), "relu", 0),
    _epilogue((64, 96, 56, 56, 384, 1, 1, 1, 0, 1), "gelu", 0),
    _epilogue((32, 256, 14, 14, 256, 3, 3, 1, 1, 1), "relu", 1),
    _epilogue((2, 320, 64, 64, 320, 3, 3, 1, 1, 1), "silu", 1),
    _kernelbench("50", (256, 3, 224, 224), 96, (11, 11), stride=4, padding=(2, 2), bias=True),
    _kernelbench("55", (8, 64, 512, 1024), 128, (3, 3)),
    _kernelbench("56", (8, 64, 512, 256), 128, (5, 7)),
    _kernelbench("62", (8, 32, 512, 512), 64, (5, 9)),
    _kernelbench("63", (16, 16, 1024, 1024), 128, (3, 3)),
    _kernelbench("80", (8, 32, 512, 512), 64, (5, 9), padding=(2, 4), dilation=(2, 3)),
    _kernelbench("82", (16, 64, 512, 512), 64, (3, 3), depthwise=True),
    _kernelbench("83", (64, 8, 512, 512), 8, (3, 1), depthwise=True),
    _kernelbench("84", (64, 128, 256, 512), 128, (3, 3), depthwise=True),
    _kernelbench("85", (32, 128, 128, 256), 128, (3, 7), depthwise=True),
    # Problem 86 is these two, one after the other.
    _kernelbench("86-depthwise", (16, 64, 512, 512), 64, (3, 3), padding=(1, 1), depthwise=True),
    _kernelbench("86-pointwise", (16, 64, 512, 512), 128, (1, 1)),
    _kernelbench("87", (16, 64, 1024, 1024), 128, (1, 1)),  # 2**31 outputs
    _transposed(57, (8, 64, 1024, 1024), 64, (3, 3)),
    _transposed(65, (8, 64, 512, 512), 64, (3, 7)),
    _transposed(69, (64, 64, 128, 256), 128, (3, 5)),
    _transposed(71, (8, 32, 512, 1024), 32, (3, 3)),
    _transposed(
        75, (16, 32, 128, 256), 64, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(2, 1), groups=4
    ),
    _transposed(78, (8, 32, 512, 1024), 32, (3, 7), padding=(1, 3)),
    _transposed(81, (16, 32, 64, 128), 64, (3, 3), stride=(5, 5), padding=(1, 1), dilation=(2, 2)),
    # Odd: nothing divides; a cliff of cuDNN's; groups of four; gaps.
    _conv("odd", (8, 67, 55, 57, 71, 3, 3, 1, 1, 1), _DENSE, 2),
    _conv("odd", (64, 128, 513, 513, 128, 3, 3, 2, 0, 1), ("bfloat16",), 3),
    _conv("odd", (32, 128, 56, 56, 128, 3, 3, 1, 1, 32), _DENSE, 2),
    _conv("odd", (8, 64, 64, 64, 64, 3, 3, 1, 2, 1), _DENSE, 2, dilation=2),
)

#: Workloads whose gradients are also measured together.
_BOTH = {
    "images-4096-3x3",
    "images-64x1024-3x3",
    "mobilenet-v2-144x56x56-144-3x3",
    "mobilenet-v2-384x14x14-384-3x3",
    "mobilenet-v2-96x112x112-96-3x3-s2",
}
WORKLOADS = tuple(replace(w, ops=ALL_OPS) if w.name in _BOTH else w for w in WORKLOADS)

SUITES = tuple(dict.fromkeys(w.suite for w in WORKLOADS))
BY_NAME = {w.name: w for w in WORKLOADS}


def regime(workload: Workload) -> str:
    """Workloads of one regime are bound by the same: kind, and size of the window."""
    g = workload.geometry
    special = [t for t in ("per_sample", "padding_mode", "epilogue") if t in workload.tags]
    taps = max(g.R, g.S)
    window = "point" if taps == 1 else "small" if taps <= 7 else "large"
    channels = "few" if min(g.group_C, g.group_K) < 16 < max(g.group_C, g.group_K) else ""
    strided = "strided" if max(g.given_stride) > 1 else ""
    base = "kernelbench" if workload.suite == "kernelbench" else workload.tags[0]
    return " ".join(filter(None, ([*special, base][0], window, channels, strided)))


def find(name: str) -> Workload:
    """The workload of that name, scaled down where the name ends in "-small".

    Raises:
        KeyError: there is none.
    """
    base = name.removesuffix("-small")
    return BY_NAME[base].scaled() if base != name else BY_NAME[name]


def known(name: str) -> Workload | None:
    """The same, or None if there is none."""
    return find(name) if name.removesuffix("-small") in BY_NAME else None


def select(suites: Iterable[str] = ()) -> list[Workload]:
    """The workloads of these suites, of all if none is named."""
    chosen = set(suites) or set(SUITES)
    return [w for w in WORKLOADS if w.suite in chosen]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", nargs="+", default=[], choices=SUITES, metavar="SUITE")
    parser.add_argument("--small", action="store_true", help="scaled down, as on a CPU")


def main(options: argparse.Namespace) -> int:
    for workload in select(options.suite):
        item = workload.scaled() if options.small else workload
        kinds = f"{','.join(item.ops)} {','.join(item.dtypes)}" + " with bias" * item.bias
        kinds += f" and {item.activation}" * (item.activation != "none")
        print(f"{item.name:44} {item.priority} {item.geometry.flops / 1e9:9.3f} GFLOP  {kinds}")
        print(f"    {item.geometry}")
    return 0
