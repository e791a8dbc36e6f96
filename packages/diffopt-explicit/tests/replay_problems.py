"""A network's training that everything has a meta-gradient of, for tests of `Replay`."""

import torch
from diffopt_explicit import (
    adam,
    chain,
    clip_by_global_norm,
    exponential_decay,
    linear,
    rmsprop,
    sgd,
    unroll,
)
from torch import tensor


def gradients(adjoint, optimizer, *, steps=7, outer=None, **options):
    """Meta-gradients of everything there is, through a small network's training."""
    generator = torch.Generator().manual_seed(1)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    start = {"a": random(3, 4), "b": [random(4), None], "c": random(())}
    start = {k: v.requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in start.items()}
    start["b"][0].requires_grad_()
    data = [(random(5, 3), random(5).requires_grad_()) for _ in range(steps)]
    weights = random(5).requires_grad_()
    lr, outside = tensor(0.05, requires_grad=True), random(4).requires_grad_()

    def loss(params, weights, batch):
        x, y = batch
        hidden = torch.tanh(x @ params["a"] + params["b"][0] * outside.exp())
        return ((hidden.sum(1) + params["c"] - y) ** 2 * weights.sigmoid()).mean()

    result = unroll(
        loss, optimizer(lr), start, batches=data, meta_params=weights, adjoint=adjoint, **options
    )
    value = sum(leaf.square().sum() for leaf in (result.params["a"], result.params["c"]))
    value = value + (result.losses * torch.linspace(1, 2, steps)).sum()
    inputs = [start["a"], start["b"][0], start["c"], weights, lr, outside, *(y for _, y in data)]
    return value, torch.autograd.grad(value, inputs, allow_unused=True), result


OPTIMIZERS = {
    "sgd": sgd,
    "momentum": lambda lr: sgd(lr, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": adam,
    "schedule": lambda lr: adam(exponential_decay(lr, steps=2, rate=0.5)),
    "clipped": lambda lr: chain(clip_by_global_norm(0.1), rmsprop(lr, momentum=0.9)),
    "learned schedule": lambda lr: sgd(linear(lr, 0.5 * lr, steps=4)),
}
