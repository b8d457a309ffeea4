"""Several CPU processes connected by gloo, on which tests run functions."""

import multiprocessing
import traceback
from datetime import timedelta
from multiprocessing.connection import wait

import torch
from torch import distributed
from torch.distributed.tensor import distribute_tensor

TIMEOUT = timedelta(seconds=60)


class Ranks:
    """A group of processes, kept from test to test: starting one takes longer than most tests.

    They are forked from a server that has imported PyTorch, not from this process, because a fork
    loses its threads (of autograd, of a GPU).
    """

    def __init__(self, number, directory):
        self.number, self.directory = number, directory
        self.groups = 0
        self.processes = []

    def __call__(self, function, *args, interpret=False):
        """Calls function(*args) on every rank; raises the first exception of any rank.

        Tensors that a rank makes from PyTorch's random numbers are the same on every rank.
        """
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, args, interpret))
        waiting = dict(zip(self.pipes, range(self.number), strict=True))
        while waiting:
            ready = wait(waiting, timeout=2 * TIMEOUT.total_seconds())
            errors = [(waiting.pop(pipe), self._answer(pipe)) for pipe in ready]
            errors = [f"on rank {rank}:\n{error}" for rank, error in errors if error]
            if errors or not ready:
                self.stop()  # the other ranks may be blocked in a collective
                raise AssertionError("\n".join(errors) or "no answer from any rank")

    @staticmethod
    def _answer(pipe):
        try:
            return pipe.recv()
        except EOFError:
            return "the process died"

    def _start(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.tensor"])
        self.groups += 1
        store = str(self.directory / f"group-{self.groups}")
        self.pipes = []
        for rank in range(self.number):
            pipe, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self.number, store, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self.pipes.append(pipe)
            self.processes.append(process)

    def stop(self):
        for process in self.processes:
            process.kill()
            process.join()
        self.processes = []


def _serve(rank, number, store, pipe):
    from tricorr.ops import backend

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # uninitialised memory is NaN, as in the other tests
    distributed.init_process_group(
        "gloo",
        rank=rank,
        world_size=number,
        store=distributed.FileStore(store, number),
        timeout=TIMEOUT,
    )
    while True:
        function, args, interpret = pipe.recv()
        backend.CPU_DEVICE = backend.INTERPRETER if interpret else None
        torch.manual_seed(0)
        try:
            function(*args)
            pipe.send(None)
        except BaseException:
            pipe.send(traceback.format_exc())


def sharded(tensor, mesh, *placements):
    """A leaf that requires its gradient: this rank's share of the tensor, which every rank has."""
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).requires_grad_()
