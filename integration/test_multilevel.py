"""Multilevel programs whose lower problems are stepped by `diffopt_explicit`."""

import functools

import pytest
import torch
from diffopt_explicit import adam, chain, clip_by_global_norm, from_torch, sgd, unroll
from diffopt_implicit import Engine, Problem, UnrolledSteps
from torch import nn
from torch.func import functional_call

STILL = functools.partial(torch.optim.SGD, lr=0.0)


def adamw_of_torch(net):
    """A transform of an optimizer of torch, as `UnrolledSteps` advises."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    return from_torch(optimizer, dict(net.named_parameters()))


@pytest.mark.parametrize(
    "make",
    [
        lambda net: sgd(0.1, momentum=0.9),
        lambda net: adam(0.05),
        lambda net: chain(clip_by_global_norm(0.5), adam(0.05)),
        adamw_of_torch,
    ],
    ids=["sgd", "adam", "clipped adam", "AdamW of torch"],
)
def test_unrolled_steps_of_a_program_are_those_of_unroll(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    tx = make(net)
    first = {name: p.detach().clone() for name, p in net.named_parameters()}
    batches = [(torch.randn(6, 3).double(), torch.randn(6, 1).double()) for _ in range(5)]
    x, y = torch.randn(6, 3).double(), torch.randn(6, 1).double()
    penalty = torch.tensor(-1.0, dtype=torch.float64)

    def loss(out, params, penalty, y):
        decay = sum(p.square().sum() for p in params.values())
        return (out - y).square().mean() + penalty.exp() * decay

    engine = Engine(
        [
            Problem(
                "net",
                net,
                lambda at, b: loss(at.net(b[0]), at.net.params, at.penalty, b[1]),
                tx,
                batches,
                upper=["penalty"],
                unroll_steps=5,
            ),
            Problem(
                "penalty",
                penalty,
                lambda at, _: (at.net(x) - y).square().mean(),
                STILL,
                lower={"net": UnrolledSteps()},
            ),
        ]
    )
    engine.run(1)

    def after(penalty):
        inner = lambda p, b: loss(functional_call(net, p, b[0]), p, penalty, b[1])
        params = unroll(inner, tx, first, batches=batches).params
        return (functional_call(net, params, x) - y).square().mean()

    exact = torch.func.grad(after)(penalty)
    torch.testing.assert_close(engine.gradient("penalty"), exact, rtol=1e-10, atol=0)
