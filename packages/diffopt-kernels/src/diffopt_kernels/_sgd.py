"""Stochastic gradient descent, with momentum: http://proceedings.mlr.press/v28/sutskever13.html."""

from collections.abc import Sequence
from math import inf
from typing import Any

from torch import Tensor

from diffopt_kernels._check import Number, is_on
from diffopt_kernels._composed import like
from diffopt_kernels._rule import Rule
from diffopt_kernels._step import Known, step, step_


def _formula(
    variant: int, step: int, numbers: Sequence[Any], g: Tensor, states: list[Tensor]
) -> tuple[Tensor, ...]:
    lr, momentum, dampening, _ = numbers
    if not states:
        return (like(-lr, g) * g,)
    (b,) = states
    b = g.clone() if step == 1 else like(momentum, b) * b + like(1 - dampening, b) * g
    direction = g + like(momentum, b) * b if variant == 2 else b
    return like(-lr, b) * direction, b


SGD = Rule(
    name="sgd",
    numbers={"lr": inf, "momentum": inf, "dampening": inf},
    states=((), ("momentum_buffers",), ("momentum_buffers",)),  # plain, heavy ball, Nesterov
    formula=_formula,
)


def sgd_step(
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] | None,
    steps: int | Sequence[int],
    *,
    lr: Number,
    momentum: Number = 0.0,
    dampening: Number = 0.0,
    weight_decay: Number = 0.0,
    nesterov: bool = False,
    params: Sequence[Tensor] | None = None,
    maximize: bool = False,
    applied: bool = False,
    known: Known = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute one step of gradient descent of a list of tensors, differentiable to any order.

    For a gradient ``g``, its momentum buffer ``b``, a parameter ``p`` and the step number ``t``,
    this computes what ``torch.optim.SGD`` does::

        g <- -g                                        if maximize
        g <- g + weight_decay * p
        b <- g if t = 1 else momentum * b + (1 - dampening) * g
        update = -lr * (g + momentum * b if nesterov else b)

    Where `momentum` is the number 0, ``update = -lr * g`` and there are no buffers.

    Args:
        grads: Gradients, each of any shape, layout and floating-point dtype.
        momentum_buffers: Buffers ``b``, each like its gradient in shape, dtype and device. In a
            tensor's first step they are not read. Without momentum they may be None.
        steps: Number of the step that this call takes, counted from 1; for all tensors, or one
            for each.
        lr: Learning rate, at least 0. Like all numbers here, it may be a 0-d tensor, or a list or
            1-d tensor with one number for each tensor of the list. A tensor gets its exact
            derivative if it requires grad; its range is not checked.
        momentum: Share of the buffer that is kept, at least 0.
        dampening: Share of the gradient that is not added to the buffer, at least 0.
        weight_decay: Factor of the L2 penalty, at least 0.
        nesterov: Step ahead along the buffer; needs `momentum` and no `dampening`.
        params: Parameters, needed if `applied`, or if `weight_decay` is a tensor or not 0.
        maximize: Go up along the gradients.
        applied: Return the new parameters, ``params + updates``, in the place of the updates.
        known: What the step gives anew, as lists in the order of what is returned, if the very same
            call has given it before. It is not computed again, only made part of the graph: to
            differentiate a step of which the result was kept, but not the graph.

    Returns:
        Updates, to be *added* to the parameters, and new buffers: lists of new tensors. Without
        momentum the buffers come back as they are. bfloat16 and float16 are computed in float32.

    Raises:
        ValueError: If lists differ in length, tensors of one index in shape, dtype or device, or a
            number is out of its range.
        TypeError: If an argument is not a list of tensors, or a step not an integer.

    Example:
        >>> import torch
        >>> momentum = torch.tensor(0.9, requires_grad=True)
        >>> g, b = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])
        >>> updates, buffers = sgd_step([g], [b], 2, lr=0.1, momentum=momentum)
        >>> updates[0].detach()
        tensor([-0.1450,  0.1550])
        >>> torch.autograd.grad(updates[0][0], momentum)
        (tensor(-0.0500),)

    Source:
        Sutskever et al., *On the importance of initialization and momentum in deep learning*,
        ICML 2013, eqs. 1-4, with the step size factored out as torch.optim.SGD does.
    """
    variant = _variant(momentum, dampening, nesterov)
    states = (momentum_buffers,) if variant else ()
    numbers = (lr, momentum, dampening)
    updates, *new = step(
        SGD, variant, grads, states, steps, numbers, weight_decay, params, False, maximize, applied,
        known,
    )  # fmt: skip
    return updates, new[0] if new else list(momentum_buffers or ())


def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] | None,
    steps: int | Sequence[int],
    *,
    lr: Number,
    momentum: Number = 0.0,
    dampening: Number = 0.0,
    weight_decay: Number = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> None:
    """Take one step of gradient descent in place, for training without meta-gradients.

    Writes over `params` and `momentum_buffers`; see `sgd_step` for the formula and the arguments,
    and `adam_step_` for what is refused.

    Example:
        >>> import torch
        >>> p, b = torch.ones(2), torch.zeros(2)
        >>> sgd_step_([p], [torch.tensor([3.0, -4.0])], [b], 1, lr=0.1, momentum=0.9)
        >>> p
        tensor([0.7000, 1.4000])
    """
    variant = _variant(momentum, dampening, nesterov)
    states = (momentum_buffers,) if variant else ()
    numbers = (lr, momentum, dampening)
    step_(SGD, variant, params, grads, states, steps, numbers, weight_decay, False, maximize)


def _variant(momentum: Any, dampening: Any, nesterov: bool) -> int:
    if nesterov and (not is_on(momentum) or is_on(dampening)):
        raise ValueError("`nesterov` needs `momentum`, and no `dampening`.")
    return 2 if nesterov else 1 if is_on(momentum) else 0
