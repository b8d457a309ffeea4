"""LearnedKernel, the result of learning: predict, difference, save and load, plot, layer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from ..autograd.functional import convolve2d, corr2d
from ..autograd.modules import Conv2D, PaddingMode
from ..images.output import StrPath
from ..ops import ArgumentError, as_padding, fourier, geometry_of
from ..ops.arguments import Pair
from .background import Background, Place
from .data import as_data, as_variance
from .kernel_files import check_kernel_name, read_kernel, write_kernel
from .options import Settings
from .pairs import four_dimensional, padded_image
from .problem import Point
from .quality import Examination, Quality

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LearnedKernel:
    """Result of learn_kernel and KernelAccumulator.solve.

    Attributes:
        weight: (R, S) for plain images, else (K, C/groups, R, S).
        bias: (K,), the constant that is added to each filter's output; None for a fit without one.
        background: (K, T), the coefficients of the polynomials in `learning/background.py`, of
            which the first is the bias; None unless the background has an order of 1 or more.
        history: the loss before each step.
        loss: of this kernel: the (weighted) sum of squared errors plus the penalties, or the
            value of the user's loss.
        residual: prediction minus target, shaped as the fitted part of the target, a list
            for several pairs. It includes values that masks leave out (zero if not finite).
            None after streaming, which keeps no images.
        solver: "gd", "cg", "normal", or an optimiser's name.
        reason: why this solver, and other automatic choices.
        step_size: the step that gradient descent used, None for other solvers.
        max_step_size: gradient descent diverges from this step on; None for other solvers.
        examination: what `quality` is read from.
        padding, padding_mode, groups, flip, stride: of the fit; flip is strict convolution.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    background: torch.Tensor | None
    history: list[float]
    loss: float
    residual: torch.Tensor | list[torch.Tensor] | None
    solver: str
    reason: str
    step_size: float | None
    max_step_size: float | None
    examination: Examination = field(repr=False, compare=False)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    padding_mode: PaddingMode = "zeros"
    groups: int = 1
    flip: bool = False
    stride: Pair = (1, 1)

    @classmethod
    def of(cls, point: Point, settings: Settings, plain: bool, **facts: Any) -> LearnedKernel:
        """A kernel in the user's layout, from a point in the space of the unknowns.

        Args:
            point: its weight is that of a cross-correlation.
            settings: of the fit.
            plain: whether the images were (H, W).
            **facts: the other attributes.
        """
        weight, background = point.weight, point.background
        if settings.flip:
            weight = weight.flip(-2, -1)
        terms = background.shape[1]
        return cls(
            weight=weight[0, 0] if plain else weight,
            bias=background[:, 0].clone() if terms else None,
            background=background if terms > 1 else None,
            padding=settings.padding or ((0, 0), (0, 0)),
            padding_mode=settings.padding_mode,
            groups=settings.groups,
            flip=settings.flip,
            stride=settings.stride,
            **facts,
        )

    @property
    def quality(self) -> Quality:
        """How far the kernel can be trusted, computed when first read."""
        return self.examination.quality

    @property
    def notes(self) -> list[str]:
        """Warnings for the user."""
        return self.quality.notes

    @property
    def rms(self) -> float:
        """Root of the (weighted) mean squared error, in the units of y."""
        return self.quality.rms

    @property
    def undetermined(self) -> int | None:
        """Number of a filter's unknowns that the images do not determine; None if not examined."""
        return self.quality.undetermined

    @property
    def condition(self) -> float | None:
        """Largest over smallest eigenvalue of the normal matrix; None if not examined."""
        return self.quality.condition

    @property
    def rejected(self) -> torch.Tensor | list[torch.Tensor] | None:
        """Which values of y were left out, bool, shaped as `residual`; None after streaming.

        Values are left out by a mask, NaN, an unknown pixel of x, or loss="tukey".
        """
        if self.residual is None:
            return None
        single = isinstance(self.residual, torch.Tensor)
        shapes = [self.residual] if isinstance(self.residual, torch.Tensor) else self.residual
        maps = [
            torch.zeros_like(shown, dtype=torch.bool)
            if weights is None
            else (weights == 0).expand_as(image).reshape(shown.shape)
            for shown, (image, weights) in zip(shapes, self.quality.residual, strict=True)
        ]
        return maps[0] if single else maps

    @overload
    def predict(
        self, x: torch.Tensor, *, padding: Any = ..., origin: Pair = ..., size: Pair | None = ...
    ) -> torch.Tensor: ...

    @overload
    def predict(
        self, x: Any, *, padding: Any = ..., origin: Pair = ..., size: Pair | None = ...
    ) -> Any: ...

    def predict(
        self, x: Any, *, padding: Any = None, origin: Pair = (0, 0), size: Pair | None = None
    ) -> Any:
        """The cross-correlation of x with the kernel, plus the background, with the fit's padding.

        Args:
            x: (H, W), (C, H, W) or (N, C, H, W): a tensor, an array, or an Astropy image.
            padding: instead of the fit's; 0 for a piece from the inside of a larger image.
            origin: (row, column) of the first output pixel, if x is a piece of a larger image.
                Only a polynomial background depends on it.
            size: (rows, columns) of the larger image's output; by default that of this output.

        Returns:
            (P, Q), (K, P, Q) or (N, K, P, Q), in the weight's dtype: a tensor for a tensor, else an
            array.
        """
        if not isinstance(x, torch.Tensor):
            x = as_data("x", x).values.to(self.weight.device)
            return self.predict(x, padding=padding, origin=origin, size=size).numpy(force=True)
        x = x.to(self.weight)
        y = self._output(x, self.padding if padding is None else padding)
        extent = (y.shape[-2], y.shape[-1])
        surface = self.surface(extent, origin, size or extent)
        if surface is None:
            return y
        return y + (surface if y.dim() > 2 else surface[0])

    def surface(self, extent: Pair, origin: Pair, size: Pair) -> torch.Tensor | None:
        """The polynomial background without its constant, which is the bias: (K, rows, columns).

        Args:
            extent: (rows, columns) of the result.
            origin: (row, column) of its first pixel in the image that the polynomials span.
            size: (rows, columns) of that image.

        Returns:
            The sum of the polynomials; None for a kernel without any.
        """
        if self.background is None:
            return None
        coefficients = self.background.clone()
        coefficients[:, 0] = 0
        order = round((2 * coefficients.shape[1] + 0.25) ** 0.5 - 1.5)
        return Background(order).evaluate(coefficients, extent, Place(origin, size))

    def _output(self, x: torch.Tensor, padding: Any) -> torch.Tensor:
        """The kernel's output, with its bias."""
        window = (self.weight.shape[-2], self.weight.shape[-1])
        filters = self.weight.shape[0] if self.weight.dim() == 4 else 1
        channels = x.shape[-3] if x.dim() > 2 else 1
        transforms = fourier.pays(window, channels, filters, self.groups)
        if x.device.type != "cpu" or x.requires_grad or self.stride != (1, 1) or not transforms:
            function = convolve2d if self.flip else corr2d
            return function(
                x,
                self.weight,
                self.bias,
                stride=self.stride,
                padding=padding,
                groups=self.groups,
                padding_mode=self.padding_mode,
            )
        weight = four_dimensional(self.weight.flip(-2, -1) if self.flip else self.weight)
        images, sides = four_dimensional(x), as_padding(padding, window)
        geometry_of(tuple(images.shape), tuple(weight.shape), padding=sides, groups=self.groups)
        y = fourier.correlate(padded_image(images, sides, self.padding_mode), weight, self.groups)
        if self.bias is not None:
            y += self.bias[:, None, None]
        return y[(0,) * (4 - x.dim())]

    def difference(
        self, x: Any, y: Any, *, x_variance: Any = None, y_variance: Any = None
    ) -> tuple[Any, Any]:
        """y minus its prediction, and the variance of that difference from the noise of y and x.

        Args:
            x, y: images as for learn_kernel, of equal rank; y of the size of the output or,
                without padding, of x.
            x_variance, y_variance: of their noise, maps or numbers; None for zero.

        Returns:
            (difference, variance), each of the output's size; arrays for an array. NaN where y is
            masked or NaN.

        Raises:
            ArgumentError: sizes that do not fit together, or a negative variance.
        """
        given_y = as_data("y", y)
        of_x, of_y = as_data("x", x).values, given_y.values.to(self.weight)
        prediction = self.predict(of_x)
        if given_y.good is not None:
            of_y = of_y.masked_fill(~given_y.good, math.nan)
        target = self._cropped(of_y, prediction)
        variance = torch.zeros_like(target)
        if x_variance is not None:
            squares = replace(self, weight=self.weight.square(), bias=None, background=None)
            variance += squares.predict(as_variance("x_variance", x_variance, of_x)).clamp(min=0)
        if y_variance is not None:
            given = as_variance("y_variance", y_variance, of_y).to(self.weight)
            variance += self._cropped(given, prediction)
        found = target - prediction, variance
        if isinstance(y, torch.Tensor):
            return found
        return found[0].numpy(force=True), found[1].numpy(force=True)

    def _cropped(self, y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The part of y, which may have x's size, that full windows predict."""
        (R, S), (P, Q) = self.weight.shape[-2:], like.shape[-2:]
        unpadded = self.padding == ((0, 0), (0, 0)) and self.stride == (1, 1)
        if unpadded and y.shape[-2:] == (P + R - 1, Q + S - 1) != (P, Q):
            top, left = (R - 1) // 2, (S - 1) // 2
            y = y[..., top : top + P, left : left + Q]
        if y.shape != like.shape:
            raise ArgumentError(
                f"y must have shape {tuple(like.shape)}, as the prediction, got {tuple(y.shape)}"
            )
        return y

    def conv2d(self, *, background: bool = True) -> Conv2D:
        """The kernel as a layer, with its bias.

        Args:
            background: False leaves out bias and polynomial background; a layer has no polynomials.

        Raises:
            ArgumentError: the background is a polynomial.
        """
        if background and self.background is not None:
            raise ArgumentError(
                "a layer has no polynomial background: conv2d(background=False) leaves it out"
            )
        bias = self.bias if background else None
        weight = self.weight.flip(-2, -1) if self.flip else self.weight
        options: dict[str, Any] = {
            "kernel_size": tuple(weight.shape[-2:]),
            "padding": self.padding,
            "padding_mode": self.padding_mode,
            "stride": self.stride,
            "bias": bias is not None,
            "device": weight.device,
            "dtype": weight.dtype,
        }
        if weight.dim() == 4:
            options |= {
                "in_channels": weight.shape[1] * self.groups,
                "out_channels": weight.shape[0],
                "groups": self.groups,
            }
        layer = Conv2D(**options)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    def save(self, path: StrPath) -> None:
        """Writes the kernel to a file; after an error there is no partial file.

        Args:
            path: ends in .npy (the weight), .npz (weight, bias, background, history and standard
                error) or .fits (the weight, the others as extensions; needs astropy).

        Raises:
            ArgumentError: another ending.
            ModuleNotFoundError: .fits without astropy.
        """
        suffix = check_kernel_name(path)
        arrays, cards = self._arrays(), self.cards()
        if suffix == ".npz":
            facts = json.dumps({name: value for name, (value, _) in cards.items()})
            arrays["cards"] = np.array(facts)
        write_kernel(path, suffix, arrays, cards)

    @classmethod
    def load(cls, path: StrPath) -> LearnedKernel:
        """Reads a file of `save`, without residual; a .npy file has only the weight.

        Args:
            path: .npy, .npz or .fits.

        Raises:
            ArgumentError: another ending, a damaged file, or no kernel in it.
            OSError, ModuleNotFoundError: a missing file; .fits without astropy.
        """
        arrays, cards = read_kernel(path)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
        sides = [int(n) for n in str(cards.get("PADDING", "0,0,0,0")).split(",")]
        down, across = (int(n) for n in str(cards.get("STRIDE", "1,1")).split(","))
        rms, pixels = float(cards.get("RMS", math.nan)), int(cards.get("NPIXELS", 0))
        quality = Quality.of_a_file(tensors["weight"], rms, pixels, tensors.get("standard_error"))
        return cls(
            weight=tensors["weight"],
            bias=tensors.get("bias"),
            background=tensors.get("background"),
            history=arrays["history"].tolist() if "history" in arrays else [],
            loss=float(cards.get("LOSS", math.nan)),
            residual=None,
            solver=str(cards.get("SOLVER", "unknown")),
            reason="read from a file",
            step_size=None,
            max_step_size=None,
            examination=Examination.done(quality),
            padding=((sides[0], sides[1]), (sides[2], sides[3])),
            padding_mode=cards.get("PADMODE", "zeros"),
            groups=int(cards.get("GROUPS", 1)),
            flip=bool(cards.get("FLIP", False)),
            stride=(down, across),
        )

    def plot(
        self,
        x: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        *,
        true: torch.Tensor | None = None,
    ) -> Figure:
        """A picture of the fit; without images, of the kernel alone. Needs matplotlib.

        See `tricorr.images.plots.plot_learned` and `plot_kernel`.
        """
        from ..images.plots import plot_kernel, plot_learned

        if x is None or y is None:
            return plot_kernel(self, true=true)
        return plot_learned(x, y, self, true=true)

    def __str__(self) -> str:
        window = "x".join(map(str, self.weight.shape))
        steps = f"{len(self.history)} step{'s' * (len(self.history) != 1)}"
        lines = [
            f"kernel {window} by {self.solver}, {steps}, "
            f"loss {self.loss:.6g}, RMS error {self.rms:.3g}"
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def __repr__(self) -> str:
        """As str, followed by the kernel if it is small."""
        shown = [repr(self.weight)] if self.weight.numel() <= 7 * 7 else []
        return "\n".join([str(self), *shown])

    def _repr_png_(self) -> bytes | None:
        """The picture for a notebook; None for kernels with channels or without matplotlib."""
        import io
        from importlib.util import find_spec

        if self.weight.dim() != 2 or find_spec("matplotlib") is None:
            return None
        picture = io.BytesIO()
        self.plot().savefig(picture, format="png", dpi=80)
        return picture.getvalue()

    def _arrays(self) -> dict[str, Any]:
        tensors = {
            "weight": self.weight,
            "bias": self.bias,
            "background": self.background,
            "standard_error": self.quality.standard_error,
        }
        arrays = {k: t.numpy(force=True) for k, t in tensors.items() if t is not None}
        return arrays | {"history": np.array(self.history, dtype=np.float64)}

    def cards(self) -> dict[str, tuple[Any, str]]:
        """Facts about the fit for a FITS header: keyword to (value, comment)."""
        (top, bottom), (left, right) = self.padding
        return {
            "SOLVER": (self.solver, "how the kernel was found"),
            "LOSS": (self.loss, "what was minimised"),
            "RMS": (self.rms, "root mean squared error"),
            "NPIXELS": (self.quality.pixels, "target values fitted"),
            "FLIP": (self.flip, "strict convolution, not correlation"),
            "PADDING": (f"{top},{bottom},{left},{right}", "top, bottom, left, right"),
            "PADMODE": (self.padding_mode, "what the padding holds"),
            "GROUPS": (self.groups, "channel groups"),
            "STRIDE": (f"{self.stride[0]},{self.stride[1]}", "rows and columns between windows"),
        }
