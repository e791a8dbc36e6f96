"""One of two processes that hold a module by shards, or a copy each: `RANK FILE`, to meet by."""

import os
import sys

import torch
import torch.distributed as dist
from diffopt_implicit import BOME, F2SA, SAMA, FiniteDifference, by_backward, hypergradient
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

METHODS = [F2SA(5, 0.05), SAMA(alpha=0.1), BOME(5, 0.05), FiniteDifference()]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def sharded(mesh):
    net = network()
    for part in (net[0], net[2], net):
        fully_shard(part, mesh=mesh)
    return net


def main(rank, meeting):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    x, y, weights = draw(16, 4), draw(16, 2), draw(16)
    mine = slice(8 * rank, 8 * rank + 8)

    def inner_of(found, y, weights):
        return (weights.sigmoid() * (found - y).square().mean(1)).mean()

    def outer_of(found, y):
        return (found - 2 * y).square().mean()

    whole = network()
    functional = (
        lambda p, w: inner_of(functional_call(whole, p, (x,)), y, w),
        lambda p, w: outer_of(functional_call(whole, p, (x,)), y),
    )
    given = {name: p.detach() for name, p in whole.named_parameters()}
    for net in (sharded(mesh), DistributedDataParallel(network())):
        losses = (
            lambda w, net=net: inner_of(net(x[mine]), y[mine], w[mine]),
            lambda w, net=net: outer_of(net(x[mine]), y[mine]),
        )
        losses = [by_backward(net, loss, group=dist.group.WORLD) for loss in losses]
        for method in METHODS:
            exact = hypergradient(*functional, given, weights, method)
            found = hypergradient(*losses, dict(net.named_parameters()), weights, method)
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    # A mesh keeps Gloo's threads beyond the process group, and one that still lets go of a tensor
    # while the interpreter ends aborts the process.
    os._exit(0)
