"""The tree for the Hugging Face kernels hub, loaded as the hub's loader does."""

import base64
import hashlib
import importlib.util
import inspect
import json
import sys
import types

import pytest
import torch
from torch import nn

import tricorr
from tricorr.hub import publish as hub


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hub")
    hub.write(directory)
    return directory


@pytest.fixture(scope="session")
def kernel(directory):
    """The CPU variant, beside tricorr itself in this process, under the name in its metadata."""
    variant = directory / "build" / "torch-cpu"
    module = load(variant / "__init__.py", metadata(variant)["id"])
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == module.__name__]:
        del sys.modules[name]


def metadata(variant):
    return json.loads((variant / "metadata.json").read_text(encoding="utf-8"))


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("backend", ["cpu", "interpreter"], indirect=True)
def test_the_kernel_works_beside_the_package(kernel, backend):
    its = kernel.autograd.function.ops.backend
    its.CPU_DEVICE = its.INTERPRETER if backend.name == "interpreter" else None
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = kernel.corr2d(x, weight, padding=1)
    assert torch.equal(y, tricorr.corr2d(x, weight, padding=1))
    assert torch.autograd.grad(y.sum(), weight)[0].shape == weight.shape
    assert kernel.corr2d is not tricorr.corr2d
    assert hasattr(torch.ops, kernel.__name__)


def test_the_kernel_has_the_public_names_of_the_package(kernel):
    own = set(kernel.__all__) - {"layers"}
    assert own <= set(tricorr.__all__)
    # Learning needs libraries that the hub does not have; filters is a module of the root.
    left_out = {"KernelAccumulator", "KernelField", "LearnedKernel", "Quality", "filters"}
    left_out |= {"learn_kernel", "learn_kernel_field", "VaryingKernel"}
    assert set(tricorr.__all__) - own == left_out
    assert all(hasattr(kernel, name) for name in kernel.__all__)


def test_older_loaders_find_the_same_names(kernel, directory):
    module = load(directory / "build/torch-cpu/tricorr/__init__.py", "older_loader")
    assert set(module.__all__) == set(kernel.__all__)


@pytest.mark.parametrize(
    ("original", "arguments"),
    [
        (nn.Conv2d(4, 6, 3, 2, padding="valid", groups=2), ()),
        (nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=2, padding_mode="circular"), ()),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), ([12, 13],)),
    ],
    ids=["strided", "circular", "transposed"],
)
def test_layers_take_the_place_of_pytorchs(kernel, original, arguments):
    name = type(original).__name__.replace("2d", "2D")
    layer = getattr(kernel.layers, name)
    # The hub's own checks: no state, and the same arguments.
    assert layer.__init__ is nn.Module.__init__
    members = {name for name, _ in inspect.getmembers(layer)}
    members -= {name for name, _ in inspect.getmembers(nn.Module)}
    assert members == {"has_backward", "can_torch_compile"}
    kinds = [
        [p.kind for p in inspect.signature(forward).parameters.values()]
        for forward in (layer.forward, type(original).forward)
    ]
    assert kinds[0] == kinds[1]

    x = torch.randn(2, 4, 5, 6)
    expected = original(x, *arguments)
    original.forward = types.MethodType(layer.forward, original)
    torch.testing.assert_close(original(x, *arguments), expected)


def test_metadata_and_project_agree(directory):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    general = tomllib.loads((directory / "build.toml").read_text(encoding="utf-8"))["general"]
    variants = sorted((directory / "build").iterdir())
    assert [v.name for v in variants] == [f"torch-{b}" for b in sorted(general["backends"])]
    assert len({metadata(variant)["id"] for variant in variants}) == len(variants)
    for variant in variants:
        found = metadata(variant)
        assert found["id"].isidentifier()
        assert (found["name"], found["version"]) == (general["name"], general["version"])
        files = {
            file.relative_to(variant).as_posix(): file.read_bytes()
            for file in variant.rglob("*")
            if file.is_file() and "__pycache__" not in file.parts and file.name != "metadata.json"
        }
        assert found["digest"]["files"] == {
            name: base64.b64encode(hashlib.sha256(data).digest()).decode()
            for name, data in files.items()
        }


def test_ids_change_with_the_source(monkeypatch):
    package = hub.sources()
    before = json.loads(hub._variant(package, "cpu")["metadata.json"])["id"]
    package["ops/geometry.py"] += "# another version\n"
    assert json.loads(hub._variant(package, "cpu")["metadata.json"])["id"] != before


@pytest.mark.parametrize("module", ["numpy", "tricorr.ops"])
def test_imports_that_the_hub_forbids_are_noticed(module):
    with pytest.raises(ValueError, match=f"imports {module}, which the kernels hub"):
        list(hub._imported("autograd/x.py", f"def f():\n    import {module}\n"))


def test_operator_names_that_would_clash_are_noticed():
    with pytest.raises(ValueError, match="names an operator in a way"):
        hub._renamed("ops/x.py", "register('tricorr::fprop')\n")
