"""What torch.utils.flop_counter.FlopCounterMode counts for the three operators.

PyTorch's counter imports Triton, which `import tricorr` does not do. So these formulas register
themselves with `import tricorr` when the counter was imported before. A FlopCounterMode takes the
formulas that it finds when it is made: one made before gets them at our first call that it sees.

Two for each multiply-accumulate, taps in the padding included, as PyTorch counts its convolution.
As there, a bias counts nothing: neither its addition nor its gradient, which is a weight gradient
on an image of ones. In the weight gradient of grouped channels PyTorch counts every pair of an
input and an output channel, also those of different groups; here only what is multiplied.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from .schema import geometry_of_call


def _count(name: str, *arguments: Any, out_val: Any = None) -> int:
    geometry = geometry_of_call(name, arguments)
    one_tap = geometry.R * geometry.S * geometry.group_C == 1
    if name == "wgrad" and one_tap and not any(arguments[0].stride()):
        return 0  # one pixel for all of the image: the ones of a bias
    return geometry.flops


_FORMULAS = {
    getattr(torch.ops.tricorr, name): partial(_count, name) for name in ("fprop", "dgrad", "wgrad")
}
for _operator, _formula in _FORMULAS.items():
    register_flop_formula(_operator, get_raw=True)(_formula)


def tell_counters() -> None:
    """Gives the formulas to the counters that listen now and do not have them."""
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            counter.flop_registry = {**_FORMULAS, **counter.flop_registry}
