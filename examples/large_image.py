"""Filter an image that is spread over several processes, then learn the filter from the result.

    torchrun --nproc-per-node 4 examples/large_image.py --height 4096 --width 4096

No process ever holds the whole image: each has a share of the rows, and fetches the few rows of its
neighbours that a window at the edge of its share covers. With GPUs each process takes one.
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, zeros

import tricorr


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),))
    rank = mesh.get_rank()

    image = zeros(options.height, options.width, device_mesh=mesh, placements=[Shard(0)])
    torch.manual_seed(rank)
    image.to_local().normal_()

    blur = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], device=device) / 16
    blurred = tricorr.corr2d(image, distribute_tensor(blur, mesh, [Replicate()]), padding="same")
    assert isinstance(blurred, DTensor)  # as its input is
    print(f"rank {rank} has rows {tuple(blurred.to_local().shape)} of {tuple(blurred.shape)}")

    # Pixels are independent with variance 1, so the mean squared error has the Hessian 2 I.
    kernel = distribute_tensor(torch.zeros_like(blur), mesh, [Replicate()])
    kernel.requires_grad_()
    optimizer = torch.optim.SGD([kernel], lr=0.4)
    for step in range(options.steps):
        optimizer.zero_grad()
        loss = (tricorr.corr2d(image, kernel, padding="same") - blurred).square().mean()
        loss.backward()
        optimizer.step()
        assert isinstance(loss, DTensor)
        value = loss.full_tensor().item()
        if rank == 0:
            print(f"step {step + 1}, loss {value:.3g}")
    if rank == 0:
        error = (kernel.to_local() - blur).abs().max().item()
        print(f"largest error of the kernel: {error:.3g}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
