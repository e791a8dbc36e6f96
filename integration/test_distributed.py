"""Unrolls and inner loops inside torch's data-parallel wrapper, and in other processes."""

import torch
from diffopt_dist import get_rank, launch, parallelize, replicate
from diffopt_explicit import adam, inner_loop, unroll
from torch.nn.parallel import DistributedDataParallel


class Unrolled(torch.nn.Module):
    """The loss after steps of Adam from learned parameters, at a learned rate."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.3, -0.4], dtype=torch.float64))
        self.rate = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x):
        loss = lambda w: ((x @ w).sin() + 0.1 * w.square().sum()).mean()
        return loss(unroll(loss, adam(lr=self.rate), self.w, steps=3).params)


class InnerLoop(torch.nn.Module):
    """The same idea by higher's idiom."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(2, 1).double()

    def forward(self, x):
        with inner_loop(self.net, adam(lr=0.1)) as (net, opt):
            for _ in range(3):
                opt.step(net(x).sin().mean())
            return net(x).square().mean()


def test_meta_gradients_of_wrapped_modules_equal_the_sequential_ones():
    def main():
        tasks = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0)).double()
        found = []
        for kind in (Unrolled, InnerLoop):
            here, wrapped = kind(), DistributedDataParallel(kind())
            torch.stack([here(x) for x in tasks]).mean().backward()
            mine = tasks[2 * get_rank() :][:2]
            with wrapped.no_sync():
                (wrapped(mine[0]) / 2).backward()
            (wrapped(mine[1]) / 2).backward()
            sent = kind()
            call = lambda module, xs: torch.stack([module(x) for x in xs]).mean()
            if get_rank() == 0:
                parallelize(call)(replicate(sent), tasks).backward()
            found.append([[p.grad for p in m.parameters()] for m in (here, wrapped, sent)])
        return found

    for rank, kinds in enumerate(launch(main, 2, timeout=240.0, collectives="gloo")):
        for here, wrapped, sent in kinds:
            torch.testing.assert_close(wrapped, here, rtol=1e-10, atol=1e-14)
            if rank == 0:
                torch.testing.assert_close(sent, here, rtol=1e-10, atol=1e-14)
