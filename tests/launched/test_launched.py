"""Launches through Triton's JIT, launcher and tensor maps, on a stub of CUDA's driver, without GPU.

They show that every launch is legal, that launches of equal calls differ in addresses only, and
that nothing is compiled twice. They do not show that kernels compute the right numbers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched_calls import CALLS
from stub_driver import build

pytestmark = pytest.mark.launched
HERE = Path(__file__).parent
#: Names of checks in launched_checks.py, which only the server may import, as it imports triton.
CHECKS = [
    "launches go past the JIT",
    "hooks",
    "hooks of the kernel",
    "debug",
    "streams",
    "devices",
    "tensor maps are bounded",
    "another batch",
    "unknown versions",
    "refusals",
    "planted faults",
]
#: Calls whose kernels are compiled, to check registers and shared memory; they launch all kernels.
COMPILED = {
    "plain fp32 one NCHW": {"fprop_rows"},
    "large depthwise zeros": {"backward_rows", "sum_partials"},
    "large depthwise reflect": {"wgrad_rows"},
    "large depthwise input gradient": {"dgrad_rows"},
    "narrow bf16": {"fprop_spread", "wgrad_spread"},
    "padding mode reflect few": {"fprop_gemm", "fprop_columns", "dgrad_frame_stencil"},
    "padding mode circular many": {"copy_images", "dgrad_gemm", "dgrad_frame_gemm", "wgrad_gemm"},
    "module ConvTranspose2D": {"dgrad_stencil", "wgrad_stencil"},
    "filter gaussian_blur torch.float32": {"fprop_stencil"},
    "large dense bf16 channels_last": {"fprop_reuse", "wgrad_reuse"},
    "planes bf16": {"fprop_planes"},
    "planes tf32": {"fprop_planes"},
    "large stride 2 bf16 channels_last": {"fprop_tma", "dgrad_tma", "wgrad_reuse"},
    "large odd height, stride 2 bf16 channels_last": {"wgrad_tma"},
    "large dense tf32 channels_last": {"copy_flat", "wgrad_flat"},
    "large groups tf32 NCHW": {"wgrad_planes"},
    "patches bf16 NCHW": {"copy_patches"},
    "few channels bf16": {"wgrad_patch"},
    "few filters bf16": {"fprop_strip", "wgrad_shifted"},
    "random 10 fprop half channels_last": {"fprop_patch", "build_patch_weight"},
    "large window fp64": {"wgrad_columns"},
    "large window half": {"build_lines", "fprop_resident", "wgrad_banded"},
    "large window tf32": {"build_lines", "fprop_resident"},
    "large window tf32x3": {"build_bands", "fprop_banded"},
    "large window, input gradient of channels_last": {"copy_images", "fprop_resident"},
    "lag sums": {"lag_sums"},
    "separable window": {"fprop_separable"},
}


class Server:
    """A process that runs launch_server.py."""

    def __init__(self, library: Path, mode: str, cache: Path) -> None:
        environment = dict(os.environ, TRITON_CACHE_DIR=str(cache))
        environment.pop("TRITON_INTERPRET", None)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "launch_server.py"), str(library), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._answer()

    def ask(self, kind: str, name):
        print(json.dumps([kind, name]), file=self._process.stdin, flush=True)
        return json.loads(self._answer())

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the stub's process ended: exit code {self._process.wait()}")
        return line

    def close(self) -> None:
        self._process.communicate(timeout=60)  # the process ends at the end of its input


@pytest.fixture(scope="module")
def start(request):
    """Returns a function that starts a server in a mode, "uncompiled" or "compiled"."""
    if sys.platform != "linux":
        pytest.skip("the stub is a Linux library")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: its driver is loaded")
    cache = request.config.cache.mkdir("launched")
    try:
        library = build(cache)
    except RuntimeError as error:
        pytest.skip(str(error))
    servers = {}

    def start(mode):
        if mode not in servers:
            servers[mode] = Server(library, mode, cache)
        return servers[mode]

    yield start
    for server in servers.values():
        server.close()


@pytest.mark.parametrize("name", CALLS)
def test_launches_are_legal_and_the_same_with_other_tensors(name, start):
    report = start("uncompiled").ask("call", name)
    assert report["problems"] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_drawn_calls_are_launched_alike(seed, start):
    assert start("uncompiled").ask("drawn", seed) == {}


@pytest.mark.parametrize("name", CHECKS)
def test_launches_without_the_jit_are_right(name, start):
    assert start("uncompiled").ask("check", name) == ""


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_kernels_fit_the_device(name, start):
    report = start("compiled").ask("call", name)
    assert report["problems"] == []
    assert COMPILED[name] <= set(report["kernels"])
    assert 0 < report["registers"] <= 255
    assert report["shared"] <= 232448


def test_a_launch_finds_a_kernel_built_ahead_of_time(start):
    assert start("compiled").ask("check", "built ahead of time") == ""


def test_every_kernel_is_compiled_above():
    from tricorr import kernels

    names = {name for name in kernels.__all__ if hasattr(getattr(kernels, name), "arg_names")}
    assert set().union(*COMPILED.values()) == names
