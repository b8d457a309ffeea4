"""What differs between the versions of Triton that the kernels run under, 3.6 and later."""

import functools

import triton
import triton.language as tl

BEFORE_3_7 = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)

#: Whether Gluon is as fprop_reuse has it.
HAS_GLUON = (3, 6) <= tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)

#: Where the compiler sees no runs of addresses along any axis it lays threads along the last one;
#: before Triton 3.7, along the first. See side_by_side in indexing.py.
FIRST_AXIS_WINS = tl.constexpr(BEFORE_3_7)


def _omits_fence(_semantic=None):
    """Whether this Triton compiles for sm_90 and leaves out the fence of `fence_copies`."""
    if not BEFORE_3_7 or _semantic is None:  # None: interpreted
        return False
    return getattr(_semantic.builder.options, "arch", None) == "sm90"


_omits_fence.__triton_builtin__ = True


@triton.jit
def fence_copies(operand, PRECISION: tl.constexpr):
    """Makes finished copies to shared memory visible to the next product of `operand`.

    Before Triton 3.7 no fence.proxy.async stands between the wait for cp.async and wgmma (triton
    pull requests 9610 and 10537). Operands that go through registers, as for tf32x3, have their
    fence, and a product without matrix units needs none. On sm_100 the fence is missing as well,
    but Triton 3.6 has no means to put it there: docs/limits.md.
    """
    if _omits_fence() and (PRECISION == "tf32" or operand.dtype.primitive_bitwidth == 16):
        tl.inline_asm_elementwise(
            "fence.proxy.async.shared::cta;\nmov.u32 $0, 0;",
            "=r",
            [],
            tl.int32,
            is_pure=False,
            pack=1,
        )


def _multiplies_by_wgmma(_semantic=None):
    """Whether this is compiled for sm_90."""
    return getattr(getattr(_semantic, "builder", None), "options", None) is not None and (
        getattr(_semantic.builder.options, "arch", None) == "sm90"
    )


_multiplies_by_wgmma.__triton_builtin__ = True


@triton.jit
def finish_products(sums):
    """`sums` of products that come to an end before the loop goes on (sm_90).

    For products whose left operand is in registers: a box of several axes, or converted numbers.
    Triton (3.6, 3.7) loads these registers anew in the loop's next pass while wgmma still reads
    them (triton issue 9433; wrong sums on an H100). It waits where an instruction in the loop uses
    the sums, and this one is empty.
    """
    if _multiplies_by_wgmma():
        sums = tl.inline_asm_elementwise("", "=r,0", [sums], dtype=sums.dtype, is_pure=True, pack=1)
    return sums


@triton.jit
def one_by_one(pointers, offset, PRECISION: tl.constexpr):
    """pointers + offset, of an operand [rows, columns] that is not read along the axis of its sums.

    wgmma takes TF32 only with that axis innermost, so cp.async brings single elements. Threads then
    have neighbouring ones: with runs of four, 32 of a warp are in 4 lines of memory, not one, and
    in 2 banks of shared memory, not 8.
    """
    pointers += offset
    if PRECISION == "tf32" and _multiplies_by_wgmma():
        pointers = tl.multiple_of(pointers, [1, 1])
    return pointers


def is_interpreted():
    """Whether Triton decorated its own functions and the kernels for its interpreter."""
    return not any(isinstance(f, triton.runtime.JITFunction) for f in (tl.cdiv, fence_copies))


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
