"""Train a small network to find edges, its batch shared out to several processes.

    torchrun --nproc-per-node 4 examples/data_parallel.py          # DistributedDataParallel
    torchrun --nproc-per-node 4 examples/data_parallel.py --fsdp   # parameters sharded as well

With GPUs each process takes one.
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tricorr


def network() -> nn.Sequential:
    """One-channel images in, one-channel images of the same size out."""
    return nn.Sequential(
        tricorr.Conv2D(1, 16, 3, padding="same"),
        nn.ReLU(),
        tricorr.Conv2D(16, 1, 3, padding="same"),
    )


def edges(images: torch.Tensor) -> torch.Tensor:
    """The size of the brightness gradient: what the network learns."""
    kernels = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).to(images) / 2
    bank = torch.stack([kernels.roll(1, 0), kernels.roll(1, 0).T])[:, None]
    return tricorr.corr2d(images, bank, padding="same").norm(dim=1, keepdim=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fsdp", action="store_true", help="shard the parameters too")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),))

    torch.manual_seed(0)  # the same parameters everywhere
    model: nn.Module = network().to(device)
    if options.fsdp:
        for layer in model.children():
            if list(layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = DistributedDataParallel(model, device_mesh=mesh)

    torch.manual_seed(mesh.get_rank())  # but other images
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(options.steps):
        images = torch.rand(8, 1, 32, 32, device=device)
        optimizer.zero_grad()
        loss = (model(images) - edges(images)).square().mean()
        loss.backward()
        optimizer.step()
        if mesh.get_rank() == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1}, loss {loss.item():.4f}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
