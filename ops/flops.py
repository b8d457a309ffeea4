"""What torch.utils.flop_counter.FlopCounterMode counts for the three operators.

`import tricorr` registers these formulas only if the counter was imported before, because importing
it imports Triton. A FlopCounterMode copies the formulas when it is constructed; one that is older
than `import tricorr` is given them at the first call of ours that it sees.

Each multiply-accumulate counts two, taps in the padding included, as PyTorch counts its
convolution. As there, adding a bias and its gradient count nothing. For grouped weight gradients
PyTorch also counts pairs of channels of different groups; here only products that are computed
count.
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
        return 0  # x is an expanded scalar: this is the gradient of a bias
    return geometry.flops


_FORMULAS = {
    getattr(torch.ops.tricorr, name): partial(_count, name) for name in ("fprop", "dgrad", "wgrad")
}
for _operator, _formula in _FORMULAS.items():
    register_flop_formula(_operator, get_raw=True)(_formula)


def tell_counters() -> None:
    """Gives the formulas to active counters that lack them."""
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            counter.flop_registry = {**_FORMULAS, **counter.flop_registry}
