"""Checks that direct launches behave like those by Triton's JIT, and that faults are noticed.

Each function raises AssertionError on failure.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from observer import Observer
from stub_driver import StubDriver
from triton import knobs
from uncompiled import Compilations

import tricorr
from tricorr.ops import geometry_of
from tricorr.ops.launch import compiled, prepared
from tricorr.ops.launch import entry as direct
from tricorr.ops.launch.call import on_device
from tricorr.ops.plan import choose

_CHANNELS_LAST = {"memory_format": torch.channels_last}


def plain(shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """New operands of a call by pointers. No other test has images of this width."""
    return torch.zeros(2, 3, 9, 37 + shift), torch.zeros(4, 3, 3, 3)


def described() -> tuple[torch.Tensor, torch.Tensor]:
    """New operands of a call by tensor maps."""
    x = torch.zeros(32, 64, 64, 64, dtype=torch.float16).to(**_CHANNELS_LAST)
    return x, torch.zeros(64, 64, 3, 3, dtype=torch.float16).to(**_CHANNELS_LAST)


def direct_launches(operands: tuple[torch.Tensor, ...]) -> list[Any]:
    """The direct launches of a prepared call with such operands."""
    prepared.forget_prepared()
    for _ in range(2):
        tricorr.corr2d(*operands)
    (ready,) = prepared._PREPARED.values()
    return [launch.direct for launch in ready._launches]


@contextmanager
def replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, `thing.name` is `value`."""
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)


def past_the_jit(stub: StubDriver, *_: Any) -> None:
    """Both kinds of call are launched by the C launcher; the driver is asked nothing else."""
    for make in (plain, described):
        (launch,) = direct_launches(make())
        assert launch is not None
        assert bool(launch.maps) == (make is described)
        operands = make()
        tricorr.corr2d(*operands)
        output = tricorr.corr2d(*operands)
        del output  # the next result gets its memory
        launches, encodes, others = stub.launches, stub.encodes, stub.others
        tricorr.corr2d(*operands)
        # The call does not allocate, load or synchronise, so that a CUDA graph can capture it.
        assert (stub.launches, stub.encodes, stub.others) == (launches + 1, encodes, others)


def hooks(stub: StubDriver, *_: Any) -> None:
    """Hooks of launches are called after they are added and until they are removed."""
    operands = plain()
    direct_launches(operands)
    seen: list[str] = []

    def enter(metadata: Any) -> None:
        seen.append("enter")

    def leave(metadata: Any) -> None:
        seen.append("leave")

    runtime = knobs.runtime
    runtime.launch_enter_hook.add(enter)
    runtime.launch_exit_hook.add(leave)
    try:
        tricorr.corr2d(*operands)
        assert seen == ["enter", "leave"]
        runtime.launch_enter_hook.remove(enter)
        tricorr.corr2d(*operands)
        assert seen == ["enter", "leave", "leave"]
    finally:
        runtime.launch_enter_hook.remove(enter)
        runtime.launch_exit_hook.remove(leave)
    tricorr.corr2d(*operands)
    assert len(seen) == 3
    with replaced(runtime, "launch_enter_hook", enter):  # a function in place of the chain
        tricorr.corr2d(*operands)
    assert seen[3:] == ["enter"]


def hooks_of_the_kernel(stub: StubDriver, *_: Any) -> None:
    """A kernel's pre-run hook is called."""
    operands = plain()
    direct_launches(operands)
    (ready,) = prepared._PREPARED.values()
    kernel = ready._launches[0].kernel
    seen: list[int] = []
    kernel.add_pre_run_hook(lambda *args, **kwargs: seen.append(len(args)))
    try:
        tricorr.corr2d(*operands)
    finally:
        kernel.pre_run_hooks.clear()
    assert seen == [len(kernel.arg_names)]


def debug(stub: StubDriver, _: Any, observer: Observer, compilations: Compilations) -> None:
    """TRITON_DEBUG compiles kernels with assertions, even if they were launched without before."""
    operands = plain()
    direct_launches(operands)
    compiled_before = len(compilations.names)
    with replaced(knobs.runtime, "debug", True):
        tricorr.corr2d(*operands)
    assert len(compilations.names) == compiled_before + 1
    launched = stub.launches
    tricorr.corr2d(*operands)
    assert len(compilations.names) == compiled_before + 1
    assert stub.launches == launched + 1


def streams(stub: StubDriver, driver: Any, *_: Any) -> None:
    """A launch goes to the stream that is current when it is made."""
    operands = plain()
    direct_launches(operands)
    for stream in (7, 8):
        with replaced(driver, "get_current_stream", lambda index, stream=stream: stream):
            launched = stub.launches
            tricorr.corr2d(*operands)
        assert [record.stream for record in stub.records(launched)] == [stream]


def devices(stub: StubDriver, driver: Any, *_: Any) -> None:
    """A launch is made with its tensors' device current, on that device's stream."""
    operands = plain()
    direct_launches(operands)
    (ready,) = prepared._PREPARED.values()
    current = [0]

    @contextmanager
    def device(index: Any) -> Iterator[None]:
        before, current[0] = current[0], index.index
        yield
        current[0] = before

    made = []

    def launch(*arguments: Any) -> None:
        made.append((current[0], arguments[3]))

    (one,) = ready._launches
    here = torch.empty_strided
    with (
        replaced(torch.cuda, "current_device", lambda: current[0]),
        replaced(torch.cuda, "device", device),
        replaced(torch, "empty_strided", lambda *a, device, **kw: here(*a, **kw)),
        replaced(driver, "get_current_stream", lambda index: 100 + index),
    ):
        assert on_device(torch.device("cuda", 0)) is None
        kept = vars(one.direct)["launch"]
        object.__setattr__(one.direct, "launch", launch)
        for index in (0, 1):
            ready.run((*operands, None, None), torch.device("cuda", index))
        object.__setattr__(one.direct, "launch", kept)
    assert made == [(0, 100), (1, 101)]
    assert current == [0]


def tensor_maps_are_bounded(stub: StubDriver, *_: Any) -> None:
    """Tensor maps are kept by address, at most MAX_TENSOR_MAPS for each descriptor."""
    with replaced(compiled, "MAX_TENSOR_MAPS", 3):
        (launch,) = direct_launches(described())
        kept = []
        for _ in range(8):
            kept.append(described())
            tricorr.corr2d(*kept[-1])
            assert all(1 <= len(maps.kept) <= 3 for maps in launch.maps)


def another_batch(stub: StubDriver, _: Any, observer: Observer, compilations: Compilations) -> None:
    """A batch of another size with the same tiles compiles nothing, divisible by 16 or not."""
    x, weight = described()

    def kernels(samples: int, weight: torch.Tensor) -> tuple[list[str], list[str]]:
        part, before = x[:samples].detach().requires_grad_(), len(compilations.names)
        launched = stub.launches
        y = tricorr.corr2d(part, weight.requires_grad_())
        torch.autograd.grad(y, (part, weight), torch.zeros_like(y))
        names = [record.kernel for record in stub.records(launched)]
        return names, compilations.names[before:]

    for window, wanted in (
        (weight, {"fprop_reuse", "wgrad_reuse"}),
        (weight[..., :1, :1].contiguous(), {"fprop_tma", "dgrad_tma", "wgrad_tma"}),
    ):
        with same_tiles():
            names, _ = kernels(32, window)
            assert wanted <= set(names), names
            for samples in (31, 24, 17):
                again, compiled_now = kernels(samples, window)
                assert again == names
                assert not compiled_now, compiled_now


@contextmanager
def same_tiles() -> Iterator[None]:
    """Every batch gets the tiles and splits of the first."""
    chosen: dict[str, Any] = {}

    planned = choose.plan

    def plan(problem: Any) -> Any:
        first = chosen.setdefault(problem.op, planned(problem))
        return choose.plan_with_tile(problem, first.tile, first.splits)

    with replaced(choose, "plan", plan):
        yield


def unknown_versions(stub: StubDriver, _: Any, observer: Observer, *__: Any) -> None:
    """With another Triton, or another driver's launcher, the compiled kernel is launched."""
    for make in (plain, described):
        with replaced(compiled, "KNOWN_VERSIONS", ()):
            launches = direct_launches(make())
            assert launches == [None]
            launched, others = stub.launches, stub.others
            tricorr.corr2d(*make())
            assert stub.launches == launched + 1
            assert stub.others > others
    prepared.forget_prepared()


def refusals(stub: StubDriver, driver: Any, *_: Any) -> None:
    """The stub refuses launches that CUDA would refuse."""
    x = torch.zeros(1 << 16, dtype=torch.bfloat16)
    utils = driver.utils
    encode = getattr(utils, "fill_tma_descriptor_tiled", None) or utils.fill_tma_descriptor
    good = {
        "address": x.data_ptr(),
        "swizzle": 3,
        "bytes": 2,
        "type": 9,
        "box": [16, 64],
        "shape": [64, 64],
        "strides": [64, 1],
        "padding": 0,
    }

    def refused(**change: Any) -> bool:
        before = stub.refusals
        try:
            encode(*(good | change).values())
        except Exception:  # Triton versions raise different ones
            return stub.refusals == before + 1
        return False

    assert not refused()
    for change in (
        {"address": x.data_ptr() + 8},
        {"box": [512, 64]},
        {"box": [16, 128]},
        {"box": [16, 4]},
        {"shape": [0, 64]},
        {"shape": [64, 2**32 + 1]},
        {"strides": [60, 1]},
        {"strides": [2**40, 1]},
        {"swizzle": 7},
        {"type": 77},
    ):
        assert refused(**change), change
    (launch,) = direct_launches(plain())
    operands = [t.data_ptr() for t in plain()]
    addresses = [*operands, 0, 0, torch.zeros(2, 4, 7, 35).data_ptr()]
    launch(addresses, 0)
    warps, ctas, shared = launch.middle[_METADATA[launch.spread]]
    for metadata in ((64, ctas, shared), (warps, ctas, 300000)):
        before = stub.refusals
        middle = list(launch.middle)
        middle[_METADATA[launch.spread]] = metadata
        with suppress(Exception):
            replace(launch, middle=tuple(middle))(addresses, 0)
        assert stub.refusals == before + 1, metadata


#: Index of the launcher's (warps, CTAs, shared memory) in `middle`, by `spread`.
_METADATA = {False: 3, True: 5}


def planted_faults(stub: StubDriver, driver: Any, observer: Observer, *_: Any) -> None:
    """A stale pointer, a wrong parameter, a second compilation and a wrong map are reported."""
    geometry = geometry_of((2, 3, 9, 37), (4, 3, 3, 3))

    def call(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return direct.fprop(x, weight, None, geometry)

    def problems(make: Callable[[], Any] = plain) -> str:
        prepared.forget_prepared()
        called = call if make is plain else tricorr.corr2d
        return " | ".join(observer.observe(called, list(make())).problems)

    for make in (plain, described):
        assert not problems(make), problems(make)
    launch = compiled.DirectLaunch.__call__
    kept: list[Any] = []

    def stale(self: Any, addresses: list[int], stream: int) -> None:
        launch(self, kept[0] if kept else addresses, stream)

    run = prepared._Launch.run

    def keeping(self: Any, tensors: Any, addresses: list[int], stream: int) -> None:
        kept.append(addresses)
        run(self, tensors, addresses, stream)

    with (
        replaced(compiled.DirectLaunch, "__call__", stale),
        replaced(prepared._Launch, "run", keeping),
    ):
        found = problems()
    assert "into an earlier call's tensor" in found, found

    def wrong(self: Any, addresses: list[int], stream: int) -> None:
        place = next(i for i, a in enumerate(self.arguments) if isinstance(a, int))
        self.arguments[place] += 1
        launch(self, addresses, stream)

    with replaced(compiled.DirectLaunch, "__call__", wrong):
        found = problems()
    assert "then" in found, found
    encoder = compiled._encoder

    def narrower(make: Any, descriptor: Any, meta: Any) -> Any:
        smaller = [descriptor.shape[0] - 1, *descriptor.shape[1:]]
        return encoder(make, replace(descriptor, shape=smaller), meta)

    with replaced(compiled, "_encoder", narrower):
        found = problems(described)
    assert "launches otherwise" in found, found

    def uncached(self: Any, tensors: Any) -> Any:
        options = dict(self.options, num_stages=7)
        return self.kernel[(self.grid,)](*prepared._filled(self.arguments, tensors), **options)

    with replaced(prepared._Launch, "through_jit", uncached):
        found = problems()
    assert "compiled" in found, found
    prepared.forget_prepared()


def built_ahead_of_time(*_: Any) -> None:
    """A launch uses the kernels that perf's builders compiled from meta tensors."""
    from tricorr.ops import backend
    from tricorr.perf.session.checks import checks
    from tricorr.perf.session.rig import Entrant, GpuRig

    device, rig = backend.CPU_DEVICE, GpuRig(device="cpu")
    wanted = {"fprop_tma": "dense", "wgrad_tma": "dense", "fprop_rows": "image_epilogue"}
    for check in checks(device):
        if wanted.get(check.kernel) != check.workload.name:
            continue
        del wanted[check.kernel]
        with tempfile.TemporaryDirectory() as cache, knobs.cache.scope():
            knobs.cache.dir = cache
            rig.build(check.operands("meta"), check.plan, device)
            built = sorted(os.listdir(cache))
            rig.call(check.operands("cpu"), Entrant("ours", check.format, check.plan))()
            assert built, check
            assert sorted(os.listdir(cache)) == built, check
    assert not wanted


CHECKS = {
    "launches go past the JIT": past_the_jit,
    "hooks": hooks,
    "hooks of the kernel": hooks_of_the_kernel,
    "debug": debug,
    "streams": streams,
    "devices": devices,
    "tensor maps are bounded": tensor_maps_are_bounded,
    "another batch": another_batch,
    "unknown versions": unknown_versions,
    "refusals": refusals,
    "planted faults": planted_faults,
    "built ahead of time": built_ahead_of_time,
}
