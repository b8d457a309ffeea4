"""Several processes that talk to each other over gloo, on the CPU."""

import multiprocessing
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.tensor import distribute_tensor


def run_on_ranks(function, world, tmp_path, *args, interpret=False):
    """Call function(*args) in `world` processes of one group; what any raises is raised here.

    They are forked off a server that has imported PyTorch once, and not off this process, whose
    threads (of autograd, of a GPU) no child would have.
    """
    multiprocessing.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.tensor"])
    store = tmp_path / f"store-{len(list(Path(tmp_path).iterdir()))}"
    torch.multiprocessing.start_processes(
        _rank, (world, str(store), interpret, function, args), world, start_method="forkserver"
    )


def _rank(rank, world, store, interpret, function, args):
    from tricorr.ops import backend

    backend.INTERPRET = interpret
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same whole tensors on every rank
    torch.use_deterministic_algorithms(True)  # uninitialised memory is NaN, as in the other tests
    store = distributed.FileStore(store, world)
    distributed.init_process_group(
        "gloo", rank=rank, world_size=world, store=store, timeout=timedelta(seconds=60)
    )
    try:
        function(*args)
    finally:
        distributed.destroy_process_group()


def sharded(tensor, mesh, *placements):
    """A leaf that needs its gradient, with the same whole tensor on every rank."""
    return distribute_tensor(tensor, mesh, placements).requires_grad_()
