"""The simulator notices changes to the PTX of working kernels."""
# mypy: ignore-errors

import re

import numpy as np
import pytest

from simulator import Fault, Memory, Unsupported, kernel
from simulator.compiler import build, mended
from simulator.test_instructions import (
    ADD,
    add,
    build_through_boxes,
    matmul,
    run,
    run_through_boxes,
)
from tricorr.kernels.versions import BEFORE_3_7

K = 128


@pytest.fixture(scope="module", params=[80, 90], ids=["sm_80", "sm_90"])
def product(request):
    """(architecture, PTX, bytes of shared memory) of a pipelined product."""
    signature = {"a": "*fp16", "b": "*fp16", "c": "*fp32", "K": "i32"}
    sizes = {"M": 64, "N": 64, "BLOCK_K": 32}
    options = {"TA": False, "TB": False, "PRECISION": "ieee", **sizes}
    compiled = build(
        matmul, request.param, signature, options, tuple(signature), num_warps=4, num_stages=3
    )
    ptx = compiled.asm["ptx"]
    return request.param, mended(ptx) if BEFORE_3_7 else ptx, compiled.metadata.shared


def outcome(ptx, shared):
    """The text "right" or "wrong", or the message of the fault."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, s).astype(np.float16) for s in ((64, K), (K, 64)))
    c = np.zeros((64, 64), np.float32)
    try:
        run(ptx, shared, 1, [(a, False), (b, False), (c, True), K])
    except Fault as fault:
        return str(fault)
    return "right" if np.array_equal(c, a.astype(float) @ b.astype(float)) else "wrong"


def variants(ptx, pattern, replacement):
    """Texts in each of which one occurrence of the pattern is replaced."""
    for match in re.finditer(pattern, ptx):
        yield ptx[: match.start()] + match.expand(replacement) + ptx[match.end() :]


def test_undamaged_code_has_no_fault(product):
    _, ptx, shared = product
    assert outcome(ptx, shared) == "right"


#: (name, architectures, pattern, replacement, pattern of the fault's message or "wrong")
DAMAGES = [
    ("barrier", (80, 90), r"bar\.sync\s+0;", "", "race"),
    ("wait", (80, 90), r"cp\.async\.wait_group\s+\d;", "", "on its way|never written"),
    ("early_wait", (80, 90), r"cp\.async\.wait_group\s+2;", "cp.async.wait_group 4;",
     "on its way|never written"),
    ("wait_for_wgmma", (90,), r"wgmma\.wait_group\.sync\.aligned \d;", "", "wgmma in flight"),
    ("fence", (90,), r"fence\.proxy\.async\.shared::cta;", "", "fence.proxy.async"),
    ("ldmatrix_row", (80,), r"(ldmatrix.*\[%r\d+)\]", r"\1+8]", "misaligned"),
    ("store", (80, 90), r"st\.global\.v4\.b32 \[ (%rd\d+) \+ 0", r"st.global.v4.b32 [ \1 + 4",
     "misaligned"),
    ("copy_target", (80, 90), r"(cp\.async\.c[ag]\.shared\.global \[ %r\d+ \+ )0", r"\g<1>4096",
     "race|on its way|never written|wrong|of 24576"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("archs", "pattern", "replacement", "found"),
    [pytest.param(*rest, id=name) for name, *rest in DAMAGES],
)
def test_damage_is_noticed(product, archs, pattern, replacement, found):
    """At least one single change is noticed: some barriers and the last wait are superfluous."""
    arch, ptx, shared = product
    if arch not in archs:
        assert not re.search(pattern, ptx)
        return
    outcomes = [outcome(text, shared) for text in variants(ptx, pattern, replacement)]
    assert outcomes
    assert any(re.search(found, text) for text in outcomes), outcomes


@pytest.mark.parametrize("access", ["ld", "st"])
def test_a_missing_mask_is_noticed(access):
    compiled = build(add, 80, ADD, {"BLOCK": 256})
    x, y, out = np.zeros((3, 250), np.float32)
    arguments = [(x, False), (y, False), (out, True), 250]
    run(compiled.asm["ptx"], 0, 1, arguments)
    with pytest.raises(Fault, match=r"4 bytes at argument \d\+1020 bytes"):
        run(re.sub(rf"@%p\d+ ({access}\.global)", r"\1", compiled.asm["ptx"]), 0, 1, arguments)


def test_an_unknown_opcode_is_named(product):
    _, ptx, shared = product
    damaged = re.sub(r"bar\.sync\s+0;", "tcgen05.fence::after_thread_sync;", ptx, count=1)
    with pytest.raises(Unsupported, match=r"PTX line \d+: tcgen05.fence::after_thread_sync, from"):
        outcome(damaged, shared)


@pytest.fixture(scope="module")
def boxes():
    return build_through_boxes("fp16", 128, 64, 64)


BOX_DAMAGES = [
    ("undamaged", r"\Z", "", "right"),
    ("wait_for_wgmma", r"wgmma\.wait_group\.sync\.aligned 1;", "wgmma.wait_group.sync.aligned 2;",
     "wgmma in flight"),
    ("barrier", r"bar\.sync\s+0;", "", "race|wgmma in flight"),
    ("bytes_expected", r"(expect_tx\S* _, \[%r\d+\]), \d+", r"\1, 16384", "on its way"),
    ("more_bytes_expected", r"(expect_tx\S* _, \[%r\d+\]), \d+", r"\1, 65536", "never completes"),
    ("descriptor", r"4611686293305294848", "4611686293305294849", "wrong|never written"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "replacement", "found"),
    [pytest.param(*rest, id=name) for name, *rest in BOX_DAMAGES],
)
def test_damage_to_boxes_is_noticed(boxes, pattern, replacement, found):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, (n, 64 * 7)).astype(np.float16) for n in (128, 64))
    outcomes = []
    for text in variants(boxes.asm["ptx"], pattern, replacement):
        try:
            c = run_through_boxes(boxes, a, b, (128, 64), ptx=text)
            right = np.array_equal(c, a.astype(float) @ b.astype(float).T)
            outcomes.append("right" if right else "wrong")
        except Fault as fault:
            outcomes.append(str(fault))
    assert outcomes
    assert any(re.search(found, text) for text in outcomes), outcomes


def test_an_endless_loop_is_a_fault(monkeypatch):
    monkeypatch.setattr(kernel, "MOST_BLOCKS", 1000)
    endless = ".visible .entry endless()\n.reqntid 128\n{\n$again:\n\tbra $again;\n}\n"
    with pytest.raises(Fault, match="program 0 of 1: no end after 1000 basic blocks"):
        kernel.Kernel(endless, 0).launch(Memory(), 1, [])
