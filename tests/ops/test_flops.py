"""PyTorch's FLOP counter counts tricorr's operators as it counts PyTorch's."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import tricorr

try:
    from torch.utils.flop_counter import FlopCounterMode
except ImportError as error:  # it imports Triton where there is one
    pytest.skip(f"PyTorch's counter cannot be imported: {error}", allow_module_level=True)


def counted(layer, x):
    """FLOPs of the forward pass, and of forward and backward together."""
    with FlopCounterMode(display=False) as counter:
        y = layer(x).sum()
        forward = counter.get_total_flops()
        y.backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("Conv", {}),
        ("Conv", {"stride": 2, "padding": (1, 3), "dilation": 2}),
        ("Conv", {"bias": False}),
        ("ConvTranspose", {}),
        ("ConvTranspose", {"stride": (2, 1), "padding": 1, "output_padding": (1, 0)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("needs_grad", [True, False], ids=["image", "weights_only"])
def test_counts_are_those_of_pytorchs_layers(backend, kind, arguments, needs_grad):
    ours, theirs = getattr(tricorr, f"{kind}2D"), getattr(nn, f"{kind}2d")
    x = torch.randn(2, 3, 9, 8, requires_grad=needs_grad)
    counts = counted(ours(3, 4, 3, **arguments), x)
    assert counts == counted(theirs(3, 4, 3, **arguments), x)
    assert counts[1] == (3 if needs_grad else 2) * counts[0]


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_groups_count_only_their_own_products(backend):
    x = torch.randn(2, 6, 9, 8, requires_grad=True)
    layer = tricorr.Conv2D(6, 12, 3, groups=3)
    forward, total = counted(layer, x)
    assert forward == 2 * (2 * 12 * 7 * 6) * (2 * 3 * 3)
    assert total == 3 * forward
    assert forward == counted(nn.Conv2d(6, 12, 3, groups=3), x)[0]


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_filter_bank_per_sample_counts_as_often_as_it_is_used(backend):
    x, weight = torch.randn(2, 3, 9, 8), torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    shared = weight[0].detach().requires_grad_()
    assert counted(lambda x: tricorr.corr2d(x, weight), x) == counted(
        lambda x: tricorr.corr2d(x, shared), x
    )


def test_calls_on_meta_tensors_are_counted():
    with torch.device("meta"):
        layer, x = tricorr.Conv2D(64, 64, 3, padding=1), torch.empty(8, 64, 512, 512)
    assert counted(layer, x)[0] == 2 * (8 * 64 * 512 * 512) * (64 * 3 * 3)


@pytest.mark.parametrize(
    "imports",
    [
        "import torch, tricorr\nfrom torch.utils.flop_counter import FlopCounterMode\n",
        "from torch.utils.flop_counter import FlopCounterMode\nimport torch, tricorr\n",
    ],
    ids=["tricorr_first", "counter_first"],
)
def test_the_counter_works_in_either_order_of_imports(imports, tmp_path):
    code = (
        f"{imports}"
        "for device in ('cpu', 'meta'):\n"
        "    image = torch.ones(3, 3, device=device, requires_grad=True)\n"
        "    kernel = torch.ones(2, 2, device=device)\n"
        "    with FlopCounterMode(display=False) as counter:\n"
        "        tricorr.corr2d(image, kernel).sum().backward()\n"
        "    print(counter.get_total_flops())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["64", "64"]
