"""What differs between the versions of Triton that the kernels run under, 3.6 and later."""

import functools

import triton
import triton.language as tl

BEFORE_3_7 = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)

#: Where the compiler sees no runs of addresses along any axis it lays threads along the last one;
#: before Triton 3.7, along the first. See side_by_side in indexing.py.
FIRST_AXIS_WINS = tl.constexpr(BEFORE_3_7)


@functools.cache
def mend_interpreter():
    """Makes range(n) run in the interpreter of Triton 3.6 where the kernel computed n.

    It takes int() of an array with one element, which NumPy has refused since 2.4.
    """
    if not BEFORE_3_7:
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def mended(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda number: number.handle.data.item())

    interpreter._patch_lang_tensor = mended
