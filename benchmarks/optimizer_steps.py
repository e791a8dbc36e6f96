"""Contenders of a differentiable optimizer step: what they take, and whether they are right.

An Adam step, fused, composed, compiled and TorchOpt's, on lists of tensors as networks have them; a
node that computes nothing; and a step of every rule.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from diffopt_kernels import (
    _composed,
    adagrad_step,
    adam_step,
    amsgrad_step,
    lion_step,
    nadam_step,
    rmsprop_step,
    sgd_step,
)
from diffopt_kernels._adam import ADAM
from diffopt_kernels._check import check
from torch import Tensor

NUMBERS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
STEP = 3
# Where tensors are made. Not `torch.set_default_device`, which slows each operation of all.
DEVICE = [torch.device("cpu")]

Column = list[Tensor]
Step = Callable[[Column, Column, Column], list[Tensor]]


def resnet18_like() -> list[tuple[int, ...]]:
    """Return 62 shapes, 11.2 million elements: convolutions, batch norms, a linear layer."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(out, width, 3, 3), (out,), (out,), (out, out, 3, 3), (out,), (out,)]
            if block == 0 and out != width:
                shapes += [(out, width, 1, 1), (out,), (out,)]
            width = out
    return [*shapes, (5, 512), (5,)]


CASES: dict[str, list[tuple[int, ...]]] = {
    "8 tiny tensors": [(4, 4)] * 8,
    "one tensor of 2^12": [(2**12,)],
    "MLP, 8 tensors, 242 k": [
        *[(256, 784), (256,), (128, 256), (128,)],
        *[(64, 128), (64,), (5, 64), (5,)],
    ],
    "conv net, 18 tensors, 112 k": [
        (64, 1, 3, 3),
        *[(64,)] * 3,
        *([(64, 64, 3, 3), (64,), (64,), (64,)] * 3),
        (5, 64),
        (5,),
    ],
    "one tensor of 2^20": [(2**20,)],
    "ResNet-18-like, 62 tensors, 11 M": resnet18_like(),
}


def fused(grads: Column, exp_avgs: Column, exp_avg_sqs: Column) -> list[Tensor]:
    """Take the step as users do."""
    columns = adam_step(grads, exp_avgs, exp_avg_sqs, STEP, **NUMBERS)
    return [t for column in columns for t in column]


def composed(grads: Column, exp_avgs: Column, exp_avg_sqs: Column) -> list[Tensor]:
    """Take the composed path where the fused one would be taken."""
    numbers = (NUMBERS["lr"], *NUMBERS["betas"], NUMBERS["eps"], 0.0)
    call, inputs, _ = check(
        ADAM, 0, grads, (exp_avgs, exp_avg_sqs), STEP, numbers, 0.0, None, False, False, False,
        lambda *_: None,
    )  # fmt: skip
    return _composed.step(call, inputs)


def torchopt_step(accelerated: bool) -> Step:
    """Return TorchOpt's transform, its state set to the moments given."""
    transforms = importlib.import_module("torchopt").transform
    transform = transforms.scale_by_accelerated_adam if accelerated else transforms.scale_by_adam
    b1, b2 = NUMBERS["betas"]
    scale = transform(b1=b1, b2=b2, eps=NUMBERS["eps"], moment_requires_grad=True)

    def step(grads: Column, exp_avgs: Column, exp_avg_sqs: Column) -> list[Tensor]:
        state = scale.init(grads)
        count = [torch.full_like(c, STEP - 1) for c in state.count]
        state = state._replace(mu=exp_avgs, nu=exp_avg_sqs, count=count)
        updates, state = scale.update(grads, state, inplace=False)
        return [*(-NUMBERS["lr"] * u for u in updates), *state.mu, *state.nu]

    return step


def candidates() -> tuple[dict[str, Step], dict[str, str]]:
    """Return what can be timed here, and why the rest cannot."""
    compiled = torch.compile(composed, dynamic=False)
    found: dict[str, Step] = {"fused": fused, "composed": composed, "compiled": compiled}
    failed = {}
    for name, accelerated in (("TorchOpt", False), ("TorchOpt accelerated", True)):
        try:
            found[name] = torchopt_step(accelerated)
        except Exception as error:  # noqa: PERF203 - a peer's failure is a result
            failed[name] = f"{type(error).__name__}: {error}"
    return found, failed


def make_inputs(shapes: list[tuple[int, ...]], seed: int) -> tuple[Column, Column, Column]:
    """Return gradients and moments that require grad, as in the middle of an unrolled loop."""
    generator = torch.Generator(DEVICE[0]).manual_seed(seed)
    g, m, v = (
        [torch.randn(s, generator=generator, device=DEVICE[0]) for s in shapes] for _ in range(3)
    )
    v = [x.abs() + 1e-3 for x in v]
    for x in (*g, *m, *v):
        x.requires_grad_()
    return g, m, v


def forward_and_backward(
    step: Step, inputs: tuple[Column, Column, Column], weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """Take the step and its vector-Jacobian product in all inputs."""
    flat = [t for column in inputs for t in column]
    return torch.autograd.grad(step(*inputs), flat, weights)


def compare(name: str, actual: Step, shapes: list[tuple[int, ...]]) -> None:
    """Raise unless a candidate's values and derivatives are those of the composed step."""
    inputs = make_inputs(shapes, 0)
    weights = [torch.randn_like(t) for column in inputs for t in column]
    pairs = zip(
        (*actual(*inputs), *forward_and_backward(actual, inputs, weights)),
        (*composed(*inputs), *forward_and_backward(composed, inputs, weights)),
        strict=True,
    )
    for a, b in pairs:
        error = (a - b).norm() / b.norm().clamp_min(1e-30)
        if not error < 1e-5:
            raise ArithmeticError(f"{name} is off by {error:.1e}")


class Nothing(torch.autograd.Function):
    """A node with the inputs, outputs and saved tensors of a step, which only allocates."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Allocate the outputs."""
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return tuple(map(torch.empty_like, inputs))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, ...]:
        """Allocate the cotangents."""
        return tuple(map(torch.empty_like, ctx.saved_tensors))


def nothing(grads: Column, exp_avgs: Column, exp_avg_sqs: Column) -> list[Tensor]:
    """Take the step without computing anything: what torch itself needs for one node."""
    bare = super(torch.autograd.Function, Nothing)  # without what function transforms need
    return list(bare.apply(*grads, *exp_avgs, *exp_avg_sqs))  # type: ignore[attr-defined]


# Rules by the number of their states. Where an average of squares is asked for, any state that
# is positive will do.
RULES: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "Adam": (2, lambda g, s: adam_step(g, s[0], s[1], STEP, **NUMBERS)),
    "AMSGrad": (3, lambda g, s: amsgrad_step(g, s[0], s[1], s[2], STEP, **NUMBERS)),
    "NAdam": (2, lambda g, s: nadam_step(g, s[0], s[1], 0.5, STEP, **NUMBERS)[:3]),
    "SGD": (0, lambda g, s: sgd_step(g, None, STEP, lr=0.1)),
    "SGD, momentum": (1, lambda g, s: sgd_step(g, s[0], STEP, lr=0.1, momentum=0.9)),
    "RMSProp": (1, lambda g, s: rmsprop_step(g, *s, lr=0.1, alpha=0.9, eps=1e-8)),
    "RMSProp, all": (
        3,
        lambda g, s: rmsprop_step(g, *s, lr=0.1, alpha=0.9, eps=1e-8, centered=True, momentum=0.9),
    ),
    "AdaGrad": (1, lambda g, s: adagrad_step(g, s[0], STEP, lr=0.1, eps=1e-8)),
    "Lion": (1, lambda g, s: lion_step(g, *s, lr=0.1, betas=NUMBERS["betas"])),
}


def bytes_moved(size: int, states: int) -> int:
    """Return the bytes of float32 that both passes of a step read and write.

    The forward pass reads gradient and states and writes update and states; the backward pass
    reads these inputs and the cotangents and writes cotangents.
    """
    return 5 * (1 + states) * 4 * size
