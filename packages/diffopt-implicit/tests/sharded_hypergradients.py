"""One of two processes that share the parameters of a network: `RANK FILE`, to meet by."""

import os
import sys

import torch
import torch.distributed as dist
from diffopt_implicit import BOME, F2SA, SAMA, FiniteDifference, OneStep, hypergradient
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.func import functional_call

METHODS = [F2SA(5, 0.05), SAMA(alpha=0.1), BOME(5, 0.05), FiniteDifference(), OneStep(0.1)]


def main(rank, meeting):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)
    whole = {name: p.detach() for name, p in net.named_parameters()}
    lam = torch.tensor(0.3, dtype=torch.float64)

    def losses(x, y):
        def inner(p, lam):
            size = sum(leaf.square().sum() for leaf in p.values())
            return (functional_call(net, p, (x,)) - y).square().mean() + lam * size

        return inner, lambda p, lam: (functional_call(net, p, (x,)) - 2 * y).square().mean()

    everywhere = lambda tensor: distribute_tensor(tensor, mesh, [Replicate()])
    shared = {name: distribute_tensor(p, mesh, [Shard(0)]) for name, p in whole.items()}
    for method in METHODS:
        exact, told = hypergradient(*losses(x, y), whole, lam, method, info=True)
        found, info = hypergradient(
            *losses(everywhere(x), everywhere(y)), shared, everywhere(lam), method, info=True
        )
        assert isinstance(found, DTensor)
        torch.testing.assert_close(found.full_tensor(), exact)
        torch.testing.assert_close(info.residual, told.residual)
        adjoint = info.adjoint["0.weight"]
        assert adjoint.to_local().shape == (4, 4), "each process holds its half of the adjoint"
        torch.testing.assert_close(adjoint.full_tensor(), told.adjoint["0.weight"])
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    # A mesh keeps Gloo's threads beyond the process group, and one that still lets go of a tensor
    # while the interpreter ends aborts the process.
    os._exit(0)
