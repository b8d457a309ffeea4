"""Networks and operators on several ranks give what one process gives."""

import pytest
import torch
from cases import CASES, tensors
from closeness import check
from ranks import run_on_ranks, sharded
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from tricorr import ops
from tricorr.autograd.function import correlate

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"
)

PLACEMENTS = {  # of x, weight, bias and dy
    "batch": (Shard(0), Replicate(), Replicate(), Shard(0)),
    "rows": (Shard(2), Replicate(), Replicate(), Shard(2)),
    "columns": (Shard(3), Replicate(), Replicate(), Shard(3)),
    "filters": (Replicate(), Shard(0), Shard(0), Shard(1)),
    "channels": (Shard(1), Shard(1), Replicate(), Replicate()),
    "whole": (Replicate(), Replicate(), Replicate(), Replicate()),
}


def check_operators(geometry, whole, shards, dtype=torch.float64):
    """fprop, dgrad and wgrad of sharded operands against the truth."""
    x, weight, bias, dy = shards
    x64, weight64, bias64, dy64 = whole
    for op, args, truth_args in (
        ("fprop_bias", (x, weight, bias), (x64, weight64, bias64)),
        ("dgrad", (dy, weight), (dy64, weight64)),
        ("wgrad", (x, dy), (x64, dy64)),
    ):
        actual = getattr(ops, op.removesuffix("_bias"))(*args, geometry)
        assert isinstance(actual, DTensor)
        check(op, truth_args, geometry, actual=actual.full_tensor())


def placed(geometry, split):
    """Placements of x, weight, bias and dy for a split of the work."""
    x, weight, bias, dy = PLACEMENTS[split]
    if geometry.per_sample and isinstance(weight, Shard):
        weight = Shard(weight.dim + 1)
    return x, weight, bias, dy


def every_split(names):
    world = torch.distributed.get_world_size()
    mesh = DeviceMesh("cpu", list(range(world)))
    for name in names:
        geometry = CASES[name]
        whole = tensors(geometry, torch.float64)
        for split in PLACEMENTS:
            shards = [sharded(t, mesh, p) for t, p in zip(whole, placed(geometry, split), strict=True)]
            try:
                check_operators(geometry, whole, shards)
            except Exception as error:
                raise AssertionError(f"{name} by {split} on {world} ranks: {geometry}") from error


def test_every_case_by_every_split(tmp_path):
    names = [name for name in CASES if not name.startswith("huge")]
    run_on_ranks(every_split, 3, tmp_path, names)
